//! Evaluation of a toy run: one decided rule, files that belong together, and splits that are
//! evaluated one by one.

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

mod toy;

use std::path::Path;
use std::sync::atomic::AtomicBool;

use diag_data::case::{LabelSet, Split};
use diag_data::case_predictions;
use diag_data::files;
use diag_data::predictions::Predictions;
use diag_data::run::RunDir;
use diag_decision::{Aggregation, Decision, DecisionError, cases_of};
use diag_train::evaluate::{EvaluateJob, Metrics, evaluate};
use diag_train::fit::{FitJob, fit};
use diag_train::{DeviceChoice, TrainError};

static STAY: AtomicBool = AtomicBool::new(false);

/// A run of two epochs on shards with so many training cases of each class.
fn trained(folder: &Path, n_train: usize, extra: &str) -> RunDir {
    let recipe = toy::RECIPE.replace("epochs = 4", "epochs = 2").replace("share = 0.2", "share = 0.4");
    let job = FitJob {
        shards: toy::write_shards(folder, n_train, 4),
        recipe: toy::write_recipe(folder, "recipe.toml", &format!("{recipe}{extra}")),
        run: folder.join("run"),
        device: DeviceChoice::Cpu,
        threads: None,
        resume: false,
        checkpoint_seconds: 60.0,
        command: "fit".into(),
    };
    fit(&job, &STAY, &mut |_| ()).unwrap();
    RunDir::new(job.run)
}

fn measure(run: &RunDir, split: Option<Split>) -> Result<Metrics, TrainError> {
    let job =
        EvaluateJob { run: run.root().into(), shards: None, split, device: DeviceChoice::Cpu, threads: None };
    evaluate(&job, &STAY)
}

fn decision(run: &RunDir) -> Decision {
    let model_sha256 = run.read_info().unwrap().model_sha256.unwrap();
    Decision::read(&run.decision(), &LabelSet::paper(), &model_sha256).unwrap()
}

#[test]
fn the_rule_is_made_once_on_validation_alone_and_few_cases_leave_the_mean() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), 12, "");
    // Only validation slices are asked for: the rule does not need the test split.
    measure(&run, Some(Split::Validation)).unwrap();
    let first = decision(&run);
    assert_eq!(first.terms().n_validation_cases, 15);
    assert_eq!((first.terms().temperature, first.terms().aggregation), (1.0, Aggregation::Mean));
    assert_eq!(first.terms().threshold, None);
    let metrics = measure(&run, None).unwrap();
    assert_eq!(decision(&run), first, "the rule changed");
    assert_eq!(metrics.rule.threshold, "not fixed: needs 19 validation cases of covid-19, has 5");
    for of_split in metrics.splits.values() {
        assert_eq!(of_split.decision.case, of_split.case["mean"]);
        assert!(of_split.decision.sets.is_none() && of_split.decision.at_threshold.is_none());
        assert!(!of_split.case.contains_key("attention"));
    }
}

#[test]
fn enough_cases_carry_a_threshold_and_sets() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), 25, "[decision]\nsensitivity = 0.9\nattention = true");
    let metrics = measure(&run, None).unwrap();
    let decision = decision(&run);
    let terms = decision.terms();
    assert_eq!(terms.n_validation_cases, 30);
    assert!(terms.threshold.is_some() && terms.sets.is_some() && !terms.candidates.is_empty());
    assert!(terms.warnings.iter().any(|warning| warning.contains("nominal")), "{:?}", terms.warnings);
    let validation = &metrics.splits["validation"].decision;
    // Of ten cases all may pass: the cut lies below the lowest of them.
    assert_eq!(validation.at_threshold.as_ref().unwrap().sensitivity, Some(1.0));
    assert_eq!(validation.sets.as_ref().unwrap().coverage, 1.0);
    // Attention is a variant, whatever it measures.
    assert_eq!(metrics.splits["test"].case["attention"].n, 12);
    assert!(run.root().join("attention.safetensors").exists());
    assert_eq!(measure(&run, None).unwrap(), metrics, "the stored head gives other numbers");
}

