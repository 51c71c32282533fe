//! The shards as other Arrow tools see them.

use std::process::Command;

use covid19_diag_tests::{program, python, smoke_run, succeed, tiny_cohort, workspace};
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

#[test]
fn sha256sum_accepts_the_hashes() {
    let shards = smoke_run().join("shards");
    succeed(Command::new("sha256sum").args(["--check", "--quiet", "SHA256SUMS"]).current_dir(shards));
}
