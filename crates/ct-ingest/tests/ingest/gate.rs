//! The whole run: identity, leakage, determinism, label tables, Table 1.

use std::path::Path;

use crate::common::{Cohort, SIDE, program, rows, series, settings};
use ct_ingest::settings::Settings;
use ct_ingest::table::{self, Comparison};
use ct_ingest::verify;
use diag_data::case::{CaseId, Label, LabelSet, Split};
use diag_data::manifest::{CaseRow, Flow, KeyInfo, KeyKind, Layout, ShardSpec};
use diag_data::reader::ReaderSettings;
use diag_data::shard::{Job, Outcome, ShardSet, ShardWriter};
use diag_data::slice::{Acquisition, CtSlice, Geometry, Provenance, Selection};

const TABLE: &str = "case_id,label,split\nPetersen_Hans,normal,train\nSMITH,covid-19,test\n";

fn cohort() -> Cohort {
    let cohort = Cohort::new();
    cohort.label(TABLE);
    cohort.write("Petersen_Hans", &series(1));
    cohort.write("SMITH", &series(2));
    cohort
}

fn all_bytes(folder: &Path, into: &mut Vec<(String, Vec<u8>)>) {
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            all_bytes(&path, into);
        } else {
            into.push((path.file_name().unwrap().to_string_lossy().into(), std::fs::read(&path).unwrap()));
        }
    }
}

fn contents(cohort: &Cohort) -> Vec<(String, Vec<u8>)> {
    let mut files = Vec::new();
    all_bytes(&cohort.shards(), &mut files);
    files
}

#[test]
fn ages_are_capped() {
    let cohort = cohort();
    cohort.run(settings()).0.unwrap();
    let cases = ShardSet::open(&cohort.shards()).unwrap().cases().unwrap();
    assert!(cases.iter().all(|case| case.patient_age_years == Some(90)));
}

#[test]
fn one_patient_in_two_parts_is_a_leak() {
    let cohort = cohort();
    let mut second = series(2);
    second.iter_mut().for_each(|slice| slice.text(0x0010_0020, "LO", "PATIENT-1"));
    // Other pixels, so that only the patient is shared.
    second
        .iter_mut()
        .for_each(|slice| slice.stored(&slice.stored_values().iter().map(|v| v + 3).collect::<Vec<_>>()));
    cohort.write("SMITH", &second);
    let (result, codes) = cohort.run(settings());
    result.unwrap();
    assert_eq!(codes, ["leak"]);
    assert_eq!(leaks(&cohort), [("patient", 1), ("look", 36)]);
}

fn leaks(cohort: &Cohort) -> Vec<(&'static str, usize)> {
    let leaks = verify::verify(&cohort.shards()).unwrap().leaks;
    leaks.iter().map(|leak| (leak.what, leak.count)).collect()
}

#[test]
fn slices_that_look_alike_in_two_parts_are_listed() {
    // The same patient once more, with other noise and a little brighter; nothing else gives it away.
    let cohort = cohort();
    let mut second = series(2);
    for (i, slice) in second.iter_mut().enumerate() {
        let noisy = slice.stored_values().into_iter().enumerate();
        slice.stored(&noisy.map(|(at, value)| value + 4 + ((at * 31 + i) % 7) as i16).collect::<Vec<_>>());
    }
    cohort.write("SMITH", &second);
    let (result, codes) = cohort.run(settings());
    assert_eq!(result.unwrap().n_quarantined, 1);
    assert_eq!(codes, Vec::<String>::new(), "nothing else is wrong");
    let lines = ShardSet::open(&cohort.shards()).unwrap().quarantined().unwrap();
    assert_eq!(
        (lines[0].source.as_str(), lines[0].reason.as_str()),
        ("Petersen_Hans SMITH", "near-duplicates")
    );
    let found = verify::verify(&cohort.shards()).unwrap().leaks;
    assert_eq!(found[0].cases.iter().map(CaseId::as_str).collect::<Vec<_>>(), ["Petersen_Hans", "SMITH"]);
    assert!(found[0].pairs.iter().all(|pair| pair.distance <= diag_data::difference_hash::MAX_DISTANCE));
}

