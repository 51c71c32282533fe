//! Training on toy shards: what a run leaves behind, and that it does so again.

mod toy;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use diag_data::case::Split;
use diag_data::predictions::Predictions;
use diag_data::run::RunDir;
use diag_train::evaluate::{EvaluateJob, Metrics, evaluate};
use diag_train::fit::{FitJob, FitSummary, fit};
use diag_train::{DeviceChoice, TrainError};

fn job(folder: &Path, recipe: PathBuf, run: &str) -> FitJob {
    FitJob {
        shards: folder.join("shards"),
        recipe,
        run: folder.join(run),
        device: DeviceChoice::Auto,
        resume: false,
        command: "diag-train fit".into(),
    }
}

fn train(folder: &Path, recipe: &str, run: &str) -> Result<FitSummary, TrainError> {
    let recipe = toy::write_recipe(folder, &format!("{run}.toml"), recipe);
    fit(&job(folder, recipe, run), &AtomicBool::new(false), &mut |_| ())
}

fn measure(folder: &Path, run: &str) -> Metrics {
    let job = EvaluateJob { run: folder.join(run), shards: None, split: None, device: DeviceChoice::Cpu };
    evaluate(&job, &AtomicBool::new(false)).unwrap()
}

#[test]
fn a_run_learns_and_leaves_a_whole_folder() {
    let folder = tempfile::tempdir().unwrap();
    toy::write_shards(folder.path(), 10, 4);
    let summary = train(folder.path(), &toy::RECIPE.replace("epochs = 4", "epochs = 10"), "run").unwrap();
    assert_eq!(summary.epochs.len(), 10);
    let metrics = measure(folder.path(), "run");
    let test = &metrics.splits["test"];
    assert_eq!(test.case["mean"].n, 12);
    assert!(test.case["mean"].balanced_accuracy.unwrap() >= 0.9, "{test:?}");

    let run = RunDir::new(folder.path().join("run"));
    let info = run.read_info().unwrap();
    assert!(info.shards.synthetic);
    assert_eq!(info.heads, ["stage1", "stage2", "stage3", "stage4", "final"]);
    assert_eq!(info.model_sha256.as_deref(), Some(metrics.model_sha256.as_str()));
    assert_eq!(info.cases["validation"]["normal"], 2);
    assert_eq!(info.cases["train"]["normal"], 8);
    let epochs = run.read_epochs().unwrap();
    assert_eq!(epochs, summary.epochs);
    assert!(epochs.iter().all(|epoch| epoch.loss_state.contains_key("alpha")));
    let predictions = Predictions::read(&run.predictions(), &info.labels).unwrap();
    let n = |split| predictions.rows.iter().filter(|row| row.split == split).count();
    assert_eq!(Split::ALL.map(n), [96, 24, 48]);
}
