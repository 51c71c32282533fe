//! How slices become a case and when a case is called: fixed on the validation
//! part, written to `decision.json`, and only then applied to the test part.

use std::collections::BTreeMap;

use diag_data::case::LabelSet;
use diag_data::predictions::Prediction;
use diag_metrics::{
    Aggregation, ConformalSets, Measures, Scores, SetMeasures, aggregate, evaluate as measure,
    fit_temperature, log_loss, operating_threshold, with_temperature,
};
use serde::{Deserialize, Serialize};

use super::attention::{AttentionHead, Bags};
use super::inference::{case_numbers, scores};
use crate::error::TrainError;
use crate::recipe::DecisionSpec;

/// k of the top-k means that take part in the choice, beside the recipe's.
const TOP_K: [usize; 4] = [1, 3, 5, 10];

/// `decision.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Version of this form.
    pub format_version: u32,
    /// Hash of the weights that it was made for.
    pub model_sha256: String,
    /// Validation cases that everything here was fitted on; no test case was read.
    pub n_validation_cases: usize,
    /// The way of joining slices with the lowest validation log loss, each at its own temperature.
    pub aggregation: CaseRule,
    /// All ways that took part, best first.
    pub candidates: Vec<Candidate>,
    /// Case probabilities are taken to the power 1 / temperature.
    pub temperature: f64,
    /// The class that the threshold calls.
    pub positive: String,
    /// Probability of that class from which a case is called; absent without validation cases of it.
    pub threshold: Option<f64>,
    /// Sensitivity that the threshold was chosen for.
    pub wanted_sensitivity: f64,
    /// Conformal sets by class.
    pub sets: ConformalSets,
}

/// A way of joining slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaseRule {
    /// A rule without parameters of its own.
    Fixed(Aggregation),
    /// The attention-pooling head in `attention.safetensors`.
    Attention,
}

impl CaseRule {
    /// In words.
    pub fn describe(self) -> String {
        match self {
            Self::Fixed(Aggregation::Mean) => "mean".to_owned(),
            Self::Fixed(Aggregation::TopKMean { k }) => format!("top-{k} mean"),
            Self::Fixed(Aggregation::NoisyOr) => "noisy-or".to_owned(),
            Self::Attention => "attention".to_owned(),
        }
    }
}

/// One way of joining slices and how it does on the validation cases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The way.
    pub aggregation: CaseRule,
    /// The temperature that suits it best.
    pub temperature: f64,
    /// Log loss at that temperature, in nats.
    pub log_loss: f64,
    /// Macro F1.
    pub macro_f1: Option<f64>,
}

/// What the decision does on one part of the data; unit of analysis: case.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DecisionMetrics {
    /// The way of joining slices, in words.
    pub aggregation: String,
    /// Measures of the joined, calibrated probabilities.
    pub case: Measures,
    /// The same before the temperature was applied.
    pub uncalibrated: Measures,
    /// Conformal sets.
    pub sets: SetMeasures,
    /// At the operating threshold; absent without one.
    pub at_threshold: Option<ThresholdMeasures>,
}

/// What the operating threshold does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ThresholdMeasures {
    /// The class that is called.
    pub positive: String,
    /// From which probability on.
    pub threshold: f64,
    /// Share of the positive cases that are called; absent without any.
    pub sensitivity: Option<f64>,
    /// Share of the other cases that are not; absent without any.
    pub specificity: Option<f64>,
}

/// Slices of one part of the data with what the network says and sees.
pub(crate) struct Part<'a> {
    pub rows: &'a [Prediction],
    pub features: &'a [Vec<f32>],
    pub n_heads: usize,
}

impl Part<'_> {
    fn bags(&self) -> Bags {
        Bags { features: self.features.to_vec(), case_n: case_numbers(self.rows) }
    }
}

