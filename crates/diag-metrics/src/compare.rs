//! Two sets of predictions of the same cases, and many tests at once.

use serde::Serialize;

use crate::bootstrap::{Bootstrap, Cases, check, percentile_interval};
use crate::measure::Evaluator;
use crate::normal::two_sided_p;
use crate::{Measure, MetricsError, Scores};

/// From this many discordant items on, McNemar's test uses its chi-squared form.
const EXACT_BELOW: u64 = 25;

/// McNemar's test of two classifiers' errors (McNemar 1947).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct McNemar {
    /// Items that only the first got right.
    pub only_first_right: u64,
    /// Items that only the second got right.
    pub only_second_right: u64,
    /// Whether the exact binomial form was used (fewer than 25 discordant items);
    /// else chi-squared with continuity correction.
    pub exact: bool,
    /// Two-sided p value.
    pub p_value: f64,
}

/// A measure's difference between two runs, by paired bootstrap over cases.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PairedDifference {
    /// First minus second on all the data.
    pub difference: Option<f64>,
    /// Lower percentile bound.
    pub low: Option<f64>,
    /// Upper percentile bound.
    pub high: Option<f64>,
    /// Two-sided bootstrap p value, at least 2 / (resamples + 1).
    pub p_value: Option<f64>,
}

/// The differences of every measure.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// In the order of [`Measure::all`].
    pub differences: Vec<(Measure, PairedDifference)>,
}

impl Comparison {
    /// One measure's difference, when it is there.
    pub fn get(&self, measure: Measure) -> Option<PairedDifference> {
        self.differences.iter().find(|(m, _)| *m == measure).map(|(_, d)| *d)
    }
}

/// Tests whether two classifiers err equally often on the same items.
///
/// # Errors
/// When the lengths differ.
pub fn mcnemar(first_right_n: &[bool], second_right_n: &[bool]) -> Result<McNemar, MetricsError> {
    if first_right_n.len() != second_right_n.len() {
        let (got, want) = (second_right_n.len(), first_right_n.len());
        return Err(MetricsError::WrongLength { what: "second classifier", got, want });
    }
    let count = |first: bool, second: bool| {
        let pairs = first_right_n.iter().zip(second_right_n);
        pairs.filter(|(a, b)| **a == first && **b == second).count() as u64
    };
    let (only_first_right, only_second_right) = (count(true, false), count(false, true));
    let n = only_first_right + only_second_right;
    let exact = n < EXACT_BELOW;
    let p_value = if exact {
        binomial_two_sided(only_first_right.min(only_second_right), n)
    } else {
        let gap = only_first_right.abs_diff(only_second_right) as f64;
        two_sided_p((gap - 1.0).max(0.0) / (n as f64).sqrt())
    };
    Ok(McNemar { only_first_right, only_second_right, exact, p_value })
}