#[test]
fn slices_that_look_different_are_not() {
    let cohort = cohort();
    let mut second = series(2);
    for slice in &mut second {
        // Lying on the other side, and higher on the table.
        let values = slice.stored_values();
        let turned = (0..values.len()).map(|at| values[(at % SIDE) * SIDE + at / SIDE]);
        slice.stored(&turned.collect::<Vec<_>>());
    }
    cohort.write("SMITH", &second);
    assert_eq!(cohort.run(settings()).0.unwrap().n_quarantined, 0);
    assert_eq!(leaks(&cohort), []);
}

#[test]
fn the_same_pixels_in_two_parts_are_a_leak() {
    // The crafted series of both cases show the same six slices, two of which have the same grey levels.
    let cohort = cohort();
    let (result, codes) = cohort.run(settings());
    result.unwrap();
    assert_eq!(codes, ["leak"]);
    assert_eq!(leaks(&cohort), [("pixels", 5), ("look", 28)]);
}

#[test]
fn a_drawn_split_keeps_a_patient_together() {
    for seed in 0..8 {
        let cohort = Cohort::new();
        let mut table = String::from("case_id,label\n");
        for case in 0..8 {
            let mut slices = series(case);
            for slice in &mut slices {
                slice.text(0x0010_0020, "LO", &format!("P{}", case / 2));
                slice.stored(&slice.stored_values().iter().map(|v| v + 7 * case as i16).collect::<Vec<_>>());
            }
            cohort.write(&format!("c{case}"), &slices);
            table.push_str(&format!("c{case},{}\n", if case < 4 { "normal" } else { "covid-19" }));
        }
        cohort.label(&table);
        let (result, codes) = cohort.run(Settings { seed, ..settings() });
        result.unwrap();
        // All crafted chests look alike; the patients must not be shared.
        assert!(!codes.contains(&"leak".to_string()), "seed {seed}: {codes:?}");
    }
}

#[test]
fn the_bytes_do_not_depend_on_threads() {
    let made = |jobs| {
        let cohort = cohort();
        cohort.run(Settings { jobs: Some(jobs), ..settings() }).0.unwrap();
        contents(&cohort)
    };
    assert_eq!(made(1), made(3));
}

#[test]
fn a_broken_case_does_not_change_the_others_bytes() {
    let made = |file: Option<&[u8]>| {
        let cohort = Cohort::new();
        cohort.label("case_id,label\na,normal\nb,normal\nc,covid-19\nd,covid-19\nbroken,normal\n");
        for (case, name) in ["a", "b", "c", "d"].iter().enumerate() {
            cohort.write(name, &series(case));
        }
        if let Some(bytes) = file {
            cohort.write_files("broken", &[bytes.to_vec()]);
        }
        cohort.run(settings()).0.unwrap();
        let is_data = |name: &str| name.ends_with(".parquet");
        contents(&cohort).into_iter().filter(|(name, _)| is_data(name)).collect::<Vec<_>>()
    };
    let without = made(None);
    assert_eq!(without, made(Some(b"")));
    assert_eq!(without, made(Some(&series(9)[0].bytes()[..3000])));
}

#[track_caller]
fn refused(table: &str, what: &str) {
    let cohort = cohort();
    cohort.label(table);
    let err = cohort.run(settings()).0.unwrap_err();
    assert!(err.to_string().contains(what), "{err}");
    assert!(!cohort.shards().exists());
    let n_left = std::fs::read_dir(cohort.folder.path()).unwrap().count();
    assert_eq!(n_left, 1, "only the input is there");
}

#[test]
fn a_wrong_label_table_is_refused_with_its_line() {
    refused("case_id,label\nSMITH,covid-91\nPetersen_Hans,normal\n", "the label looks like `covid-19`");
    refused("case_id,label\nSMITH,covid-19\nSMITH,normal\n", "line 3");
    refused("case_id,label\nSMITH,\nPetersen_Hans,normal\n", "line 2");
    refused(
        "case_id,label,split\nSMITH,covid-19,train\nPetersen_Hans,normal,\n",
        "1 of 2 cases have a split",
    );
    refused("case,label\nSMITH,covid-19\n", "no column case_id");
    refused("case_id,label\n", "");
}

