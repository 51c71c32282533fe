//! The whole program: killed at random steps it ends with the weights of an
//! undisturbed run; a sweep goes on where it was stopped.

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

mod toy;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use diag_data::calls::{CallRow, CalledCase};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How often the run is killed; the environment asks for another number.
const KILLS: &str = "COVID19_DIAG_KILLS";

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_diag-train"))
}

fn fit(folder: &Path, run: &str) -> Command {
    let mut command = program();
    command.args(["fit", "--resume", "--checkpoint-seconds", "0.2", "--shards"]).arg(folder.join("shards"));
    command.arg("--recipe").arg(folder.join("recipe.toml")).arg("--out").arg(folder.join(run));
    command
}

fn read(folder: &Path, run: &str, file: &str) -> Vec<u8> {
    std::fs::read(folder.join(run).join(file)).unwrap()
}

#[test]
fn a_run_killed_at_random_steps_ends_with_the_same_weights() {
    let n_kills: u64 = std::env::var(KILLS).map_or(20, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    toy::write_shards(folder, 6, 1);
    // 10 steps an epoch, more than enough of them for every kill.
    let n_epochs = 4 + 2 * n_kills;
    let recipe = format!("ema_decay = 0.99\nsampling = \"case-balanced\"\ndropout = 0.1\n{}", toy::RECIPE)
        .replace("batch_size = 12", "batch_size = 6")
        .replace("epochs = 4", &format!("epochs = {n_epochs}"));
    toy::write_recipe(folder, "recipe.toml", &recipe);
    assert!(fit(folder, "whole").output().unwrap().status.success());
    let mut rng = ChaCha8Rng::seed_from_u64(n_kills);
    for _ in 0..n_kills {
        let mut command = fit(folder, "killed");
        let mut child = command
            .env("RUST_LOG", "diag_train=debug")
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut steps_left = rng.random_range(1..20);
        for line in BufReader::new(child.stderr.take().unwrap()).lines() {
            steps_left -= i32::from(line.unwrap().contains("gradient_norm"));
            if steps_left == 0 {
                break;
            }
        }
        assert_eq!(steps_left, 0, "the run ended before it could be killed");
        // SIGKILL: no handler runs.
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(fit(folder, "killed").output().unwrap().status.success());
    for file in ["model.safetensors", "epochs.jsonl", "steps.jsonl", "events.out.tfevents.1.diag-train"] {
        assert!(
            read(folder, "whole", file) == read(folder, "killed", file),
            "{file} differs after {n_kills} kills"
        );
    }
}

const SWEEP: &str = r#"
recipe = "recipe.toml"
shards = "shards"
processes = 2
seeds = [1, 2]
class_ratios = [[1, 1, 1], [1, 2, 1]]
label_noise = [0.0, 0.2]

[summary]
measures = ["macro_f1", "balanced_accuracy", "f1/normal"]
intervals = true

[[variants]]
name = "ce"
set = { loss = { name = "cross-entropy" } }

[[variants]]
name = "focal"
set = { loss = { name = "focal", gamma = 1.5 }, optimiser = { learning_rate = 0.002 } }
"#;

fn sweep(folder: &Path, file: &str, out: &str) -> Output {
    program().arg("sweep").arg(folder.join(file)).arg("--out").arg(folder.join(out)).output().unwrap()
}

#[test]
fn a_sweep_makes_one_table_and_goes_on_where_it_was_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    toy::write_shards(folder, 6, 2);
    toy::write_recipe(folder, "recipe.toml", &toy::RECIPE.replace("epochs = 4", "epochs = 1"));
    toy::write_recipe(folder, "sweep.toml", SWEEP);
    let first = sweep(folder, "sweep.toml", "out");
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let summary: serde_json::Value = serde_json::from_slice(&read(folder, "out", "summary.json")).unwrap();
    assert_eq!(summary["n_runs"], 16);
    // 2 ratios, 2 shares of noise, 3 measures; 2 variants, one of them the reference.
    assert_eq!(summary["settings"].as_array().unwrap().len(), 24);
    assert_eq!(summary["comparisons"].as_array().unwrap().len(), 12);
    for compared in summary["comparisons"].as_array().unwrap() {
        assert_eq!((&compared["variant"], &compared["reference"]), (&"focal".into(), &"ce".into()));
        assert_eq!(compared["difference"]["n"], 2);
    }
    let table = read(folder, "out", "results.parquet");
    // The text table holds what the summary compares, each between its bounds.
    let compared =
        diag_data::files::read_csv::<diag_data::results::ResultRow>(&folder.join("out/results.csv")).unwrap();
    let value_of = |run: &str, measure: &str| {
        let found = compared.iter().find(|row| row.run == run && row.measure == measure);
        found.map(|row| row.value).unwrap_or_else(|| panic!("no {measure} of {run}"))
    };
    assert_eq!(compared.iter().filter(|row| !row.measure.contains(':')).count(), 16 * 3);
    for measure in ["macro_f1", "balanced_accuracy", "f1/normal"] {
        let of = |end: &str| value_of("focal_ratio-1-1-1_seed-2", &format!("{measure}{end}"));
        assert!(of(":low") <= of("") && of("") <= of(":high"), "{measure}");
    }
    // Two runs are undone: one as if it had never begun, one as if it had stopped before its evaluation.
    std::fs::remove_dir_all(folder.join("out/runs/ce_ratio-1-1-1_seed-1")).unwrap();
    std::fs::remove_file(folder.join("out/runs/focal_ratio-1-2-1_noise-0.2_seed-2/metrics.json")).unwrap();
    // What is finished can be summed up without starting anything.
    let so_far = program()
        .arg("sweep")
        .arg(folder.join("sweep.toml"))
        .arg("--finished")
        .arg("--out")
        .arg(folder.join("out"))
        .output()
        .unwrap();
    assert!(so_far.status.success(), "{}", String::from_utf8_lossy(&so_far.stderr));
    let summary: serde_json::Value = serde_json::from_slice(&read(folder, "out", "summary.json")).unwrap();
    assert_eq!(summary["n_runs"], 14);
    assert!(!folder.join("out/runs/ce_ratio-1-1-1_seed-1").exists());
    let second = sweep(folder, "sweep.toml", "out");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(said.matches(": done before").count(), 14, "{said}");
    assert!(table == read(folder, "out", "results.parquet"), "the table changed");
    assert_eq!(first.stdout, second.stdout);
    // The same grid on other shards is no finished sweep.
    std::fs::remove_dir_all(folder.join("shards")).unwrap();
    toy::write_shards(folder, 6, 3);
    let other = sweep(folder, "sweep.toml", "out");
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(!other.status.success() && said.contains("shards changed since the run"), "{said}");
    assert!(table == read(folder, "out", "results.parquet"), "the table changed");
}

const CORRECTED: &str = r#"
recipe = "recipe.toml"
shards = "shards"
processes = 2
seeds = [1, 2]
settings = [{ class_ratio = [1, 1, 1] }, { class_ratio = [4, 1, 1], label_noise = 0.2 }]

[[variants]]
name = "ce"
set = { loss = { name = "cross-entropy" } }

[[variants]]
name = "ce-corrected"
corrected = "ce"

[[variants]]
name = "focal"
set = { loss = { name = "focal" } }
"#;

#[test]
fn a_sweep_corrects_runs_and_takes_the_results_of_an_earlier_one() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    toy::write_shards(folder, 12, 6);
    toy::write_recipe(folder, "recipe.toml", &toy::RECIPE.replace("epochs = 4", "epochs = 2"));
    toy::write_recipe(folder, "sweep.toml", CORRECTED);
    toy::write_recipe(folder, "one-seed.toml", &CORRECTED.replace("[1, 2]", "[1]"));
    let whole = sweep(folder, "sweep.toml", "whole");
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    // Lower seeds are run first, and no run is made for the corrected variant.
    let said = String::from_utf8_lossy(&whole.stderr).into_owned();
    assert_eq!(said.matches("starts").count(), 8, "{said}");
    assert!(said.rfind("seed-1: starts").unwrap() < said.rfind("seed-2: starts").unwrap(), "{said}");
    let calls: Vec<CallRow> = diag_data::files::read_csv(&folder.join("whole/calls.csv")).unwrap();
    let cases: Vec<CalledCase> = diag_data::files::read_csv(&folder.join("whole/cases.csv")).unwrap();
    // Each seed draws its own validation cases, so that only the test cases have a table.
    assert!(cases.iter().all(|case| case.split == "test" && case.patient.is_none()));
    assert_eq!((cases.len(), calls.len()), (18, 12));
    let results =
        diag_data::files::read_csv::<diag_data::results::ResultRow>(&folder.join("whole/results.csv"))
            .unwrap();
    let mut changed = 0;
    for row in &calls {
        // What is called by hand of the file of the run.
        let run = folder.join("whole/runs").join(row.run.replace("ce-corrected", "ce"));
        let plan: toml::Table = std::fs::read_to_string(run.join("plan.toml")).unwrap().parse().unwrap();
        let count = |k: usize| plan["slices_per_class"][k].as_integer().unwrap() as f64;
        let by_case = diag_data::case_predictions::read_parquet(
            &run.join("case_predictions.parquet"),
            &diag_data::case::LabelSet::paper(),
        )
        .unwrap();
        let test = by_case.iter().filter(|case| case.split == Some(diag_data::case::Split::Test));
        let mut right = [0.0; 3];
        for (case, called) in test.zip(diag_data::calls::decode(&row.calls).unwrap()) {
            let divided = |k: usize| {
                case.mean_probability_k[k] / if row.variant == "ce-corrected" { count(k) } else { 1.0 }
            };
            let want = (0..3).max_by(|&a, &b| divided(a).total_cmp(&divided(b))).unwrap();
            assert_eq!(called.index(), want, "{}", row.run);
            let label = case.label.unwrap().index();
            right[label] += f64::from(u8::from(label == want)) / 6.0;
        }
        let value = results.iter().find(|r| r.run == row.run && r.measure == "balanced_accuracy").unwrap();
        assert!((value.value - right.iter().sum::<f64>() / 3.0).abs() < 1e-12, "{}", row.run);
        let own = calls.iter().find(|other| other.run == row.run.replace("ce-corrected", "ce")).unwrap();
        changed += usize::from(own.calls != row.calls);
    }
    assert!(changed > 0, "no correction changed a call");
    // Seed 1 alone, then the whole with what that has: four runs are made, the tables are the same.
    assert!(sweep(folder, "one-seed.toml", "first").status.success());
    let rest = |out: &str| {
        program()
            .arg("sweep")
            .arg(folder.join("sweep.toml"))
            .arg("--have")
            .arg(folder.join("first"))
            .arg("--out")
            .arg(folder.join(out))
            .output()
            .unwrap()
    };
    let second = rest("second");
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!((second.status.code(), said.matches("starts").count()), (Some(0), 4), "{said}");
    for file in ["results.csv", "calls.csv", "cases.csv", "summary.json"] {
        assert!(read(folder, "whole", file) == read(folder, "second", file), "{file} differs");
    }
    // Results of another recipe are no substitute.
    let other = toy::RECIPE.replace("epochs = 4", "epochs = 3");
    toy::write_recipe(folder, "recipe.toml", &other);
    let refused = rest("third");
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("recipe"));
}

