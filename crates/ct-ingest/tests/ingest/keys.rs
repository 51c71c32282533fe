//! The key of the pseudonyms, and what makes a cohort synthetic.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ct_ingest::IngestError;
use ct_ingest::assemble;
use ct_ingest::dicom_run::{self, DicomRun};
use ct_ingest::key::KeySource;
use ct_ingest::partition::Partition;
use ct_ingest::settings::{Match, Settings};
use ct_read::scan::Format;
use diag_data::case::SYNTHETIC_MARK;
use diag_data::manifest::{CaseRow, KeyKind, Manifest};
use diag_data::shard::ShardSet;

use crate::common::{Cohort, Dicom, program, series, settings, with_control};
use crate::tested::{aside, changed, run};

const TABLE: &str = "case_id,label,split\na,normal,train\nd,covid-19,test\n";

/// A series of ct-phantom, as far as its mark goes.
fn marked(case: usize) -> Vec<Dicom> {
    let mut slices = series(case);
    slices.iter_mut().for_each(|slice| slice.text(0x0020_4000, "LT", SYNTHETIC_MARK));
    slices
}

/// A cohort of the cases `a` and `d`, of which each is in another of two partitions.
fn cohort(a: &[Dicom], d: &[Dicom]) -> Cohort {
    let cohort = Cohort::new();
    cohort.label(TABLE);
    cohort.write("a", a);
    cohort.write("d", d);
    cohort
}

fn ingest(cohort: &Cohort, config_home: &Path, out: &str) -> Command {
    let mut command = program(config_home);
    command.arg("dicom").arg(cohort.dicom()).arg("--labels").arg(cohort.dicom().join("labels.csv"));
    command.args(["--select", "all", "--size", "64", "--out"]).arg(cohort.folder.path().join(out));
    command
}

#[track_caller]
fn made(command: &mut Command) -> String {
    let output: Output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(matches!(output.status.code(), Some(0 | 3)), "{text}");
    text
}

fn manifest(cohort: &Cohort, out: &str) -> Manifest {
    ShardSet::open(&cohort.folder.path().join(out)).unwrap().manifest().clone()
}

fn cases(cohort: &Cohort, out: &str) -> Vec<CaseRow> {
    ShardSet::open(&cohort.folder.path().join(out)).unwrap().cases().unwrap()
}

fn text(cohort: &Cohort, file: &str) -> String {
    std::fs::read_to_string(cohort.folder.path().join(file)).unwrap()
}

#[test]
fn the_first_run_draws_a_key_and_later_ones_use_it() {
    let cohort = cohort(&series(1), &series(2));
    let home = |name: &str| cohort.folder.path().join(name);
    let key = home("home").join("covid19-diag/pseudonym.key");
    let told = made(&mut ingest(&cohort, &home("home"), "one"));
    assert!(told.contains(&format!("a new key of the pseudonyms is in {}", key.display())), "{told}");
    assert_eq!(std::fs::read(&key).unwrap().len(), 32);
    let told = made(&mut ingest(&cohort, &home("home"), "two"));
    assert!(!told.contains("key"), "told once: {told}");
    assert_eq!(text(&cohort, "one/SHA256SUMS"), text(&cohort, "two/SHA256SUMS"));
    assert_eq!(manifest(&cohort, "one").key.kind, KeyKind::Machine);
    // Another user has another key, and hashes that say nothing about these.
    made(&mut ingest(&cohort, &home("other"), "three"));
    assert_ne!(manifest(&cohort, "three").key.id, manifest(&cohort, "one").key.id);
    let patients = |out| cases(&cohort, out).into_iter().map(|case| case.patient_hash).collect::<Vec<_>>();
    assert!(patients("three").iter().all(|patient| !patients("one").contains(patient)));
}

#[test]
fn a_key_that_cannot_be_kept_is_an_error_that_names_the_flag() {
    let cohort = cohort(&series(1), &series(2));
    let blocked = cohort.folder.path().join("blocked");
    std::fs::write(&blocked, b"no folder").unwrap();
    let output = ingest(&cohort, &blocked, "shards").output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("cannot keep a key") && told.contains("--key-file"), "{told}");
    assert!(!cohort.shards().exists());
}

#[test]
fn a_key_file_is_named_by_flag_or_variable() {
    let cohort = cohort(&series(1), &series(2));
    let home = cohort.folder.path().join("home");
    let file = |name: &str, byte: u8| {
        let path = cohort.folder.path().join(name);
        std::fs::write(&path, [byte; 32]).unwrap();
        path
    };
    let (one, two) = (file("one.key", 1), file("two.key", 2));
    made(ingest(&cohort, &home, "flag").arg("--key-file").arg(&one));
    made(ingest(&cohort, &home, "variable").env("COVID19_DIAG_KEY_FILE", &one));
    made(ingest(&cohort, &home, "both").env("COVID19_DIAG_KEY_FILE", &two).arg("--key-file").arg(&one));
    let key = manifest(&cohort, "flag").key;
    assert_eq!(key.kind, KeyKind::File);
    assert_eq!([manifest(&cohort, "variable").key, manifest(&cohort, "both").key], [key.clone(), key]);
    assert!(!home.exists(), "no key is drawn where one is given");
}

#[test]
fn the_public_key_is_said_to_be_public() {
    let cohort = cohort(&series(1), &series(2));
    let home = cohort.folder.path().join("home");
    made(ingest(&cohort, &home, "shards").arg("--public-key-anyone-can-test-names"));
    assert_eq!(manifest(&cohort, "shards").key.kind, KeyKind::Public);
    assert!(text(&cohort, "shards/README.md").contains("key of these pseudonyms is public"));
    assert!(!home.exists());
}