#[test]
fn missing_cases_and_labels_are_set_aside() {
    let cohort = cohort();
    cohort.label("case_id,label,split\nSMITH,covid-19,train\nabsent,normal,test\n");
    let (result, codes) = cohort.run(settings());
    assert_eq!(codes, ["no-label", "no-files"]);
    let flow = result.unwrap().manifest.flow;
    assert!(flow.files.adds_up() && flow.cases.adds_up() && flow.series.adds_up() && flow.slices.adds_up());
    assert_eq!((flow.files.seen, flow.files.used, flow.cases.seen, flow.cases.used), (13, 6, 2, 1));
}

#[test]
fn a_changed_shard_does_not_verify() {
    let cohort = cohort();
    cohort.run(settings()).0.unwrap();
    assert_eq!(verify::verify(&cohort.shards()).unwrap().n_slices, 12);
    let path = cohort.shards().join("manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"seen\": 2", "\"seen\": 3")).unwrap();
    assert!(verify::verify(&cohort.shards()).is_err());
}

#[test]
fn a_stopped_run_leaves_nothing() {
    let cohort = cohort();
    let run = ct_ingest::dicom_run::DicomRun {
        format: ct_read::scan::Format::Dicom,
        root: cohort.dicom(),
        labels: cohort.dicom().join("labels.csv"),
        out: cohort.shards(),
        matching: ct_ingest::settings::Match::Folder,
        settings: settings(),
    };
    let stop = std::sync::atomic::AtomicBool::new(true);
    let control = ct_ingest::run::Control { on_event: &|_| (), stop: &stop };
    let err = ct_ingest::dicom_run::ingest(&run, &control).unwrap_err();
    assert!(matches!(err, ct_ingest::IngestError::Interrupted));
    assert_eq!(std::fs::read_dir(cohort.folder.path()).unwrap().count(), 1);
}

#[test]
fn rows_are_found_by_their_kept_names() {
    let cohort = cohort();
    cohort.run(settings()).0.unwrap();
    assert_eq!(rows(&cohort.shards(), "SMITH").len(), 6);
}

/// Shards of tiny pictures with the given cases and slices by class and part.
fn shards_of(root: &Path, cells: &[(&str, Split, u64, u64)]) -> std::path::PathBuf {
    let labels = LabelSet::paper();
    let spec = ShardSpec {
        labels: labels.clone(),
        reader: ReaderSettings { size: 8, ..ReaderSettings::IMAGES },
        layout: Layout::Raw,
        with_hu: false,
        split_seed: None,
    };
    let target = root.join("shards");
    let key = KeyInfo { kind: KeyKind::Public, id: "0123abcd".into() };
    let job = Job { spec, key, tool: "test".into(), config: serde_json::json!({}) };
    let mut writer = ShardWriter::create(&target, job).unwrap();
    let mut outcome = Outcome { flow: Flow::default(), ..Outcome::default() };
    for &(class, split, n_cases, n_slices) in cells {
        let label: Label = labels.find(class).unwrap();
        for case in 0..n_cases {
            let case_id = CaseId::new(format!("{class}-{split}-{case}")).unwrap();
            let n_of_case = n_slices / n_cases + u64::from(case < n_slices % n_cases);
            let slice = |index: u64| CtSlice {
                case_id: case_id.clone(),
                slice_index: index as i32,
                label,
                split,
                pixels: vec![0; 64],
                hu: None,
                geometry: Geometry::default(),
                acquisition: Acquisition::default(),
                selection: Selection::default(),
                provenance: Provenance::default(),
            };
            writer.append((0..n_of_case).map(slice).collect()).unwrap();
            outcome.cases.push(CaseRow {
                case_id: case_id.clone(),
                label,
                split,
                n_slices: n_of_case as i32,
                n_source_slices: n_of_case as i32,
                lung_fraction_source: None,
                lung_fraction: None,
                patient_hash: None,
                study_uid_hash: None,
                series_uid_hash: None,
                manufacturer: None,
                model: None,
                kernel: None,
                slice_thickness_mm: None,
                patient_sex: None,
                patient_age_years: None,
                warnings: Vec::new(),
            });
        }
    }
    writer.finish(outcome, |_| Default::default()).unwrap();
    target
}

