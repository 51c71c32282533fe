//! Differences between methods that were trained with several seeds and tested on the same
//! patients: seeds and patients both vary.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::Serialize;

use crate::MetricsError;
use crate::bootstrap::{MOST_UNDEFINED, quantile};
use crate::normal::{normal_quantile, two_sided_p};
use crate::paired::{student_quantile, student_two_sided};

/// Which cases are right, run by run, and whose cases they are.
#[derive(Clone, Debug, PartialEq)]
pub struct CrossedRuns {
    /// Class of each case, `[N]`; every class up to the highest occurs.
    pub class_n: Vec<usize>,
    /// Patient of each case, `[N]`, numbered 0, 1, 2 and so on without gaps.
    pub patient_n: Vec<usize>,
    /// Whether each case was predicted right, `[series][seed][N]`: a series is a method under a
    /// setting, and every series has the same seeds in the same order, at least 2.
    pub right_srn: Vec<Vec<Vec<bool>>>,
}

/// The resampling plan.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CrossedPlan {
    /// Number of resamples, at least 100.
    pub n_resamples: usize,
    /// Coverage of the intervals, above 0 and below 1.
    pub level: f64,
    /// Seed of ChaCha8; resample i uses its stream i.
    pub seed: u64,
}

impl Default for CrossedPlan {
    /// 10,000 resamples, 95 %, seed 0.
    fn default() -> Self {
        Self { n_resamples: 10_000, level: 0.95, seed: 0 }
    }
}

/// A contrast of balanced accuracies with what is known of its error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CrossedDifference {
    /// Weighted sum of the series' balanced accuracies, each a mean over the seeds.
    pub difference: f64,
    /// Standard deviation over the resamples of seeds and patients.
    pub standard_error: f64,
    /// Standard error by seeds alone.
    pub seed_error: f64,
    /// Standard error by patients alone.
    pub patient_error: f64,
    /// Satterthwaite's degrees of freedom of the two together.
    pub degrees_of_freedom: f64,
    /// Interval of this contrast by itself.
    pub interval: (f64, f64),
    /// Interval that holds together with those of all other contrasts.
    pub simultaneous: (f64, f64),
    /// Two-sided p value adjusted for all contrasts.
    pub adjusted_p_value: f64,
}

/// Crossed bootstrap of contrasts of balanced accuracy, with simultaneous intervals.
///
/// Each resample draws one seed less than there are, so that the variance of a mean is unbiased
/// (McCarthy and Snowden 1985), and as many patients as there are, all their cases together; the
/// draws are the same for all series (Owen 2007: the variance is a little too large rather than
/// too small). Simultaneous intervals are those of the single-step max-T method (Westfall and
/// Young 1993), with the t value of the same tail chance in place of the normal one.
///
/// `contrasts`: pairs of a series and its weight, such as `[(0, 1.0), (1, -1.0)]`.
///
/// # Errors
/// Lengths that differ, numbers with gaps, fewer than 2 seeds, a plan out of range, or a class
/// that too many resamples lack.
pub fn crossed_bootstrap(
    runs: &CrossedRuns,
    contrasts: &[Vec<(usize, f64)>],
    plan: &CrossedPlan,
) -> Result<Vec<CrossedDifference>, MetricsError> {
    let design = Design::new(runs, contrasts, plan)?;
    let all = vec![1.0; design.n_patients];
    let observed_sr = design.accuracies(runs, &all).ok_or(MetricsError::Empty)?;
    let by_seed = |accuracy_sr: &[Vec<f64>], contrast: &[(usize, f64)]| -> Vec<f64> {
        let of_seed = |r| contrast.iter().map(|&(s, weight)| weight * accuracy_sr[s][r]).sum();
        (0..design.n_seeds).map(of_seed).collect()
    };
    let drawn = |stream: usize| {
        let mut rng = ChaCha8Rng::seed_from_u64(plan.seed);
        rng.set_stream(stream as u64);
        let draws = design.n_seeds - 1;
        let mut share_r = vec![0.0; design.n_seeds];
        (0..draws).for_each(|_| share_r[rng.random_range(0..design.n_seeds)] += 1.0 / draws as f64);
        let mut times_p = vec![0.0; design.n_patients];
        (0..design.n_patients).for_each(|_| times_p[rng.random_range(0..design.n_patients)] += 1.0);
        let accuracy_sr = design.accuracies(runs, &times_p)?;
        let both = |contrast: &Vec<(usize, f64)>| {
            let value_r = by_seed(&accuracy_sr, contrast);
            let crossed: f64 = value_r.iter().zip(&share_r).map(|(value, share)| value * share).sum();
            (crossed, mean(&value_r))
        };
        Some(contrasts.iter().map(both).collect::<Vec<(f64, f64)>>())
    };
    let resamples: Vec<Option<Vec<(f64, f64)>>> = (0..plan.n_resamples).into_par_iter().map(drawn).collect();
    let resamples: Vec<Vec<(f64, f64)>> = resamples.into_iter().flatten().collect();
    let n_undefined = plan.n_resamples - resamples.len();
    if n_undefined as f64 > MOST_UNDEFINED * plan.n_resamples as f64 {
        let got = n_undefined as f64;
        return Err(MetricsError::OutOfRange {
            what: "resamples without a class",
            got,
            range: "at most 5 %",
        });
    }
    let mut found = Vec::with_capacity(contrasts.len());
    for (c, contrast) in contrasts.iter().enumerate() {
        let value_r = by_seed(&observed_sr, contrast);
        let crossed: Vec<f64> = resamples.iter().map(|row| row[c].0).collect();
        let by_patient: Vec<f64> = resamples.iter().map(|row| row[c].1).collect();
        let seed_error = deviation(&value_r) / (design.n_seeds as f64).sqrt();
        found.push(Found {
            difference: mean(&value_r),
            standard_error: deviation(&crossed),
            seed_error,
            patient_error: deviation(&by_patient),
            crossed,
        });
    }
    Ok(intervals(&found, &design, plan))
}

