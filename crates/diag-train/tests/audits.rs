//! Audits and the learning-rate finder, on toy shards.

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

mod toy;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use diag_data::case::Split;
use diag_data::run::RunDir;
use diag_data::trivial::{ResampledUnit, TrivialAudit};
use diag_train::audit::{Attribute, AuditJob, label_noise, shortcut, trivial};

use diag_train::evaluate::{EvaluateJob, Metrics, evaluate};
use diag_train::find_rate::{FindRateJob, find_rate};
use diag_train::fit::{FitJob, fit};
use diag_train::{DeviceChoice, TrainPlan};

fn go() -> AtomicBool {
    AtomicBool::new(false)
}

fn train(folder: &Path, recipe: &str, run: &str) {
    let job = FitJob {
        shards: folder.join("shards"),
        recipe: toy::write_recipe(folder, &format!("{run}.toml"), recipe),
        run: folder.join(run),
        device: DeviceChoice::Auto,
        threads: None,
        resume: false,
        checkpoint_seconds: 60.0,
        command: "diag-train fit".into(),
    };
    fit(&job, &go(), &mut |_| ()).unwrap();
}

fn measure(folder: &Path, run: &str, split: Option<Split>) -> Metrics {
    let job =
        EvaluateJob { run: folder.join(run), shards: None, split, device: DeviceChoice::Cpu, threads: None };
    evaluate(&job, &go()).unwrap()
}

#[test]
fn wrong_labels_are_found_among_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    toy::write_shards(folder, 14, 1);
    let recipe = format!("{}\n[data]\nlabel_noise = 0.15", toy::RECIPE)
        .replace("epochs = 4", "epochs = 8")
        .replace("validation_share = 0.2", "validation_share = 0.15");
    train(folder, &recipe, "run");
    let audit = label_noise(&AuditJob { run: folder.join("run"), shards: None }, &go()).unwrap();
    let plan = TrainPlan::read(&RunDir::new(folder.join("run")).plan()).unwrap();
    assert_eq!(audit.n_known_wrong, 4 * plan.n_wrong_labels);
    assert_eq!(audit.slices.len() as u64, plan.slices_per_class.iter().sum::<u64>());
    assert!((audit.chance - 0.15).abs() < 0.03, "{}", audit.chance);
    assert!(audit.precision_at[&10] >= 0.9, "{:?}", audit.precision_at);
    assert!(audit.precision_at[&audit.n_known_wrong] >= 0.7, "{:?}", audit.precision_at);
    assert!(audit.slices.windows(2).all(|pair| pair[0].margin <= pair[1].margin));
}

#[test]
fn a_scanner_that_leaves_no_trace_is_not_found_in_the_features() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    toy::write_shards(folder, 6, 12);
    train(folder, toy::RECIPE, "run");
    let job = AuditJob { run: folder.join("run"), shards: None };
    let audit = shortcut(&job, Attribute::Manufacturer, &go()).unwrap();
    assert_eq!(audit.cases.len(), 2);
    assert_eq!(audit.cases.values().flat_map(|of_class| of_class.values()).sum::<u64>(), 36);
    assert_eq!(audit.chance, 0.5);
    assert!(audit.balanced_accuracy < 0.75 && audit.p_value > 0.02, "{audit:?}");
    assert!((audit.shuffled - 0.5).abs() < 0.1, "{audit:?}");
    assert!(shortcut(&job, Attribute::Kernel, &go()).is_err());
}

#[test]
fn a_scanner_that_is_left_out_is_tested_on_alone() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    toy::write_shards(folder, 6, 4);
    let recipe = format!("{}\n[data]\nleave_out_manufacturer = \"Alpha\"", toy::RECIPE);
    train(folder, &recipe.replace("epochs = 4", "epochs = 1"), "run");
    let metrics = measure(folder, "run", None);
    // Half of the 30 cases are of either manufacturer; those of the other that were
    // to be tested on are neither trained nor tested on.
    assert_eq!(metrics.splits["test"].case["mean"].n, 15);
    let n_learned = metrics.splits["train"].case["mean"].n + metrics.splits["validation"].case["mean"].n;
    assert_eq!(n_learned, 9);
}

#[test]
fn the_rate_finder_rises_and_stops_where_the_loss_blows_up() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let shards = toy::write_shards(folder, 4, 1);
    let recipe = toy::write_recipe(folder, "recipe.toml", toy::RECIPE);
    let found =
        find_rate(&FindRateJob { shards: shards.clone(), recipe: recipe.clone(), n_steps: 40 }, &go())
            .unwrap();
    assert_eq!(found.steps[0].learning_rate, 1e-6);
    assert!(found.steps.windows(2).all(|pair| pair[0].learning_rate < pair[1].learning_rate));
    assert!(found.steps.len() <= 40 && found.suggested > 1e-6 && found.suggested <= 0.1, "{found:?}");
    assert!(find_rate(&FindRateJob { shards, recipe, n_steps: 3 }, &go()).is_err());
}

/// The trivial baseline of a short run on toy shards with a scanner by case.
fn baseline(scanner: fn(usize) -> &'static str) -> TrivialAudit {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    toy::write_cohort(folder, toy::Cohort { n_train: 16, n_test: 12, scanner, ..toy::COHORT });
    train(folder, &toy::RECIPE.replace("epochs = 4", "epochs = 1"), "run");
    let job = AuditJob { run: folder.join("run"), shards: None };
    let before = trivial(&job).unwrap();
    assert_eq!((before.n_fitting_cases, before.n_test_cases, before.n_units), (48, 36, 36));
    assert_eq!((before.unit, before.both.network_minus_baseline), (ResampledUnit::Case, None));
    measure(folder, "run", None);
    let after = trivial(&job).unwrap();
    // Same seed, same numbers; the network beside them.
    assert_eq!((after.grey.macro_auroc, after.grey.low), (before.grey.macro_auroc, before.grey.low));
    assert!(
        after.both.network_minus_baseline.is_some()
            && after.predictions_sha256.is_some()
            && after.decision_sha256.is_some()
    );
    assert!(folder.join("run/trivial.json").exists());
    // A rule that was changed since is no longer the one of the predictions.
    let decision = RunDir::new(folder.join("run")).decision();
    std::fs::write(&decision, [&std::fs::read(&decision).unwrap()[..], b"\n"].concat()).unwrap();
    let refused = std::error::Error::source(&trivial(&job).unwrap_err()).unwrap().to_string();
    assert!(refused.contains("another rule than decision.json"), "{refused}");
    after
}

#[test]
fn a_scanner_that_tells_the_class_is_found_without_a_pixel() {
    let found = baseline(|case| ["Alpha", "Beta", "Gamma"][case % 3]);
    assert!(found.acquisition.macro_auroc.unwrap() > 0.99, "{found:?}");
    assert!(found.permuted.low.unwrap() < 0.5 && found.permuted.high.unwrap() > 0.5, "{found:?}");
}

#[test]
fn a_scanner_that_tells_nothing_is_at_chance() {
    let found = baseline(|case| ["Alpha", "Beta"][case / 3 % 2]);
    let acquisition = &found.acquisition;
    assert!(acquisition.low.unwrap() <= 0.5 && acquisition.high.unwrap() >= 0.5, "{acquisition:?}");
    // The toy's disc differs in size, which grey levels alone show.
    assert!(found.grey.macro_auroc.unwrap() > 0.95, "{found:?}");
}
