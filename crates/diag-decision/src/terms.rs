//! What a decision file says, and the checks that make it a rule.

use std::collections::BTreeMap;

use diag_data::case::{Label, LabelSet};
use diag_metrics::Aggregation;
use serde::{Deserialize, Serialize};

use crate::DecisionError;
use crate::cut::cases_needed;

/// Version of the form of `decision.json`.
pub const FORMAT_VERSION: u32 = 2;

/// How far the sum of class shares may be from 1.
const SHARE_TOLERANCE: f64 = 1e-9;

/// The content of `decision.json`, complete by itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// SHA-256 of the weights that it was made for.
    pub model_sha256: String,
    /// Class names in the order of every list.
    pub labels: LabelSet,
    /// Whose predictions it was fitted on.
    pub fitted_on: FittedOn,
    /// Cases that it was fitted on; no test case was read.
    pub n_validation_cases: usize,
    /// The same by class.
    pub validation_cases: BTreeMap<String, usize>,
    /// How the slices of a case are joined.
    pub aggregation: Aggregation,
    /// How the joined probabilities are freed of the class shares of the training.
    pub prior_correction: PriorCorrection,
    /// Joined probabilities are taken to the power 1 / temperature; above 0, and 1 where it
    /// changes nothing.
    pub temperature: f64,
    /// The class that the threshold calls.
    pub positive: String,
    /// Sensitivity that the threshold is to have on further cases, in (0, 1).
    pub wanted_sensitivity: f64,
    /// Calibrated probability of the positive class from which a case is called positive;
    /// absent where it is not fixed.
    pub threshold: Option<f64>,
    /// Share of further cases whose set is to hold their class, in (0, 1).
    pub wanted_coverage: f64,
    /// How far the sensitivity and the coverage can be relied on.
    pub coverage_is: Coverage,
    /// Limits of the sets; absent where the coverage cannot be reached.
    pub sets: Option<ConformalSets>,
    /// The numbers of cases that each part rests on.
    pub basis: Basis,
    /// What took part in the choice of aggregation and temperature, simplest first; empty
    /// where there were too few cases for a choice.
    pub candidates: Vec<Candidate>,
    /// What a reader must know, in words.
    pub warnings: Vec<String>,
}

/// Whose predictions a rule was fitted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FittedOn {
    /// Those of these weights on validation cases.
    Validation,
    /// Those of sister networks on training cases that each of them did not see.
    OutOfFold,
}

/// How joined probabilities are freed of the class shares of the training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PriorCorrection {
    /// Not at all.
    None,
    /// Each probability is divided by the share of its class among the training slices, `[K]`,
    /// all above 0 with sum 1, as if the classes were equally frequent (Saerens et al. 2002).
    /// Meant for a network trained with plain cross entropy.
    TrainingShares(Vec<f64>),
}

impl PriorCorrection {
    /// The division by the shares of these counts, `[K]`, training slices of each class.
    ///
    /// ```
    /// use diag_decision::PriorCorrection;
    /// let correction = PriorCorrection::of_counts(&[30, 10])?;
    /// assert_eq!(correction.apply(&[0.75, 0.25]), [0.5, 0.5]);
    /// # Ok::<(), diag_decision::DecisionError>(())
    /// ```
    ///
    /// # Errors
    /// A class without training slices: nothing is known of its share.
    pub fn of_counts(slices_per_class: &[u64]) -> Result<Self, DecisionError> {
        if slices_per_class.is_empty() || slices_per_class.contains(&0) {
            return Err(DecisionError::Setting {
                key: "decision.prior_correction",
                value: "true".to_owned(),
                expected: "false where a class has no training slices".to_owned(),
            });
        }
        let total: u64 = slices_per_class.iter().sum();
        Ok(Self::TrainingShares(slices_per_class.iter().map(|&n| n as f64 / total as f64).collect()))
    }

    /// Corrects the probabilities of one case, `[K]` with sum 1; so does the result sum to 1.
    pub fn apply(&self, prob_k: &[f64]) -> Vec<f64> {
        let share_k = match self {
            Self::None => return prob_k.to_vec(),
            Self::TrainingShares(share_k) => share_k,
        };
        let odds_k: Vec<f64> = prob_k.iter().zip(share_k).map(|(prob, share)| prob / share).collect();
        let sum: f64 = odds_k.iter().sum();
        odds_k.into_iter().map(|odds| odds / sum).collect()
    }
}

