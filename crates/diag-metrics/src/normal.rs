//! The normal distribution, to full double precision.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// Chance that a standard normal value is at most `z`, 0 to 1.
pub fn normal_cdf(z: f64) -> f64 {
    0.5 * erfc(-z * FRAC_1_SQRT_2)
}

/// Value that a standard normal stays below with chance `p`; infinite at 0 and 1,
/// `None` outside [0, 1].
pub fn normal_quantile(p: f64) -> Option<f64> {
    if !(0.0..=1.0).contains(&p) {
        return None;
    }
    if p == 0.0 || p == 1.0 {
        return Some(if p == 0.0 { f64::NEG_INFINITY } else { f64::INFINITY });
    }
    // Bisection brackets the root, Newton's steps finish it: no table of
    // coefficients to get wrong, and this runs a few times a report.
    let (mut lo, mut hi) = (-40.0, 40.0);
    for _ in 0..60 {
        let middle = 0.5 * (lo + hi);
        if normal_cdf(middle) < p { lo = middle } else { hi = middle }
    }
    let mut z = 0.5 * (lo + hi);
    for _ in 0..2 {
        let density = (-0.5 * z * z).exp() / (2.0 * PI).sqrt();
        if density > 0.0 {
            z -= (normal_cdf(z) - p) / density;
        }
    }
    Some(z)
}

/// Chance that a standard normal value is further from 0 than `z`, 0 to 1.
pub(crate) fn two_sided_p(z: f64) -> f64 {
    erfc(z.abs() * FRAC_1_SQRT_2)
}

/// Complementary error function: a power series of positive terms near 0, a
/// continued fraction in the tail (Abramowitz and Stegun 7.1.6 and 7.1.14).
fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x < 2.0 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term > sum * 1e-17 {
            n += 1.0;
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
        }
        return 1.0 - 2.0 / PI.sqrt() * (-x * x).exp() * sum;
    }
    // Evaluated from the far end; 120 terms suffice from 2 upwards.
    let mut tail = x;
    for n in (1..=120).rev() {
        tail = x + 0.5 * f64::from(n) / tail;
    }
    (-x * x).exp() / (PI.sqrt() * tail)
}
