//! The mean of any number by case, for what is neither a class nor a probability.

use crate::bootstrap::{Cases, bounds, check};
use crate::cases::rows_of_case;
use crate::{Bootstrap, Estimate, MetricsError};

/// The mean over cases of each case's own mean, so that a case with many slices
/// counts as much as one with few. The interval resamples whole cases within
/// their class. Differences of two numbers of the same slices give a paired interval.
///
/// # Shapes
/// - `value_n`: `[N]`, finite
/// - `case_n`: `[N]`, the case of each value, numbered without gaps
/// - `class_of_case`: the class of every case
///
/// # Errors
/// When the plan is out of range, the lengths differ, the numbering has gaps, or a value is not finite.
pub fn mean_by_case(
    value_n: &[f64],
    case_n: &[usize],
    class_of_case: &[usize],
    plan: &Bootstrap,
) -> Result<Estimate, MetricsError> {
    check(plan)?;
    if value_n.is_empty() {
        return Err(MetricsError::Empty);
    }
    if case_n.len() != value_n.len() {
        return Err(MetricsError::WrongLength {
            what: "case numbers",
            got: case_n.len(),
            want: value_n.len(),
        });
    }
    if let Some(bad) = value_n.iter().find(|value| !value.is_finite()) {
        return Err(MetricsError::OutOfRange { what: "value", got: *bad, range: "finite" });
    }
    let rows = rows_of_case(case_n)?;
    if class_of_case.len() != rows.len() {
        let (got, want) = (class_of_case.len(), rows.len());
        return Err(MetricsError::WrongLength { what: "classes of cases", got, want });
    }
    let mean = |rows: &Vec<usize>| rows.iter().map(|&row| value_n[row]).sum::<f64>() / rows.len() as f64;
    let of_case: Vec<f64> = rows.iter().map(mean).collect();
    let resampled = Cases::of_classes(class_of_case).resample(plan, &|times_drawn: &[u32]| {
        let sum: f64 = times_drawn.iter().zip(&of_case).map(|(&n, value)| f64::from(n) * value).sum();
        sum / of_case.len() as f64
    });
    let value = of_case.iter().sum::<f64>() / of_case.len() as f64;
    // Percentiles: acceleration would need a second pass that nobody asks for here.
    let plan = Bootstrap { method: crate::IntervalMethod::Percentile, ..*plan };
    let bounds = bounds(Some(value), &resampled, &plan, || None);
    Ok(Estimate {
        value: Some(value),
        low: bounds.map(|b| b.0),
        high: bounds.map(|b| b.1),
        degenerate: resampled.iter().all(|x| x == &resampled[0]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Bootstrap =
        Bootstrap { n_resamples: 2000, level: 0.95, seed: 3, method: crate::IntervalMethod::Percentile };

    #[test]
    fn every_case_counts_once_however_many_slices_it_has() {
        let got = mean_by_case(&[1.0, 1.0, 1.0, 0.0], &[0, 0, 0, 1], &[0, 0], &PLAN).unwrap();
        assert_eq!(got.value, Some(0.5));
    }

    #[test]
    fn the_interval_is_near_the_normal_one_for_many_cases() {
        // 0, 1, 2, ..., 99: mean 49.5, standard error 28.87 / 10.
        let values: Vec<f64> = (0..100).map(f64::from).collect();
        let cases: Vec<usize> = (0..100).collect();
        let got = mean_by_case(&values, &cases, &[0; 100], &PLAN).unwrap();
        let half = 1.96 * 2.887;
        assert!((got.low.unwrap() - (49.5 - half)).abs() < 0.5, "{got:?}");
        assert!((got.high.unwrap() - (49.5 + half)).abs() < 0.5, "{got:?}");
        assert!(!got.degenerate);
    }

    #[test]
    fn cases_are_drawn_within_their_class() {
        // Within a class all are equal, so no resample differs.
        let got = mean_by_case(&[1.0, 1.0, 5.0, 5.0], &[0, 1, 2, 3], &[0, 0, 1, 1], &PLAN).unwrap();
        assert_eq!((got.value, got.low, got.high, got.degenerate), (Some(3.0), Some(3.0), Some(3.0), true));
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(mean_by_case(&[], &[], &[], &PLAN).is_err());
        assert!(mean_by_case(&[1.0], &[0, 1], &[0], &PLAN).is_err());
        assert!(mean_by_case(&[1.0, 2.0], &[0, 2], &[0, 0], &PLAN).is_err());
        assert!(mean_by_case(&[f64::NAN], &[0], &[0], &PLAN).is_err());
        assert!(mean_by_case(&[1.0], &[0], &[0, 0], &PLAN).is_err());
    }
}