/// How far a stated sensitivity or coverage can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Coverage {
    /// It holds on average for further cases like those that the rule was fitted on.
    Exchangeable,
    /// It would hold if the same cases had not also chosen the epoch, the aggregation or
    /// the temperature.
    Nominal,
}

/// Sets of classes that hold the true one with a stated chance, class by class
/// (Vovk et al. 2005, Mondrian; Sadinle et al. 2019).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConformalSets {
    /// Lowest calibrated probability with which each class is in a set, `[K]`, in [0, 1].
    /// The most probable class always is, so that no set is empty.
    pub lowest_k: Vec<f64>,
}

/// A rule for readers, every part with what it rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleInWords {
    /// How slices are joined.
    pub aggregation: String,
    /// The temperature.
    pub temperature: String,
    /// The threshold, or why there is none.
    pub threshold: String,
    /// The sets, or why there are none.
    pub sets: String,
    /// What a reader must know.
    pub warnings: Vec<String>,
}

/// The numbers of cases that the parts of a rule rest on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Basis {
    /// Choice of the aggregation.
    pub aggregation: CaseCount,
    /// Fit of the temperature.
    pub temperature: CaseCount,
    /// Fit of the threshold.
    pub threshold: CaseCount,
    /// Fit of the limits of the sets.
    pub sets: CaseCount,
}

/// How many cases there are of the class that has the fewest of those that count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseCount {
    /// The class.
    pub class: String,
    /// Its cases.
    pub has: usize,
    /// Fewest cases that carry this part of the rule.
    pub needs: usize,
}

/// A simpler or richer way from slices to calibrated probabilities.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// How slices are joined.
    pub aggregation: Aggregation,
    /// Temperature that all cases give it; 1 for the candidate without any.
    pub temperature: f64,
    /// Log loss in nats on cases that its temperature was not fitted on.
    pub log_loss: f64,
    /// How much that is above the lowest one's.
    pub difference: f64,
    /// Standard error of the difference, by case.
    pub standard_error: f64,
}

impl CaseCount {
    /// Whether there are enough.
    pub fn is_enough(&self) -> bool {
        self.has >= self.needs
    }

    fn in_words(&self) -> String {
        let Self { class, has, needs } = self;
        let noun = if *needs == 1 { "case" } else { "cases" };
        format!("needs {needs} validation {noun} of {class}, has {has}")
    }
}

impl Terms {
    /// The whole rule in words.
    pub fn in_words(&self) -> RuleInWords {
        RuleInWords {
            aggregation: self.aggregation_in_words(),
            temperature: self.temperature_in_words(),
            threshold: self.threshold_in_words(),
            sets: self.sets_in_words(),
            warnings: self.warnings.clone(),
        }
    }

    /// The threshold, or why there is none.
    pub fn threshold_in_words(&self) -> String {
        match self.threshold {
            Some(threshold) => format!(
                "{} from a probability of {threshold:.3} on, fixed on {} validation cases of it",
                self.positive, self.basis.threshold.has
            ),
            None => format!("not fixed: {}", self.basis.threshold.in_words()),
        }
    }

    /// The sets, or why there are none.
    pub fn sets_in_words(&self) -> String {
        let percent = 100.0 * self.wanted_coverage;
        match (&self.sets, self.coverage_is) {
            (Some(_), Coverage::Nominal) => {
                format!("hold the true class of {percent:.0} % of the cases of each class (nominal)")
            }
            (Some(_), Coverage::Exchangeable) => {
                format!("hold the true class of {percent:.0} % of the cases of each class")
            }
            (None, _) => format!("not made: {}", self.basis.sets.in_words()),
        }
    }

    /// How slices are joined, and whether the result is freed of the class shares.
    pub fn aggregation_in_words(&self) -> String {
        let joined = match self.aggregation {
            Aggregation::Mean => "mean over the slices".to_owned(),
            Aggregation::TopKMean { k: 1 } => "highest slice of each class".to_owned(),
            Aggregation::TopKMean { k } => format!("mean of the {k} highest slices of each class"),
        };
        match self.prior_correction {
            PriorCorrection::None => joined,
            PriorCorrection::TrainingShares(_) => {
                format!("{joined}, divided by the class shares of the training slices")
            }
        }
    }

