//! Interrupted runs continue; parts join to the whole.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::{Cohort, reading, series, settings, with_control};
use ct_ingest::IngestError;
use ct_ingest::assemble;
use ct_ingest::dicom_run::{self, DicomRun};
use ct_ingest::partition::Partition;
use ct_ingest::run::{Control, Event};
use ct_ingest::settings::{Match, Settings};
use ct_read::scan::Format;

/// Ten cases of six slices each; one of them is broken.
fn cohort() -> Cohort {
    let cohort = Cohort::new();
    let mut table = String::from("case_id,label,split\n");
    for case in 0..10 {
        cohort.write(&format!("c{case}"), &series(case));
        let (label, split) = (["normal", "covid-19"][case % 2], ["train", "test"][case / 5]);
        table.push_str(&format!("c{case},{label},{split}\n"));
    }
    std::fs::write(cohort.dicom().join("c7/broken.dcm"), b"no DICOM").unwrap();
    cohort.label(&table);
    cohort
}

fn run_to(cohort: &Cohort, out: &Path, settings: Settings) -> DicomRun {
    DicomRun {
        format: Format::Dicom,
        root: cohort.dicom(),
        labels: cohort.dicom().join("labels.csv"),
        out: out.into(),
        matching: Match::Folder,
        settings,
    }
}

fn sums(shards: &Path) -> String {
    std::fs::read_to_string(shards.join("SHA256SUMS")).unwrap()
}

fn partial(out: &Path) -> PathBuf {
    out.with_file_name(format!(".{}.partial", out.file_name().unwrap().to_string_lossy()))
}

/// Runs until some cases are done, then stops as Ctrl-C would.
fn interrupted(cohort: &Cohort, out: &Path, settings: Settings) {
    let stop = AtomicBool::new(false);
    let on_event = |event: Event<'_>| {
        if matches!(event, Event::Advanced { n_done: 4.., .. }) {
            stop.store(true, Ordering::Relaxed);
        }
    };
    let control = Control { on_event: &on_event, stop: &stop };
    let err = dicom_run::ingest(&run_to(cohort, out, settings), &control).unwrap_err();
    assert!(matches!(err, IngestError::Interrupted));
}

/// Changes the last pixel of every file of a case so that it looks untouched from outside.
fn spoil(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    }
}

#[test]
fn finished_cases_are_not_read_again() {
    let cohort = cohort();
    let (whole, out) = (cohort.folder.path().join("whole"), cohort.shards());
    let settings = Settings { jobs: Some(1), ..settings() };
    with_control(|control| dicom_run::ingest(&run_to(&cohort, &whole, settings.clone()), control)).0.unwrap();
    interrupted(&cohort, &out, settings.clone());
    let finished: Vec<String> = std::fs::read_dir(partial(&out).join("work/cases"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    assert!((4..10).contains(&finished.len()), "{finished:?}");
    finished.iter().for_each(|case| spoil(&cohort.dicom().join(case)));
    with_control(|control| dicom_run::ingest(&run_to(&cohort, &out, settings), control)).0.unwrap();
    assert_eq!(sums(&out), sums(&whole));
    assert!(!partial(&out).exists());
}

#[test]
fn a_case_whose_files_changed_is_read_again() {
    let cohort = cohort();
    let out = cohort.shards();
    let settings = Settings { jobs: Some(1), ..settings() };
    interrupted(&cohort, &out, settings.clone());
    cohort.write("c0", &series(20));
    with_control(|control| dicom_run::ingest(&run_to(&cohort, &out, settings.clone()), control)).0.unwrap();
    let whole = cohort.folder.path().join("whole");
    with_control(|control| dicom_run::ingest(&run_to(&cohort, &whole, settings), control)).0.unwrap();
    assert_eq!(sums(&out), sums(&whole));
}

#[test]
fn other_settings_start_afresh() {
    let cohort = cohort();
    let out = cohort.shards();
    interrupted(&cohort, &out, Settings { jobs: Some(1), ..reading(|reader| reader.size = 32) });
    with_control(|control| dicom_run::ingest(&run_to(&cohort, &out, settings()), control)).0.unwrap();
    let whole = cohort.folder.path().join("whole");
    with_control(|control| dicom_run::ingest(&run_to(&cohort, &whole, settings()), control)).0.unwrap();
    assert_eq!(sums(&out), sums(&whole));
}

#[test]
fn parts_join_to_the_bytes_of_one_run() {
    let cohort = cohort();
    let whole = cohort.folder.path().join("whole");
    let (_, codes) = with_control(|control| dicom_run::ingest(&run_to(&cohort, &whole, settings()), control));
    assert!(codes.contains(&"not-dicom".to_string()));
    for count in [1, 3, 20] {
        let parts: Vec<PathBuf> =
            (0..count).map(|index| cohort.folder.path().join(format!("part-{index}-of-{count}"))).collect();
        for (index, out) in parts.iter().enumerate() {
            let partition = Some(Partition { index: index as u32, count });
            let run = run_to(&cohort, out, Settings { partition, ..settings() });
            with_control(|control| dicom_run::ingest(&run, control)).0.unwrap();
        }
        let merged = cohort.folder.path().join(format!("merged-{count}"));
        let (result, codes) = with_control(|control| assemble::merge(&parts, &merged, control));
        result.unwrap();
        assert!(codes.contains(&"leak".to_string()), "leaks are found across parts: {codes:?}");
        assert_eq!(sums(&merged), sums(&whole), "{count} parts");
    }
}

#[track_caller]
fn check_refused(folders: &[PathBuf], out: &Path, what: &str) {
    let err = with_control(|control| assemble::merge(folders, out, control)).0.unwrap_err();
    assert!(err.to_string().contains(what), "{err}");
    assert!(!out.exists() && !partial(out).exists());
}

#[test]
fn parts_that_make_no_whole_are_refused() {
    let cohort = cohort();
    let folder = cohort.folder.path();
    let made = |index: u32, name: &str, settings: Settings| {
        let out = folder.join(name);
        let run =
            run_to(&cohort, &out, Settings { partition: Some(Partition { index, count: 2 }), ..settings });
        with_control(|control| dicom_run::ingest(&run, control)).0.unwrap();
        out
    };
    let (a, b) = (made(0, "a", settings()), made(1, "b", settings()));
    let other = made(1, "other", reading(|reader| reader.size = 32));
    let out = folder.join("merged");
    check_refused(std::slice::from_ref(&a), &out, "1 of 2 partitions are missing: 1");
    check_refused(&[a.clone(), b.clone(), a.clone()], &out, "are both partition 0");
    check_refused(&[a.clone(), other], &out, "another run");
    let lost = std::fs::read_dir(b.join("cases")).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_file(lost).unwrap();
    check_refused(&[a, b], &out, "cannot read");
}
