//! How sure a number is: resampling whole cases.

use std::collections::{BTreeMap, BTreeSet};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::cases::{label_of, rows_of_case};
use crate::measure::Evaluator;
use crate::normal::{normal_cdf, normal_quantile};
use crate::{Measure, Measures, MetricsError, Scores};

/// An interval is withheld when more than this share of the resamples leaves
/// the measure undefined: the rest would be a selection.
pub(crate) const MOST_UNDEFINED: f64 = 0.05;

/// How resamples become an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IntervalMethod {
    /// Quantiles of the resamples.
    Percentile,
    /// Bias-corrected and accelerated (Efron 1987).
    Bca,
}

/// The resampling plan. Cases are drawn with replacement within their class, so
/// that every resample has the class sizes of the data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Number of resamples, at least 100.
    pub n_resamples: usize,
    /// Coverage of the intervals, above 0 and below 1.
    pub level: f64,
    /// Seed of ChaCha8; resample number i uses its stream i, so that the numbers
    /// do not depend on the number of threads.
    pub seed: u64,
    /// How resamples become an interval.
    pub method: IntervalMethod,
}

impl Default for Bootstrap {
    /// 2000 resamples, 95 %, percentile, seed 0.
    fn default() -> Self {
        Self { n_resamples: 2000, level: 0.95, seed: 0, method: IntervalMethod::Percentile }
    }
}

/// A value with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The measure on all the data.
    pub value: Option<f64>,
    /// Lower bound; `None` when the value or too many resamples are undefined.
    pub low: Option<f64>,
    /// Upper bound.
    pub high: Option<f64>,
    /// Every resample gave the same value, so that the interval has no width and
    /// says nothing about uncertainty (a perfect score on few cases).
    pub degenerate: bool,
}

/// Measures with intervals.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The measures on all the data.
    pub measures: Measures,
    /// Number of independent units (cases).
    pub n_cases: usize,
    /// Number of cases of each class, `[K]`.
    pub cases_per_class: Vec<usize>,
    /// The plan that made the intervals.
    pub bootstrap: Bootstrap,
    estimates: Vec<(Measure, Estimate)>,
}

impl Summary {
    /// One measure with its interval; all `None` for a class that is not there.
    pub fn estimate(&self, measure: Measure) -> Estimate {
        let found = self.estimates.iter().find(|(m, _)| *m == measure);
        let absent = Estimate { value: None, low: None, high: None, degenerate: false };
        found.map_or(absent, |(_, estimate)| *estimate)
    }

    /// All of them, in the order of [`Measure::all`].
    pub fn estimates(&self) -> &[(Measure, Estimate)] {
        &self.estimates
    }
}

/// Computes every measure with an interval by case.
///
/// # Shapes
/// - `scores`: `[N, K]`, slices or cases
/// - `case_n`: `[N]`, the case of each row, numbered without gaps; for rows that
///   are cases, 0..N
///
/// # Errors
/// When the plan is out of range, the numbering has gaps, or a case has two labels.
pub fn summarise(scores: &Scores, case_n: &[usize], plan: &Bootstrap) -> Result<Summary, MetricsError> {
    summarise_units(scores, case_n, &Cases::new(scores, case_n)?, plan)
}

/// Computes every measure by case with an interval by patient: all cases of a drawn patient
/// come together. Patients are drawn within those whose cases have the same classes, so that
/// resamples have nearly the class sizes of the data. `n_cases` of the result is the number of
/// patients.
///
/// # Shapes
/// - `scores`: `[N, K]`, cases
/// - `patient_n`: `[N]`, the patient of each case, numbered without gaps; a patient may have
///   cases of several classes
///
/// # Errors
/// When the plan is out of range, or the numbering has gaps.
pub fn summarise_by_patient(
    scores: &Scores,
    patient_n: &[usize],
    plan: &Bootstrap,
) -> Result<Summary, MetricsError> {
    summarise_units(scores, patient_n, &Cases::of_patients(scores, patient_n)?, plan)
}

