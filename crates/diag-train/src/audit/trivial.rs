//! What a classifier gets that never looks at the lung.
//!
//! A network can only be said to have learnt the disease where it beats what size, file
//! format, scanner and grey levels alone give away. The baseline is fitted on the cases
//! that the run learnt from or chose on, and measured on its test cases.

mod classifier;
mod features;

use std::collections::{BTreeMap, BTreeSet};

use diag_data::case::{CaseId, Label, LabelSet, Split};
use diag_data::case_predictions;
use diag_data::run::RunDir;
use diag_data::split::{SplitCase, k_folds};
use diag_data::trivial::{Baseline, Classifier, Interval, ResampledUnit, TrivialAudit};
use diag_data::{DataError, files};
use diag_metrics::{Scores, evaluate, percentile_interval};
use rand::Rng;
use rand::seq::SliceRandom;
use rayon::prelude::*;

use super::run::{AuditJob, AuditedShards};
use crate::error::TrainError;
use crate::evaluate::split::list_split;
use crate::random::{Domain, stream};
use classifier::{Training, fit_predict};
use features::{CaseFeatures, CaseSums, Encoder, FeatureSet};

const N_FOLDS: usize = 5;
/// Resamples of the test set.
const N_RESAMPLES: usize = 1000;
/// Orders of the labels that stand for chance.
const N_PERMUTATIONS: usize = 20;
const LEVEL: f64 = 0.95;

/// A case with what is known of it.
struct Case {
    id: CaseId,
    label: Label,
    patient: Option<String>,
    features: CaseFeatures,
}

/// Fits and measures the baseline of a run, and writes `trivial.json` into it.
///
/// # Errors
/// A folder without a run, other shards, no test cases, or fewer than two classes in the fitting cases.
pub fn trivial(job: &AuditJob) -> Result<TrivialAudit, TrainError> {
    let audited = AuditedShards::read(job)?;
    let (fitting, test) = read_cases(&audited)?;
    let classes: BTreeSet<usize> = fitting.iter().map(|case| case.label.index()).collect();
    if classes.len() < 2 {
        return Err(TrainError::NoSlices { what: "training (of two classes)".to_owned() });
    }
    if test.is_empty() {
        return Err(TrainError::NoSlices { what: "test".to_owned() });
    }
    let n_classes = audited.shards.manifest().spec.labels.len();
    let seed = audited.plan.recipe.seed;
    let units = Units::of(&test);
    let run = RunDir::new(&job.run);
    let network = Network::read(&run, &audited.shards.manifest().spec.labels, &test)?;
    let measure = |set: FeatureSet| {
        let (classifier, scores) = best_baseline(set, &fitting, &test, n_classes, seed)?;
        measured(classifier, &scores, network.as_ref().map(|network| &network.scores), &units, seed)
    };
    let both = measure(FeatureSet::Both)?;
    let permuted = permuted(both.classifier, &fitting, &test, n_classes, seed)?;
    let audit = TrivialAudit {
        acquisition: measure(FeatureSet::Acquisition)?,
        grey: measure(FeatureSet::Grey)?,
        both,
        permuted,
        unit: units.unit,
        n_units: units.rows_of.len(),
        n_fitting_cases: fitting.len(),
        n_test_cases: test.len(),
        shards_sha256: audited.plan.shards_sha256.clone(),
        predictions_sha256: network.as_ref().map(|network| network.predictions_sha256.clone()),
        decision_sha256: network.map(|network| network.decision_sha256),
    };
    files::write_json(&run.trivial(), &audit)?;
    Ok(audit)
}

/// The cases that the run learnt from or chose on, and its test cases, in order of their names.
fn read_cases(audited: &AuditedShards) -> Result<(Vec<Case>, Vec<Case>), TrainError> {
    let mut splits: BTreeMap<CaseId, (Split, Label)> = BTreeMap::new();
    for split in Split::ALL {
        for item in list_split(&audited.shards, Some(&audited.plan), split)?.items {
            splits.insert(item.case_id, (split, item.stored_label));
        }
    }
    let width = audited.shards.manifest().spec.reader.size as usize;
    let mut sums: BTreeMap<CaseId, CaseSums> = BTreeMap::new();
    for slice in Split::ALL.into_iter().flat_map(|split| audited.shards.slices(split)) {
        let slice = slice?;
        if splits.contains_key(&slice.case_id) {
            sums.entry(slice.case_id.clone()).or_default().add(&slice, width);
        }
    }
    let (mut fitting, mut test) = (Vec::new(), Vec::new());
    let rows: BTreeMap<CaseId, _> =
        audited.shards.cases()?.into_iter().map(|row| (row.case_id.clone(), row)).collect();
    for (id, sums) in sums {
        let (Some((split, label)), Some(row)) = (splits.get(&id), rows.get(&id)) else { continue };
        let case = Case { label: *label, patient: row.patient_hash.clone(), features: sums.finish(row), id };
        if *split == Split::Test { test.push(case) } else { fitting.push(case) }
    }
    Ok((fitting, test))
}

