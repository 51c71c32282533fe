//! Tables of a document from the results of sweeps; those of `docs/experiments/` are what
//! the committed results make.

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

use std::path::Path;

use diag_data::calls::{self, CallRow, CalledCase};
use diag_data::case::Label;
use diag_data::files;
use diag_data::results::ResultRow;
use diag_train::sweep::fill_tables;

#[test]
fn every_table_of_the_experiments_is_made_from_its_results() {
    for name in ["earlier.md", "cxr.md", "covid-ct.md"] {
        let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/experiments").join(name);
        let written = std::fs::read_to_string(&document).unwrap();
        assert!(written.matches("<!-- table: ").count() > 0, "the document marks no table");
        assert_eq!(
            fill_tables(&document).unwrap(),
            written,
            "run `diag-train tables docs/experiments/{name}`"
        );
    }
}

#[test]
fn the_trivial_baselines_of_covid_ct_are_those_of_their_files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/experiments");
    let document = std::fs::read_to_string(folder.join("covid-ct.md")).unwrap();
    for name in ["original", "controlled"] {
        let path = folder.join(format!("covid-ct-trivial-{name}.json"));
        let found: serde_json::Value = files::read_json(&path).unwrap();
        for set in ["acquisition", "grey", "both", "permuted"] {
            let number = |key: &str| found[set][key].as_f64().unwrap();
            let (low, high) = (number("low"), number("high"));
            let text = format!("{:.3} ({low:.3} to {high:.3})", number("macro_auroc"));
            assert!(document.contains(&text), "{name}, {set}: {text}");
        }
    }
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
    files::write_csv(&folder.path().join("f.csv"), &rows).unwrap();
    let path = folder.path().join("document.md");
    files::write_csv::<ResultRow>(&folder.path().join("none.csv"), &[]).unwrap();
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

/// Writes calls of 60 cases, 20 of each class, two a patient: `good` is right in all but 2 of each
/// class, `bad` in all but 8, with one more or less by seed; `worse` has other cases wrong, one more
/// than `bad`, and lacks seed 3.
fn write_calls(folder: &Path) {
    let mut cases = Vec::new();
    for split in ["validation", "test"] {
        cases.extend((0..60).map(|case| CalledCase {
            split: split.into(),
            case,
            label: (case / 20) as u8,
            patient: Some(case / 2),
        }));
    }
    let mut rows = Vec::new();
    for (variant, n_wrong) in [("good", 2), ("bad", 8), ("worse", 8)] {
        for (ratio, seed) in
            [("1:1:1", 1), ("1:1:1", 2), ("1:1:1", 3), ("1:5:1", 1), ("1:5:1", 2), ("1:5:1", 3)]
        {
            if (variant, ratio, seed) == ("worse", "1:5:1", 3) {
                continue;
            }
            // Spread over the patients.
            let n_wrong = n_wrong + seed - 2;
            let call = |case: usize| {
                let n_wrong = n_wrong + usize::from(variant == "worse" && case < 20);
                let step = if variant == "worse" { 3 } else { 7 };
                let wrong = (case % 20 * step) % 20 < n_wrong;
                Label(((case / 20 + usize::from(wrong)) % 3) as u8)
            };
            rows.extend(["validation", "test"].map(|split| CallRow {
                run: format!("{variant}_{ratio}_{seed}"),
                variant: variant.into(),
                seed: seed as i64,
                class_ratio: Some(ratio.into()),
                label_noise: 0.0,
                recipe_sha256: String::new(),
                shards_sha256: String::new(),
                split: split.into(),
                calls: calls::encode((0..60).map(call)),
            }));
        }
    }
    files::write_csv(&folder.join("calls.csv"), &rows).unwrap();
    files::write_csv(&folder.join("cases.csv"), &cases).unwrap();
}

#[track_caller]
fn table_of_calls(marker: &str) -> Result<Vec<String>, String> {
    let folder = tempfile::tempdir().unwrap();
    write_calls(folder.path());
    let path = folder.path().join("document.md");
    std::fs::write(&path, marked(marker)).unwrap();
    let filled = fill_tables(&path).map_err(|err| err.to_string())?;
    Ok(filled.lines().skip(2).take_while(|line| !line.starts_with("<!--")).map(str::to_owned).collect())
}

#[test]
fn contrasts_carry_the_error_of_seeds_and_patients() {
    let table = table_of_calls("contrasts . test good 3 bad").unwrap();
    assert_eq!(table[0], "| good less | 1:1:1 | 1:5:1 |");
    let cell = table[2].split('|').nth(2).unwrap();
    // 6 of 20 more are right with every seed; an interval that zero lies outside of has a star.
    assert!(cell.starts_with(" +0.300, +0.2") && cell.ends_with(" * "), "{cell}");
    let pair = table_of_calls("pair . validation good 3 bad").unwrap();
    assert!(pair[2].starts_with("| good less bad | +0.3000 | "), "{pair:?}");
}

#[test]
fn a_ranking_chooses_the_simplest_that_is_near_the_best() {
    let table = table_of_calls("ranking . validation 2 worse bad good").unwrap();
    assert!(table[2].starts_with("| worse | 0.608 | ") && table[2].ends_with(" |  |"), "{table:?}");
    assert!(table[4].starts_with("| good | 0.925 | ") && table[4].ends_with("| chosen |"), "{table:?}");
    // One case of 60 between them: the simpler one is taken.
    let table = table_of_calls("ranking . validation 2 worse bad").unwrap();
    assert!(table[2].ends_with("| chosen |") && table[3].ends_with("| best |"), "{table:?}");
}

#[test]
fn an_interaction_and_the_numbers_needed_come_from_the_same_runs() {
    let table = table_of_calls("interaction . test 3 good bad good good").unwrap();
    assert!(table[2].starts_with("| (good less bad) less (good less good) | +0.300, "), "{table:?}");
    assert!(table_of_calls("interaction . test 3 good bad").unwrap_err().contains("four variants"));
    let table = table_of_calls("power . test good 3 bad").unwrap();
    // Both lose one case a class with every seed, so that the difference has no scatter by seeds.
    assert!(table[0].starts_with("| seeds (deviation 0.000 by seed, "), "{table:?}");
    let patients = |cell: usize| table[2].split(" | ").nth(cell).unwrap().parse::<f64>().unwrap();
    let ratio = patients(1) / patients(2);
    assert!((5.8..6.6).contains(&ratio), "a difference of 0.02 needs 6.25 times what 0.05 needs: {ratio}");
}

#[test]
fn unfinished_seeds_make_no_table() {
    let table = table_of_calls("contrasts . test good 3 worse").unwrap();
    assert_eq!(table, ["2 of 3 seeds are finished; this table is made when all are."]);
    assert!(table_of_calls("contrasts . test good three bad").unwrap_err().contains("number of seeds"));
    assert!(table_of_calls("pair . test good 3").unwrap_err().contains("pair needs"));
}

#[test]
fn wrong_markers_are_refused() {
    check(&marked("means f.csv auroc"), Err("no `auroc`"));
    check(&marked("gains f.csv f1 others"), Err("no variant `others`"));
    check(&marked("plots f.csv f1"), Err("no table"));
    check("<!-- table: means f.csv f1 -->\n", Err("is missing"));
}