fn compared(cells: &[(&str, Split, u64, u64)]) -> Comparison {
    let folder = tempfile::tempdir().unwrap();
    let declared_path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/covid19-diag/table1.toml");
    let declared = table::read_declared(&declared_path).unwrap();
    table::compare(&shards_of(folder.path(), cells), Some(&declared)).unwrap()
}

const CASES_SWAPPED: &str =
    "the case totals of covid-19 (43+18=61) and bacterial-pneumonia (48+21=69) look swapped: ";

#[test]
fn table_1_itself_passes_and_its_contradiction_is_told() {
    let found = compared(&[
        ("covid-19", Split::Train, 43, 1256),
        ("covid-19", Split::Test, 18, 513),
        ("normal", Split::Train, 67, 2674),
        ("normal", Split::Test, 28, 1150),
        ("bacterial-pneumonia", Split::Train, 48, 980),
        ("bacterial-pneumonia", Split::Test, 21, 409),
    ]);
    assert!(found.equal);
    assert_eq!(found.explanations, Vec::<String>::new());
    assert_eq!(
        found.contradictions,
        [
            format!("{CASES_SWAPPED}its source states 69 and 62"),
            "with that put right, one bacterial-pneumonia case is missing from the declared table (61 there, its \
             source states 62)"
                .into(),
        ]
    );
}

#[test]
fn a_cohort_of_the_stated_volumes_is_explained() {
    let found = compared(&[
        ("covid-19", Split::Train, 48, 1256),
        ("covid-19", Split::Test, 21, 513),
        ("normal", Split::Train, 67, 2674),
        ("normal", Split::Test, 28, 1150),
        ("bacterial-pneumonia", Split::Train, 44, 980),
        ("bacterial-pneumonia", Split::Test, 18, 409),
    ]);
    assert!(!found.equal);
    assert_eq!(
        found.explanations,
        [
            format!("{CASES_SWAPPED}the shards hold 69 and 62"),
            "with that put right, one bacterial-pneumonia case is missing from the declared table (61 there, the \
             shards hold 62)"
                .into(),
        ]
    );
}

#[test]
fn one_study_uid_in_every_patient_is_a_placeholder() {
    let run = |tag: u32| {
        let cohort = Cohort::new();
        let mut table = String::from("case_id,label,split\n");
        for case in 1..=4 {
            let mut slices = series(case);
            for slice in &mut slices {
                slice.stored(
                    &slice.stored_values().iter().map(|value| value - 7 * case as i16).collect::<Vec<_>>(),
                );
                slice.text(tag, "UI", "1.2.3");
            }
            cohort.write(&format!("c{case}"), &slices);
            let split = if case % 2 == 0 { "train" } else { "test" };
            table.push_str(&format!("c{case},{},{split}\n", if case < 3 { "normal" } else { "covid-19" }));
        }
        cohort.label(&table);
        let (result, codes) = cohort.run(settings());
        result.unwrap();
        codes
    };
    assert_eq!(run(0x0020_000D), Vec::<String>::new());
    assert_eq!(run(0x0020_000E), Vec::<String>::new());
}

/// What a run of the command tells on standard error.
fn told(cohort: &Cohort, command: &str, arguments: &[&str]) -> String {
    let mut program = program(cohort.folder.path());
    program.arg(command).arg(cohort.dicom()).arg("--out").arg(cohort.shards()).args(arguments);
    let told = String::from_utf8(program.output().unwrap().stderr).unwrap();
    // Nothing of it may be left for the next run.
    let _ = std::fs::remove_dir_all(cohort.shards());
    told
}

#[test]
fn ids_that_name_no_folder_are_counted_and_shown_where_paths_may_be() {
    let cohort = Cohort::new();
    cohort.write("0017", &series(1));
    cohort.write("b", &series(2));
    cohort.label("case_id,label\n17,normal\nb,covid-19\n");
    let labels = cohort.dicom().join("labels.csv");
    let hidden = told(&cohort, "dicom", &["--labels", labels.to_str().unwrap()]);
    assert!(hidden.contains("1 of 2 case_ids name no folder or file: compare both sides"), "{hidden}");
    assert!(!hidden.contains("0017"), "{hidden}");
    let shown = told(&cohort, "dicom", &["--labels", labels.to_str().unwrap(), "--keep-paths"]);
    let want = "the table has `17`, the folders that no case_id names are `0017`; leading zeros were lost";
    assert!(shown.contains(want), "{shown}");
}

