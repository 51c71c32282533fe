//! Differences between two methods over the same seeds.

use serde::Serialize;

/// Up to this many pairs all assignments of signs are gone through.
const EXACT_PAIRS: usize = 20;

/// Paired differences, their mean and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PairedTest {
    /// Number of pairs.
    pub n: usize,
    /// Mean difference.
    pub mean: f64,
    /// Standard deviation of the differences, n - 1; absent for a single pair.
    pub deviation: Option<f64>,
    /// Student's interval of the mean; absent for a single pair.
    pub interval: Option<(f64, f64)>,
    /// Two-sided p value of the paired t test; absent for a single pair or where
    /// all differences are equal.
    pub t_p_value: Option<f64>,
    /// Share of all assignments of signs with a mean at least as far from 0
    /// (Fisher's randomisation test): with n pairs never below 2^(1-n). Absent
    /// beyond 20 pairs.
    pub sign_p_value: Option<f64>,
}

/// Tests whether paired differences have mean 0; `None` without any. `level`: of
/// the interval, such as 0.95.
pub fn paired_test(differences: &[f64], level: f64) -> Option<PairedTest> {
    let n = differences.len();
    if n == 0 {
        return None;
    }
    let mean = differences.iter().sum::<f64>() / n as f64;
    let freedom = (n - 1) as f64;
    let sum_of_squares: f64 = differences.iter().map(|d| (d - mean).powi(2)).sum();
    let deviation = (n > 1).then(|| (sum_of_squares / freedom).sqrt());
    let error = deviation.map(|deviation| deviation / (n as f64).sqrt());
    let interval = error.and_then(|error| {
        let half = student_quantile(0.5 + level / 2.0, freedom)? * error;
        Some((mean - half, mean + half))
    });
    let t_p_value = error
        .filter(|error| *error > 1e-12 * mean.abs())
        .map(|error| student_two_sided(mean / error, freedom));
    let sign_p_value = (n <= EXACT_PAIRS).then(|| sign_test(differences));
    Some(PairedTest { n, mean, deviation, interval, t_p_value, sign_p_value })
}

fn sign_test(differences: &[f64]) -> f64 {
    let observed = differences.iter().sum::<f64>().abs();
    let n_assignments = 1u64 << differences.len();
    let as_far = |signs: &u64| {
        let sum: f64 = differences
            .iter()
            .enumerate()
            .map(|(i, difference)| if signs >> i & 1 == 1 { -difference } else { *difference })
            .sum();
        sum.abs() >= observed * (1.0 - 1e-12)
    };
    (0..n_assignments).filter(as_far).count() as f64 / n_assignments as f64
}

/// Chance that Student's t is at least as far from 0 as `t`.
pub(crate) fn student_two_sided(t: f64, freedom: f64) -> f64 {
    incomplete_beta(freedom / 2.0, 0.5, freedom / (freedom + t * t))
}

/// Value that Student's t stays below with chance `p` in (0.5, 1).
pub(crate) fn student_quantile(p: f64, freedom: f64) -> Option<f64> {
    if !(0.5..1.0).contains(&p) {
        return None;
    }
    let (mut low, mut high) = (0.0, 1.0);
    while student_two_sided(high, freedom) > 2.0 * (1.0 - p) && high < 1e12 {
        high *= 2.0;
    }
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if student_two_sided(middle, freedom) > 2.0 * (1.0 - p) { low = middle } else { high = middle }
    }
    Some(0.5 * (low + high))
}

/// Regularised incomplete beta function, by Lentz's continued fraction
/// (Numerical Recipes, section 6.4).
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return if x <= 0.0 { 0.0 } else { 1.0 };
    }
    // The fraction converges fast on this side of the mean.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(b, a, 1.0 - x);
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (-x).ln_1p()).exp() / a;
    let away_from_zero = |value: f64| if value.abs() < 1e-300 { 1e-300 } else { value };
    let mut c = 1.0;
    let mut d = 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0));
    let mut fraction = d;
    for m in 1..=300 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut factor = 1.0;
        for term in [even, odd] {
            d = 1.0 / away_from_zero(1.0 + term * d);
            c = away_from_zero(1.0 + term / c);
            factor = c * d;
            fraction *= factor;
        }
        if (factor - 1.0).abs() < 1e-15 {
            break;
        }
    }
    front * fraction
}

/// ln of the gamma function for positive arguments: shifted up by its recurrence,
/// then Stirling's series.
fn ln_gamma(mut x: f64) -> f64 {
    let mut shift = 0.0;
    while x < 15.0 {
        shift -= x.ln();
        x += 1.0;
    }
    let r = 1.0 / (x * x);
    let series = (1.0 / 12.0 - r * (1.0 / 360.0 - r * (1.0 / 1260.0 - r / 1680.0))) / x;
    shift + (x - 0.5) * x.ln() - x + 0.5 * (2.0 * std::f64::consts::PI).ln() + series
}
