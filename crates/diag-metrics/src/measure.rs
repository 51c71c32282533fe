//! Every single-number measure, its name and its definition.

use serde::Serialize;

use crate::calibration::{bin_of, row_brier, row_log_loss};
use crate::confusion::{ClassCounts, ConfusionMatrix, mean};
use crate::ranking::Ranking;
use crate::{Scores, calibration::ReliabilityBin, expected_calibration_error};

/// Equal-width bins of the expected calibration error.
const ECE_BINS: usize = 10;

/// A single-number measure. Those with a number are of that class against the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Measure {
    /// Share of items predicted right.
    Accuracy,
    /// Mean sensitivity.
    BalancedAccuracy,
    /// Mean precision.
    MacroPrecision,
    /// Mean specificity.
    MacroSpecificity,
    /// Mean F1.
    MacroF1,
    /// Matthews correlation coefficient.
    Matthews,
    /// Cohen's kappa.
    Kappa,
    /// Mean AUROC.
    MacroAuroc,
    /// Mean AUPRC.
    MacroAuprc,
    /// Brier score.
    Brier,
    /// Log loss.
    LogLoss,
    /// Expected calibration error.
    CalibrationError,
    /// Sensitivity of a class.
    Sensitivity(usize),
    /// Specificity of a class.
    Specificity(usize),
    /// Precision of a class.
    Precision(usize),
    /// Negative predictive value of a class.
    NegativePredictiveValue(usize),
    /// F1 of a class.
    F1(usize),
    /// AUROC of a class.
    Auroc(usize),
    /// AUPRC of a class.
    Auprc(usize),
}

impl Measure {
    /// Those over all classes, in the order of tables.
    pub const OVERALL: [Self; 12] = [
        Self::Accuracy,
        Self::BalancedAccuracy,
        Self::MacroPrecision,
        Self::MacroSpecificity,
        Self::MacroF1,
        Self::Matthews,
        Self::Kappa,
        Self::MacroAuroc,
        Self::MacroAuprc,
        Self::Brier,
        Self::LogLoss,
        Self::CalibrationError,
    ];

    /// Those of one class, in the order of tables.
    pub fn of_class(class: usize) -> [Self; 7] {
        [
            Self::Sensitivity(class),
            Self::Specificity(class),
            Self::Precision(class),
            Self::NegativePredictiveValue(class),
            Self::F1(class),
            Self::Auroc(class),
            Self::Auprc(class),
        ]
    }

    /// All: [`OVERALL`](Self::OVERALL), then class by class.
    pub fn all(n_classes: usize) -> Vec<Self> {
        Self::OVERALL.into_iter().chain((0..n_classes).flat_map(Self::of_class)).collect()
    }