/// Compares two runs on the same rows: both see the same resamples of cases.
///
/// # Errors
/// When the runs differ in rows, classes or labels, or as [`crate::summarise`].
pub fn paired_bootstrap(
    first: &Scores,
    second: &Scores,
    case_n: &[usize],
    plan: &Bootstrap,
) -> Result<Comparison, MetricsError> {
    if first.n_classes() != second.n_classes() || first.len() != second.len() {
        let (got, want) = (second.probs().len(), first.probs().len());
        return Err(MetricsError::WrongLength { what: "second run", got, want });
    }
    if let Some(row) = (0..first.len()).find(|&row| first.labels()[row] != second.labels()[row]) {
        let (first, second) = (first.labels()[row], second.labels()[row]);
        return Err(MetricsError::MixedLabels {
            case: case_n.get(row).copied().unwrap_or(row),
            first,
            second,
        });
    }
    let cases = Cases::new(first, case_n)?;
    check(plan)?;
    let (a, b) = (Evaluator::new(first), Evaluator::new(second));
    let names = Measure::all(first.n_classes());
    let differences_of = |weight: &dyn Fn(usize) -> u64| -> Vec<Option<f64>> {
        let (a, b) = (a.measures(weight), b.measures(weight));
        names.iter().map(|&m| Some(a.get(m)? - b.get(m)?)).collect()
    };
    let resamples =
        cases.resample(plan, &|drawn: &[u32]| differences_of(&|row| u64::from(drawn[case_n[row]])));
    let observed = differences_of(&|_| 1);
    let one = |index: usize| {
        let column: Vec<f64> = resamples.iter().filter_map(|row| row[index]).collect();
        // As for single intervals: too many undefined resamples, no interval.
        let enough = column.len() as f64 >= 0.95 * plan.n_resamples as f64;
        let defined = observed[index].filter(|_| enough);
        let bounds = defined.and_then(|_| percentile_interval(&column, plan.level));
        PairedDifference {
            difference: observed[index],
            low: bounds.map(|b| b.0),
            high: bounds.map(|b| b.1),
            p_value: defined.map(|_| bootstrap_p(&column)),
        }
    };
    let differences = names.iter().enumerate().map(|(index, &m)| (m, one(index))).collect();
    Ok(Comparison { differences })
}

/// Holm's step-down adjustment (Holm 1979): p values that may each be held
/// against the level of a single test. Same order as given.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut highest: f64 = 0.0;
    for (rank, &test) in order.iter().enumerate() {
        highest = highest.max(p_values[test] * (p_values.len() - rank) as f64);
        adjusted[test] = highest.min(1.0);
    }
    adjusted
}

/// Positive and negative predictive value where the class has another share
/// than in the data (Bayes). Inputs 0 to 1; an entry is `None` where nothing
/// would be called, or an input is out of range.
pub fn predictive_values(sensitivity: f64, specificity: f64, prevalence: f64) -> (Option<f64>, Option<f64>) {
    let valid = [sensitivity, specificity, prevalence].iter().all(|x| (0.0..=1.0).contains(x));
    let share = |right: f64, wrong: f64| (valid && right + wrong > 0.0).then(|| right / (right + wrong));
    let (sick, well) = (prevalence, 1.0 - prevalence);
    (
        share(sensitivity * sick, (1.0 - specificity) * well),
        share(specificity * well, (1.0 - sensitivity) * sick),
    )
}

/// Bounds of the positive and of the negative predictive value at a share of the class, from
/// those of sensitivity and specificity `(low, high)`. Both values rise with either, and the
/// cases of the class and the others are independent: where each pair of bounds holds with
/// the chance `sqrt(level)`, these hold with at least `level`.
pub fn predictive_value_bounds(
    sensitivity: (f64, f64),
    specificity: (f64, f64),
    prevalence: f64,
) -> [Option<(f64, f64)>; 2] {
    let low = predictive_values(sensitivity.0, specificity.0, prevalence);
    let high = predictive_values(sensitivity.1, specificity.1, prevalence);
    [low.0.zip(high.0), low.1.zip(high.1)]
}

/// Chance of a split at least as uneven as `fewer` of `n` by fair coin, both sides.
fn binomial_two_sided(fewer: u64, n: u64) -> f64 {
    let (mut term, mut sum) = (0.5f64.powi(n as i32), 0.0);
    for i in 0..=fewer {
        sum += term;
        term *= (n - i) as f64 / (i + 1) as f64;
    }
    (2.0 * sum).min(1.0)
}

/// Twice the smaller tail of the resampled differences around 0, counting the
/// observed data as one more resample so that it is never 0.
fn bootstrap_p(differences: &[f64]) -> f64 {
    let n = differences.len() as f64 + 1.0;
    let tail = |side: fn(f64) -> bool| differences.iter().filter(|d| side(**d)).count() as f64 + 1.0;
    (2.0 * tail(|d| d <= 0.0).min(tail(|d| d >= 0.0)) / n).min(1.0)
}
