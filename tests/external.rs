//! External validation by the programs: the network of the smoke run on another cohort, and a
//! report about that cohort.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use covid19_diag_tests::{output, program, smoke_run, stderr, succeed, tiny_cohort};
use diag_data::files;

/// Files of a folder by name, with their hashes.
fn hashes(folder: &Path) -> BTreeMap<PathBuf, String> {
    let files =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    files.map(|path| (path.clone(), files::sha256_file(&path).unwrap())).collect()
}

/// Shards of the tiny cohort, half of it for testing.
fn ingest(out: &Path, more: &[&str]) {
    let cohort = tiny_cohort();
    let mut command = program("ct-ingest");
    command.arg("dicom").arg(cohort).arg("--labels").arg(cohort.join("labels.csv")).arg("--out").arg(out);
    succeed(command.args(["--split", "5:5", "--keep-case-ids"]).args(more));
}

#[test]
fn the_page_of_an_external_validation_is_about_the_other_cohort() {
    let run = smoke_run().join("run");
    let folder = tempfile::tempdir().unwrap();
    let (shards, out) = (folder.path().join("shards"), folder.path().join("external"));
    ingest(&shards, &[]);
    let before = hashes(&run);
    let evaluate = |shards: &Path, out: &Path| {
        let mut command = program("diag-train");
        command.arg("evaluate").arg(&run).arg("--shards").arg(shards).arg("--out").arg(out);
        command
    };
    succeed(&mut evaluate(&shards, &out));
    let explain = ["--slices", "1", "--occlusion-slices", "0"];
    succeed(program("diag-train").arg("explain").arg(&run).arg("--out").arg(&out).args(explain));
    assert_eq!(hashes(&run), before, "the run was touched");

    let report = succeed(program("diag-report").arg(&out).arg("--json"));
    let numbers: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
    let of_run = &numbers["runs"][0];
    assert_eq!(of_run["by_case"]["n"], 6, "the tiny cohort has six test cases");
    assert_eq!(of_run["external"]["overlap"]["patients"], "compared");
    assert!(of_run["explanations"].is_object());
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("<title>External validation: "), "the title does not say it");
    assert!(page.contains("on a cohort that they were not made with"));
    // Its own pictures and Table 1: no case of the smoke cohort has so high a number.
    let own = fs::read_to_string(run.join("case_predictions.csv")).unwrap();
    assert!(own.contains("case-0069") && !page.contains("case-0069"));
    assert!(page.contains("case-0012"));

    // Beside its run, without a paired test of cases that share nothing but their names.
    let both = folder.path().join("both.html");
    let report = succeed(program("diag-report").arg(&run).arg(&out).arg("--json").arg("--out").arg(&both));
    let numbers: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
    let why = numbers["comparisons"][0]["not_paired"].as_str().unwrap();
    assert!(why.contains("different shards"), "{why}");

    // The exported model gives the same predictions, and a page of its own.
    let (model, by_file) = (folder.path().join("model.safetensors"), folder.path().join("by-file"));
    succeed(program("diag-train").arg("export").arg(&run).arg("--out").arg(&model));
    succeed(
        program("diag-train")
            .arg("evaluate")
            .arg(&model)
            .arg("--shards")
            .arg(&shards)
            .arg("--out")
            .arg(&by_file),
    );
    for name in ["case_predictions.csv", "predictions.parquet", "decision.json"] {
        let [a, b] = [&out, &by_file].map(|folder| fs::read(folder.join(name)).unwrap());
        assert!(a == b, "{name} differs");
    }
    succeed(program("diag-report").arg(&by_file));
    let alone = output(program("diag-train").arg("evaluate").arg(&model));
    assert!(stderr(&alone).contains("fix: name a cohort with --shards"), "{}", stderr(&alone));

    // Pseudonyms under another key cannot be compared, and every number says so.
    let (other_key, out) = (folder.path().join("other-key"), folder.path().join("external-2"));
    let key = folder.path().join("key");
    fs::write(&key, "another key of the same cohort, 32 characters and more").unwrap();
    ingest(&other_key, &["--key-file", key.to_str().unwrap()]);
    let words = succeed(&mut evaluate(&other_key, &out));
    let words = String::from_utf8(words.stdout).unwrap();
    assert!(words.contains("patient overlap with the training data cannot be checked"), "{words}");
    succeed(program("diag-report").arg(&out));
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("Patient overlap with the training data cannot be checked"));
}

#[test]
fn shards_that_the_network_has_seen_or_that_were_read_otherwise_are_refused() {
    let run = smoke_run().join("run");
    let folder = tempfile::tempdir().unwrap();
    let narrow = folder.path().join("narrow");
    ingest(&narrow, &["--window", "-1000:400", "--select", "all"]);
    let out = folder.path().join("external");
    let evaluate = |shards: &Path| {
        output(
            program("diag-train")
                .arg("evaluate")
                .arg(&run)
                .arg("--shards")
                .arg(shards)
                .arg("--out")
                .arg(&out),
        )
    };
    let refused = evaluate(&narrow);
    let text = stderr(&refused);
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(text.contains("window") && text.contains("select: lung here, all there"), "{text}");

    // The smoke cohort again, under other names and with another split: the patients are the same.
    let dicom = smoke_run().join("dicom");
    let again = folder.path().join("again");
    let mut command = program("ct-ingest");
    command.arg("dicom").arg(&dicom).arg("--labels").arg(dicom.join("labels.csv")).arg("--out").arg(&again);
    let ingested = output(command.args(["--seed", "77"]));
    assert!(matches!(ingested.status.code(), Some(0 | 3)), "{}", stderr(&ingested));
    let refused = evaluate(&again);
    let text = stderr(&refused);
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(
        text.contains("the network has seen cases") && text.contains("(patient, series, pixels of case-"),
        "{text}"
    );
    assert!(!out.exists());
}
