//! Fits a rule on validation cases.

use std::collections::BTreeSet;

use diag_data::case::LabelSet;
use diag_metrics::join_slices;

use crate::choice::{Choice, choose};
use crate::cut::{cases_needed, cut};
use crate::decision::check_slices;
use crate::demands::Demands;
use crate::temperature::calibrate;
use crate::terms::{
    Basis, CaseCount, ConformalSets, Coverage, FORMAT_VERSION, FittedOn, PriorCorrection, Terms,
};
use crate::{Case, Decision, DecisionError};

/// k of the top-k means that take part in the choice.
const TOP_K: [usize; 4] = [1, 3, 5, 10];

/// What is to be fitted.
#[derive(Clone, Debug, PartialEq)]
pub struct FitSpec {
    /// Classes of the model.
    pub labels: LabelSet,
    /// SHA-256 of the weights.
    pub model_sha256: String,
    /// The class that the threshold calls; absent: the first.
    pub positive: Option<String>,
    /// Sensitivity that the threshold is to have on further cases, in (0, 1).
    pub sensitivity: f64,
    /// Share of further cases whose set is to hold their class, in (0, 1).
    pub coverage: f64,
    /// Further k of top-k means to try, beside 1, 3, 5 and 10; each at least 1.
    pub top_ks: Vec<usize>,
    /// How joined probabilities are freed of the class shares of the training; nothing is
    /// fitted to it on the cases.
    pub prior_correction: PriorCorrection,
    /// Whose predictions the cases carry.
    pub fitted_on: FittedOn,
    /// Whether the same cases chose the epoch whose weights were kept.
    pub cases_chose_epoch: bool,
    /// What evidence a rule needs.
    pub demands: Demands,
}

impl FitSpec {
    /// A threshold for the first class at a sensitivity of 0.95, sets at a coverage of 0.9,
    /// on validation cases that chose the epoch.
    pub fn new(labels: LabelSet, model_sha256: impl Into<String>) -> Self {
        Self {
            labels,
            model_sha256: model_sha256.into(),
            positive: None,
            sensitivity: 0.95,
            coverage: 0.9,
            top_ks: Vec::new(),
            prior_correction: PriorCorrection::None,
            fitted_on: FittedOn::Validation,
            cases_chose_epoch: true,
            demands: Demands::default(),
        }
    }
}

/// Fits a rule. The order of `cases` does not matter; there may be none.
///
/// # Errors
/// A setting outside its range, a class or a slice that does not fit the classes, a case that
/// occurs twice.
pub fn fit(cases: &[Case], spec: &FitSpec) -> Result<Decision, DecisionError> {
    let positive = check_spec(spec)?;
    let cases = checked(cases, &spec.labels)?;
    let mut n_k = vec![0; spec.labels.len()];
    for case in &cases {
        n_k[case.label.index()] += 1;
    }
    let count =
        |class: usize, needs| CaseCount { class: spec.labels.names()[class].clone(), has: n_k[class], needs };
    let scarcest = (0..n_k.len()).min_by_key(|&class| n_k[class]).unwrap_or_default();
    let for_choice = count(scarcest, spec.demands.cases_per_class.max(1));
    let basis = Basis {
        aggregation: for_choice.clone(),
        temperature: for_choice.clone(),
        threshold: count(positive, cases_needed(spec.sensitivity)),
        sets: count(scarcest, cases_needed(spec.coverage)),
    };
    let choice = if for_choice.is_enough() {
        let top_ks = [&TOP_K[..], &spec.top_ks].concat();
        choose(&cases, &top_ks, &spec.prior_correction, &spec.demands)
    } else {
        Choice::plain()
    };
    let prob_nk: Vec<Vec<f64>> = cases
        .iter()
        .map(|case| {
            let slice_nk: Vec<&[f64]> = case.slice_nk.iter().map(Vec::as_slice).collect();
            let joined_k = join_slices(&slice_nk, choice.aggregation);
            calibrate(&spec.prior_correction.apply(&joined_k), choice.temperature)
        })
        .collect();
    let cut_of = |class: usize, level| {
        let prob_n: Vec<f64> = prob_nk.iter().map(|prob_k| prob_k[class]).collect();
        let event_n: Vec<bool> = cases.iter().map(|case| case.label.index() == class).collect();
        cut(&prob_n, &event_n, level)
    };
    let lowest_k: Option<Vec<f64>> = (0..n_k.len()).map(|class| cut_of(class, spec.coverage)).collect();
    let is_nominal =
        spec.cases_chose_epoch || for_choice.is_enough() || spec.fitted_on == FittedOn::OutOfFold;
    let mut terms = Terms {
        format_version: FORMAT_VERSION,
        model_sha256: spec.model_sha256.clone(),
        labels: spec.labels.clone(),
        fitted_on: spec.fitted_on,
        n_validation_cases: cases.len(),
        validation_cases: spec.labels.names().iter().cloned().zip(n_k.iter().copied()).collect(),
        aggregation: choice.aggregation,
        prior_correction: spec.prior_correction.clone(),
        temperature: choice.temperature,
        positive: spec.labels.names()[positive].clone(),
        wanted_sensitivity: spec.sensitivity,
        threshold: cut_of(positive, spec.sensitivity),
        wanted_coverage: spec.coverage,
        coverage_is: if is_nominal { Coverage::Nominal } else { Coverage::Exchangeable },
        sets: lowest_k.map(|lowest_k| ConformalSets { lowest_k }),
        basis,
        candidates: choice.candidates,
        warnings: Vec::new(),
    };
    terms.warnings = warnings(&terms, spec, choice.at_bound);
    Decision::new(terms)
}