/// Fewest test patients with which a difference is seen with a chance of 0.8 by a single interval of
/// 95 %, from standard deviations of the difference by seed and by patient (standard errors times the
/// root of the number); `None` where no number up to a million is enough with so few seeds.
///
/// ```
/// use diag_metrics::patients_needed;
/// // Without scatter by seeds: (0.2 * (1.96 + 0.84) / 0.02)^2, and a few for Student's t.
/// assert_eq!(patients_needed(0.0, 0.2, 10, 0.02), Some(787));
/// assert_eq!(patients_needed(0.05, 0.2, 3, 0.02), None);
/// ```
pub fn patients_needed(seed_sd: f64, patient_sd: f64, n_seeds: usize, difference: f64) -> Option<usize> {
    if n_seeds < 2 || difference.partial_cmp(&0.0) != Some(std::cmp::Ordering::Greater) {
        return None;
    }
    let is_seen = |n_patients: usize| {
        let design = Design { n_classes: 0, n_patients, n_seeds };
        let seed_error = seed_sd / (n_seeds as f64).sqrt();
        let patient_error = patient_sd / (n_patients as f64).sqrt();
        let freedom = design.freedom(seed_error, patient_error);
        let error = (seed_error.powi(2) + patient_error.powi(2)).sqrt();
        let t = |p: f64| student_quantile(p, freedom).unwrap_or(f64::INFINITY);
        (t(0.975) + t(0.8)) * error <= difference
    };
    let (mut too_few, mut enough) = (1, MOST_PATIENTS);
    if !is_seen(enough) {
        return None;
    }
    while enough - too_few > 1 {
        let middle = too_few + (enough - too_few) / 2;
        if is_seen(middle) { enough = middle } else { too_few = middle }
    }
    Some(enough)
}

/// More test patients than any study has.
const MOST_PATIENTS: usize = 1_000_000;

/// One contrast before the family is known.
struct Found {
    difference: f64,
    standard_error: f64,
    seed_error: f64,
    patient_error: f64,
    crossed: Vec<f64>,
}

fn intervals(found: &[Found], design: &Design, plan: &CrossedPlan) -> Vec<CrossedDifference> {
    let n_resamples = found.first().map_or(0, |first| first.crossed.len());
    let largest = |b: usize| {
        let far = |one: &Found| ratio((one.crossed[b] - one.difference).abs(), one.standard_error);
        found.iter().map(far).fold(0.0, f64::max)
    };
    let mut largest_b: Vec<f64> = (0..n_resamples).map(largest).collect();
    largest_b.sort_by(f64::total_cmp);
    let family_tail = two_sided_p(quantile(&largest_b, plan.level));
    let finished = |one: &Found| {
        let freedom = design.freedom(one.seed_error, one.patient_error);
        let bounds = |tail: f64| {
            let t = student_quantile(1.0 - tail / 2.0, freedom).unwrap_or(f64::INFINITY);
            // Where nothing varies there is no width, whatever t is.
            let half = if one.standard_error > 0.0 { t * one.standard_error } else { 0.0 };
            (one.difference - half, one.difference + half)
        };
        let own_tail = student_two_sided(ratio(one.difference.abs(), one.standard_error), freedom);
        let z = normal_quantile(1.0 - own_tail / 2.0).unwrap_or(f64::INFINITY);
        // A quantile is known to some digits only.
        let as_far = n_resamples - largest_b.partition_point(|largest| *largest < z - 1e-9);
        CrossedDifference {
            difference: one.difference,
            standard_error: one.standard_error,
            seed_error: one.seed_error,
            patient_error: one.patient_error,
            degrees_of_freedom: freedom,
            interval: bounds(1.0 - plan.level),
            simultaneous: bounds(family_tail),
            adjusted_p_value: (as_far as f64 + 1.0) / (n_resamples as f64 + 1.0),
        }
    };
    found.iter().map(finished).collect()
}

