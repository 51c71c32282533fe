//! The decided rule of a run and what it says of the split reported on, held against what the
//! evaluation recorded.

use std::collections::BTreeMap;
use std::path::PathBuf;

use diag_data::case::Split;
use diag_data::case_predictions::CasePrediction;
use diag_data::files;
use diag_data::predictions::Predictions;
use diag_data::run::{RunDir, RunInfo};
use diag_decision::{Decision, DecisionError, DecisionMetrics, cases_of};
use diag_metrics::Scores;
use serde::{Deserialize, Serialize};

use crate::ReportError;

/// Version of `metrics.json`.
const METRICS_VERSION: u32 = 2;

/// The operating point and the sets of classes of the decided rule. Unit of analysis: case.
#[derive(Clone, Debug, Serialize)]
pub struct OperatingPoint {
    /// Validation cases that everything here was fitted on.
    pub n_validation_cases: usize,
    /// How the slices of a case are joined, in words.
    pub aggregation: String,
    /// Joined probabilities are taken to the power 1 / temperature.
    pub temperature: f64,
    /// The temperature and what it rests on, in words.
    pub temperature_basis: String,
    /// The class that the threshold calls.
    pub positive: String,
    /// Probability from which a case is called; absent where it is not fixed.
    pub threshold: Option<f64>,
    /// The threshold and what it rests on, or why it is not fixed, in words.
    pub threshold_basis: String,
    /// Sensitivity that the threshold was to have on further cases.
    pub wanted_sensitivity: f64,
    /// Sensitivity at the threshold on this split.
    pub sensitivity: Option<f64>,
    /// Specificity at the threshold on this split.
    pub specificity: Option<f64>,
    /// Share of cases whose set of classes was to hold the true one.
    pub wanted_coverage: f64,
    /// The sets, or why there are none, in words.
    pub sets_basis: String,
    /// Share of cases of this split whose set does; absent without sets, as what follows.
    pub coverage: Option<f64>,
    /// Mean number of classes in a set.
    pub mean_size: Option<f64>,
    /// Share of cases whose set is one class; the others are left to a reader.
    pub singletons: Option<f64>,
    /// Share of the singletons that name the true class; absent without any.
    pub singleton_accuracy: Option<f64>,
    /// What a reader must know of the rule, in words.
    pub rule_warnings: Vec<String>,
}

/// What the rule says of the split reported on.
pub(crate) struct Decided {
    pub(crate) point: OperatingPoint,
    /// Sorted by case.
    pub(crate) rows: Vec<CasePrediction>,
    /// The same as scores.
    pub(crate) scores: Scores,
}

/// What an evaluation recorded of its files.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Recorded {
    pub(crate) model_sha256: String,
    pub(crate) shards_sha256: String,
    pub(crate) decision_sha256: String,
    pub(crate) predictions_sha256: String,
    splits: BTreeMap<String, OfSplit>,
}

#[derive(Clone, Debug, Deserialize)]
struct OfSplit {
    decision: OfRule,
}

#[derive(Clone, Debug, Deserialize)]
struct OfRule {
    case: OfCase,
}

#[derive(Clone, Debug, Deserialize)]
struct OfCase {
    confusion: Vec<Vec<u64>>,
}

/// Reads `metrics.json` and holds its hashes against the files of the run.
pub(crate) fn recorded(dir: &RunDir, info: &RunInfo) -> Result<Recorded, ReportError> {
    let of_run = |source| ReportError::Run { run: dir.root().into(), source };
    // The version alone first: another one has another form.
    let json = files::read(&dir.metrics()).map_err(of_run)?;
    let malformed = |err: serde_json::Error| {
        of_run(diag_data::DataError::Malformed { path: dir.metrics(), why: err.to_string() })
    };
    let value: serde_json::Value = serde_json::from_slice(&json).map_err(malformed)?;
    let found = value["format_version"].as_u64().unwrap_or_default();
    if found != u64::from(METRICS_VERSION) {
        return Err(ReportError::Version { file: dir.metrics(), found, known: METRICS_VERSION });
    }
    let recorded: Recorded = serde_json::from_value(value).map_err(malformed)?;
    let predictions = files::sha256_file(&dir.predictions()).map_err(of_run)?;
    let decision = files::sha256_file(&dir.decision()).map_err(of_run)?;
    let apart = |what, other: PathBuf| Err(ReportError::Apart { what, file: dir.metrics(), other });
    if info.model_sha256.as_ref() != Some(&recorded.model_sha256) {
        return apart("weights", dir.info());
    }
    if recorded.shards_sha256 != info.shards.sha256 {
        return apart("shards", dir.info());
    }
    if recorded.decision_sha256 != decision {
        return apart("decisions", dir.decision());
    }
    if recorded.predictions_sha256 != predictions {
        return apart("predictions", dir.predictions());
    }
    Ok(recorded)
}

/// Applies the rule of the run to a split, and refuses what differs from the record.
pub(crate) fn decide(
    dir: &RunDir,
    info: &RunInfo,
    recorded: &Recorded,
    predictions: &Predictions,
    split: Split,
) -> Result<Decided, ReportError> {
    let refused = |source: DecisionError| ReportError::Decision { run: dir.root().into(), source };
    let unmeasured = |source| ReportError::Metrics { run: dir.root().into(), source };
    let decision = Decision::read(&dir.decision(), &info.labels, &recorded.model_sha256).map_err(refused)?;
    let cases = cases_of(&predictions.rows, split).map_err(refused)?;
    let rows: Vec<CasePrediction> =
        cases.iter().map(|case| decision.predict(case)).collect::<Result<_, _>>().map_err(refused)?;
    let metrics = DecisionMetrics::of(decision.terms(), &rows).map_err(unmeasured)?;
    let known = recorded.splits.get(split.as_str()).map(|of_split| &of_split.decision.case.confusion);
    if known.is_none_or(|known| known != metrics.case.confusion.counts()) {
        return Err(ReportError::Apart {
            what: "counts of right and wrong cases",
            file: dir.metrics(),
            other: dir.predictions(),
        });
    }
    let labels: Vec<usize> = cases.iter().map(|case| case.label.index()).collect();
    let probs: Vec<f64> = rows.iter().flat_map(|row| row.probability_k.iter().copied()).collect();
    let scores = Scores::new(&probs, info.labels.len(), &labels).map_err(unmeasured)?;
    Ok(Decided { point: point(&decision, &metrics), rows, scores })
}

fn point(decision: &Decision, metrics: &DecisionMetrics) -> OperatingPoint {
    let (terms, words) = (decision.terms(), decision.terms().in_words());
    let (at, sets) = (metrics.at_threshold.as_ref(), metrics.sets.as_ref());
    OperatingPoint {
        n_validation_cases: terms.n_validation_cases,
        aggregation: words.aggregation,
        temperature: terms.temperature,
        temperature_basis: words.temperature,
        positive: terms.positive.clone(),
        threshold: terms.threshold,
        threshold_basis: words.threshold,
        wanted_sensitivity: terms.wanted_sensitivity,
        sensitivity: at.and_then(|at| at.sensitivity),
        specificity: at.and_then(|at| at.specificity),
        wanted_coverage: terms.wanted_coverage,
        sets_basis: words.sets,
        coverage: sets.map(|sets| sets.coverage),
        mean_size: sets.map(|sets| sets.mean_size),
        singletons: sets.map(|sets| sets.singletons),
        singleton_accuracy: sets.and_then(|sets| sets.singleton_accuracy),
        rule_warnings: words.warnings,
    }
}