fn summarise_units(
    scores: &Scores,
    case_n: &[usize],
    cases: &Cases,
    plan: &Bootstrap,
) -> Result<Summary, MetricsError> {
    check(plan)?;
    let evaluator = Evaluator::new(scores);
    let names = Measure::all(scores.n_classes());
    let values_of = |times_drawn: &[u32]| -> Vec<Option<f64>> {
        let measures = evaluator.measures(|row| u64::from(times_drawn[case_n[row]]));
        names.iter().map(|&m| measures.get(m)).collect()
    };
    let resamples = cases.resample(plan, &values_of);
    let left_out = match plan.method {
        IntervalMethod::Percentile => Vec::new(),
        IntervalMethod::Bca => cases.leave_one_out(&values_of),
    };
    let measures = evaluator.measures(|_| 1);
    let estimate = |index: usize, value: Option<f64>| {
        let column: Vec<f64> = resamples.iter().filter_map(|row| row[index]).collect();
        let bounds = bounds(value, &column, plan, || cases.acceleration(&left_out, index));
        Estimate {
            value,
            low: bounds.map(|b| b.0),
            high: bounds.map(|b| b.1),
            degenerate: bounds.is_some_and(|(low, high)| low == high)
                && column.iter().all(|x| Some(x) == column.first()),
        }
    };
    let estimates = names.iter().enumerate().map(|(i, &m)| (m, estimate(i, measures.get(m)))).collect();
    Ok(Summary {
        estimates,
        n_cases: cases.label.len(),
        cases_per_class: cases.per_class.clone(),
        bootstrap: *plan,
        measures,
    })
}

/// Quantiles of resampled values (linear interpolation) at both ends of `level`;
/// `None` without values or for a level outside (0, 1).
pub fn percentile_interval(resampled: &[f64], level: f64) -> Option<(f64, f64)> {
    let sorted = sorted(resampled, level)?;
    let tail = (1.0 - level) / 2.0;
    Some((quantile(&sorted, tail), quantile(&sorted, 1.0 - tail)))
}

/// BCa interval (Efron 1987) from resampled values and an acceleration. `None`
/// without values, or when the estimate lies outside all of them.
pub fn bca_interval(estimate: f64, resampled: &[f64], acceleration: f64, level: f64) -> Option<(f64, f64)> {
    let sorted = sorted(resampled, level)?;
    let below = sorted.iter().filter(|&&x| x < estimate).count() as f64;
    let equal = sorted.iter().filter(|&&x| x == estimate).count() as f64;
    let share = (below + equal / 2.0) / sorted.len() as f64;
    let bias = normal_quantile(share).filter(|z| z.is_finite())?;
    let end = |z: f64| {
        let moved = bias + z;
        quantile(&sorted, normal_cdf(bias + moved / (1.0 - acceleration * moved)))
    };
    let z = normal_quantile(0.5 + level / 2.0)?;
    Some((end(-z), end(z)))
}

/// Wilson score interval of a share (Wilson 1927): it keeps a width at 0 and at
/// n successes, where resampling has none. `None` without trials.
pub fn wilson_interval(successes: u64, trials: u64, level: f64) -> Option<(f64, f64)> {
    if trials == 0 || successes > trials {
        return None;
    }
    let (n, z) = (trials as f64, normal_quantile(0.5 + level / 2.0)?);
    let p = successes as f64 / n;
    let centre = p + z * z / (2.0 * n);
    let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    // At the ends the bound is exactly 0 or 1; rounding must not say otherwise.
    let low = if successes == 0 { 0.0 } else { (centre - half) / scale };
    let high = if successes == trials { 1.0 } else { (centre + half) / scale };
    Some((low, high))
}

/// One point of a ROC curve's band.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct RocBandPoint {
    /// 1 - specificity, 0 to 1.
    pub false_positive_rate: f64,
    /// Lower bound of the sensitivity there.
    pub low: f64,
    /// Upper bound of the sensitivity there.
    pub high: f64,
}

