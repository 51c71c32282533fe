//! Real CT, through the built programs.

use std::path::{Path, PathBuf};

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
    let output = output(
        program("ct-ingest")
            .arg("images")
            .arg(&data)
            .arg("--split-lists")
            .arg(data.join("split"))
            .arg("--key-file")
            .arg(key_file(folder.path()))
            .arg("--out")
            .arg(&shards),
    );
    // The official split has one figure on both sides, as COVID in the test part and as no COVID in training.
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    check_pairs(&shards, &data, &[("CT_COVID/kjr-21-e24-p5-29.png", "CT_NonCOVID/71%0.jpg")]);
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
    // The shortcut of this set: size and file format alone tell most of it.
    let audited = succeed(program("diag-train").args(["audit", "trivial", "--json"]).arg(&run));
    let baseline: serde_json::Value = serde_json::from_slice(&audited.stdout).unwrap();
    let auroc = baseline["acquisition"]["macro_auroc"].as_f64().unwrap();
    assert!(auroc >= 0.9, "size and format alone reached {auroc}");
    succeed(program("diag-report").arg(&run));
    let report = std::fs::read_to_string(run.join("report.html")).unwrap();
    assert!(!report.to_lowercase().contains("<title>synthetic"), "real data is not called synthetic");
}

/// The key of the pseudonyms, known to the test.
const KEY: &[u8] = b"a key of tests only, which keeps nothing secret";

fn key_file(folder: &Path) -> PathBuf {
    let path = folder.join("key");
    std::fs::write(&path, KEY).unwrap();
    path
}

/// Asserts that `verify` names each pair of images as a leak, as the same or as looking alike.
#[track_caller]
fn check_pairs(shards: &Path, images: &Path, pairs: &[(&str, &str)]) {
    let verified = output(program("ct-ingest").arg("verify").arg(shards).arg("--json"));
    assert_eq!(verified.status.code(), Some(3), "{}", stderr(&verified));
    let verified: serde_json::Value = serde_json::from_slice(&verified.stdout).unwrap();
    let set = ShardSet::open(shards).unwrap();
    let rows: Vec<_> =
        Split::ALL.iter().flat_map(|split| set.slices(*split)).map(|row| row.unwrap()).collect();
    let case_of = |image: &str| {
        let key = blake3::derive_key("covid19-diag ct-ingest source files", KEY);
        let hash = blake3::keyed_hash(&key, &std::fs::read(images.join(image)).unwrap()).to_hex().to_string();
        let row = rows.iter().find(|row| row.provenance.source_blake3 == hash);
        row.unwrap_or_else(|| panic!("{image} is not in the shards")).case_id.to_string()
    };
    for (one, other) in pairs {
        let mut cases = [case_of(one), case_of(other)];
        cases.sort();
        let told = verified["leaks"].as_array().unwrap().iter().any(|leak| {
            let leaked: Vec<&str> =
                leak["cases"].as_array().unwrap().iter().filter_map(|case| case.as_str()).collect();
            cases.iter().all(|case| leaked.contains(&case.as_str()))
        });
        assert!(told, "{one} and {other} are not among {}", verified["leaks"]);
    }
}

/// Pairs that were found by comparing all images of SARS-CoV-2 CT with one another, and looked at.
const SARS_PAIRS: [(&str, &str); 5] = [
    ("COVID/Covid_128.jpg", "COVID/Covid_129.jpg"),
    ("COVID/Covid_134.jpg", "COVID/Covid_135.jpg"),
    ("NonCOVID/Non-Covid_971.jpg", "NonCOVID/Non-Covid_972.jpg"),
    ("NonCOVID/Non-Covid_285.jpg", "NonCOVID/Non-Covid_289.jpg"),
    ("COVID/Covid_31.jpg", "COVID/Covid_34.jpg"),
];

