//! Real CT, through the built programs.

use std::path::Path;

use covid19_diag_tests::{output, program, stderr, succeed, test_data, workspace};
use diag_data::case::Split;
use diag_data::shard::ShardSet;

fn n_rows(shards: &ShardSet, split: Split) -> u64 {
    shards.manifest().files.iter().filter(|file| file.split == split).map(|file| file.n_rows).sum()
}

#[test]
fn covid_ct_keeps_its_official_split_and_can_be_trained_on() {
    let Some(data) = test_data("data/covid-ct") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (shards, run) = (folder.path().join("shards"), folder.path().join("run"));
    succeed(
        program("ct-ingest")
            .arg("images")
            .arg(&data)
            .arg("--split-lists")
            .arg(data.join("split"))
            .arg("--out")
            .arg(&shards),
    );
    let set = ShardSet::open(&shards).unwrap();
    let rows = Split::ALL.map(|split| n_rows(&set, split));
    assert_eq!(rows, [425, 118, 203]);

    let recipe = workspace().join("tests/tiny-recipe.toml");
    succeed(
        program("diag-train")
            .arg("fit")
            .arg("--shards")
            .arg(&shards)
            .arg("--recipe")
            .arg(recipe)
            .arg("--out")
            .arg(&run),
    );
    succeed(program("diag-train").arg("evaluate").arg(&run).arg("--shards").arg(&shards));
    succeed(program("diag-report").arg(&run));
    let report = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(!report.to_lowercase().contains("<title>synthetic"), "real data is not called synthetic");
}

#[test]
fn real_series_become_shards_without_the_patient() {
    let Some(root) = test_data("data") else { return };
    let folder = tempfile::tempdir().unwrap();
    let dicom = folder.path().join("dicom");
    std::fs::create_dir(&dicom).unwrap();
    for case in ["lungfcp-01-0001", "covid-ct-md-P002"] {
        std::os::unix::fs::symlink(root.join(case).join("dicom"), dicom.join(case)).unwrap();
    }
    let labels = folder.path().join("labels.csv");
    std::fs::write(&labels, "case_id,label\nlungfcp-01-0001,normal\ncovid-ct-md-P002,covid-19\n").unwrap();
    let shards = folder.path().join("shards");
    let output = output(
        program("ct-ingest").arg("dicom").arg(&dicom).arg("--labels").arg(&labels).arg("--out").arg(&shards),
    );
    assert!(matches!(output.status.code(), Some(0 | 3)), "{}", stderr(&output));

    let set = ShardSet::open(&shards).unwrap();
    let cases = set.cases().unwrap();
    assert_eq!(cases.len(), 2);
    assert!(cases.iter().all(|case| (2..=54).contains(&case.n_slices)), "{cases:?}");
    for case in &cases {
        let rows = set.slices(case.split).map(|row| row.unwrap()).filter(|row| row.case_id == case.case_id);
        let heights: Vec<f64> = rows.map(|row| row.geometry.z.unwrap().0).collect();
        assert_eq!(heights.len() as i32, case.n_slices);
        assert!(heights.windows(2).all(|pair| pair[0] < pair[1]), "{heights:?}");
    }
    no_name_in(&shards, &["LungFCP", "covid-ct-md", "lungfcp"]);
}

/// Searches every byte of a folder for what could name a patient.
fn no_name_in(folder: &Path, names: &[&str]) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            no_name_in(&path, names);
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        for name in names {
            assert!(
                !bytes.windows(name.len()).any(|part| part == name.as_bytes()),
                "{name} in {}",
                path.display()
            );
        }
    }
}
