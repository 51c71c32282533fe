//! The shared small cases: each has the outcome that its README calls right.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::{reading, settings, test_data, with_control};
use ct_ingest::dicom_run::{self, DicomRun};
use ct_ingest::images_run::{self, ImagesRun};
use ct_ingest::settings::{Match, Settings};
use ct_read::picture::HuLine;
use ct_read::scan::Format;
use diag_data::reader::{ReaderSettings, Select};
use diag_data::shard::ShardSet;
use diag_data::units::HuWindow;

/// What became of a case: its number of slices, or why it was set aside.
type Outcomes = BTreeMap<String, Result<i32, String>>;

fn outcomes(folder: &Path, labels: &str, format: Format) -> Outcomes {
    let out = tempfile::tempdir().unwrap();
    let below = if format == Format::Dicom { "dicom" } else { "nifti" };
    let label_set = Some(folder.join("label-set.toml")).filter(|path| path.exists());
    let settings = Settings {
        label_set,
        with_hu: false,
        keep_paths: false,
        ..reading(|reader| {
            reader.select = Select::All;
            reader.size = 32;
        })
    };
    let run = DicomRun {
        format,
        root: folder.join(below),
        labels: folder.join(labels),
        out: out.path().join("shards"),
        matching: Match::Folder,
        settings,
    };
    let (result, _) = with_control(|control| dicom_run::ingest(&run, control));
    let mut found = Outcomes::new();
    if let Ok(summary) = result {
        let shards = ShardSet::open(&run.out).unwrap();
        for case in shards.cases().unwrap() {
            found.insert(case.case_id.to_string(), Ok(case.n_slices));
        }
        assert_eq!(found.len() as u64, summary.manifest.flow.cases.used);
        let text = std::fs::read_to_string(run.out.join("quarantine.jsonl")).unwrap();
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let (source, reason) = (line["source"].as_str().unwrap(), line["reason"].as_str().unwrap());
            found.entry(source.to_string()).or_insert(Err(reason.to_string()));
        }
    }
    found
}

/// Every case of a folder is used with so many slices, but those that are named.
#[track_caller]
fn check(name: &str, n_slices: i32, others: &[(&str, Result<i32, &str>)]) {
    let Some(folder) = test_data(&format!("cases/{name}")) else { return };
    let found = outcomes(&folder, "labels.csv", Format::Dicom);
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(folder.join("dicom")).unwrap() {
        let case = entry.unwrap().file_name().to_string_lossy().into_owned();
        let want = others.iter().find(|other| other.0 == case).map_or(Ok(n_slices), |other| other.1);
        let got = found.get(&case).cloned().unwrap_or(Err("nothing".into()));
        if got != want.map_err(String::from) {
            wrong.push(format!("{case}: {got:?} where {want:?} is right"));
        }
    }
    wrong.sort();
    assert!(wrong.is_empty(), "{name}: {wrong:#?} {found:?}");
}

#[test]
fn series_and_patients() {
    check("mip-series", 4, &[]);
    check("series-uid-per-slice", 4, &[]);
    check("ct-class-companion", 4, &[]);
    // Nothing else is in these folders, so that there is no result at all.
    for name in ["two-recon-interleaved", "same-pixels-new-sop"] {
        check(name, 4, &[]);
    }
    let Some(folder) = test_data("cases/two-patients") else { return };
    assert_eq!(outcomes(&folder, "labels.csv", Format::Dicom), Outcomes::new());
}

#[test]
fn values_and_units() {
    check("rescale-type-spelling", 4, &[]);
    let wrong = ["plus1024_intercept0", "windowed_8bit", "windowed_8bit_type_us"];
    check("dicom-not-hu", 4, &wrong.map(|case| (case, Err("not-hu"))));
}

#[test]
fn what_peers_read() {
    check("companions", 4, &[]);
    check("pixel-data-too-long", 4, &[]);
    check("fragments-without-table", 4, &[]);
    check("syntax-mismatch", 4, &[]);
    check("gzip", 4, &[]);
}