#[test]
fn cases_and_metrics_are_of_the_same_predictions() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), 12, "");
    let metrics = measure(&run, None).unwrap();
    assert_eq!(metrics.predictions_sha256, files::sha256_file(&run.predictions()).unwrap());
    assert_eq!(metrics.decision_sha256, files::sha256_file(&run.decision()).unwrap());
    let labels = LabelSet::paper();
    let rows = case_predictions::read_parquet(&run.case_predictions(), &labels).unwrap();
    assert_eq!(rows, case_predictions::read_csv(&run.case_predictions_csv(), &labels).unwrap());
    assert_eq!(rows.len(), 3 * (12 + 4));
    let decision = decision(&run);
    let slices = Predictions::read(&run.predictions(), &labels).unwrap();
    for split in Split::ALL {
        let of_split: Vec<_> = rows.iter().filter(|row| row.split == Some(split)).collect();
        let cases = cases_of(&slices.rows, split).unwrap();
        assert_eq!(of_split.len(), cases.len());
        for (row, case) in of_split.iter().zip(&cases) {
            assert_eq!(**row, decision.predict(case).unwrap());
        }
        let n_right = of_split.iter().filter(|row| row.label == Some(row.predicted)).count();
        let accuracy = metrics.splits[split.as_str()].decision.case.accuracy.unwrap();
        assert!((accuracy - n_right as f64 / of_split.len() as f64).abs() < 1e-12);
    }
}

#[test]
fn split_by_split_gives_the_files_of_all_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), 12, "");
    let written = |run: &RunDir| {
        let paths = [
            run.decision(),
            run.predictions(),
            run.case_predictions(),
            run.case_predictions_csv(),
            run.metrics(),
        ];
        paths.map(|path| std::fs::read(path).unwrap())
    };
    measure(&run, None).unwrap();
    let at_once = written(&run);
    measure(&run, Some(Split::Test)).unwrap();
    assert!(written(&run) == at_once, "a split that was evaluated again changed the others");
    for path in [run.decision(), run.predictions(), run.metrics()] {
        std::fs::remove_file(path).unwrap();
    }
    for split in [Split::Test, Split::Train, Split::Validation] {
        measure(&run, Some(split)).unwrap();
    }
    assert!(written(&run) == at_once);
}

#[test]
fn predictions_that_are_not_those_of_the_metrics_are_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), 12, "");
    measure(&run, None).unwrap();
    let mut table = Predictions::read(&run.predictions(), &LabelSet::paper()).unwrap();
    table.rows.retain(|row| row.split != Split::Validation);
    table.write(&run.predictions()).unwrap();
    measure(&run, Some(Split::Test)).unwrap();
    let left = Predictions::read(&run.predictions(), &LabelSet::paper()).unwrap();
    assert!(left.rows.iter().all(|row| row.split == Split::Test));
}

#[test]
fn other_shards_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), 12, "");
    let other = tempfile::tempdir().unwrap();
    let shards = toy::write_shards(other.path(), 11, 4);
    let device = DeviceChoice::Cpu;
    let job =
        EvaluateJob { run: run.root().into(), shards: Some(shards), split: None, device, threads: None };
    let err = evaluate(&job, &STAY).unwrap_err();
    assert!(matches!(err, TrainError::OtherShards { .. }), "{err}");
    assert!(!run.decision().exists() && !run.predictions().exists());
    // Made again in the same place, they are others too.
    std::fs::remove_dir_all(folder.path().join("shards")).unwrap();
    toy::write_shards(folder.path(), 11, 5);
    assert!(matches!(measure(&run, None).unwrap_err(), TrainError::OtherShards { .. }));
}

#[test]
fn a_rule_or_weights_of_another_run_are_refused() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let run = trained(a.path(), 12, "");
    let other = trained(b.path(), 11, "");
    measure(&run, Some(Split::Validation)).unwrap();
    measure(&other, Some(Split::Validation)).unwrap();
    let own = std::fs::read(run.decision()).unwrap();
    std::fs::copy(other.decision(), run.decision()).unwrap();
    let err = measure(&run, None).unwrap_err();
    assert!(matches!(&err, TrainError::Decision(DecisionError::Weights { .. })), "{err}");
    std::fs::write(run.decision(), own).unwrap();
    std::fs::copy(other.weights(), run.weights()).unwrap();
    assert!(matches!(measure(&run, None).unwrap_err(), TrainError::Model(_)));
    std::fs::copy(other.model(), run.model()).unwrap();
    assert!(matches!(measure(&run, None).unwrap_err(), TrainError::Apart { .. }));
}
