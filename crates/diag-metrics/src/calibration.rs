//! Whether a probability of 0.8 comes true 8 times in 10.

use serde::Serialize;

use crate::Scores;
use crate::normal::normal_quantile;

/// Probabilities are moved this far from 0 and 1 before a logarithm is taken:
/// about one step of single precision, in which they were computed.
pub const PROBABILITY_FLOOR: f64 = 1e-7;

/// One bin of a reliability diagram: `lower <= p < upper`, the last one closed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ReliabilityBin {
    /// Lower edge, 0 to 1.
    pub lower: f64,
    /// Upper edge, 0 to 1.
    pub upper: f64,
    /// Number of items whose probability lies in the bin.
    pub n: u64,
    /// Mean probability of those items.
    pub mean_probability: Option<f64>,
    /// Share of those items for which the event came true.
    pub observed: Option<f64>,
}

/// Logistic recalibration of a probability (Cox 1958): the event is regressed on
/// the probability's logit. Perfect: slope 1, intercept 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Recalibration {
    /// Below 1: predictions too extreme; above 1: too timid.
    pub slope: f64,
    /// Intercept of the same fit, in logits.
    pub intercept: f64,
    /// Standard error of the slope.
    pub slope_standard_error: f64,
    /// Standard error of the intercept.
    pub intercept_standard_error: f64,
    /// Calibration in the large: the intercept with the slope held at 1, in
    /// logits. Above 0: the event is more frequent than predicted.
    pub in_the_large: f64,
}

impl Recalibration {
    /// Normal interval of the slope at a level such as 0.95.
    pub fn slope_interval(&self, level: f64) -> Option<(f64, f64)> {
        let half = normal_quantile(0.5 + level / 2.0)? * self.slope_standard_error;
        Some((self.slope - half, self.slope + half))
    }
}

/// Multiclass Brier score: mean over rows of the squared distance between the
/// probabilities and the true class, summed over classes. 0 (best) to 2.
pub fn brier_score(scores: &Scores) -> f64 {
    let rows = (0..scores.len()).map(|row| row_brier(scores.row(row), scores.labels()[row]));
    rows.sum::<f64>() / scores.len() as f64
}

/// Mean negative logarithm of the true class's probability, in nats; 0 is best.
pub fn log_loss(scores: &Scores) -> f64 {
    let rows = (0..scores.len()).map(|row| row_log_loss(scores.row(row), scores.labels()[row]));
    rows.sum::<f64>() / scores.len() as f64
}

/// Reliability bins of equal width over [0, 1]. Empty when `n_bins` is 0 or the
/// lengths differ.
pub fn reliability(prob_n: &[f64], event_n: &[bool], n_bins: usize) -> Vec<ReliabilityBin> {
    if prob_n.len() != event_n.len() {
        return Vec::new();
    }
    let mut tally = vec![(0u64, 0.0f64, 0u64); n_bins];
    for (&prob, &event) in prob_n.iter().zip(event_n) {
        if let Some((n, sum, hits)) = tally.get_mut(bin_of(prob, n_bins)) {
            *n += 1;
            *sum += prob;
            *hits += u64::from(event);
        }
    }
    let bins = tally.into_iter().enumerate().map(|(bin, (n, sum, hits))| ReliabilityBin {
        lower: bin as f64 / n_bins as f64,
        upper: (bin + 1) as f64 / n_bins as f64,
        n,
        mean_probability: (n > 0).then(|| sum / n as f64),
        observed: (n > 0).then(|| hits as f64 / n as f64),
    });
    bins.collect()
}

/// Expected calibration error: mean distance between probability and observed
/// share over the bins, weighted by their items (Naeini 2015). 0 (best) to 1;
/// `None` without items.
pub fn expected_calibration_error(bins: &[ReliabilityBin]) -> Option<f64> {
    let total: u64 = bins.iter().map(|bin| bin.n).sum();
    let gap = |bin: &ReliabilityBin| Some((bin.mean_probability? - bin.observed?).abs());
    let sum: f64 = bins.iter().filter_map(|bin| Some(gap(bin)? * bin.n as f64)).sum();
    (total > 0).then(|| sum / total as f64)
}

