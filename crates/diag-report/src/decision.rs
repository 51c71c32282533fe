//! What was fixed on the validation cases before the test cases were looked at, and
//! what it does on the part reported on, as the evaluation recorded it.

use std::collections::BTreeMap;

use diag_data::case::Split;
use diag_data::files;
use diag_data::run::{RunDir, RunInfo};
use serde::{Deserialize, Serialize};

/// An operating point and sets of classes. Unit of analysis: case.
#[derive(Clone, Debug, Serialize)]
pub struct OperatingPoint {
    /// Validation cases that everything here was fitted on.
    pub n_validation_cases: usize,
    /// How the slices of a case are joined, in words.
    pub aggregation: String,
    /// Case probabilities are taken to the power 1 / temperature.
    pub temperature: f64,
    /// The class that the threshold calls.
    pub positive: String,
    /// Probability from which a case is called; absent without validation cases of the class.
    pub threshold: Option<f64>,
    /// Sensitivity on the validation cases that the threshold was chosen for.
    pub wanted_sensitivity: f64,
    /// Sensitivity at the threshold on this part.
    pub sensitivity: Option<f64>,
    /// Specificity at the threshold on this part.
    pub specificity: Option<f64>,
    /// Share of cases whose set of classes was to hold the true one.
    pub wanted_coverage: f64,
    /// Share of cases of this part whose set does.
    pub coverage: f64,
    /// Mean number of classes in a set.
    pub mean_size: f64,
    /// Share of cases whose set is one class; the others are left to a reader.
    pub singletons: f64,
    /// Share of the singletons that name the true class; absent without any.
    pub singleton_accuracy: Option<f64>,
}

/// The part of `decision.json` that is shown.
#[derive(Deserialize)]
struct Decision {
    model_sha256: String,
    n_validation_cases: usize,
    temperature: f64,
    positive: String,
    threshold: Option<f64>,
    wanted_sensitivity: f64,
    sets: Sets,
}

#[derive(Deserialize)]
struct Sets {
    coverage: f64,
}

/// The part of `metrics.json` that is shown.
#[derive(Deserialize)]
struct Metrics {
    model_sha256: String,
    splits: BTreeMap<String, OfSplit>,
}

#[derive(Deserialize)]
struct OfSplit {
    decision: Option<Applied>,
}

#[derive(Deserialize)]
struct Applied {
    aggregation: String,
    sets: MeasuredSets,
    at_threshold: Option<AtThreshold>,
}

#[derive(Deserialize)]
struct MeasuredSets {
    coverage: f64,
    mean_size: f64,
    singletons: f64,
    singleton_accuracy: Option<f64>,
}

#[derive(Deserialize)]
struct AtThreshold {
    sensitivity: Option<f64>,
    specificity: Option<f64>,
}

/// `None` where nothing was fixed, or it was fixed for other weights than the run's.
pub(crate) fn read(dir: &RunDir, info: &RunInfo, split: Split) -> Option<OperatingPoint> {
    let fixed: Decision = files::read_json(&dir.decision()).ok()?;
    let mut metrics: Metrics = files::read_json(&dir.metrics()).ok()?;
    let weights = info.model_sha256.as_ref()?;
    if fixed.model_sha256 != *weights || metrics.model_sha256 != *weights {
        return None;
    }
    let applied = metrics.splits.remove(split.as_str())?.decision?;
    let (sensitivity, specificity) =
        applied.at_threshold.map_or((None, None), |at| (at.sensitivity, at.specificity));
    Some(OperatingPoint {
        n_validation_cases: fixed.n_validation_cases,
        aggregation: applied.aggregation,
        temperature: fixed.temperature,
        positive: fixed.positive,
        threshold: fixed.threshold,
        wanted_sensitivity: fixed.wanted_sensitivity,
        sensitivity,
        specificity,
        wanted_coverage: fixed.sets.coverage,
        coverage: applied.sets.coverage,
        mean_size: applied.sets.mean_size,
        singletons: applied.sets.singletons,
        singleton_accuracy: applied.sets.singleton_accuracy,
    })
}
