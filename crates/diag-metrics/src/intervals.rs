//! Intervals that need no random numbers: Wilson's, at the number of trials where a measure is a
//! share of independent units, else at the effective number that a jackknife gives.
//!
//! Resampled intervals of good classifiers on few cases are too narrow, and have no width where
//! nothing was wrong. The variance of a measure is estimated by leaving out one unit (patient) at
//! a time, within strata of equal classes. A share p with that variance v is as sure as one of
//! n = p (1 - p) / v independent trials, so that Wilson's score interval (1927) at n trials is
//! taken (as for survey estimates: Korn and Graubard 1998; Dean and Pagano 2015). Where leaving
//! out any unit changes nothing, n is the number of units. Measures from -1 to 1 are mapped to a
//! share; losses, which have no upper bound, get an interval on the logarithmic scale with
//! Student's t. `examples/interval_coverage.rs` measures what all this covers.

use serde::Serialize;

use crate::bootstrap::Cases;
use crate::measure::Evaluator;
use crate::normal::normal_quantile;
use crate::paired::student_quantile;
use crate::{Measure, Measures, MetricsError, Scores, wilson_interval};

/// How an interval was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum IntervalKind {
    /// Wilson's score interval: the measure is a share of independent units.
    Wilson,
    /// Wilson's score interval at the effective number of units.
    WilsonEffective,
    /// On the logarithmic scale, with Student's t.
    Logarithmic,
    /// None: the measure is undefined, or becomes so when one unit is left out.
    None,
}

/// A measure with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct MeasuredInterval {
    /// Which measure.
    #[serde(skip)]
    pub measure: Measure,
    /// On all the data.
    pub value: Option<f64>,
    /// Lower bound.
    pub low: Option<f64>,
    /// Upper bound.
    pub high: Option<f64>,
    /// How the bounds were made.
    pub kind: IntervalKind,
}

/// Measures with intervals by unit.
#[derive(Clone, Debug)]
pub struct UnitSummary {
    /// The measures on all the data.
    pub measures: Measures,
    /// Number of independent units.
    pub n_units: usize,
    /// One entry a measure, in the order of [`Measure::all`].
    pub intervals: Vec<MeasuredInterval>,
}

/// Computes every measure with an interval by unit.
///
/// # Shapes
/// - `scores`: `[N, K]`, slices or cases
/// - `unit_n`: `[N]`, the independent unit (patient, or case) of each row, numbered without gaps;
///   a unit may have rows of several classes
///
/// # Errors
/// When `level` is not in (0, 1), or the numbering has gaps.
pub fn summarise_units(scores: &Scores, unit_n: &[usize], level: f64) -> Result<UnitSummary, MetricsError> {
    if !(level > 0.0 && level < 1.0) {
        let range = "above 0 and below 1";
        return Err(MetricsError::OutOfRange { what: "level of the interval", got: level, range });
    }
    let units = Cases::of_patients(scores, unit_n)?;
    let evaluator = Evaluator::new(scores);
    let names = Measure::all(scores.n_classes());
    let left_out = units.leave_one_out(&|times_drawn: &[u32]| -> Vec<Option<f64>> {
        let measures = evaluator.measures(|row| u64::from(times_drawn[unit_n[row]]));
        names.iter().map(|&measure| measures.get(measure)).collect()
    });
    let measures = evaluator.measures(|_| 1);
    let plan =
        Plan { independent: units.n_units() == scores.len(), units: &units, measures: &measures, level };
    let interval = |(index, &measure): (usize, &Measure)| {
        let of_measure: Option<Vec<f64>> = left_out.iter().map(|row| row[index]).collect();
        plan.interval(measure, of_measure.as_deref())
    };
    let intervals = names.iter().enumerate().map(interval).collect();
    Ok(UnitSummary { n_units: units.n_units(), intervals, measures })
}

struct Plan<'a> {
    /// Whether every row is a unit of its own.
    independent: bool,
    units: &'a Cases,
    measures: &'a Measures,
    level: f64,
}

impl Plan<'_> {
    /// `left_out`: the measure without each unit; absent where it is undefined without one.
    fn interval(&self, measure: Measure, left_out: Option<&[f64]>) -> MeasuredInterval {
        let value = self.measures.get(measure);
        let found = value.and_then(|value| self.bounds(measure, value, left_out));
        let (bounds, kind) = found.map_or((None, IntervalKind::None), |(bounds, kind)| (Some(bounds), kind));
        MeasuredInterval { measure, value, low: bounds.map(|b| b.0), high: bounds.map(|b| b.1), kind }
    }

    fn bounds(
        &self,
        measure: Measure,
        value: f64,
        left_out: Option<&[f64]>,
    ) -> Option<((f64, f64), IntervalKind)> {
        if self.independent
            && let Some((part, whole)) = self.measures.share(measure)
        {
            return Some((wilson_interval(part, whole, self.level)?, IntervalKind::Wilson));
        }
        let (variance, freedom) = self.units.jackknife_variance(left_out?)?;
        match measure {
            Measure::Brier | Measure::LogLoss | Measure::CalibrationError => {
                if value <= 0.0 || variance <= 0.0 {
                    return None;
                }
                let half = student_quantile(0.5 + self.level / 2.0, freedom)? * variance.sqrt() / value;
                Some(((value * (-half).exp(), value * half.exp()), IntervalKind::Logarithmic))
            }
            Measure::Matthews | Measure::Kappa => {
                let share = f64::midpoint(value, 1.0);
                let (low, high) = self.wilson(share, variance / 4.0, self.n_units_of(measure))?;
                Some(((2.0 * low - 1.0, 2.0 * high - 1.0), IntervalKind::WilsonEffective))
            }
            _ => {
                Some((self.wilson(value, variance, self.n_units_of(measure))?, IntervalKind::WilsonEffective))
            }
        }
    }

    /// Wilson's interval of a share with this variance.
    fn wilson(&self, share: f64, variance: f64, n_units: f64) -> Option<(f64, f64)> {
        let spread = share * (1.0 - share);
        let n = if variance > 0.0 && spread > 0.0 { spread / variance } else { n_units };
        if n <= 0.0 {
            return None;
        }
        let z = normal_quantile(0.5 + self.level / 2.0)?;
        let centre = share + z * z / (2.0 * n);
        let half = z * (spread / n + z * z / (4.0 * n * n)).sqrt();
        let scale = 1.0 + z * z / n;
        // At the ends the bound is exactly 0 or 1; rounding must not say otherwise.
        let low = if share <= 0.0 { 0.0 } else { (centre - half) / scale };
        let high = if share >= 1.0 { 1.0 } else { (centre + half) / scale };
        Some((low, high))
    }

    /// Units that a measure rests on where leaving out any changes nothing: all, or the fewer ones
    /// of a class and the rest.
    fn n_units_of(&self, measure: Measure) -> f64 {
        let n_rows = self.measures.n as f64;
        let of_class = measure.class().and_then(|class| self.measures.classes.get(class)).map(|class| {
            let events = (class.counts.true_positive + class.counts.false_negative) as f64;
            match measure {
                Measure::Specificity(_) | Measure::NegativePredictiveValue(_) => n_rows - events,
                Measure::Auroc(_) => events.min(n_rows - events),
                _ => events,
            }
        });
        // Rows of one unit count as one.
        of_class.unwrap_or(n_rows) * self.units.n_units() as f64 / n_rows
    }
}
