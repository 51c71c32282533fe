//! A rule that was checked: read, written, applied.

use std::path::Path;

use diag_data::DataError;
use diag_data::case::{Label, LabelSet, Split};
use diag_data::case_predictions::{Call, CasePrediction};
use diag_data::files;
use diag_metrics::{Aggregation, join_slices};
use serde::Deserialize;

use crate::temperature::calibrate;
use crate::terms::{FORMAT_VERSION, Terms};
use crate::{Case, DecisionError};

/// How far the sum of a slice's probabilities may be from 1: single-precision softmax and
/// its copy through a table lose no more than this.
const SUM_TOLERANCE: f64 = 1e-3;

/// A rule. Invariant: its [`Terms`] hold together, and [`sha256`](Self::sha256) is that of
/// its file.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    terms: Terms,
    json: Vec<u8>,
    sha256: String,
}

/// What a rule says of one case.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseDecision {
    /// Most probable class, the first of equals.
    pub class: usize,
    /// Joined, corrected and calibrated probabilities, `[K]`; they sum to 1.
    pub probability_k: Vec<f64>,
    /// Plain mean over the slices, `[K]`; it sums to 1.
    pub mean_probability_k: Vec<f64>,
    /// Which classes are in the set, `[K]`; absent where the rule has no sets. Never empty.
    pub set: Option<Vec<bool>>,
    /// Which side of the threshold it is on; absent where none is fixed.
    pub call: Option<Call>,
}

impl CaseDecision {
    /// Whether the set holds more than one class; `None` without sets.
    pub fn is_undecided(&self) -> Option<bool> {
        self.set.as_ref().map(|set| set.iter().filter(|member| **member).count() > 1)
    }
}

#[derive(Deserialize)]
struct Versioned {
    #[serde(default)]
    format_version: u64,
}

impl Decision {
    /// Checks the terms of a rule.
    ///
    /// # Errors
    /// When they do not hold together.
    pub fn new(terms: Terms) -> Result<Self, DecisionError> {
        terms.check()?;
        let mut json = serde_json::to_vec_pretty(&terms)
            .map_err(|err| DecisionError::Invalid { why: err.to_string() })?;
        json.push(b'\n');
        let sha256 = files::sha256_hex(&json);
        Ok(Self { terms, json, sha256 })
    }

    /// Reads `decision.json` for a model.
    ///
    /// # Errors
    /// A file that is not there, of another version, for other classes or other weights, or
    /// whose values do not hold together.
    pub fn read(path: &Path, labels: &LabelSet, model_sha256: &str) -> Result<Self, DecisionError> {
        Self::from_json(files::read(path)?, path, labels, model_sha256)
    }