/// Pointwise band of one class's ROC curve at 101 false positive rates, by case.
/// `None` when the class or the rest is absent.
///
/// # Errors
/// As [`summarise`].
pub fn roc_band(
    scores: &Scores,
    case_n: &[usize],
    class: usize,
    plan: &Bootstrap,
) -> Result<Option<Vec<RocBandPoint>>, MetricsError> {
    let cases = Cases::new(scores, case_n)?;
    check(plan)?;
    let evaluator = Evaluator::new(scores);
    let Some(ranking) = evaluator.ranking(class) else { return Ok(None) };
    let rates: Vec<f64> = (0..=100).map(|i| f64::from(i) / 100.0).collect();
    let curve_of = |times_drawn: &[u32]| -> Vec<Option<f64>> {
        let curve = ranking.sensitivity_at(&rates, |row| u64::from(times_drawn[case_n[row]]));
        curve.map_or(vec![None; rates.len()], |values| values.into_iter().map(Some).collect())
    };
    let resamples = cases.resample(plan, &curve_of);
    let point = |(i, &false_positive_rate): (usize, &f64)| {
        let column: Vec<f64> = resamples.iter().filter_map(|row| row[i]).collect();
        let (low, high) = percentile_interval(&column, plan.level)?;
        Some(RocBandPoint { false_positive_rate, low, high })
    };
    Ok(rates.iter().enumerate().map(point).collect())
}

pub(crate) fn check(plan: &Bootstrap) -> Result<(), MetricsError> {
    if plan.n_resamples < 100 {
        let got = plan.n_resamples as f64;
        return Err(MetricsError::OutOfRange { what: "number of resamples", got, range: "at least 100" });
    }
    if !(plan.level > 0.0 && plan.level < 1.0) {
        let range = "above 0 and below 1";
        return Err(MetricsError::OutOfRange { what: "level of the interval", got: plan.level, range });
    }
    Ok(())
}

/// The independent units and the strata that they are drawn within: their classes.
pub(crate) struct Cases {
    label: Vec<usize>,
    of_class: Vec<Vec<u32>>,
    /// Cases of each class, `[K]`.
    per_class: Vec<usize>,
}

impl Cases {
    pub(crate) fn new(scores: &Scores, case_n: &[usize]) -> Result<Self, MetricsError> {
        if case_n.len() != scores.len() {
            let (got, want) = (case_n.len(), scores.len());
            return Err(MetricsError::WrongLength { what: "case numbers", got, want });
        }
        let rows = rows_of_case(case_n)?;
        let label: Result<Vec<usize>, _> =
            rows.iter().enumerate().map(|(case, rows)| label_of(scores, case, rows)).collect();
        let label = label?;
        let mut of_class = vec![Vec::new(); scores.n_classes()];
        for (case, &label) in label.iter().enumerate() {
            of_class[label].push(case as u32);
        }
        let per_class = of_class.iter().map(Vec::len).collect();
        Ok(Self { label, of_class, per_class })
    }

    /// Patients, the units of `scores` of cases; drawn within those with the same classes.
    pub(crate) fn of_patients(scores: &Scores, patient_n: &[usize]) -> Result<Self, MetricsError> {
        if patient_n.len() != scores.len() {
            let (got, want) = (patient_n.len(), scores.len());
            return Err(MetricsError::WrongLength { what: "patient numbers", got, want });
        }
        let mut per_class = vec![0; scores.n_classes()];
        scores.labels().iter().for_each(|&label| per_class[label] += 1);
        let mut strata: BTreeMap<BTreeSet<usize>, Vec<u32>> = BTreeMap::new();
        let rows = rows_of_case(patient_n)?;
        for (patient, rows) in rows.iter().enumerate() {
            let classes = rows.iter().map(|&row| scores.labels()[row]).collect();
            strata.entry(classes).or_default().push(patient as u32);
        }
        let of_class: Vec<Vec<u32>> = strata.into_values().collect();
        let mut label = vec![0; rows.len()];
        for (stratum, patients) in of_class.iter().enumerate() {
            patients.iter().for_each(|&patient| label[patient as usize] = stratum);
        }
        Ok(Self { label, of_class, per_class })
    }

    /// Cases known by their class alone.
    pub(crate) fn of_classes(class_of_case: &[usize]) -> Self {
        let n_classes = class_of_case.iter().max().map_or(0, |max| max + 1);
        let mut of_class = vec![Vec::new(); n_classes];
        for (case, &class) in class_of_case.iter().enumerate() {
            of_class[class].push(case as u32);
        }
        let per_class = of_class.iter().map(Vec::len).collect();
        Self { label: class_of_case.to_vec(), of_class, per_class }
    }

