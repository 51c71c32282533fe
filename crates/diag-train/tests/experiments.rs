//! Tables of a document from the results of sweeps; those of `docs/experiments.md` are what
//! the committed results make.

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

use std::path::Path;

use diag_data::results::{self, ResultRow};
use diag_train::sweep::fill_tables;

#[test]
fn every_table_of_the_experiments_is_made_from_its_results() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/experiments.md");
    let written = std::fs::read_to_string(&document).unwrap();
    assert!(written.matches("<!-- table: ").count() > 0, "the document marks no table");
    assert_eq!(fill_tables(&document).unwrap(), written, "run `diag-train tables docs/experiments.md`");
}

fn row(variant: &str, ratio: &str, seed: i64, measure: &str, value: f64) -> ResultRow {
    ResultRow {
        run: format!("{variant}_{ratio}_{seed}"),
        variant: variant.into(),
        loss: variant.into(),
        seed,
        fold: None,
        class_ratio: Some(ratio.into()),
        label_noise: 0.0,
        best_epoch: 4,
        split: "test".into(),
        unit: "case".into(),
        aggregation: Some("mean".into()),
        measure: measure.into(),
        value,
    }
}

#[track_caller]
fn check(document: &str, want: Result<&str, &str>) {
    let folder = tempfile::tempdir().unwrap();
    let mut rows = Vec::new();
    for (seed, ours, theirs) in [(1, 0.75, 0.5), (2, 0.5, 0.5)] {
        for ratio in ["1:1:1", "1:5:1"] {
            rows.push(row("ours", ratio, seed, "f1", ours));
            rows.push(row("theirs", ratio, seed, "f1", theirs));
        }
    }
    rows.push(row("theirs", "1:9:1", 1, "f1", 0.25));
    rows.extend([("f1:low", 0.125), ("f1:high", 0.375)].map(|(m, v)| row("theirs", "1:9:1", 1, m, v)));
    results::write_csv(&folder.path().join("f.csv"), &rows).unwrap();
    let path = folder.path().join("document.md");
    results::write_csv(&folder.path().join("none.csv"), &[]).unwrap();
    std::fs::write(&path, document).unwrap();
    match (fill_tables(&path), want) {
        (Ok(filled), Ok(want)) => assert!(filled.contains(want), "{filled}"),
        (Err(err), Err(want)) => assert!(err.to_string().contains(want), "{err}"),
        (found, _) => panic!("{found:?}"),
    }
}

fn marked(marker: &str) -> String {
    format!("before\n<!-- table: {marker} -->\n| old |\n<!-- end of table -->\nafter\n")
}

#[test]
fn a_missing_run_leaves_a_gap() {
    check(&marked("means f.csv f1"), Ok("| ours | 0.625 ± 0.177 (2) | 0.625 ± 0.177 (2) | - |\n"));
}

#[test]
fn a_sweep_without_a_finished_run_says_so() {
    check(&marked("means none.csv f1"), Ok("No run is finished yet."));
}

#[test]
fn gains_are_paired_by_seed() {
    // Student's t for one degree of freedom: 12.706 times 0.125.
    check(&marked("gains f.csv f1 ours"), Ok("| theirs | +0.125, -1.463 to +1.713 (2) |"));
}

#[test]
fn a_mean_over_settings_needs_them_all() {
    check(&marked("gains f.csv f1 ours"), Ok(" | - | - |\n"));
}

#[test]
fn bounds_stand_beside_their_run() {
    check(&marked("runs f.csv f1"), Ok("| theirs | 1 | 4 | 0.250 (0.125 to 0.375) |\n"));
}

#[test]
fn what_is_around_a_table_stays_and_what_was_in_it_goes() {
    check(&marked("means f.csv f1"), Ok("before\n<!-- table: means f.csv f1 -->\n| loss | 1:1:1 |"));
    check(&marked("means f.csv f1"), Ok("(1) |\n<!-- end of table -->\nafter\n"));
}

#[test]
fn wrong_markers_are_refused() {
    check(&marked("means f.csv auroc"), Err("no `auroc`"));
    check(&marked("gains f.csv f1 others"), Err("no variant `others`"));
    check(&marked("plots f.csv f1"), Err("no table"));
    check("<!-- table: means f.csv f1 -->\n", Err("is missing"));
}