    /// The same from the content of the file; `place` is named in errors.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn from_json(
        json: Vec<u8>,
        place: &Path,
        labels: &LabelSet,
        model_sha256: &str,
    ) -> Result<Self, DecisionError> {
        let malformed =
            |err: serde_json::Error| DataError::Malformed { path: place.into(), why: err.to_string() };
        let file = || place.to_path_buf();
        let Versioned { format_version: got } = serde_json::from_slice(&json).map_err(malformed)?;
        if got != u64::from(FORMAT_VERSION) {
            return Err(DecisionError::Version { got, want: FORMAT_VERSION, file: file() });
        }
        let terms: Terms = serde_json::from_slice(&json).map_err(malformed)?;
        terms.check()?;
        if terms.labels != *labels {
            let (got, want) = (terms.labels.names().to_vec(), labels.names().to_vec());
            return Err(DecisionError::Labels { got, want, file: file() });
        }
        if terms.model_sha256 != model_sha256 {
            let (got, want) = (terms.model_sha256, model_sha256.to_owned());
            return Err(DecisionError::Weights { got, want, file: file() });
        }
        let sha256 = files::sha256_hex(&json);
        Ok(Self { terms, json, sha256 })
    }

    /// Writes the file, atomically.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write(&self, path: &Path) -> Result<(), DecisionError> {
        Ok(files::write_atomic(path, &self.json)?)
    }

    /// What the file says.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// The bytes of the file.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// SHA-256 of the file, which predictions by this rule carry.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Decides one case.
    ///
    /// # Shapes
    /// - `slice_nk`: `[n][K]`, probabilities of the final head, lowest slice first; n at least
    ///   1, every row in [0, 1] with sum 1 (within 0.001)
    ///
    /// # Errors
    /// No slices, or a row that is no distribution over the classes of the rule.
    pub fn apply(&self, slice_nk: &[impl AsRef<[f64]>]) -> Result<CaseDecision, DecisionError> {
        let terms = &self.terms;
        let slice_nk: Vec<&[f64]> = slice_nk.iter().map(AsRef::as_ref).collect();
        check_slices(&slice_nk, terms.labels.len())?;
        let joined_k = join_slices(&slice_nk, terms.aggregation);
        let corrected_k = terms.prior_correction.apply(&joined_k);
        let probability_k = calibrate(&corrected_k, terms.temperature);
        let class = first_highest(&probability_k);
        let set = terms.sets.as_ref().map(|sets| {
            let pairs = probability_k.iter().zip(&sets.lowest_k).enumerate();
            pairs.map(|(k, (prob, lowest))| k == class || prob >= lowest).collect()
        });
        let call = terms.threshold.zip(terms.positive_class()).map(|(threshold, positive)| {
            if probability_k[positive.index()] >= threshold { Call::Positive } else { Call::Negative }
        });
        let mean_probability_k = join_slices(&slice_nk, Aggregation::Mean);
        Ok(CaseDecision { class, probability_k, mean_probability_k, set, call })
    }

    /// Decides a case of a cohort: its row of `case_predictions.parquet`.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn predict(&self, case: &Case) -> Result<CasePrediction, DecisionError> {
        let decided = self.apply(&case.slice_nk)?;
        let name = case.case_id.to_string();
        let (split, label) = (Some(case.split), Some(case.label));
        Ok(self.row(name, split, label, &decided, case.slice_nk.len(), Vec::new()))
    }

    /// The row of a case that was decided; `split` and `label` are absent where they are not
    /// known.
    pub fn row(
        &self,
        case_id: String,
        split: Option<Split>,
        label: Option<Label>,
        decided: &CaseDecision,
        n_slices: usize,
        warnings: Vec<String>,
    ) -> CasePrediction {
        let members = |set: &Vec<bool>| {
            let members = set.iter().enumerate().filter(|(_, member)| **member);
            members.map(|(k, _)| Label(k as u8)).collect()
        };
        CasePrediction {
            case_id,
            split,
            label,
            predicted: Label(decided.class as u8),
            probability_k: decided.probability_k.clone(),
            mean_probability_k: decided.mean_probability_k.clone(),
            set: decided.set.as_ref().map(members),
            call: decided.call,
            n_slices: n_slices as u32,
            warnings,
            model_sha256: self.terms.model_sha256.clone(),
            decision_sha256: self.sha256.clone(),
        }
    }
}

pub(crate) fn check_slices(slice_nk: &[&[f64]], n_classes: usize) -> Result<(), DecisionError> {
    let wrong = |why: String| Err(DecisionError::Slices { why });
    if slice_nk.is_empty() {
        return wrong("there are none".into());
    }
    for (slice, prob_k) in slice_nk.iter().enumerate() {
        if prob_k.len() != n_classes {
            return wrong(format!("slice {slice} has {} of {n_classes} probabilities", prob_k.len()));
        }
        // A comparison with NaN is false, so that the range check refuses it too.
        if let Some(prob) = prob_k.iter().find(|prob| !(0.0..=1.0).contains(*prob)) {
            return wrong(format!("slice {slice} has a probability of {prob}"));
        }
        let sum: f64 = prob_k.iter().sum();
        if (sum - 1.0).abs() > SUM_TOLERANCE {
            return wrong(format!("the probabilities of slice {slice} sum to {sum}"));
        }
    }
    Ok(())
}

fn first_highest(prob_k: &[f64]) -> usize {
    let mut best = 0;
    for (class, prob) in prob_k.iter().enumerate() {
        if *prob > prob_k[best] {
            best = class;
        }
    }
    best
}