    /// Values of each resample, in the order of the resamples. The statistic
    /// gets how often each case was drawn.
    pub(crate) fn resample<T: Send>(
        &self,
        plan: &Bootstrap,
        statistic: &(impl Fn(&[u32]) -> T + Sync),
    ) -> Vec<T> {
        let one = |stream: usize| {
            let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
            rng.set_stream(stream as u64);
            let mut times_drawn = vec![0u32; self.label.len()];
            for cases in &self.of_class {
                for _ in cases {
                    let pick = rng.random_range(0..cases.len() as u32);
                    times_drawn[cases[pick as usize] as usize] += 1;
                }
            }
            statistic(&times_drawn)
        };
        (0..plan.n_resamples).into_par_iter().map(one).collect()
    }

    pub(crate) fn n_units(&self) -> usize {
        self.label.len()
    }

    pub(crate) fn leave_one_out<T: Send>(&self, statistic: &(impl Fn(&[u32]) -> T + Sync)) -> Vec<T> {
        let one = |left_out: usize| {
            let mut times_drawn = vec![1u32; self.label.len()];
            times_drawn[left_out] = 0;
            statistic(&times_drawn)
        };
        (0..self.label.len()).into_par_iter().map(one).collect()
    }

    /// Variance of a statistic from its values without each unit, stratum by stratum, and its
    /// degrees of freedom. `None` where a stratum has one unit, which says nothing of its spread.
    pub(crate) fn jackknife_variance(&self, left_out: &[f64]) -> Option<(f64, f64)> {
        let (mut variance, mut freedom) = (0.0, 0.0);
        for units in self.of_class.iter().filter(|units| !units.is_empty()) {
            if units.len() < 2 {
                return None;
            }
            let n = units.len() as f64;
            let values = || units.iter().map(|&unit| left_out[unit as usize]);
            let mean = values().sum::<f64>() / n;
            variance += (n - 1.0) / n * values().map(|value| (value - mean).powi(2)).sum::<f64>();
            freedom += n - 1.0;
        }
        // What rounding leaves of equal values is no spread.
        let is_rounding = variance.sqrt() < 1e-12;
        Some((if is_rounding { 0.0 } else { variance }, freedom))
    }

    /// Acceleration of BCa from leave-one-out values, by stratum (Davison and
    /// Hinkley 1997, section 5.3 and problem 5.3). `None` when one is undefined.
    fn acceleration(&self, left_out: &[Vec<Option<f64>>], index: usize) -> Option<f64> {
        let (mut cubes, mut squares) = (0.0, 0.0);
        for cases in self.of_class.iter().filter(|cases| cases.len() > 1) {
            let n = cases.len() as f64;
            let values: Option<Vec<f64>> = cases.iter().map(|&c| left_out[c as usize][index]).collect();
            let values = values?;
            let mean = values.iter().sum::<f64>() / n;
            for value in values {
                let influence = (n - 1.0) * (mean - value) / n;
                cubes += influence.powi(3);
                squares += influence.powi(2);
            }
        }
        Some(if squares > 0.0 { cubes / (6.0 * squares.powf(1.5)) } else { 0.0 })
    }
}

pub(crate) fn bounds(
    value: Option<f64>,
    resampled: &[f64],
    plan: &Bootstrap,
    acceleration: impl FnOnce() -> Option<f64>,
) -> Option<(f64, f64)> {
    let value = value?;
    let n_undefined = plan.n_resamples - resampled.len();
    if n_undefined as f64 > MOST_UNDEFINED * plan.n_resamples as f64 {
        return None;
    }
    match plan.method {
        IntervalMethod::Percentile => percentile_interval(resampled, plan.level),
        IntervalMethod::Bca => bca_interval(value, resampled, acceleration()?, plan.level),
    }
}

fn sorted(values: &[f64], level: f64) -> Option<Vec<f64>> {
    if values.is_empty() || !(level > 0.0 && level < 1.0) {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some(sorted)
}

/// Quantile by linear interpolation (type 7) of ascending, non-empty values.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let position = share.clamp(0.0, 1.0) * (sorted.len() - 1) as f64;
    let (below, above) = (position.floor() as usize, position.ceil() as usize);
    let (a, b) = (sorted[below], sorted[above]);
    a + (b - a) * (position - below as f64)
}
