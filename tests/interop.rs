//! The shards as other Arrow tools see them.

use std::process::Command;

use covid19_diag_tests::{python, smoke_run, succeed, workspace};
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

#[test]
fn sha256sum_accepts_the_hashes() {
    let shards = smoke_run().join("shards");
    succeed(Command::new("sha256sum").args(["--check", "--quiet", "SHA256SUMS"]).current_dir(shards));
}
