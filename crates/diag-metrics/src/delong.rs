//! Variance of an AUROC and the test of two on the same items (DeLong, DeLong
//! and Clarke-Pearson 1988), with midranks (Sun and Xu 2014).

use serde::Serialize;

use crate::normal::{normal_quantile, two_sided_p};

/// An AUROC with its variance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Delong {
    /// Area under the ROC curve, 0 to 1.
    pub auroc: f64,
    /// Variance of the area.
    pub variance: f64,
}

impl Delong {
    /// Normal interval at a level such as 0.95, cut at 0 and 1. `None` when the
    /// variance is 0 (perfect separation), where it would claim certainty.
    pub fn interval(&self, level: f64) -> Option<(f64, f64)> {
        let half = normal_quantile(0.5 + level / 2.0)? * self.variance.sqrt();
        (half > 0.0).then(|| ((self.auroc - half).max(0.0), (self.auroc + half).min(1.0)))
    }
}

/// Two AUROCs of the same items, compared.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DelongDifference {
    /// The first.
    pub first: f64,
    /// The second.
    pub second: f64,
    /// First minus second.
    pub difference: f64,
    /// Standard error of the difference.
    pub standard_error: f64,
    /// Two-sided p value; `None` when the standard error is 0 and the areas differ.
    pub p_value: Option<f64>,
}

/// AUROC and variance of independent items (cases, not slices). `None` when a
/// side has fewer than 2 items or the lengths differ.
pub fn delong(score_n: &[f64], positive_n: &[bool]) -> Option<Delong> {
    let parts = Components::new(score_n, positive_n)?;
    Some(Delong { auroc: parts.auroc, variance: parts.covariance(&parts) })
}

/// Compares two scores of the same items. `None` when a side has fewer than 2
/// items or the lengths differ.
pub fn delong_paired(first_n: &[f64], second_n: &[f64], positive_n: &[bool]) -> Option<DelongDifference> {
    let first = Components::new(first_n, positive_n)?;
    let second = Components::new(second_n, positive_n)?;
    let variance = first.covariance(&first) + second.covariance(&second) - 2.0 * first.covariance(&second);
    let difference = first.auroc - second.auroc;
    // Equal scores leave a difference of rounding, not of variance.
    let standard_error = if variance > 1e-18 { variance.sqrt() } else { 0.0 };
    let p_value = match (standard_error > 0.0, difference == 0.0) {
        (true, _) => Some(two_sided_p(difference / standard_error)),
        (false, true) => Some(1.0),
        (false, false) => None,
    };
    Some(DelongDifference { first: first.auroc, second: second.auroc, difference, standard_error, p_value })
}

/// Structural components: for each positive the share of negatives below it, for
/// each negative the share of positives above it.
struct Components {
    auroc: f64,
    of_positives: Vec<f64>,
    of_negatives: Vec<f64>,
}

impl Components {
    fn new(score_n: &[f64], positive_n: &[bool]) -> Option<Self> {
        if score_n.len() != positive_n.len() || score_n.iter().any(|s| s.is_nan()) {
            return None;
        }
        let side = |wanted: bool| -> Vec<f64> {
            let pairs = score_n.iter().zip(positive_n);
            pairs.filter(|(_, p)| **p == wanted).map(|(s, _)| *s).collect()
        };
        let (positives, negatives) = (side(true), side(false));
        let (m, n) = (positives.len(), negatives.len());
        if m < 2 || n < 2 {
            return None;
        }
        let joint: Vec<f64> = positives.iter().chain(&negatives).copied().collect();
        let (rank_joint, rank_pos, rank_neg) = (midranks(&joint), midranks(&positives), midranks(&negatives));
        let of_positives: Vec<f64> = (0..m).map(|i| (rank_joint[i] - rank_pos[i]) / n as f64).collect();
        let of_negatives = (0..n).map(|j| 1.0 - (rank_joint[m + j] - rank_neg[j]) / m as f64).collect();
        let auroc = of_positives.iter().sum::<f64>() / m as f64;
        Some(Self { auroc, of_positives, of_negatives })
    }

    fn covariance(&self, other: &Self) -> f64 {
        covariance(&self.of_positives, &other.of_positives) / self.of_positives.len() as f64
            + covariance(&self.of_negatives, &other.of_negatives) / self.of_negatives.len() as f64
    }
}

/// Sample covariance; both of one length, at least 2.
fn covariance(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len() as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    a.iter().zip(b).map(|(x, y)| (x - mean_a) * (y - mean_b)).sum::<f64>() / (n - 1.0)
}

/// Ranks from 1, tied values sharing the mean of theirs.
fn midranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = first as f64 + (tied.len() as f64 + 1.0) / 2.0;
        for &item in tied {
            ranks[item] = rank;
        }
        first += tied.len();
    }
    ranks
}
