//! The checked input of everything else.

use crate::MetricsError;

/// How far a row's sum may be from 1: single-precision softmax and its copy
/// through a table lose no more than this.
const SUM_TOLERANCE: f64 = 1e-3;

/// Class probabilities with true labels, one row an item (a slice or a case).
///
/// Invariant: at least one row and two classes; every probability finite and in
/// [0, 1]; every row sums to 1 within 0.001; every label names a class.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    probs: Vec<f64>,
    n_classes: usize,
    labels: Vec<usize>,
}

impl Scores {
    /// Checks and copies.
    ///
    /// # Shapes
    /// - `probs`: `[N, K]` row-major, in [0, 1]
    /// - `labels`: `[N]`, each below `n_classes` = K
    ///
    /// # Errors
    /// When the input breaks the type's invariant; the message names the row.
    pub fn new(probs: &[f64], n_classes: usize, labels: &[usize]) -> Result<Self, MetricsError> {
        if n_classes < 2 {
            return Err(MetricsError::TooFewClasses { n_classes });
        }
        if labels.is_empty() {
            return Err(MetricsError::Empty);
        }
        let want = labels.len() * n_classes;
        if probs.len() != want {
            return Err(MetricsError::WrongLength { what: "probabilities", got: probs.len(), want });
        }
        for (row, (prob_k, &label)) in probs.chunks_exact(n_classes).zip(labels).enumerate() {
            if label >= n_classes {
                return Err(MetricsError::LabelOutOfRange { row, label, n_classes });
            }
            // A comparison with NaN is false, so the range check refuses it too.
            if let Some(bad) = prob_k.iter().find(|p| !(0.0..=1.0).contains(*p)) {
                let why = format!("{bad} is outside 0 to 1");
                return Err(MetricsError::NotProbabilities { row, why });
            }
            let sum: f64 = prob_k.iter().sum();
            if (sum - 1.0).abs() > SUM_TOLERANCE {
                let why = format!("it sums to {sum}");
                return Err(MetricsError::NotProbabilities { row, why });
            }
        }
        Ok(Self { probs: probs.to_vec(), n_classes, labels: labels.to_vec() })
    }

    /// Number of rows, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "scores are never empty")]
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Number of classes, at least 2.
    pub fn n_classes(&self) -> usize {
        self.n_classes
    }

    /// True class of every row, `[N]`.
    pub fn labels(&self) -> &[usize] {
        &self.labels
    }

    /// All probabilities, `[N, K]` row-major.
    pub fn probs(&self) -> &[f64] {
        &self.probs
    }

    /// Probabilities of one row, `[K]`; empty when there is no such row.
    pub fn row(&self, row: usize) -> &[f64] {
        let start = row.saturating_mul(self.n_classes);
        self.probs.get(start..start.saturating_add(self.n_classes)).unwrap_or_default()
    }

    /// Probability of `class` in every row, `[N]`.
    pub fn of_class(&self, class: usize) -> Vec<f64> {
        self.probs.iter().skip(class).step_by(self.n_classes).copied().collect()
    }

    /// Whether each row truly is of `class`, `[N]`.
    pub fn is_class(&self, class: usize) -> Vec<bool> {
        self.labels.iter().map(|&label| label == class).collect()
    }

    /// The most probable class of every row, `[N]`; on a tie the first of them.
    pub fn predicted(&self) -> Vec<usize> {
        self.probs.chunks_exact(self.n_classes).map(first_highest).collect()
    }
}

fn first_highest(prob_k: &[f64]) -> usize {
    let mut best = 0;
    for (class, p) in prob_k.iter().enumerate() {
        if *p > prob_k[best] {
            best = class;
        }
    }
    best
}
