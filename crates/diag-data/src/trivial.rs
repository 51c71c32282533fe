//! `trivial.json` of a run: what a classifier gets that never looks at the lung.
//!
//! A network can only be said to have learnt a disease where it beats what size, file
//! format, scanner and grey levels alone give away.

use serde::{Deserialize, Serialize};

/// The trivial baseline of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrivialAudit {
    /// From size, format, spacing, thickness, kernel, scanner and number of slices; no pixel seen.
    pub acquisition: Baseline,
    /// From statistics of the grey levels, without where they lie.
    pub grey: Baseline,
    /// From both.
    pub both: Baseline,
    /// Both, learnt from labels in random order: chance, as these test cases show it.
    pub permuted: Baseline,
    /// What was resampled for the intervals.
    pub unit: ResampledUnit,
    /// Number of these units in the test set.
    pub n_units: usize,
    /// Cases that it was fitted on: training and validation.
    pub n_fitting_cases: usize,
    /// Cases that it was measured on.
    pub n_test_cases: usize,
    /// The test part of these shards.
    pub shards_sha256: String,
    /// The network's predictions that it was compared with; absent before `evaluate`.
    pub predictions_sha256: Option<String>,
    /// The decided rule by which the network was compared; absent before `evaluate`.
    pub decision_sha256: Option<String>,
}

/// What one set of features gives away.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// Mean over the classes of the area under the ROC curve; absent where a class has no test case.
    pub macro_auroc: Option<f64>,
    /// Lower bound of its 95 % interval.
    pub low: Option<f64>,
    /// Upper bound.
    pub high: Option<f64>,
    /// Mean sensitivity of the classes.
    pub balanced_accuracy: Option<f64>,
    /// The classifier that did better in cross-validation on the fitting cases.
    pub classifier: Classifier,
    /// Network minus baseline in macro AUROC, the network by its decided rule, by paired
    /// bootstrap; absent before `evaluate`.
    pub network_minus_baseline: Option<Interval>,
}

/// A number with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// On all test cases.
    pub value: f64,
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

/// What is drawn with replacement for an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResampledUnit {
    /// Patients, with all their cases: every case states one.
    Patient,
    /// Cases.
    Case,
}

impl ResampledUnit {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Patient => "patient",
            Self::Case => "case",
        }
    }
}

/// Which classifier a baseline is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Classifier {
    /// Multinomial logistic regression with a ridge penalty.
    LogisticRegression,
    /// Trees on bootstrap samples (Breiman 2001).
    RandomForest,
}

impl Classifier {
    /// All of them, the simplest first.
    pub const ALL: [Self; 2] = [Self::LogisticRegression, Self::RandomForest];
}