    /// Stable name for files, without the class: `balanced_accuracy`.
    pub fn key(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::BalancedAccuracy => "balanced_accuracy",
            Self::MacroPrecision => "macro_precision",
            Self::MacroSpecificity => "macro_specificity",
            Self::MacroF1 => "macro_f1",
            Self::Matthews => "mcc",
            Self::Kappa => "kappa",
            Self::MacroAuroc => "macro_auroc",
            Self::MacroAuprc => "macro_auprc",
            Self::Brier => "brier",
            Self::LogLoss => "log_loss",
            Self::CalibrationError => "ece",
            Self::Sensitivity(_) => "sensitivity",
            Self::Specificity(_) => "specificity",
            Self::Precision(_) => "precision",
            Self::NegativePredictiveValue(_) => "npv",
            Self::F1(_) => "f1",
            Self::Auroc(_) => "auroc",
            Self::Auprc(_) => "auprc",
        }
    }

    /// Name for people, without the class: "Balanced accuracy".
    pub fn title(self) -> &'static str {
        match self {
            Self::Accuracy => "Accuracy",
            Self::BalancedAccuracy => "Balanced accuracy",
            Self::MacroPrecision => "Macro precision",
            Self::MacroSpecificity => "Macro specificity",
            Self::MacroF1 => "Macro F1",
            Self::Matthews => "MCC",
            Self::Kappa => "Cohen's kappa",
            Self::MacroAuroc => "Macro AUROC",
            Self::MacroAuprc => "Macro AUPRC",
            Self::Brier => "Brier score",
            Self::LogLoss => "Log loss",
            Self::CalibrationError => "ECE",
            Self::Sensitivity(_) => "Sensitivity",
            Self::Specificity(_) => "Specificity",
            Self::Precision(_) => "Precision",
            Self::NegativePredictiveValue(_) => "NPV",
            Self::F1(_) => "F1",
            Self::Auroc(_) => "AUROC",
            Self::Auprc(_) => "AUPRC",
        }
    }

    /// What it is, its range, and when it is not defined: one sentence or two.
    pub fn definition(self) -> &'static str {
        match self {
            Self::Accuracy => "Share of items whose most probable class is the true one; 0 to 1.",
            Self::BalancedAccuracy => {
                "Mean of the sensitivities of the classes that occur; 0 to 1, chance is 1 / number of classes."
            }
            Self::MacroPrecision => {
                "Mean of the precisions of the classes that occur; 0 to 1. Undefined when one of them is never predicted."
            }
            Self::MacroSpecificity => "Mean of the specificities of the classes that occur; 0 to 1.",
            Self::MacroF1 => "Mean of the F1 scores of the classes that occur; 0 to 1.",
            Self::Matthews => {
                "Multiclass Matthews correlation coefficient (Gorodkin 2004); -1 to 1, chance is 0. Undefined when every item has, or is given, the same class."
            }
            Self::Kappa => {
                "Cohen's kappa: agreement with the labels beyond chance, (observed - chance) / (1 - chance); at most 1, chance is 0."
            }
            Self::MacroAuroc => {
                "Mean of the one-against-rest AUROCs of the classes that occur; 0 to 1, chance is 0.5."
            }
            Self::MacroAuprc => {
                "Mean of the one-against-rest AUPRCs of the classes that occur; 0 to 1, chance is the mean share of a class."
            }
            Self::Brier => {
                "Squared distance between the probabilities and the true class, summed over classes and averaged over items; 0 (best) to 2."
            }
            Self::LogLoss => {
                "Mean negative natural logarithm of the true class's probability (floored at 1e-7); 0 is best."
            }
            Self::CalibrationError => {
                "Expected calibration error of the most probable class: mean distance between its probability and the share that is right, over 10 bins of equal width, weighted by items; 0 (best) to 1."
            }
            Self::Sensitivity(_) => "Share of the items of the class that are predicted so (recall); 0 to 1.",
            Self::Specificity(_) => {
                "Share of the items of other classes that are not predicted as the class; 0 to 1."
            }
            Self::Precision(_) => {
                "Share of the items predicted as the class that are of it (positive predictive value); 0 to 1, at the class shares of this data. Undefined when the class is never predicted."
            }
            Self::NegativePredictiveValue(_) => {
                "Share of the items not predicted as the class that are not of it (negative predictive value); 0 to 1, at the class shares of this data."
            }
            Self::F1(_) => "Harmonic mean of precision and sensitivity, 2TP / (2TP + FP + FN); 0 to 1.",
            Self::Auroc(_) => {
                "Area under the ROC curve, class against the rest: the chance that a random item of the class gets a higher probability of it than a random other item, ties counting half (Mann-Whitney); 0 to 1, chance is 0.5."
            }
            Self::Auprc(_) => {
                "Area under the precision-recall curve, class against the rest, as average precision (no interpolation); 0 to 1, chance is the class's share."
            }
        }
    }

    /// The class it is about; `None` for one over all classes.
    pub fn class(self) -> Option<usize> {
        match self {
            Self::Sensitivity(k)
            | Self::Specificity(k)
            | Self::Precision(k)
            | Self::NegativePredictiveValue(k)
            | Self::F1(k)
            | Self::Auroc(k)
            | Self::Auprc(k) => Some(k),
            _ => None,
        }
    }

    /// Whether a higher value is a better one.
    pub fn higher_is_better(self) -> bool {
        !matches!(self, Self::Brier | Self::LogLoss | Self::CalibrationError)
    }
}