#[test]
fn a_sweep_that_is_wrong_is_refused_and_a_failed_run_is_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    toy::write_shards(folder, 3, 1);
    toy::write_recipe(folder, "recipe.toml", &toy::RECIPE.replace("epochs = 4", "epochs = 1"));
    for (wrong, want) in [
        (SWEEP.replace("processes = 2", "process = 2"), "process"),
        (SWEEP.replace("\"focal\"\nset", "\"ce\"\nset"), "two variants"),
        (SWEEP.replace("gamma = 1.5", "gama = 1.5"), "gama"),
        (SWEEP.replace("gamma = 1.5", "gamma = -1.0"), "gamma"),
        (format!("reference = \"none\"\n{SWEEP}"), "reference"),
        (CORRECTED.replace("corrected = \"ce\"", "corrected = \"none\""), "corrects no variant"),
        (CORRECTED.replace("corrected = \"ce\"", "corrected = \"ce-corrected\""), "corrects no variant"),
        (format!("label_noise = [0.1]\n{CORRECTED}"), "settings take the place"),
    ] {
        toy::write_recipe(folder, "wrong.toml", &wrong);
        let output = sweep(folder, "wrong.toml", "wrong");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(want) && said.contains("fix:"), "{said}");
    }
    // A ratio that the cases cannot have fails when it runs, and only there.
    let failing =
        SWEEP.replace("class_ratios = [[1, 1, 1], [1, 2, 1]]\nlabel_noise = [0.0, 0.2]", "").replace(
            "learning_rate = 0.002 }",
            "learning_rate = 0.002 }, data = { class_ratio = [1, 1, 1], n_cases = 90 }",
        );
    toy::write_recipe(folder, "failing.toml", &failing);
    let output = sweep(folder, "failing.toml", "failing");
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let summary: serde_json::Value =
        serde_json::from_slice(&read(folder, "failing", "summary.json")).unwrap();
    assert_eq!(
        summary["failed"],
        serde_json::json!(["focal_ratio-1-1-1_seed-1", "focal_ratio-1-1-1_seed-2"])
    );
    assert_eq!(summary["n_runs"], 2);
}