#[test]
fn synthetic_cohorts_have_the_public_key() {
    let cohort = cohort(&marked(1), &marked(2));
    let home = cohort.folder.path().join("home");
    made(&mut ingest(&cohort, &home, "shards"));
    let manifest = manifest(&cohort, "shards");
    assert_eq!((manifest.key.kind, manifest.synthetic), (KeyKind::Public, true));
    let readme = text(&cohort, "shards/README.md");
    assert!(readme.contains("SYNTHETIC") && !readme.contains("is public"), "{readme}");
    assert!(!home.exists());
}

#[test]
fn no_word_but_the_mark_makes_a_file_synthetic() {
    let almost = |case: usize| {
        let mut slices = series(case);
        for slice in &mut slices {
            slice.text(0x0010_0010, "PN", "SYNTHETIC^CASE-1");
            slice.text(0x0008_0050, "SH", "SYNTHETIC");
            slice.text(0x0020_4000, "LT", &format!("{SYNTHETIC_MARK}, or so"));
        }
        slices
    };
    let cohort = cohort(&almost(1), &almost(2));
    let summary = cohort.run(settings()).0.unwrap();
    assert!(!summary.manifest.synthetic);
}

#[test]
fn synthetic_and_other_cases_do_not_mix() {
    for (a, d, told) in [
        (marked(1), series(2), "the images of a are synthetic, those of d are not"),
        (series(1), marked(2), "the images of d are synthetic, those of a are not"),
    ] {
        let cohort = cohort(&a, &d);
        let err = cohort.run(settings()).0.unwrap_err();
        assert_eq!(err.to_string(), told);
        let left: Vec<_> =
            std::fs::read_dir(cohort.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["dicom"]);
    }
    // Inside one series they set the case aside.
    let mixed = |series: &mut Vec<Dicom>| series[2].text(0x0020_4000, "LT", SYNTHETIC_MARK);
    aside(mixed, "mixed-origin");
}

#[test]
fn partitions_of_other_origin_or_key_are_not_joined() {
    let part = |cohort: &Cohort, index: u32, name: &str, key: KeySource| {
        let out = cohort.folder.path().join(name);
        let run = DicomRun {
            format: Format::Dicom,
            root: cohort.dicom(),
            labels: cohort.dicom().join("labels.csv"),
            out: out.clone(),
            matching: Match::Folder,
            settings: Settings { partition: Some(Partition { index, count: 2 }), key, ..settings() },
        };
        with_control(|control| dicom_run::ingest(&run, control)).0.unwrap();
        out
    };
    let merged = |parts: &[PathBuf], out: &Path| {
        with_control(|control| assemble::merge(parts, out, control)).0.unwrap_err()
    };
    let plain = cohort(&series(1), &series(2));
    let out = plain.folder.path().join("merged");
    let parts = [part(&plain, 0, "p0", settings().key), part(&plain, 1, "p1", KeySource::Public)];
    let err = merged(&parts, &out);
    assert!(matches!(err, IngestError::Keys { .. }) && err.to_string().contains("different keys"), "{err}");
    assert!(err.remedy().contains("--key-file"));
    // Partitions of one key whose images became others between the runs.
    let synthetic = cohort(&marked(1), &marked(2));
    let parts = [part(&plain, 0, "q0", settings().key), part(&synthetic, 1, "q1", settings().key)];
    assert_eq!(merged(&parts, &out).to_string(), "the images of d are synthetic, those of a are not");
    assert!(!out.exists());
}

#[test]
fn a_cohort_s_name_salts_its_cases_and_not_its_patients() {
    let cohort = cohort(&series(1), &series(2));
    let named = |name: Option<&str>| {
        let _ = std::fs::remove_dir_all(cohort.shards());
        let settings = Settings { cohort: name.map(String::from), keep_case_ids: false, ..settings() };
        cohort.run(settings).0.unwrap();
        let rows = cases(&cohort, "shards");
        let mut patients: Vec<_> = rows.iter().map(|row| row.patient_hash.clone()).collect();
        patients.sort();
        (rows.into_iter().map(|row| row.case_id).collect::<Vec<_>>(), patients)
    };
    let (plain, spring, autumn) = (named(None), named(Some("spring")), named(Some("autumn")));
    assert_eq!(named(Some("spring")), spring);
    assert!(plain.1 == spring.1 && spring.1 == autumn.1);
    let ids = |case: &(Vec<_>, Vec<_>)| case.0.clone();
    let all: std::collections::BTreeSet<_> = [&plain, &spring, &autumn].into_iter().flat_map(ids).collect();
    assert_eq!(all.len(), 6);
}

#[test]
fn what_does_not_say_that_nothing_is_burned_in_is_told_and_counted() {
    type Change = fn(&mut Vec<Dicom>);
    let changes: [(Change, u64); 4] = [
        (|series| series[3].text(0x0028_0301, "CS", "no"), 0),
        (|series| series[3].text(0x0028_0301, "CS", ""), 1),
        (|series| series[3].text(0x0028_0301, "CS", "MAYBE"), 1),
        (
            |series| {
                series[3].elements.remove(&0x0028_0301);
            },
            1,
        ),
    ];
    for (change, n_told) in changes {
        let (cohort, codes) = run(&changed(change), settings());
        assert_eq!(codes, Vec::<String>::new());
        assert_eq!(manifest(&cohort, "shards").n_cases_burned_in_unknown, n_told);
        let told = cases(&cohort, "shards").into_iter().flat_map(|case| case.warnings);
        assert_eq!(
            told.filter(|warning| warning.starts_with("BurnedInAnnotation is neither")).count() as u64,
            n_told
        );
        assert!(text(&cohort, "shards/README.md").contains("not searched for text"));
    }
}
