//! Every option of a recipe, on toy shards: what it does, and that a run with all
//! of them goes on exactly where it was stopped.

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

mod toy;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use diag_data::run::RunDir;
use diag_train::evaluate::{EvaluateJob, Metrics, evaluate};
use diag_train::fit::{FitJob, FitSummary, fit};
use diag_train::progress::Event;
use diag_train::{DeviceChoice, TrainError, TrainPlan, ValidationSource};

fn job(folder: &Path, recipe: &str, run: &str) -> FitJob {
    FitJob {
        shards: folder.join("shards"),
        recipe: toy::write_recipe(folder, &format!("{run}.toml"), recipe),
        run: folder.join(run),
        device: DeviceChoice::Auto,
        threads: None,
        resume: false,
        checkpoint_seconds: 0.0,
        command: "diag-train fit".into(),
    }
}

fn train(folder: &Path, recipe: &str, run: &str) -> Result<FitSummary, TrainError> {
    fit(&job(folder, recipe, run), &AtomicBool::new(false), &mut |_| ())
}

fn measure(folder: &Path, run: &str) -> Metrics {
    let job = EvaluateJob {
        run: folder.join(run),
        shards: None,
        split: None,
        device: DeviceChoice::Cpu,
        threads: None,
    };
    evaluate(&job, &AtomicBool::new(false)).unwrap()
}

fn plan(folder: &Path, run: &str) -> TrainPlan {
    TrainPlan::read(&RunDir::new(folder.join(run)).plan()).unwrap()
}

/// The toy recipe with keys before its tables, and tables behind.
fn with(keys: &str, tables: &str) -> String {
    format!("{keys}\n{}\n{tables}", toy::RECIPE)
}

const EVERYTHING: (&str, &str) = (
    "side_stages = [2, 4]\nfusion = \"averaged\"\ndropout = 0.2\nfreeze = \"stem\"\nfreeze_epochs = 2\n\
     patience = 9\naccumulate = 2\nsampling = \"class-balanced\"\nema_decay = 0.9\nfold = { index = 1, of = 3 }",
    "[mixing]\nmixup = 0.4\ncutmix = 0.4\n[data]\nclass_ratio = [1, 2, 1]\nlabel_noise = 0.2",
);

#[test]
fn a_run_with_every_option_resumes_exactly_and_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    toy::write_shards(folder.path(), 8, 1);
    let recipe = with(EVERYTHING.0, EVERYTHING.1)
        .replace("batch_size = 12", "batch_size = 6")
        .replace("weight_decay = 0.01", "weight_decay = 0.01\nlayer_decay = 0.8\nmax_gradient_norm = 2.0");
    let whole = train(folder.path(), &format!("threads = 1\n{recipe}"), "whole").unwrap();
    let mut job = job(folder.path(), &format!("threads = 2\n{recipe}"), "stopped");
    // Stops after so many batches of each start; the checkpoint is of that very step.
    for n_batches in [1, 2, 5, 8] {
        let stop = AtomicBool::new(false);
        let mut seen = 0;
        let stopped = fit(&job, &stop, &mut |event| {
            if let Event::Batch { .. } = event {
                seen += 1;
                stop.store(seen >= n_batches, Ordering::Relaxed);
            }
        });
        assert!(matches!(stopped, Err(TrainError::Interrupted { .. })), "{stopped:?}");
        job.resume = true;
    }
    let resumed = fit(&job, &AtomicBool::new(false), &mut |_| ()).unwrap();
    assert_eq!(resumed.epochs, whole.epochs);
    for file in ["steps.jsonl", "epochs.jsonl", "model.safetensors", "events.out.tfevents.1.diag-train"] {
        let [whole, resumed] =
            ["whole", "stopped"].map(|run| std::fs::read(folder.path().join(run).join(file)).unwrap());
        assert!(whole == resumed, "{file} differs after four stops");
    }
    let steps = RunDir::new(folder.path().join("whole")).read_steps().unwrap();
    assert_eq!(steps.len() as u64, whole.epochs.last().unwrap().step);
    for step in steps {
        assert!(step.loss_state.contains_key("alpha") && step.loss_state.contains_key("beta/stage2"));
    }
}

