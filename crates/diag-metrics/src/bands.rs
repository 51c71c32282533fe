//! How sure a curve is: pointwise bounds by resampling whole cases.

use serde::Serialize;

use crate::bootstrap::{Cases, MOST_UNDEFINED, check, percentile_interval};
use crate::measure::Evaluator;
use crate::{Bootstrap, MetricsError, Scores};

/// Lower and upper bound; `None` where it cannot be had.
pub type Bounds = Option<(f64, f64)>;

/// One point of a precision-recall curve's band.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PrBandPoint {
    /// Recall, above 0 and at most 1.
    pub recall: f64,
    /// Lower bound of the precision there.
    pub low: f64,
    /// Upper bound of the precision there.
    pub high: f64,
}

/// One point of a decision curve's band.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct NetBenefitBandPoint {
    /// Probability from which one would act, 0 to 1.
    pub threshold: f64,
    /// Lower bound of the model's net benefit there.
    pub low: f64,
    /// Upper bound of the model's net benefit there.
    pub high: f64,
}

/// Pointwise band of one class's precision-recall curve at recalls 0.01 to 1, by
/// case: the precision at the highest threshold that reaches the recall. `None`
/// when the class or the rest is absent.
///
/// # Shapes
/// - `scores`: `[N, K]`, slices or cases
/// - `case_n`: `[N]`, the case of each row
///
/// # Errors
/// As [`summarise`](crate::summarise).
pub fn precision_recall_band(
    scores: &Scores,
    case_n: &[usize],
    class: usize,
    plan: &Bootstrap,
) -> Result<Option<Vec<PrBandPoint>>, MetricsError> {
    let evaluator = Evaluator::new(scores);
    let Some(ranking) = evaluator.ranking(class) else { return Ok(None) };
    let recalls: Vec<f64> = (1..=100).map(|i| f64::from(i) / 100.0).collect();
    let bounds = resampled_bounds(scores, case_n, plan, recalls.len(), |times_n| {
        ranking.precision_at(&recalls, |row| times_n[row])
    })?;
    let point =
        |(&recall, bounds): (&f64, Bounds)| bounds.map(|(low, high)| PrBandPoint { recall, low, high });
    Ok(recalls.iter().zip(bounds).map(point).collect())
}

/// Pointwise band of one class's net benefit at each threshold, by case. Thresholds
/// outside [0, 1) are left out. Resamples keep the class sizes, so that the net
/// benefit of acting on everybody has no band.
///
/// # Errors
/// As [`summarise`](crate::summarise).
pub fn net_benefit_band(
    scores: &Scores,
    case_n: &[usize],
    class: usize,
    thresholds: &[f64],
    plan: &Bootstrap,
) -> Result<Vec<NetBenefitBandPoint>, MetricsError> {
    let thresholds: Vec<f64> = thresholds.iter().copied().filter(|t| (0.0..1.0).contains(t)).collect();
    let (prob_n, event_n) = (scores.of_class(class), scores.is_class(class));
    let bounds = resampled_bounds(scores, case_n, plan, thresholds.len(), |times_n| {
        let n: u64 = times_n.iter().sum();
        let at = |threshold: &f64| {
            let (mut right, mut wrong) = (0u64, 0u64);
            for ((prob, event), times) in prob_n.iter().zip(&event_n).zip(times_n) {
                if prob >= threshold {
                    *(if *event { &mut right } else { &mut wrong }) += times;
                }
            }
            (n > 0).then(|| (right as f64 - wrong as f64 * threshold / (1.0 - threshold)) / n as f64)
        };
        Some(thresholds.iter().map(at).collect())
    })?;
    let point = |(&threshold, bounds): (&f64, Bounds)| {
        bounds.map(|(low, high)| NetBenefitBandPoint { threshold, low, high })
    };
    Ok(thresholds.iter().zip(bounds).filter_map(point).collect())
}

/// Percentile bounds of each of `n_values` numbers, which `statistic` makes from how
/// often each row counts, `[N]`. All of them are undefined where it gives `None`.
fn resampled_bounds(
    scores: &Scores,
    case_n: &[usize],
    plan: &Bootstrap,
    n_values: usize,
    statistic: impl Fn(&[u64]) -> Option<Vec<Option<f64>>> + Sync,
) -> Result<Vec<Bounds>, MetricsError> {
    let cases = Cases::new(scores, case_n)?;
    check(plan)?;
    let resamples = cases.resample(plan, &|times_drawn: &[u32]| {
        let times_n: Vec<u64> = case_n.iter().map(|&case| u64::from(times_drawn[case])).collect();
        statistic(&times_n).unwrap_or_else(|| vec![None; n_values])
    });
    let bounds = |i: usize| {
        let column: Vec<f64> = resamples.iter().filter_map(|row| row[i]).collect();
        let n_undefined = plan.n_resamples - column.len();
        let enough = n_undefined as f64 <= MOST_UNDEFINED * plan.n_resamples as f64;
        if enough { percentile_interval(&column, plan.level) } else { None }
    };
    Ok((0..n_values).map(bounds).collect())
}
