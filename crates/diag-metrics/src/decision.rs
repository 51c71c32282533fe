//! What is fixed on validation data before test data is looked at: a temperature,
//! an operating threshold, conformal sets.

use serde::{Deserialize, Serialize};

use crate::calibration::PROBABILITY_FLOOR;
use crate::{MetricsError, Scores, log_loss};

/// Temperatures that are tried, as powers of e.
const LOG_TEMPERATURE_BOUNDS: (f64, f64) = (-3.0, 3.0);

/// Probabilities to the power 1/T, scaled to sum to 1 again: softmax of the logits
/// over T (Guo et al., ICML 2017). T above 1 makes them more timid.
///
/// # Errors
/// A temperature that is not positive.
///
/// ```
/// use diag_metrics::{Scores, with_temperature};
/// let scores = Scores::new(&[0.8, 0.2], 2, &[0])?;
/// let timid = with_temperature(&scores, 2.0)?;
/// assert!((timid.row(0)[0] - 2.0 / 3.0).abs() < 1e-12);
/// # Ok::<(), diag_metrics::MetricsError>(())
/// ```
pub fn with_temperature(scores: &Scores, temperature: f64) -> Result<Scores, MetricsError> {
    if !(temperature > 0.0 && temperature.is_finite()) {
        return Err(MetricsError::OutOfRange { what: "temperature", got: temperature, range: "positive" });
    }
    let mut probs = Vec::with_capacity(scores.probs().len());
    for prob_k in scores.probs().chunks_exact(scores.n_classes()) {
        let logits: Vec<f64> = prob_k.iter().map(|p| p.max(PROBABILITY_FLOOR).ln() / temperature).collect();
        let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let odds: Vec<f64> = logits.iter().map(|logit| (logit - highest).exp()).collect();
        let sum: f64 = odds.iter().sum();
        probs.extend(odds.into_iter().map(|odd| odd / sum));
    }
    Scores::new(&probs, scores.n_classes(), scores.labels())
}

/// The temperature of the lowest log loss, between e^-3 and e^3. Log loss has one
/// minimum in 1/T, so that golden-section search cannot miss it.
///
/// # Errors
/// None of its own.
pub fn fit_temperature(scores: &Scores) -> Result<f64, MetricsError> {
    let cost = |log_temperature: f64| with_temperature(scores, log_temperature.exp()).map(|s| log_loss(&s));
    let golden = (5f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = LOG_TEMPERATURE_BOUNDS;
    let (mut left, mut right) = (high - golden * (high - low), low + golden * (high - low));
    let (mut at_left, mut at_right) = (cost(left)?, cost(right)?);
    for _ in 0..60 {
        if at_left <= at_right {
            (high, right, at_right) = (right, left, at_left);
            left = high - golden * (high - low);
            at_left = cost(left)?;
        } else {
            (low, left, at_left) = (left, right, at_right);
            right = low + golden * (high - low);
            at_right = cost(right)?;
        }
    }
    Ok((0.5 * (low + high)).exp())
}

/// The highest threshold at which at least `sensitivity` of the events have a
/// probability no lower; `None` without events.
///
/// ```
/// let prob_n = [0.9, 0.6, 0.4, 0.7];
/// let event_n = [true, true, true, false];
/// assert_eq!(diag_metrics::operating_threshold(&prob_n, &event_n, 0.6), Some(0.6));
/// assert_eq!(diag_metrics::operating_threshold(&prob_n, &event_n, 1.0), Some(0.4));
/// ```
pub fn operating_threshold(prob_n: &[f64], event_n: &[bool], sensitivity: f64) -> Option<f64> {
    let events = prob_n.iter().zip(event_n).filter(|(_, event)| **event);
    let mut of_events: Vec<f64> = events.map(|(prob, _)| *prob).collect();
    of_events.sort_by(|a, b| b.total_cmp(a));
    // A hair less, so that 0.6 of 5 is 3 and not 4.
    let wanted = (sensitivity * of_events.len() as f64 - 1e-9).ceil().max(1.0) as usize;
    of_events.get(wanted - 1).copied()
}

/// Sets of classes that hold the true one with a stated chance, class by class
/// (Vovk et al. 2005, Mondrian; Sadinle et al. 2019).
///
/// A class is in the set when 1 - p is at most the class's limit. If cases of a
/// class are exchangeable, a case of that class has it in its set with a chance of
/// at least `coverage`, on average over calibration sets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConformalSets {
    /// Stated coverage, in (0, 1).
    pub coverage: f64,
    /// Highest 1 - p of each class in its sets; absent where the class has too few
    /// cases to state the coverage: then it is in every set.
    pub limit_k: Vec<Option<f64>>,
}