/// 0 where both are 0.
fn ratio(numerator: f64, denominator: f64) -> f64 {
    if numerator == 0.0 { 0.0 } else { numerator / denominator }
}

/// What was checked.
struct Design {
    n_classes: usize,
    n_patients: usize,
    n_seeds: usize,
}

impl Design {
    fn new(
        runs: &CrossedRuns,
        contrasts: &[Vec<(usize, f64)>],
        plan: &CrossedPlan,
    ) -> Result<Self, MetricsError> {
        let CrossedRuns { class_n, patient_n, right_srn } = runs;
        let n = class_n.len();
        let n_seeds = right_srn.first().map_or(0, Vec::len);
        if n == 0 || right_srn.is_empty() || contrasts.is_empty() {
            return Err(MetricsError::Empty);
        }
        let lengths = right_srn.iter().flatten().map(Vec::len).chain([patient_n.len()]);
        if let Some(got) = lengths.into_iter().find(|&got| got != n) {
            return Err(MetricsError::WrongLength { what: "cases", got, want: n });
        }
        if let Some(got) = right_srn.iter().map(Vec::len).find(|&got| got != n_seeds) {
            return Err(MetricsError::WrongLength { what: "seeds", got, want: n_seeds });
        }
        let refuse = |what, got: usize, range| Err(MetricsError::OutOfRange { what, got: got as f64, range });
        if n_seeds < 2 {
            return refuse("number of seeds", n_seeds, "at least 2");
        }
        if plan.n_resamples < 100 {
            return refuse("number of resamples", plan.n_resamples, "at least 100");
        }
        if !(plan.level > 0.0 && plan.level < 1.0) {
            let range = "above 0 and below 1";
            return Err(MetricsError::OutOfRange { what: "level of the interval", got: plan.level, range });
        }
        let n_series = right_srn.len();
        if let Some(&(series, _)) = contrasts.iter().flatten().find(|(series, _)| *series >= n_series) {
            return refuse("series of a contrast", series, "a series that there is");
        }
        for numbers in [class_n, patient_n] {
            crate::cases::rows_of_case(numbers)?;
        }
        let count = |numbers: &[usize]| numbers.iter().max().map_or(0, |max| max + 1);
        Ok(Self { n_classes: count(class_n), n_patients: count(patient_n), n_seeds })
    }

    /// Balanced accuracy of every run, `[series][seed]`, with each patient counted so many
    /// times; `None` where a class is not there.
    fn accuracies(&self, runs: &CrossedRuns, times_p: &[f64]) -> Option<Vec<Vec<f64>>> {
        let mut total_k = vec![0.0; self.n_classes];
        for (&class, &patient) in runs.class_n.iter().zip(&runs.patient_n) {
            total_k[class] += times_p[patient];
        }
        if total_k.contains(&0.0) {
            return None;
        }
        let weight = |(&class, &patient): (&usize, &usize)| {
            times_p[patient] / (total_k[class] * self.n_classes as f64)
        };
        let weight_n: Vec<f64> = runs.class_n.iter().zip(&runs.patient_n).map(weight).collect();
        let accuracy = |right_n: &Vec<bool>| -> f64 {
            right_n.iter().zip(&weight_n).map(|(&right, weight)| f64::from(u8::from(right)) * weight).sum()
        };
        Some(runs.right_srn.iter().map(|series| series.iter().map(accuracy).collect()).collect())
    }

    /// Satterthwaite's (1946) degrees of freedom.
    fn freedom(&self, seed_error: f64, patient_error: f64) -> f64 {
        let (seeds, patients) = (seed_error.powi(2), patient_error.powi(2));
        let (of_seeds, of_patients) = ((self.n_seeds - 1) as f64, (self.n_patients.max(2) - 1) as f64);
        let denominator = seeds.powi(2) / of_seeds + patients.powi(2) / of_patients;
        if denominator > 0.0 { (seeds + patients).powi(2) / denominator } else { of_seeds }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Standard deviation, n - 1.
fn deviation(values: &[f64]) -> f64 {
    let mean = mean(values);
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (values.len() as f64 - 1.0)).sqrt()
}