#[test]
fn label_tables() {
    let Some(folder) = test_data("cases/label-case") else { return };
    assert_eq!(outcomes(&folder, "labels.csv", Format::Dicom), Outcomes::new());
    for table in ["semicolon.csv", "excel-empty-rows.csv", "common-names.csv"] {
        let found = outcomes(&folder, table, Format::Dicom);
        assert_eq!(found.values().filter(|outcome| outcome.is_ok()).count(), 3, "{table}: {found:?}");
    }
}

#[test]
fn orientation() {
    check("orientation", 4, &[]);
    let Some(folder) = test_data("cases/orientation") else { return };
    let pictures = |format: Format, labels: &str| -> BTreeMap<String, Vec<(f64, Vec<u8>)>> {
        let out = tempfile::tempdir().unwrap();
        let below = if format == Format::Dicom { "dicom" } else { "nifti" };
        let settings = reading(|reader| reader.size = 48);
        let run = DicomRun {
            format,
            root: folder.join(below),
            labels: folder.join(labels),
            out: out.path().join("shards"),
            matching: Match::Folder,
            settings,
        };
        with_control(|control| dicom_run::ingest(&run, control)).0.unwrap();
        let shards = ShardSet::open(&run.out).unwrap();
        let mut found: BTreeMap<String, Vec<(f64, Vec<u8>)>> = BTreeMap::new();
        for split in diag_data::case::Split::ALL {
            for slice in shards.slices(split) {
                let slice = slice.unwrap();
                let entry = (slice.geometry.z.unwrap().0, slice.pixels);
                found.entry(slice.case_id.to_string()).or_default().push(entry);
            }
        }
        found
    };
    let dicom = pictures(Format::Dicom, "labels.csv");
    assert_eq!(dicom.len(), 5);
    let control = &dicom["control"];
    assert!(control.windows(2).all(|pair| pair[0].0 < pair[1].0));
    for (case, slices) in &dicom {
        assert_eq!(slices, control, "{case}");
    }
    let nifti = pictures(Format::Nifti, "labels-nifti.csv");
    assert_eq!(nifti.len(), 2);
    for (case, slices) in &nifti {
        let of = |slices: &[(f64, Vec<u8>)]| slices.iter().map(|slice| slice.1.clone()).collect::<Vec<_>>();
        assert_eq!(of(slices), of(control), "{case}");
    }
}

/// How a folder of pictures is handled: images used, and the codes of those set aside.
fn pictures(name: &str, line: Option<HuLine>) -> Option<(u64, Vec<String>)> {
    let root = test_data(&format!("cases/{name}"))?.join("images");
    let out = tempfile::tempdir().unwrap();
    let reader = ReaderSettings { size: 32, ..ReaderSettings::IMAGES };
    let run = ImagesRun {
        root,
        labels: None,
        split_lists: None,
        out: out.path().join("shards"),
        hu_line: line,
        window: HuWindow::LUNG,
        settings: Settings { reader, with_hu: false, keep_case_ids: false, ..settings() },
    };
    let (result, mut codes) = with_control(|control| images_run::ingest(&run, control));
    codes.sort();
    Some((result.map_or(0, |summary| summary.manifest.flow.slices.used), codes))
}

#[test]
fn pictures_of_slices() {
    let Some(cut) = pictures("truncated-jpeg", None) else { return };
    assert_eq!(cut, (1, vec!["image".to_string(); 3]));
    let stored = pictures("tiff-16bit", None).unwrap();
    assert_eq!(stored, (0, vec!["stored-values".to_string(); 2]));
    let line = HuLine { slope: 1.0, intercept: -1024.0 };
    assert_eq!(pictures("tiff-16bit", Some(line)).unwrap(), (2, vec![]));
}

#[test]
fn every_shared_case_has_its_test() {
    const TESTED: [&str; 17] = [
        "companions",
        "ct-class-companion",
        "dicom-not-hu",
        "fragments-without-table",
        "gzip",
        "label-case",
        "mip-series",
        "orientation",
        "pixel-data-too-long",
        "rescale-type-spelling",
        "same-pixels-new-sop",
        "series-uid-per-slice",
        "syntax-mismatch",
        "tiff-16bit",
        "truncated-jpeg",
        "two-patients",
        "two-recon-interleaved",
    ];
    let Some(cases) = test_data("cases") else { return };
    let mut found: Vec<String> = std::fs::read_dir(cases)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    assert_eq!(found, TESTED);
}
