//! The whole way, on the smoke cohort.

use std::path::Path;
use std::time::{Duration, Instant};

use covid19_diag_tests::{metric, program, smoke_folder, stderr, succeed, workspace};

const BALANCED_ACCURACY: [&str; 5] = ["splits", "test", "case", "mean", "balanced_accuracy"];

#[test]
fn the_pipeline_learns_and_a_control_on_shuffled_labels_does_not() {
    // From nothing, from built programs.
    let out = smoke_folder();
    let started = Instant::now();
    let output = succeed(program("xtask").args(["pipeline", "--fresh", "--out"]).arg(&out));
    let first = started.elapsed();
    assert!(first < Duration::from_secs(180), "the smoke pipeline took {first:?}");
    let report = String::from_utf8(output.stdout).unwrap();
    assert!(report.trim_end().ends_with("report.html"), "{report}");
    assert!(Path::new(report.trim_end()).is_file());

    // Again, unchanged.
    let started = Instant::now();
    let output = succeed(program("xtask").args(["pipeline", "--out"]).arg(&out));
    let again = started.elapsed();
    assert!(again < Duration::from_secs(3), "an unchanged pipeline took {again:?}");
    assert_eq!(stderr(&output).matches("skipped, inputs unchanged").count(), 7, "{}", stderr(&output));

    let learnt = metric(&out.join("run"), &BALANCED_ACCURACY);
    // Four fifths are no exact number.
    assert!(learnt >= 0.8 - 1e-9, "balanced accuracy by case {learnt}");

    one_study_is_predicted_with_probabilities_that_sum_to_one(&out);

    // The same recipe on labels shuffled among the training cases. Chance is 1/3 of three
    // classes; with this many held-out cases one run has a standard error of about 0.13,
    // the mean of three about 0.08.
    let controls = [1, 2, 3].map(|seed| balanced_accuracy_on_shuffled_labels(&out.join("shards"), seed));
    let mean = controls.iter().sum::<f64>() / controls.len() as f64;
    assert!((0.15..=0.5).contains(&mean), "controls on shuffled labels reached {controls:?}");
}

fn balanced_accuracy_on_shuffled_labels(shards: &Path, seed: u32) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let recipe = std::fs::read_to_string(workspace().join("data/recipes/smoke.toml")).unwrap();
    let control = folder.path().join("control.toml");
    let recipe = recipe.replace("seed = 1\n", &format!("seed = {seed}\nshuffle_labels = true\n"));
    std::fs::write(&control, recipe).unwrap();
    let run = folder.path().join("run");
    let mut fit = program("diag-train");
    fit.arg("fit").arg("--shards").arg(shards).arg("--recipe").arg(&control).arg("--out").arg(&run);
    succeed(&mut fit);
    succeed(program("diag-train").arg("evaluate").arg(&run).arg("--shards").arg(shards));
    metric(&run, &BALANCED_ACCURACY)
}

/// The model of the run, on one study of its own cohort.
fn one_study_is_predicted_with_probabilities_that_sum_to_one(out: &Path) {
    let entries = std::fs::read_dir(out.join("dicom")).unwrap().map(|entry| entry.unwrap().path());
    let case = entries.into_iter().find(|path| path.is_dir()).unwrap();
    let output = succeed(program("diag-predict").arg(out.join("run")).arg(case).arg("--json"));
    let prediction: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let probabilities = prediction["case_probabilities"].as_array().unwrap();
    let sum: f64 = probabilities.iter().map(|p| p.as_f64().unwrap()).sum();
    assert_eq!(probabilities.len(), 3);
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
}