/// Fits the logistic recalibration. `None` when it has no finite answer: one
/// side absent, all probabilities equal, or the sides perfectly separated.
pub fn recalibrate(prob_n: &[f64], event_n: &[bool]) -> Option<Recalibration> {
    let logit_n: Vec<f64> = prob_n.iter().map(|&p| logit(p)).collect();
    let has = |side: bool| event_n.contains(&side);
    if prob_n.len() != event_n.len() || !has(true) || !has(false) || separated(&logit_n, event_n) {
        return None;
    }
    let (mut intercept, mut slope) = (0.0, 1.0);
    let mut information = [0.0; 3];
    for _ in 0..100 {
        let mut gradient = [0.0; 2];
        information = [0.0; 3];
        for (&x, &event) in logit_n.iter().zip(event_n) {
            let p = sigmoid(intercept + slope * x);
            let (residual, weight) = (f64::from(u8::from(event)) - p, p * (1.0 - p));
            gradient[0] += residual;
            gradient[1] += residual * x;
            information[0] += weight;
            information[1] += weight * x;
            information[2] += weight * x * x;
        }
        let [a, b, c] = information;
        let determinant = a * c - b * b;
        if determinant <= 1e-12 * a * c {
            return None;
        }
        let step = [
            (c * gradient[0] - b * gradient[1]) / determinant,
            (a * gradient[1] - b * gradient[0]) / determinant,
        ];
        // A long Newton step from a poor start overshoots; a bounded one does not.
        let scale = (5.0 / step[0].abs().max(step[1].abs())).min(1.0);
        intercept += scale * step[0];
        slope += scale * step[1];
        if step[0].abs().max(step[1].abs()) < 1e-11 {
            break;
        }
    }
    let [a, b, c] = information;
    let determinant = a * c - b * b;
    Some(Recalibration {
        slope,
        intercept,
        slope_standard_error: (a / determinant).sqrt(),
        intercept_standard_error: (c / determinant).sqrt(),
        in_the_large: in_the_large(&logit_n, event_n),
    })
}

pub(crate) fn row_brier(prob_k: &[f64], label: usize) -> f64 {
    let miss = |(k, p): (usize, &f64)| (p - f64::from(u8::from(k == label))).powi(2);
    prob_k.iter().enumerate().map(miss).sum()
}

pub(crate) fn row_log_loss(prob_k: &[f64], label: usize) -> f64 {
    -prob_k[label].max(PROBABILITY_FLOOR).ln()
}

pub(crate) fn bin_of(prob: f64, n_bins: usize) -> usize {
    ((prob * n_bins as f64) as usize).min(n_bins.saturating_sub(1))
}

/// Whether some threshold divides the sides: then the slope is infinite.
fn separated(logit_n: &[f64], event_n: &[bool]) -> bool {
    let side = |event: bool| {
        let of_side = logit_n.iter().zip(event_n).filter(move |(_, e)| **e == event);
        of_side.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), (&x, _)| (lo.min(x), hi.max(x)))
    };
    let (events, others) = (side(true), side(false));
    events.0 >= others.1 || others.0 >= events.1
}

fn in_the_large(logit_n: &[f64], event_n: &[bool]) -> f64 {
    let wanted = event_n.iter().filter(|e| **e).count() as f64;
    // The expected count rises with the intercept, so bisection cannot fail.
    let (mut lo, mut hi) = (-60.0, 60.0);
    for _ in 0..100 {
        let middle = 0.5 * (lo + hi);
        let expected: f64 = logit_n.iter().map(|x| sigmoid(middle + x)).sum();
        if expected < wanted { lo = middle } else { hi = middle }
    }
    0.5 * (lo + hi)
}

fn logit(p: f64) -> f64 {
    let p = p.clamp(PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR);
    (p / (1.0 - p)).ln()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
