//! The shards as other Arrow tools see them.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use covid19_diag_tests::{program, python, python_with, smoke_run, succeed, tiny_cohort, workspace};
use diag_data::case::Split;
use diag_data::files::sha256_hex;
use diag_data::shard::ShardSet;
use serde_json::{Value, json};

#[test]
fn pyarrow_duckdb_and_polars_read_what_rust_wrote() {
    let Some(python) = python() else { return };
    let shards = smoke_run().join("shards");
    let set = ShardSet::open(&shards).unwrap();
    let mut want: Vec<Value> = Vec::new();
    let mut rows: Vec<_> =
        Split::ALL.iter().flat_map(|split| set.slices(*split)).map(|row| row.unwrap()).collect();
    rows.sort_by(|a, b| (&a.case_id, a.slice_index).cmp(&(&b.case_id, b.slice_index)));
    for row in rows {
        want.push(json!([row.case_id.as_str(), row.slice_index, row.label.0, sha256_hex(&row.pixels)]));
    }
    assert!(want.len() > 100, "only {} rows", want.len());

    let output = succeed(Command::new(python).arg(workspace().join("tests/interop.py")).arg(&shards));
    let read: Value = serde_json::from_slice(&output.stdout).unwrap();
    for tool in ["pyarrow", "duckdb", "polars"] {
        assert_eq!(read[tool], Value::Array(want.clone()), "{tool}");
    }
}

/// Loads shards by their cards; both layouts hold the same pictures.
#[track_caller]
fn check_cards(layout: &str) {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let shards = folder.path().join("shards");
    succeed(
        program("ct-ingest")
            .arg("dicom")
            .arg(tiny_cohort())
            .arg("--labels")
            .arg(tiny_cohort().join("labels.csv"))
            .arg("--out")
            .arg(&shards)
            .args(["--select", "all", "--layout", layout]),
    );
    let set = ShardSet::open(&shards).unwrap();
    let rows: Vec<_> =
        Split::ALL.iter().flat_map(|split| set.slices(*split)).map(|row| row.unwrap()).collect();
    let mut want: Vec<Value> = Vec::new();
    for row in &rows {
        want.push(json!([row.case_id.as_str(), row.slice_index, row.label.0, row.provenance.pixel_sha256]));
    }
    want.sort_by_key(|row| (row[0].to_string(), row[1].as_i64()));
    let output = succeed(Command::new(python).arg(workspace().join("tests/cards.py")).arg(&shards));
    let read: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(read["errors"], json!([]), "{layout}");
    assert_eq!(read["croissant"], Value::Array(want.clone()), "{layout}");
    assert_eq!(read["hugging_face"], Value::Array(want), "{layout}");
    let n_rows = |split| rows.iter().filter(|row| row.split == split).count();
    assert_eq!(read["splits"], json!({"train": n_rows(Split::Train), "test": n_rows(Split::Test)}));
    assert_eq!(read["label_names"], json!(["covid-19", "normal", "bacterial-pneumonia"]), "{layout}");
}

#[test]
fn mlcroissant_and_datasets_load_raw_shards() {
    check_cards("raw");
}

#[test]
fn mlcroissant_and_datasets_load_image_shards() {
    check_cards("hf");
}

/// The SQL that the page shows, run by both engines it names.
#[test]
fn sql_of_the_docs() {
    let Some(python) = python_with("datafusion, duckdb") else { return };
    let shards = smoke_run().join("shards");
    let set = ShardSet::open(&shards).unwrap();
    let mut by_scanner: BTreeMap<[String; 4], (BTreeSet<String>, u64)> = BTreeMap::new();
    let mut little_lung = BTreeSet::new();
    for row in Split::ALL.iter().flat_map(|split| set.slices(*split)).map(|row| row.unwrap()) {
        let label = set.manifest().spec.labels.name(row.label).unwrap().to_owned();
        let (manufacturer, model) = (row.acquisition.manufacturer.unwrap(), row.acquisition.model.unwrap());
        let count = by_scanner.entry([manufacturer, model, label, row.split.to_string()]).or_default();
        count.0.insert(row.case_id.to_string());
        count.1 += 1;
        if row.selection.lung_fraction.unwrap() < 0.25 {
            little_lung.insert((row.case_id.to_string(), row.slice_index));
        }
    }
    assert!(by_scanner.len() > 10 && little_lung.len() > 5, "the cohort is too uniform to tell anything");
    let by_scanner: Vec<Value> = by_scanner
        .into_iter()
        .map(|([manufacturer, model, label, split], (cases, n_slices))| {
            json!([manufacturer, model, label, split, cases.len(), n_slices])
        })
        .collect();
    let script = workspace().join("tests/queries.py");
    let document = workspace().join("docs/query.md");
    let output = succeed(Command::new(python).arg(script).arg(document).arg(&shards));
    let answers: Value = serde_json::from_slice(&output.stdout).unwrap();
    for engine in ["DuckDB", "DataFusion"] {
        let answer = &answers[engine];
        assert_eq!(answer["by scanner"], Value::Array(by_scanner.clone()), "{engine}");
        let rows = answer["little lung"].as_array().unwrap();
        let found: BTreeSet<(String, i32)> = rows
            .iter()
            .map(|row| (row[0].as_str().unwrap().to_owned(), row[1].as_i64().unwrap() as i32))
            .collect();
        assert_eq!(found, little_lung, "{engine}");
        let n_slices: u64 =
            answer["by kernel"].as_array().unwrap().iter().map(|row| row[2].as_u64().unwrap()).sum();
        assert_eq!(n_slices, set.manifest().table.iter().map(|row| row.n_slices).sum::<u64>(), "{engine}");
    }
}

#[test]
fn sha256sum_accepts_the_hashes() {
    let shards = smoke_run().join("shards");
    succeed(Command::new("sha256sum").args(["--check", "--quiet", "SHA256SUMS"]).current_dir(shards));
}
