//! What a rule does on cases whose class is known. Unit of analysis: case.

use diag_data::case_predictions::{Call, CasePrediction};
use diag_metrics::{Measures, MetricsError, Scores, evaluate};
use serde::Serialize;

use crate::Terms;

/// What the decided rule does on one part of the data.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DecisionMetrics {
    /// How slices are joined, in words.
    pub aggregation: String,
    /// Joined probabilities are taken to the power 1 / temperature.
    pub temperature: f64,
    /// Measures of the joined, calibrated probabilities.
    pub case: Measures,
    /// Of the sets; absent where the rule has none.
    pub sets: Option<SetMetrics>,
    /// At the threshold; absent where none is fixed.
    pub at_threshold: Option<ThresholdMetrics>,
}

/// How sets fare.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SetMetrics {
    /// Share of the cases whose set is to hold their class.
    pub wanted_coverage: f64,
    /// Share of the cases whose set does.
    pub coverage: f64,
    /// The same for each class, `[K]`; absent where there are no cases of it.
    pub coverage_k: Vec<Option<f64>>,
    /// Mean number of classes in a set.
    pub mean_size: f64,
    /// Share of the cases whose set is one class: the others are undecided.
    pub singletons: f64,
    /// Share of the singletons that name the true class; absent without any.
    pub singleton_accuracy: Option<f64>,
}

/// What the threshold does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ThresholdMetrics {
    /// The class that is called.
    pub positive: String,
    /// From which probability on.
    pub threshold: f64,
    /// Share of the positive cases that are called; absent without any.
    pub sensitivity: Option<f64>,
    /// Share of the other cases that are not; absent without any.
    pub specificity: Option<f64>,
}

impl DecisionMetrics {
    /// Measures rows that a rule with these terms decided; those without a label do not count.
    ///
    /// # Errors
    /// No row with a label, or probabilities of other classes.
    pub fn of(terms: &Terms, rows: &[CasePrediction]) -> Result<Self, MetricsError> {
        let known: Vec<(usize, &CasePrediction)> =
            rows.iter().filter_map(|row| Some((row.label?.index(), row))).collect();
        let label_n: Vec<usize> = known.iter().map(|(label, _)| *label).collect();
        let probs: Vec<f64> = known.iter().flat_map(|(_, row)| row.probability_k.iter().copied()).collect();
        let scores = Scores::new(&probs, terms.labels.len(), &label_n)?;
        Ok(Self {
            aggregation: terms.aggregation_in_words(),
            temperature: terms.temperature,
            case: evaluate(&scores),
            sets: terms.sets.as_ref().map(|_| sets(terms, &known)),
            at_threshold: at_threshold(terms, &known),
        })
    }
}

fn sets(terms: &Terms, known: &[(usize, &CasePrediction)]) -> SetMetrics {
    let (mut held_k, mut n_k) = (vec![0; terms.labels.len()], vec![0; terms.labels.len()]);
    let (mut members, mut singletons, mut right_singletons) = (0, 0, 0);
    for (label, row) in known {
        let set = row.set.as_deref().unwrap_or_default();
        let holds = usize::from(set.iter().any(|member| member.index() == *label));
        n_k[*label] += 1;
        held_k[*label] += holds;
        members += set.len();
        if set.len() == 1 {
            singletons += 1;
            right_singletons += holds;
        }
    }
    let share = |part: usize, whole: usize| (whole > 0).then(|| part as f64 / whole as f64);
    let n = known.len() as f64;
    SetMetrics {
        wanted_coverage: terms.wanted_coverage,
        coverage: held_k.iter().sum::<usize>() as f64 / n,
        coverage_k: held_k.iter().zip(&n_k).map(|(held, n)| share(*held, *n)).collect(),
        mean_size: members as f64 / n,
        singletons: singletons as f64 / n,
        singleton_accuracy: share(right_singletons, singletons),
    }
}

fn at_threshold(terms: &Terms, known: &[(usize, &CasePrediction)]) -> Option<ThresholdMetrics> {
    let (threshold, positive) = terms.threshold.zip(terms.positive_class())?;
    let share = |of_positive: bool, call: Call| {
        let side = known.iter().filter(|(label, _)| (*label == positive.index()) == of_positive);
        let (mut n, mut hits) = (0, 0);
        for (_, row) in side {
            n += 1;
            hits += usize::from(row.call == Some(call));
        }
        (n > 0).then(|| f64::from(hits as u32) / f64::from(n))
    };
    Some(ThresholdMetrics {
        positive: terms.positive.clone(),
        threshold,
        sensitivity: share(true, Call::Positive),
        specificity: share(false, Call::Negative),
    })
}
