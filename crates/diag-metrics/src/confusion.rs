//! Counts of true against predicted class, and what follows from them alone.

use serde::Serialize;

use crate::MetricsError;

/// How often items of one class were predicted as another.
///
/// Invariant: square, at least 2x2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ConfusionMatrix {
    counts: Vec<Vec<u64>>,
}

/// One class against the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ClassCounts {
    /// Of the class, and predicted so.
    pub true_positive: u64,
    /// Not of the class, but predicted so.
    pub false_positive: u64,
    /// Of the class, but predicted as another.
    pub false_negative: u64,
    /// Not of the class, and not predicted so.
    pub true_negative: u64,
}

impl ConfusionMatrix {
    /// Counts pairs of true and predicted class.
    ///
    /// # Errors
    /// When the lengths differ, there are fewer than 2 classes, or a value names no class.
    pub fn new(actual: &[usize], predicted: &[usize], n_classes: usize) -> Result<Self, MetricsError> {
        if n_classes < 2 {
            return Err(MetricsError::TooFewClasses { n_classes });
        }
        if actual.len() != predicted.len() {
            let (got, want) = (predicted.len(), actual.len());
            return Err(MetricsError::WrongLength { what: "predictions", got, want });
        }
        let mut matrix = Self::zero(n_classes);
        for (row, (&actual, &predicted)) in actual.iter().zip(predicted).enumerate() {
            let label = actual.max(predicted);
            if label >= n_classes {
                return Err(MetricsError::LabelOutOfRange { row, label, n_classes });
            }
            matrix.add(actual, predicted, 1);
        }
        Ok(matrix)
    }

    pub(crate) fn zero(n_classes: usize) -> Self {
        Self { counts: vec![vec![0; n_classes]; n_classes] }
    }

    pub(crate) fn add(&mut self, actual: usize, predicted: usize, weight: u64) {
        self.counts[actual][predicted] += weight;
    }

    /// Counts as `[actual][predicted]`, KxK.
    pub fn counts(&self) -> &[Vec<u64>] {
        &self.counts
    }

    /// Number of classes, at least 2.
    pub fn n_classes(&self) -> usize {
        self.counts.len()
    }

    /// Number of items.
    pub fn total(&self) -> u64 {
        self.counts.iter().flatten().sum()
    }

    /// Number of items truly of each class, `[K]`.
    pub fn support(&self) -> Vec<u64> {
        self.counts.iter().map(|row| row.iter().sum()).collect()
    }

    /// Number of items predicted as each class, `[K]`.
    pub fn predicted(&self) -> Vec<u64> {
        (0..self.n_classes()).map(|k| self.counts.iter().map(|row| row[k]).sum()).collect()
    }

    /// One class against the rest; all zero when there is no such class.
    pub fn of_class(&self, class: usize) -> ClassCounts {
        let true_positive = self.counts.get(class).map_or(0, |row| row[class]);
        let support: u64 = self.counts.get(class).map_or(0, |row| row.iter().sum());
        let predicted: u64 = self.counts.iter().filter_map(|row| row.get(class)).sum();
        let inside = support + predicted - true_positive;
        let true_negative = if class < self.n_classes() { self.total() - inside } else { 0 };
        ClassCounts {
            true_positive,
            false_positive: predicted - true_positive,
            false_negative: support - true_positive,
            true_negative,
        }
    }

    /// Share of items on the diagonal, 0 to 1.
    pub fn accuracy(&self) -> Option<f64> {
        ratio(self.n_right(), self.total())
    }

    /// Mean sensitivity of the classes that occur, 0 to 1.
    pub fn balanced_accuracy(&self) -> Option<f64> {
        self.macro_mean(ClassCounts::sensitivity)
    }

    /// Mean of a class measure over the classes that occur; `None` when it is
    /// undefined for one of them, because leaving that one out would flatter.
    pub fn macro_mean(&self, measure: impl Fn(&ClassCounts) -> Option<f64>) -> Option<f64> {
        let support = self.support();
        let present = (0..self.n_classes()).filter(|&k| support[k] > 0);
        let values: Option<Vec<f64>> = present.map(|k| measure(&self.of_class(k))).collect();
        mean(&values?)
    }

    /// Multiclass Matthews correlation coefficient, -1 to 1 (Gorodkin 2004).
    /// `None` when all items are of one class or are predicted as one.
    pub fn matthews(&self) -> Option<f64> {
        let n = self.total() as f64;
        let (support, predicted) = (self.support(), self.predicted());
        let dot = |a: &[u64], b: &[u64]| -> f64 { a.iter().zip(b).map(|(&a, &b)| a as f64 * b as f64).sum() };
        let covariance = self.n_right() as f64 * n - dot(&support, &predicted);
        let spread_actual = n * n - dot(&support, &support);
        let spread_predicted = n * n - dot(&predicted, &predicted);
        let scale = (spread_actual * spread_predicted).sqrt();
        (scale > 0.0).then(|| covariance / scale)
    }

    /// Cohen's kappa, unweighted, at most 1 (Cohen 1960). `None` when chance
    /// agreement is complete.
    pub fn kappa(&self) -> Option<f64> {
        let n = self.total() as f64;
        let observed = self.accuracy()?;
        let pairs = self.support().into_iter().zip(self.predicted());
        let by_chance = pairs.map(|(a, p)| a as f64 * p as f64).sum::<f64>() / (n * n);
        (by_chance < 1.0).then(|| (observed - by_chance) / (1.0 - by_chance))
    }

    fn n_right(&self) -> u64 {
        (0..self.n_classes()).map(|k| self.counts[k][k]).sum()
    }
}

impl ClassCounts {
    /// Share of the class that was found (recall), 0 to 1.
    pub fn sensitivity(&self) -> Option<f64> {
        ratio(self.true_positive, self.true_positive + self.false_negative)
    }

    /// Share of the rest that was left alone, 0 to 1.
    pub fn specificity(&self) -> Option<f64> {
        ratio(self.true_negative, self.true_negative + self.false_positive)
    }

    /// Share of the calls that were right (PPV), 0 to 1.
    pub fn precision(&self) -> Option<f64> {
        ratio(self.true_positive, self.true_positive + self.false_positive)
    }

    /// Share of the non-calls that were right (NPV), 0 to 1.
    pub fn negative_predictive_value(&self) -> Option<f64> {
        ratio(self.true_negative, self.true_negative + self.false_negative)
    }

    /// Harmonic mean of sensitivity and precision, 0 to 1.
    pub fn f1(&self) -> Option<f64> {
        let twice = 2 * self.true_positive;
        ratio(twice, twice + self.false_positive + self.false_negative)
    }
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

pub(crate) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}