/// Which rows of the test set belong together.
struct Units {
    unit: ResampledUnit,
    rows_of: Vec<Vec<usize>>,
}

impl Units {
    fn of(test: &[Case]) -> Self {
        let by_patient = test.iter().all(|case| case.patient.is_some());
        let mut rows_of: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (row, case) in test.iter().enumerate() {
            let patient = case.patient.as_deref().filter(|_| by_patient);
            rows_of.entry(patient.unwrap_or(case.id.as_str())).or_default().push(row);
        }
        let unit = if by_patient { ResampledUnit::Patient } else { ResampledUnit::Case };
        Self { unit, rows_of: rows_of.into_values().collect() }
    }

    /// Rows of one resample, units drawn with replacement.
    fn draw(&self, seed: u64, resample: usize) -> Vec<usize> {
        let mut rng = stream(seed, Domain::TrivialBaseline, 1, resample as u32);
        (0..self.rows_of.len())
            .flat_map(|_| &self.rows_of[rng.random_range(0..self.rows_of.len())])
            .copied()
            .collect()
    }
}

/// The network's case probabilities by the decided rule; `None` before `evaluate`.
struct Network {
    scores: Scores,
    predictions_sha256: String,
    decision_sha256: String,
}

impl Network {
    /// Reads what `evaluate` wrote of the test cases.
    ///
    /// # Errors
    /// Predictions of another rule than the run's `decision.json`.
    fn read(run: &RunDir, labels: &LabelSet, test: &[Case]) -> Result<Option<Self>, TrainError> {
        let path = run.case_predictions();
        if !path.exists() {
            return Ok(None);
        }
        let decision_sha256 = files::sha256_file(&run.decision())?;
        let mut rows: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for row in case_predictions::read_parquet(&path, labels)? {
            if row.decision_sha256 != decision_sha256 {
                let why =
                    "it was made by another rule than decision.json; run diag-train evaluate again".into();
                return Err(DataError::Malformed { path, why }.into());
            }
            if row.split == Some(Split::Test) {
                rows.insert(row.case_id, row.probability_k);
            }
        }
        let rows: Option<Vec<Vec<f64>>> = test.iter().map(|case| rows.remove(case.id.as_str())).collect();
        // Where another split was evaluated there is nothing to compare with.
        let Some(rows) = rows else { return Ok(None) };
        Ok(Some(Self {
            scores: scores(&rows, labels.len(), &labels_of(test))?,
            predictions_sha256: files::sha256_file(&run.predictions())?,
            decision_sha256,
        }))
    }
}

/// Chooses the classifier by cross-validation on the fitting cases, and predicts the test cases.
fn best_baseline(
    set: FeatureSet,
    fitting: &[Case],
    test: &[Case],
    n_classes: usize,
    seed: u64,
) -> Result<(Classifier, Scores), TrainError> {
    let split_cases: Vec<SplitCase> = fitting
        .iter()
        .map(|case| SplitCase { case_id: case.id.clone(), label: case.label, group: case.patient.clone() })
        .collect();
    let folds = k_folds(&split_cases, N_FOLDS, seed);
    let fold_of = |case: &Case| folds.get(&case.id).copied().unwrap_or(0);
    let mut best: Option<(f64, Classifier)> = None;
    for kind in Classifier::ALL {
        let mut rows: BTreeMap<&CaseId, Vec<f64>> = BTreeMap::new();
        for fold in 0..N_FOLDS {
            let (held_out, training): (Vec<&Case>, Vec<&Case>) =
                fitting.iter().partition(|case| fold_of(case) == fold);
            if !held_out.is_empty() && !training.is_empty() {
                let labels: Vec<usize> = training.iter().map(|case| case.label.index()).collect();
                let p = predict(kind, set, &training, &labels, &held_out, n_classes, seed);
                rows.extend(held_out.iter().map(|case| &case.id).zip(p));
            }
        }
        let rows: Vec<Vec<f64>> = fitting.iter().filter_map(|case| rows.remove(&case.id)).collect();
        let auroc = match scores(&rows, n_classes, &labels_of(fitting)) {
            Ok(scores) => evaluate(&scores).macro_auroc.unwrap_or(0.5),
            Err(err) => return Err(err),
        };
        if best.is_none_or(|best| auroc > best.0) {
            best = Some((auroc, kind));
        }
    }
    let kind = best.map_or(Classifier::LogisticRegression, |best| best.1);
    let (fitting, labels) = (fitting.iter().collect::<Vec<_>>(), labels_of(fitting));
    let p = predict(kind, set, &fitting, &labels, &test.iter().collect::<Vec<_>>(), n_classes, seed);
    Ok((kind, scores(&p, n_classes, &labels_of(test))?))
}