impl Decision {
    /// Chooses and fits everything on the validation part.
    pub(crate) fn fit(
        spec: &DecisionSpec,
        top_k: usize,
        labels: &LabelSet,
        model_sha256: String,
        validation: &Part<'_>,
        attention: Option<&AttentionHead>,
    ) -> Result<Self, TrainError> {
        let positive = spec.positive.clone().unwrap_or_else(|| labels.names()[0].clone());
        let Some(positive_class) = labels.find(&positive) else {
            let expected = "a class of the shards";
            return Err(TrainError::Setting { key: "decision.positive", value: positive, expected });
        };
        let mut ks = TOP_K.to_vec();
        ks.push(top_k);
        ks.sort_unstable();
        ks.dedup();
        let tops = ks.into_iter().map(|k| Aggregation::TopKMean { k });
        let fixed = [Aggregation::Mean, Aggregation::NoisyOr].into_iter().chain(tops).map(CaseRule::Fixed);
        let rules = fixed.chain(attention.map(|_| CaseRule::Attention));
        let mut candidates = Vec::new();
        for aggregation in rules {
            let joined = join(aggregation, validation, labels.len(), attention)?;
            let temperature = fit_temperature(&joined)?;
            let calibrated = with_temperature(&joined, temperature)?;
            let macro_f1 = measure(&calibrated).macro_f1;
            candidates.push(Candidate {
                aggregation,
                temperature,
                log_loss: log_loss(&calibrated),
                macro_f1,
            });
        }
        candidates.sort_by(|a, b| a.log_loss.total_cmp(&b.log_loss));
        let Some(best) = candidates.first().cloned() else {
            return Err(TrainError::NoSlices { what: "validation".to_owned() });
        };
        let joined = join(best.aggregation, validation, labels.len(), attention)?;
        let calibrated = with_temperature(&joined, best.temperature)?;
        let class = positive_class.index();
        let threshold =
            operating_threshold(&calibrated.of_class(class), &calibrated.is_class(class), spec.sensitivity);
        Ok(Self {
            format_version: 1,
            model_sha256,
            n_validation_cases: calibrated.len(),
            aggregation: best.aggregation,
            candidates,
            temperature: best.temperature,
            positive,
            threshold,
            wanted_sensitivity: spec.sensitivity,
            sets: ConformalSets::fit(&calibrated, spec.coverage)?,
        })
    }

    /// Applies it to a part of the data.
    pub(crate) fn measure(
        &self,
        part: &Part<'_>,
        labels: &LabelSet,
        attention: Option<&AttentionHead>,
    ) -> Result<DecisionMetrics, TrainError> {
        let joined = join(self.aggregation, part, labels.len(), attention)?;
        let calibrated = with_temperature(&joined, self.temperature)?;
        let at_threshold = match (self.threshold, labels.find(&self.positive)) {
            (Some(threshold), Some(positive)) => {
                let class = positive.index();
                let called = calibrated.of_class(class).into_iter().map(|p| p >= threshold);
                let mut counts: BTreeMap<(bool, bool), f64> = BTreeMap::new();
                for (called, event) in called.zip(calibrated.is_class(class)) {
                    *counts.entry((event, called)).or_default() += 1.0;
                }
                let share = |event: bool, called: bool| {
                    let count = |called| counts.get(&(event, called)).copied().unwrap_or_default();
                    let whole = count(true) + count(false);
                    (whole > 0.0).then(|| count(called) / whole)
                };
                Some(ThresholdMeasures {
                    positive: self.positive.clone(),
                    threshold,
                    sensitivity: share(true, true),
                    specificity: share(false, false),
                })
            }
            _ => None,
        };
        Ok(DecisionMetrics {
            aggregation: self.aggregation.describe(),
            case: measure(&calibrated),
            uncalibrated: measure(&joined),
            sets: self.sets.measure(&calibrated),
            at_threshold,
        })
    }
}

/// Case probabilities by one way of joining slices.
fn join(
    rule: CaseRule,
    part: &Part<'_>,
    n_classes: usize,
    attention: Option<&AttentionHead>,
) -> Result<Scores, TrainError> {
    let slices = scores(part.rows, part.n_heads - 1, n_classes)?;
    let cases = case_numbers(part.rows);
    let how = match rule {
        CaseRule::Fixed(how) => how,
        CaseRule::Attention => Aggregation::Mean,
    };
    let joined = aggregate(&slices, &cases, how)?.scores;
    match (rule, attention) {
        (CaseRule::Attention, Some(head)) => {
            let probabilities = head.probabilities(&part.bags())?.concat();
            Ok(Scores::new(&probabilities, n_classes, joined.labels())?)
        }
        (CaseRule::Attention, None) => {
            let what = "attention head";
            Err(TrainError::NoRun { what, run: std::path::PathBuf::from("attention.safetensors") })
        }
        (CaseRule::Fixed(_), _) => Ok(joined),
    }
}

/// Trains the attention head on the training part; `None` when it has fewer than
/// two cases.
pub(crate) fn train_attention(
    training: &Part<'_>,
    label_n: &[usize],
    n_classes: usize,
    seed: u64,
) -> Result<Option<AttentionHead>, TrainError> {
    let bags = training.bags();
    let n_cases = bags.case_n.iter().max().map_or(0, |max| max + 1);
    if n_cases < 2 {
        return Ok(None);
    }
    // Noise by slice can give a case several labels: the most frequent counts.
    let mut votes = vec![vec![0usize; n_classes]; n_cases];
    for (&case, &label) in bags.case_n.iter().zip(label_n) {
        votes[case][label] += 1;
    }
    let winner = |votes: &Vec<usize>| {
        let most = votes.iter().max().copied().unwrap_or_default();
        votes.iter().position(|&n| n == most).unwrap_or_default()
    };
    let labels: Vec<usize> = votes.iter().map(winner).collect();
    Ok(Some(AttentionHead::train(&bags, &labels, n_classes, seed)?))
}