#[test]
fn early_stopping_waits_its_patience_and_stays_stopped() {
    let folder = tempfile::tempdir().unwrap();
    toy::write_shards(folder.path(), 5, 1);
    // With a vanishing learning rate nothing improves for long.
    let recipe = with("patience = 2", "")
        .replace("epochs = 4", "epochs = 40")
        .replace("learning_rate = 0.003", "learning_rate = 1e-12");
    let summary = train(folder.path(), &recipe, "run").unwrap();
    assert_eq!(summary.epochs.len() as u32, summary.best_epoch + 2);
    let again = FitJob { resume: true, ..job(folder.path(), &recipe, "run") };
    assert_eq!(fit(&again, &AtomicBool::new(false), &mut |_| ()).unwrap(), summary);
}

#[test]
fn folds_cover_every_case_once_and_evaluate_on_their_own_part() {
    let folder = tempfile::tempdir().unwrap();
    toy::write_shards(folder.path(), 6, 1);
    let mut validated = Vec::new();
    for index in 0..3 {
        let run = format!("fold{index}");
        let keys = format!("fold = {{ index = {index}, of = 3 }}");
        let recipe = with(&keys, "")
            .replace("epochs = 4", "epochs = 1")
            .replace("seed = 1", &format!("seed = {index}"));
        train(folder.path(), &recipe, &run).unwrap();
        let plan = plan(folder.path(), &run);
        assert_eq!(plan.validation, ValidationSource::Fold);
        assert_eq!(measure(folder.path(), &run).splits["validation"].case["mean"].n, 6);
        validated.extend(plan.validation_cases);
    }
    validated.sort();
    validated.dedup();
    assert_eq!(validated.len(), 18);
}

#[test]
fn class_ratio_and_label_noise_change_the_training_part_alone() {
    let folder = tempfile::tempdir().unwrap();
    toy::write_shards(folder.path(), 10, 2);
    let tables = "[data]\nclass_ratio = [1, 2, 4]\nn_cases = 14\nlabel_noise = 0.5";
    let recipe = with("", tables).replace("epochs = 4", "epochs = 1").replace("0.2", "0.1");
    train(folder.path(), &recipe, "run").unwrap();
    let plan = plan(folder.path(), "run");
    // 9 training cases a class after validation; 2, 4 and 8 of them are kept.
    assert_eq!(plan.left_out_cases.len(), 27 - 14);
    assert_eq!(plan.n_wrong_labels, 7);
    assert_eq!(plan.slices_per_class.iter().sum::<u64>(), 14 * 4);
    let metrics = measure(folder.path(), "run");
    assert_eq!(metrics.splits["train"].case["mean"].n, 14);
    assert_eq!(metrics.splits["test"].case["mean"].n, 6);
    let too_many = recipe.replace("n_cases = 14", "n_cases = 28");
    let err = train(folder.path(), &too_many, "other").unwrap_err();
    assert!(err.to_string().contains("data.class_ratio"), "{err}");
}

#[test]
fn a_split_by_slice_keeps_the_proportions_and_tears_cases_apart() {
    let folder = tempfile::tempdir().unwrap();
    toy::write_shards(folder.path(), 6, 3);
    let recipe = with("", "[data]\nsplit_by = \"slice\"").replace("epochs = 4", "epochs = 1");
    train(folder.path(), &recipe, "run").unwrap();
    let metrics = measure(folder.path(), "run");
    let n = |split: &str| metrics.splits[split].slice.n;
    assert_eq!(n("train") + n("validation"), 6 * 3 * 4);
    assert_eq!(n("test"), 3 * 3 * 4);
    // Torn cases: more of them in the test part than the shards have there.
    assert!(metrics.splits["test"].case["mean"].n > 9);
}