/// Probabilities of `cases` after learning `label_n` of the `training` cases.
fn predict(
    kind: Classifier,
    set: FeatureSet,
    training: &[&Case],
    label_n: &[usize],
    cases: &[&Case],
    n_classes: usize,
    seed: u64,
) -> Vec<Vec<f64>> {
    let known: Vec<&CaseFeatures> = training.iter().map(|case| &case.features).collect();
    let encoder = Encoder::fit(set, &known);
    let x_nd: Vec<Vec<f64>> = known.iter().map(|features| encoder.encode(features)).collect();
    let x_md: Vec<Vec<f64>> = cases.iter().map(|case| encoder.encode(&case.features)).collect();
    fit_predict(kind, Training { x_nd: &x_nd, label_n, n_classes }, &x_md, seed)
}

/// A baseline with its interval, and with the network's lead where there is one.
fn measured(
    classifier: Classifier,
    baseline: &Scores,
    network: Option<&Scores>,
    units: &Units,
    seed: u64,
) -> Result<Baseline, TrainError> {
    let whole = evaluate(baseline);
    let lead = |baseline: &Scores, network: &Scores| {
        Some(evaluate(network).macro_auroc? - evaluate(baseline).macro_auroc?)
    };
    let resample = |i: usize| -> Result<(Option<f64>, Option<f64>), TrainError> {
        let rows = units.draw(seed, i);
        let drawn = rows_of(baseline, &rows)?;
        let network = network.map(|network| rows_of(network, &rows)).transpose()?;
        Ok((evaluate(&drawn).macro_auroc, network.and_then(|network| lead(&drawn, &network))))
    };
    let resamples: Vec<_> = (0..N_RESAMPLES).into_par_iter().map(resample).collect::<Result<_, _>>()?;
    let bounds = |values: Vec<f64>| percentile_interval(&values, LEVEL);
    let interval = bounds(resamples.iter().filter_map(|resample| resample.0).collect());
    let lead_interval = bounds(resamples.iter().filter_map(|resample| resample.1).collect());
    let network_minus_baseline = network
        .and_then(|network| lead(baseline, network))
        .zip(lead_interval)
        .map(|(value, (low, high))| Interval { value, low, high });
    let interval = interval.filter(|_| whole.macro_auroc.is_some());
    Ok(Baseline {
        macro_auroc: whole.macro_auroc,
        low: interval.map(|bounds| bounds.0),
        high: interval.map(|bounds| bounds.1),
        balanced_accuracy: whole.balanced_accuracy,
        classifier,
        network_minus_baseline,
    })
}

/// The mean over random orders of the fitting labels, with the range of 95 % of them.
fn permuted(
    classifier: Classifier,
    fitting: &[Case],
    test: &[Case],
    n_classes: usize,
    seed: u64,
) -> Result<Baseline, TrainError> {
    let (training, cases): (Vec<&Case>, Vec<&Case>) = (fitting.iter().collect(), test.iter().collect());
    let (mut aurocs, mut accuracies) = (Vec::new(), Vec::new());
    for i in 0..N_PERMUTATIONS {
        let mut labels = labels_of(fitting);
        labels.shuffle(&mut stream(seed, Domain::TrivialBaseline, 2, i as u32));
        let p = predict(classifier, FeatureSet::Both, &training, &labels, &cases, n_classes, seed);
        let measures = evaluate(&scores(&p, n_classes, &labels_of(test))?);
        aurocs.extend(measures.macro_auroc);
        accuracies.extend(measures.balanced_accuracy);
    }
    let mean =
        |values: &[f64]| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
    let bounds = percentile_interval(&aurocs, LEVEL);
    Ok(Baseline {
        macro_auroc: mean(&aurocs),
        low: bounds.map(|bounds| bounds.0),
        high: bounds.map(|bounds| bounds.1),
        balanced_accuracy: mean(&accuracies),
        classifier,
        network_minus_baseline: None,
    })
}

fn labels_of(cases: &[Case]) -> Vec<usize> {
    cases.iter().map(|case| case.label.index()).collect()
}

fn scores(rows: &[Vec<f64>], n_classes: usize, label_n: &[usize]) -> Result<Scores, TrainError> {
    let flat: Vec<f64> = rows.iter().flatten().map(|p| p.clamp(0.0, 1.0)).collect();
    Ok(Scores::new(&flat, n_classes, label_n)?)
}

fn rows_of(whole: &Scores, rows: &[usize]) -> Result<Scores, TrainError> {
    let flat: Vec<f64> = rows.iter().flat_map(|&row| whole.row(row)).copied().collect();
    let labels: Vec<usize> = rows.iter().map(|&row| whole.labels()[row]).collect();
    Ok(Scores::new(&flat, whole.n_classes(), &labels)?)
}