    /// The temperature and what it rests on.
    pub fn temperature_in_words(&self) -> String {
        let count = &self.basis.temperature;
        if !count.is_enough() {
            return format!("1, not fitted: {}", count.in_words());
        }
        let cases = format!("{} validation cases", self.n_validation_cases);
        if self.temperature == 1.0 {
            return format!("1: on {cases} no other one was better by more than its standard error");
        }
        format!("{:.3}, fitted on {cases} with a prior around 1", self.temperature)
    }

    /// Index of the positive class.
    pub fn positive_class(&self) -> Option<Label> {
        self.labels.find(&self.positive)
    }

    /// Refuses what is no rule.
    pub(crate) fn check(&self) -> Result<(), DecisionError> {
        let invalid = |why: String| Err(DecisionError::Invalid { why });
        let probability = |p: f64| (0.0..=1.0).contains(&p);
        let inside = |p: f64| p > 0.0 && p < 1.0;
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return invalid(format!("temperature {} is not above 0", self.temperature));
        }
        if self.aggregation == (Aggregation::TopKMean { k: 0 }) {
            return invalid("a mean of 0 slices".into());
        }
        if let PriorCorrection::TrainingShares(share_k) = &self.prior_correction {
            let sum: f64 = share_k.iter().sum();
            if share_k.len() != self.labels.len()
                || !share_k.iter().all(|share| *share > 0.0)
                || (sum - 1.0).abs() > SHARE_TOLERANCE
            {
                return invalid(format!("class shares {share_k:?} are not above 0 with sum 1"));
            }
        }
        if self.positive_class().is_none() {
            return invalid(format!("`{}` is not one of the classes", self.positive));
        }
        for (what, level) in
            [("wanted_sensitivity", self.wanted_sensitivity), ("wanted_coverage", self.wanted_coverage)]
        {
            if !inside(level) {
                return invalid(format!("{what} {level} is not between 0 and 1"));
            }
        }
        if let Some(threshold) = self.threshold.filter(|threshold| !probability(*threshold)) {
            return invalid(format!("threshold {threshold} is not a probability"));
        }
        if let Some(sets) = &self.sets {
            if sets.lowest_k.len() != self.labels.len() {
                return invalid(format!("{} limits for {} classes", sets.lowest_k.len(), self.labels.len()));
            }
            if let Some(lowest) = sets.lowest_k.iter().find(|lowest| !probability(**lowest)) {
                return invalid(format!("limit {lowest} is not a probability"));
            }
        }
        let counts = self.labels.names().iter().map(|name| self.validation_cases.get(name));
        let sum: Option<usize> = counts.sum();
        if sum != Some(self.n_validation_cases) || self.validation_cases.len() != self.labels.len() {
            return invalid("the validation cases by class are not those of all".into());
        }
        self.check_basis()
    }

    /// A part of the rule that stands on too few cases is no rule.
    fn check_basis(&self) -> Result<(), DecisionError> {
        let invalid = |why: String| Err(DecisionError::Invalid { why });
        let basis = &self.basis;
        let parts = [
            ("aggregation", &basis.aggregation),
            ("temperature", &basis.temperature),
            ("threshold", &basis.threshold),
            ("sets", &basis.sets),
        ];
        for (what, count) in parts {
            if self.validation_cases.get(&count.class) != Some(&count.has) {
                return invalid(format!("{what} does not rest on the validation cases of `{}`", count.class));
            }
        }
        let too_few = [
            ("threshold", self.threshold.is_some(), &basis.threshold, cases_needed(self.wanted_sensitivity)),
            ("sets", self.sets.is_some(), &basis.sets, cases_needed(self.wanted_coverage)),
        ];
        for (what, is_there, count, needs) in too_few {
            if is_there != (count.has >= needs) || count.needs != needs {
                return invalid(format!("{what}: {}, is there: {is_there}", count.in_words()));
            }
        }
        if self.temperature != 1.0 && !basis.temperature.is_enough() {
            return invalid(format!("temperature {}: {}", self.temperature, basis.temperature.in_words()));
        }
        if self.aggregation != Aggregation::Mean && !basis.aggregation.is_enough() {
            return invalid(format!("aggregation: {}", basis.aggregation.in_words()));
        }
        Ok(())
    }
}
