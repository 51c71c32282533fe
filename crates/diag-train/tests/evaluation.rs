//! Evaluation of a toy run: one decided rule, files that belong together, and splits that are
//! evaluated one by one.

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

mod toy;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use diag_data::case::{LabelSet, Split};
use diag_data::case_predictions;
use diag_data::external::External;
use diag_data::files;
use diag_data::predictions::Predictions;
use diag_data::reader::{ReaderSettings, Select};
use diag_data::run::RunDir;
use diag_data::seen::PatientCheck;
use diag_decision::{Aggregation, Decision, DecisionError, cases_of};
use diag_train::evaluate::{EvaluateJob, ExternalJob, Metrics, evaluate, validate_externally};
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

/// Evaluates a run on another cohort.
fn validate(run: &RunDir, shards: &Path, out: &Path) -> Result<External, TrainError> {
    let job = ExternalJob {
        run: run.root().into(),
        shards: shards.into(),
        out: out.into(),
        split: None,
        device: DeviceChoice::Cpu,
        threads: None,
    };
    validate_externally(&job, &STAY).map(|(_, external)| external)
}

/// Every file of a folder with its hash.
fn hashes(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), files::sha256_file(&path).unwrap())).collect()
}

#[test]
fn another_cohort_is_measured_by_the_frozen_rule_and_leaves_the_run_alone() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), 12, "");
    let out = folder.path().join("external");
    let other = folder.path().join("other");
    let shards = toy::write_cohort(&other, toy::Cohort { seed: 8, n_train: 3, n_test: 4, ..toy::COHORT });
    let err = validate(&run, &shards, &out).unwrap_err();
    assert!(err.to_string().contains("no decision.json"), "{err}");
    measure(&run, None).unwrap();
    let before = hashes(run.root());
    let external = validate(&run, &shards, &out).unwrap();
    assert!(hashes(run.root()) == before, "the run was touched");
    // The cases of both cohorts have the same names, and are others.
    assert_eq!((external.overlap.shared, external.overlap.near_duplicates), (Vec::new(), Vec::new()));
    assert_eq!(external.overlap.patients, PatientCheck::NotAllKnown);
    assert_eq!((external.overlap.n_seen_cases, external.overlap.n_cases), (36, 21));
    let out = RunDir::new(out);
    assert_eq!(files::sha256_file(&out.decision()).unwrap(), files::sha256_file(&run.decision()).unwrap());
    let rows = case_predictions::read_parquet(&out.case_predictions(), &LabelSet::paper()).unwrap();
    assert_eq!(rows.len(), 21);
    let local = external.recalibration.unwrap();
    assert_eq!((local.n_local_cases, local.n_test_cases), (9, 12));
    assert_eq!(local.frozen.temperature, decision(&run).terms().temperature);
    // Again, in its place; but not in the place of a run.
    validate(&run, &shards, out.root()).unwrap();
    let err = validate(&run, &shards, run.root()).unwrap_err();
    assert!(matches!(err, TrainError::Data(_)), "{err}");
}

#[test]
fn what_the_network_has_seen_is_refused_under_any_name() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), 12, "");
    measure(&run, None).unwrap();
    let out = folder.path().join("external");
    // The cases of the run under other names, and another split.
    let same = toy::Cohort { prefix: "renamed", n_train: 4, n_test: 12, ..toy::COHORT };
    let shards = toy::write_cohort(&folder.path().join("renamed"), same.clone());
    let err = validate(&run, &shards, &out).unwrap_err();
    let TrainError::SeenBefore { cases, .. } = &err else { panic!("{err}") };
    assert!(cases.contains("renamed-000 (pixels of toy-000, "), "{cases}");
    assert_eq!(cases.split("; ").count(), 36, "the test cases of the run were not seen");
    assert!(!out.exists());
    // A little brighter, they are other pixels that look alike.
    let brighter = toy::Cohort { brighter: 1, ..same };
    let shards = toy::write_cohort(&folder.path().join("brighter"), brighter);
    let external = validate(&run, &shards, &out).unwrap();
    let alike = &external.overlap.near_duplicates;
    assert!(alike.len() >= 36, "{}", alike.len());
    assert!(alike.iter().any(|a| (a.case_id.as_str(), a.seen_as.as_str()) == ("renamed-000", "toy-000")));
}

#[test]
fn a_cohort_that_was_read_otherwise_is_refused_with_every_difference() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path(), 12, "");
    measure(&run, None).unwrap();
    let window = Some("-1000:400".parse().unwrap());
    let reader =
        ReaderSettings { size: toy::SIDE as u32, select: Select::All, window, ..ReaderSettings::DEFAULT };
    let shards =
        toy::write_cohort(&folder.path().join("other"), toy::Cohort { seed: 8, reader, ..toy::COHORT });
    let err = validate(&run, &shards, &folder.path().join("external")).unwrap_err();
    let text = err.to_string();
    assert!(text.contains("select: lung here, all there") && text.contains("window: "), "{text}");
    // And the run's own shards are no other cohort.
    let err = validate(&run, &folder.path().join("shards"), &folder.path().join("external")).unwrap_err();
    assert!(matches!(err, TrainError::OwnShards { .. }), "{err}");
}