#[test]
fn a_patient_of_several_studies_is_told() {
    let cohort = Cohort::new();
    cohort.write("one", &series(1));
    let mut later = series(1);
    for slice in &mut later {
        slice.text(0x0020_000D, "UI", "1.2.4.9");
        slice.text(0x0020_000E, "UI", "1.2.5.9");
    }
    cohort.write("later", &later);
    cohort.write("two", &series(2));
    cohort.label("case_id,label\nPATIENT-1,normal\nPATIENT-2,covid-19\n");
    let labels = cohort.dicom().join("labels.csv");
    let told = told(&cohort, "dicom", &["--labels", labels.to_str().unwrap(), "--match", "patient-id"]);
    assert!(told.contains("patients of the label table with several studies: 1 (line 2)"), "{told}");
    assert!(!told.contains("PATIENT-1"), "{told}");
}

#[test]
fn lists_of_a_split_that_is_not_used_are_told() {
    let cohort = Cohort::new();
    for (i, path) in ["a/1.png", "b/1.png"].iter().enumerate() {
        let path = cohort.dicom().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::GrayImage::from_fn(9, 9, |x, y| image::Luma([(x * 7 + y * 3) as u8 + 40 * i as u8]))
            .save(path)
            .unwrap();
    }
    std::fs::write(cohort.dicom().join("train_a.txt"), "1.png\n").unwrap();
    std::fs::write(cohort.dicom().join("notes.txt"), "x\n").unwrap();
    let hidden = told(&cohort, "images", &[]);
    assert!(
        hidden.contains("a list named train*.txt, val*.txt or test*.txt lies below the folder"),
        "{hidden}"
    );
    assert!(hidden.contains("the classes are, in alphabetical order: a, b;"), "{hidden}");
    let shown = told(&cohort, "images", &["--keep-paths"]);
    assert!(shown.contains("the list train_a.txt lies below the folder"), "{shown}");
    let alike = cohort.dicom().join("A");
    std::fs::create_dir_all(&alike).unwrap();
    std::fs::copy(cohort.dicom().join("a/1.png"), alike.join("2.png")).unwrap();
    let refused = told(&cohort, "images", &[]);
    assert!(refused.contains("the folders `A` and `a` differ only in case"), "{refused}");
}

#[test]
fn patients_of_the_table_that_are_not_those_of_the_headers_are_told() {
    let cohort = Cohort::new();
    for (i, case) in ["a", "b", "c"].into_iter().enumerate() {
        let mut slices = series(i + 1);
        if case == "b" {
            slices.iter_mut().for_each(|slice| slice.text(0x0010_0020, "LO", "PATIENT-1"));
        }
        cohort.write(case, &slices);
    }
    let labels = cohort.dicom().join("labels.csv");
    let labels = labels.to_str().unwrap();
    cohort.label("Case ID,label,PatientID,Note\na,normal,x,1\nb,covid-19,y,2\nc,normal,z,3\n");
    let split = told(&cohort, "dicom", &["--labels", labels]);
    let want = "1 PatientIDs of the headers are several patients in the label table; the table holds";
    assert!(split.contains(want), "{split}");
    assert!(split.contains("that are not known are ignored: `Note`"), "{split}");
    cohort.label("case_id,label,patient_id\na,normal,x\nb,covid-19,x\nc,normal,x\n");
    let joined = told(&cohort, "dicom", &["--labels", labels]);
    let want = "1 patients of the label table have several PatientIDs in the headers; the table holds";
    assert!(joined.contains(want), "{joined}");
    cohort.label("case_id,label,patient_id\na,normal,x\nb,covid-19,x\nc,normal,z\n");
    assert!(!told(&cohort, "dicom", &["--labels", labels]).contains("the table holds"));
}