/// How conformal sets fare on other data.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SetMeasures {
    /// Share of the items whose set holds their class.
    pub coverage: f64,
    /// The same for each class; absent where there are no items of it.
    pub coverage_k: Vec<Option<f64>>,
    /// Mean number of classes in a set.
    pub mean_size: f64,
    /// Share of the items whose set is one class: the others are left to a human.
    pub singletons: f64,
    /// Share of the singletons that name the true class; absent without any.
    pub singleton_accuracy: Option<f64>,
    /// Share of the items whose set is empty.
    pub empty: f64,
}

impl ConformalSets {
    /// Takes the limits from calibration data.
    ///
    /// # Errors
    /// A coverage outside (0, 1).
    pub fn fit(scores: &Scores, coverage: f64) -> Result<Self, MetricsError> {
        if !(coverage > 0.0 && coverage < 1.0) {
            return Err(MetricsError::OutOfRange { what: "coverage", got: coverage, range: "in (0, 1)" });
        }
        let limit = |class: usize| {
            let of_class = scores.labels().iter().enumerate().filter(|(_, label)| **label == class);
            let mut misses: Vec<f64> = of_class.map(|(row, _)| 1.0 - scores.row(row)[class]).collect();
            misses.sort_by(f64::total_cmp);
            let rank = ((misses.len() + 1) as f64 * coverage - 1e-9).ceil() as usize;
            misses.get(rank.max(1) - 1).copied()
        };
        Ok(Self { coverage, limit_k: (0..scores.n_classes()).map(limit).collect() })
    }

    /// Which classes are in the set of a row, `[K]`.
    pub fn set(&self, prob_k: &[f64]) -> Vec<bool> {
        let member = |(p, limit): (&f64, &Option<f64>)| limit.is_none_or(|limit| 1.0 - p <= limit);
        prob_k.iter().zip(&self.limit_k).map(member).collect()
    }

    /// Measures the sets on data; the classes are those of the fit.
    pub fn measure(&self, scores: &Scores) -> SetMeasures {
        let n_classes = scores.n_classes();
        let (mut held, mut of_class) = (vec![0u64; n_classes], vec![0u64; n_classes]);
        let (mut members, mut singletons, mut right_singletons, mut empty) = (0u64, 0u64, 0u64, 0u64);
        for (row, &label) in scores.labels().iter().enumerate() {
            let set = self.set(scores.row(row));
            let size = set.iter().filter(|member| **member).count() as u64;
            let holds = u64::from(set.get(label).copied().unwrap_or(false));
            of_class[label] += 1;
            held[label] += holds;
            members += size;
            singletons += u64::from(size == 1);
            right_singletons += if size == 1 { holds } else { 0 };
            empty += u64::from(size == 0);
        }
        let n = scores.len() as f64;
        let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        SetMeasures {
            coverage: held.iter().sum::<u64>() as f64 / n,
            coverage_k: held.iter().zip(&of_class).map(|(held, of_class)| share(*held, *of_class)).collect(),
            mean_size: members as f64 / n,
            singletons: singletons as f64 / n,
            singleton_accuracy: share(right_singletons, singletons),
            empty: empty as f64 / n,
        }
    }
}