/// All measures of one set of predictions. Ranges: [`Measure::definition`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measures {
    /// Number of items.
    pub n: u64,
    /// Counts, `[actual][predicted]`.
    pub confusion: ConfusionMatrix,
    /// Share of items predicted right.
    pub accuracy: Option<f64>,
    /// Mean sensitivity.
    pub balanced_accuracy: Option<f64>,
    /// Mean precision.
    pub macro_precision: Option<f64>,
    /// Mean specificity.
    pub macro_specificity: Option<f64>,
    /// Mean F1.
    pub macro_f1: Option<f64>,
    /// Matthews correlation coefficient.
    pub mcc: Option<f64>,
    /// Cohen's kappa.
    pub kappa: Option<f64>,
    /// Mean AUROC.
    pub macro_auroc: Option<f64>,
    /// Mean AUPRC.
    pub macro_auprc: Option<f64>,
    /// Brier score.
    pub brier: Option<f64>,
    /// Log loss.
    pub log_loss: Option<f64>,
    /// Expected calibration error, 10 bins.
    pub ece: Option<f64>,
    /// One entry a class.
    pub classes: Vec<ClassMeasures>,
}

/// Measures of one class against the rest.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassMeasures {
    /// Number of items truly of the class.
    pub support: u64,
    /// The counts behind the shares.
    pub counts: ClassCounts,
    /// Recall.
    pub sensitivity: Option<f64>,
    /// True negative rate.
    pub specificity: Option<f64>,
    /// Positive predictive value.
    pub precision: Option<f64>,
    /// Negative predictive value.
    pub npv: Option<f64>,
    /// F1.
    pub f1: Option<f64>,
    /// Area under the ROC curve.
    pub auroc: Option<f64>,
    /// Average precision.
    pub auprc: Option<f64>,
}

impl Measures {
    /// The two counts behind a measure that is a share of items; `None` for another measure.
    pub fn share(&self, measure: Measure) -> Option<(u64, u64)> {
        let counts = |class: usize| self.classes.get(class).map(|class| class.counts);
        match measure {
            Measure::Accuracy => {
                let right = self.classes.iter().map(|class| class.counts.true_positive).sum();
                Some((right, self.n))
            }
            Measure::Sensitivity(k) => {
                counts(k).map(|c| (c.true_positive, c.true_positive + c.false_negative))
            }
            Measure::Specificity(k) => {
                counts(k).map(|c| (c.true_negative, c.true_negative + c.false_positive))
            }
            Measure::Precision(k) => counts(k).map(|c| (c.true_positive, c.true_positive + c.false_positive)),
            Measure::NegativePredictiveValue(k) => {
                counts(k).map(|c| (c.true_negative, c.true_negative + c.false_negative))
            }
            _ => None,
        }
    }

    /// One measure; `None` when it is undefined, or of a class that is not there.
    pub fn get(&self, measure: Measure) -> Option<f64> {
        let of =
            |class: usize, field: fn(&ClassMeasures) -> Option<f64>| self.classes.get(class).and_then(field);
        match measure {
            Measure::Accuracy => self.accuracy,
            Measure::BalancedAccuracy => self.balanced_accuracy,
            Measure::MacroPrecision => self.macro_precision,
            Measure::MacroSpecificity => self.macro_specificity,
            Measure::MacroF1 => self.macro_f1,
            Measure::Matthews => self.mcc,
            Measure::Kappa => self.kappa,
            Measure::MacroAuroc => self.macro_auroc,
            Measure::MacroAuprc => self.macro_auprc,
            Measure::Brier => self.brier,
            Measure::LogLoss => self.log_loss,
            Measure::CalibrationError => self.ece,
            Measure::Sensitivity(k) => of(k, |c| c.sensitivity),
            Measure::Specificity(k) => of(k, |c| c.specificity),
            Measure::Precision(k) => of(k, |c| c.precision),
            Measure::NegativePredictiveValue(k) => of(k, |c| c.npv),
            Measure::F1(k) => of(k, |c| c.f1),
            Measure::Auroc(k) => of(k, |c| c.auroc),
            Measure::Auprc(k) => of(k, |c| c.auprc),
        }
    }
}

/// Computes every measure once.
pub fn evaluate(scores: &Scores) -> Measures {
    Evaluator::new(scores).measures(|_| 1)
}

/// Everything that does not change between resamples, so that each costs one pass.
pub(crate) struct Evaluator {
    labels: Vec<usize>,
    predicted: Vec<usize>,
    top_prob: Vec<f64>,
    brier: Vec<f64>,
    log_loss: Vec<f64>,
    rankings: Vec<Option<Ranking>>,
}