#[test]
fn duplicates_of_a_public_set_are_found_across_a_split() {
    let Some(data) = test_data("data/sars-cov-2-ct-224") else { return };
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    let mut split = String::from("case_id,split\n");
    for class in ["COVID", "NonCOVID"] {
        std::fs::create_dir_all(images.join(class)).unwrap();
    }
    for (one, other) in SARS_PAIRS {
        for (image, part) in [(one, "train"), (other, "test")] {
            std::fs::copy(data.join(image), images.join(image)).unwrap();
            split.push_str(&format!("{image},{part}\n"));
        }
    }
    let split_file = folder.path().join("split.csv");
    std::fs::write(&split_file, split).unwrap();
    let shards = folder.path().join("shards");
    let mut ingest = program("ct-ingest");
    ingest.arg("images").arg(&images).arg("--split-file").arg(&split_file).arg("--out").arg(&shards);
    ingest.arg("--key-file").arg(key_file(folder.path()));
    assert_eq!(output(&mut ingest).status.code(), Some(3));
    check_pairs(&shards, &images, &SARS_PAIRS);
    let leaks = ShardSet::open(&shards).unwrap().quarantined().unwrap();
    assert_eq!(leaks.len(), SARS_PAIRS.len(), "{leaks:?}");
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

const SIX: [(&str, &str, &str); 6] = [
    ("P001", "covid-ct-md-5/P001", "covid-19"),
    ("P002", "covid-ct-md-P002/dicom", "covid-19"),
    ("cap001", "covid-ct-md-5/cap001", "bacterial-pneumonia"),
    ("cap002", "covid-ct-md-5/cap002", "bacterial-pneumonia"),
    ("normal001", "covid-ct-md-5/normal001", "normal"),
    ("normal002", "covid-ct-md-5/normal002", "normal"),
];

/// Folders of some of the patients of COVID-CT-MD, and their label table.
fn patients(data: &Path, folder: &Path, names: &[&str]) -> (PathBuf, PathBuf) {
    let (dicom, labels) = (folder.join("dicom"), folder.join("labels.csv"));
    std::fs::create_dir(&dicom).unwrap();
    let mut table = String::from("case_id,label\n");
    for (name, below, label) in SIX.iter().filter(|case| names.contains(&case.0)) {
        std::os::unix::fs::symlink(data.join(below), dicom.join(name)).unwrap();
        table.push_str(&format!("{name},{label}\n"));
    }
    std::fs::write(&labels, table).unwrap();
    (dicom, labels)
}

#[test]
fn six_real_patients_go_from_dicom_to_a_report_that_says_how_little_they_show() {
    let Some(data) = test_data("data") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (dicom, labels) = patients(&data, folder.path(), &SIX.map(|case| case.0));
    let out = folder.path().join("out");
    let pipeline = |dicom: &Path, labels: &Path| {
        let mut command = program("xtask");
        command.arg("pipeline").arg("--dicom").arg(dicom).arg("--labels").arg(labels).arg("--out").arg(&out);
        command.arg("--recipe").arg(workspace().join("tests/tiny-recipe.toml")).args(["--device", "cpu"]);
        command.arg("--key-file").arg(key_file(folder.path()));
        output(&mut command)
    };
    let done = pipeline(&dicom, &labels);
    assert!(done.status.success(), "{}", stderr(&done));
    let manifest = ShardSet::open(&out.join("shards")).unwrap().manifest().clone();
    assert_eq!((manifest.flow.cases.used, manifest.flow.files.used, manifest.synthetic), (6, 182, false));
    let page = std::fs::read_to_string(out.join("run/report.html")).unwrap();
    let summary = page.find("id=\"summary\"").unwrap();
    let told = page.find("3 test cases can show next to nothing about the network").unwrap();
    assert!(told > summary && told - summary < 500, "it stands first in the summary");
    no_name_in(&out, &["covid-ct-md", "cap001", "normal001"]);

    // One patient a class: nothing is left to test on, and that is said before training.
    let few = tempfile::tempdir().unwrap();
    let (dicom, labels) = patients(&data, few.path(), &["P001", "cap001", "normal001"]);
    let started = std::time::Instant::now();
    let refused = pipeline(&dicom, &labels);
    assert!(started.elapsed().as_secs() < 30, "{:?}", started.elapsed());
    assert_eq!(refused.status.code(), Some(1));
    let told = stderr(&refused);
    assert!(told.contains("too small to be trained and tested on: the test part has no case"), "{told}");
    assert!(!told.contains("epoch 1"), "{told}");
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