#[test]
fn a_frozen_backbone_starts_and_ends_the_same() {
    let folder = tempfile::tempdir().unwrap();
    toy::write_shards(folder.path(), 3, 1);
    let recipe = with("freeze = \"stage4\"", "");
    train(folder.path(), &recipe.replace("epochs = 4", "epochs = 1"), "short").unwrap();
    train(folder.path(), &recipe, "long").unwrap();
    let [short, long] = ["short", "long"].map(|run| {
        let state = folder.path().join(run).join("checkpoint/state.safetensors");
        diag_model::tensors::read(&state).unwrap().0
    });
    let same = |name: &str| {
        let difference = (&short[name] - &long[name]).unwrap().abs().unwrap().sum_all().unwrap();
        difference.to_scalar::<f32>().unwrap() == 0.0
    };
    for name in ["network/conv1.weight", "network/layer4.0.bn2.running_mean", "network/layer4.0.bn2.bias"] {
        assert!(same(name), "{name} moved");
    }
    assert!(!same("network/fc.weight") && !same("network/heads.stage1.bn.running_mean"));
}

#[track_caller]
fn check_refused(keys: &str, tables: &str, want: &str) {
    let folder = tempfile::tempdir().unwrap();
    let recipe = toy::write_recipe(folder.path(), "recipe.toml", &with(keys, tables));
    let err = diag_train::TrainSpec::read(&recipe).unwrap_err();
    assert!(err.to_string().contains(want), "{err}");
}

#[test]
fn options_out_of_range_are_named() {
    check_refused("side_stages = [5]", "", "side stages");
    check_refused("fusion = \"maximum\"", "", "maximum");
    check_refused("dropout = 1.0", "", "dropout");
    check_refused("ema_decay = 1.0", "", "ema_decay");
    check_refused("accumulate = 0", "", "accumulate");
    check_refused("fold = { index = 3, of = 3 }", "", "fold");
    check_refused("freeze = \"heads\"", "", "heads");
    check_refused("", "[mixing]\nmixup = -1.0", "mixing.mixup");
    check_refused("", "[mixing]\nmixop = 1.0", "mixop");
    check_refused("", "[data]\nlabel_noise = 1.0", "data.label_noise");
    check_refused("", "[data]\nn_cases = 3", "data.n_cases");
    check_refused("", "[decision]\ncoverage = 1.0", "decision.coverage");
}

#[test]
fn a_positive_class_that_the_shards_lack_is_refused_before_training() {
    let folder = tempfile::tempdir().unwrap();
    toy::write_shards(folder.path(), 3, 1);
    let err = train(folder.path(), &with("", "[decision]\npositive = \"flu\""), "run").unwrap_err();
    assert!(matches!(err, TrainError::Setting { key: "decision.positive", .. }), "{err}");
    assert!(!folder.path().join("run").exists());
}

#[test]
fn fit_says_which_cases_it_has_and_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    toy::write_shards(folder.path(), 4, 1);
    let recipe = toy::RECIPE.replace("validation_share = 0.2", "validation_share = 0.0");
    let recipe = recipe.replace("weight_decay = 0.01", "weight_decay = 0.01\nmax_gradient_norm = 1e-3");
    let mut notes = Vec::new();
    fit(&job(folder.path(), &recipe, "run"), &AtomicBool::new(false), &mut |event| {
        if let Event::Note(text) = event {
            notes.push(text);
        }
    })
    .unwrap();
    let row: Vec<&str> =
        notes.iter().find(|note| note.starts_with("normal ")).unwrap().split_whitespace().collect();
    let cells = "normal 4 cases, 16 slices 0 cases, 0 slices 1 case, 4 slices";
    assert_eq!(row, cells.split_whitespace().collect::<Vec<_>>());
    for want in [
        "there is no validation split",
        "class covid-19 has one case in the test split",
        "max_gradient_norm = 0.001 clipped 16 of 16 steps (100 %)",
    ] {
        assert!(notes.iter().any(|note| note.contains(want)), "{want}: {notes:?}");
    }
}