impl Evaluator {
    pub(crate) fn new(scores: &Scores) -> Self {
        let predicted = scores.predicted();
        let rows = 0..scores.len();
        let labels = scores.labels();
        Self {
            top_prob: rows.clone().map(|row| scores.row(row)[predicted[row]]).collect(),
            brier: rows.clone().map(|row| row_brier(scores.row(row), labels[row])).collect(),
            log_loss: rows.map(|row| row_log_loss(scores.row(row), labels[row])).collect(),
            rankings: (0..scores.n_classes())
                .map(|k| Ranking::new(&scores.of_class(k), &scores.is_class(k)))
                .collect(),
            labels: labels.to_vec(),
            predicted,
        }
    }

    pub(crate) fn ranking(&self, class: usize) -> Option<&Ranking> {
        self.rankings.get(class).and_then(Option::as_ref)
    }

    /// All measures when each row counts `weight(row)` times.
    pub(crate) fn measures(&self, weight: impl Fn(usize) -> u64) -> Measures {
        let confusion = self.confusion(&weight);
        let class = |k: usize| {
            let counts = confusion.of_class(k);
            let ranking = self.ranking(k);
            ClassMeasures {
                support: counts.true_positive + counts.false_negative,
                counts,
                sensitivity: counts.sensitivity(),
                specificity: counts.specificity(),
                precision: counts.precision(),
                npv: counts.negative_predictive_value(),
                f1: counts.f1(),
                auroc: ranking.and_then(|r| r.auroc(&weight)),
                auprc: ranking.and_then(|r| r.average_precision(&weight)),
            }
        };
        let classes: Vec<ClassMeasures> = (0..confusion.n_classes()).map(class).collect();
        Measures {
            n: confusion.total(),
            accuracy: confusion.accuracy(),
            balanced_accuracy: confusion.balanced_accuracy(),
            macro_precision: confusion.macro_mean(ClassCounts::precision),
            macro_specificity: confusion.macro_mean(ClassCounts::specificity),
            macro_f1: confusion.macro_mean(ClassCounts::f1),
            mcc: confusion.matthews(),
            kappa: confusion.kappa(),
            macro_auroc: mean_of_present(&classes, |c| c.auroc),
            macro_auprc: mean_of_present(&classes, |c| c.auprc),
            brier: weighted_mean(&self.brier, &weight),
            log_loss: weighted_mean(&self.log_loss, &weight),
            ece: self.calibration_error(&weight),
            classes,
            confusion,
        }
    }

    fn confusion(&self, weight: impl Fn(usize) -> u64) -> ConfusionMatrix {
        let mut confusion = ConfusionMatrix::zero(self.rankings.len());
        for (row, (&actual, &predicted)) in self.labels.iter().zip(&self.predicted).enumerate() {
            confusion.add(actual, predicted, weight(row));
        }
        confusion
    }

    fn calibration_error(&self, weight: impl Fn(usize) -> u64) -> Option<f64> {
        let mut tally = [(0u64, 0.0f64, 0u64); ECE_BINS];
        for (row, &prob) in self.top_prob.iter().enumerate() {
            let (n, sum, right) = &mut tally[bin_of(prob, ECE_BINS)];
            let w = weight(row);
            *n += w;
            *sum += w as f64 * prob;
            *right += w * u64::from(self.predicted[row] == self.labels[row]);
        }
        let bins = tally.map(|(n, sum, right)| ReliabilityBin {
            lower: 0.0,
            upper: 1.0,
            n,
            mean_probability: (n > 0).then(|| sum / n as f64),
            observed: (n > 0).then(|| right as f64 / n as f64),
        });
        expected_calibration_error(&bins)
    }
}

fn mean_of_present(classes: &[ClassMeasures], field: impl Fn(&ClassMeasures) -> Option<f64>) -> Option<f64> {
    let present = classes.iter().filter(|c| c.support > 0);
    let values: Option<Vec<f64>> = present.map(field).collect();
    mean(&values?)
}

fn weighted_mean(values: &[f64], weight: impl Fn(usize) -> u64) -> Option<f64> {
    let (mut sum, mut n) = (0.0, 0u64);
    for (row, value) in values.iter().enumerate() {
        let w = weight(row);
        sum += w as f64 * value;
        n += w;
    }
    (n > 0).then(|| sum / n as f64)
}