/// Index of the positive class.
fn check_spec(spec: &FitSpec) -> Result<usize, DecisionError> {
    for (key, level) in [("decision.sensitivity", spec.sensitivity), ("decision.coverage", spec.coverage)] {
        if !(level > 0.0 && level < 1.0) {
            let expected = "above 0 and below 1, for example 0.9".to_owned();
            return Err(DecisionError::Setting { key, value: level.to_string(), expected });
        }
    }
    let Some(positive) = &spec.positive else {
        return Ok(0);
    };
    spec.labels.find(positive).map(|label| label.index()).ok_or_else(|| DecisionError::Setting {
        key: "decision.positive",
        value: positive.clone(),
        expected: format!("one of {}", spec.labels.names().join(", ")),
    })
}

/// The cases sorted by name.
fn checked(cases: &[Case], labels: &LabelSet) -> Result<Vec<Case>, DecisionError> {
    let mut names = BTreeSet::new();
    for case in cases {
        let wrong = |why| Err(DecisionError::Case { case_id: case.case_id.to_string(), why });
        if case.label.index() >= labels.len() {
            return wrong("has a class that the model does not know");
        }
        if !names.insert(&case.case_id) {
            return wrong("occurs twice");
        }
        let slice_nk: Vec<&[f64]> = case.slice_nk.iter().map(Vec::as_slice).collect();
        check_slices(&slice_nk, labels.len())?;
    }
    let mut cases = cases.to_vec();
    cases.sort_by(|a, b| a.case_id.cmp(&b.case_id));
    Ok(cases)
}

fn warnings(terms: &Terms, spec: &FitSpec, at_bound: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let corrected = match terms.prior_correction {
        PriorCorrection::None => "",
        PriorCorrection::TrainingShares(_) => ", divided by the class shares of the training slices",
    };
    if terms.n_validation_cases == 0 {
        warnings.push(format!(
            "There are no validation cases: the rule is the plain mean over the slices{corrected}."
        ));
    } else if !terms.basis.temperature.is_enough() {
        let CaseCount { class, has, needs } = &terms.basis.temperature;
        warnings.push(format!(
            "Probabilities are the plain mean over the slices{corrected}, not calibrated: aggregation and temperature need {needs} validation cases of every class, {class} has {has}."
        ));
    }
    if terms.threshold.is_none() {
        warnings.push(format!("The threshold is {}.", terms.threshold_in_words()));
    }
    if terms.sets.is_none() {
        warnings.push(format!("Sets of classes are {}.", terms.sets_in_words()));
    }
    if at_bound {
        warnings.push(format!(
            "The temperature {:.3} is the bound of its search: the probabilities of this network are far from what comes true.",
            terms.temperature
        ));
    }
    if terms.threshold.is_some() || terms.sets.is_some() {
        let mut causes = Vec::new();
        if spec.cases_chose_epoch {
            causes.push("the epoch");
        }
        if !terms.candidates.is_empty() {
            causes.push("aggregation and temperature");
        }
        if !causes.is_empty() {
            warnings.push(format!(
                "Sensitivity and coverage are nominal: the same validation cases chose {}.",
                causes.join(", ")
            ));
        }
    }
    if terms.fitted_on == FittedOn::OutOfFold {
        warnings.push(
            "Fitted on out-of-fold predictions, which are those of other networks than the one that it is applied to."
                .into(),
        );
    }
    warnings
}
