//! Intervals by unit: against numpy and scipy, and what they must not do.

#![expect(clippy::unwrap_used, reason = "in a test, a failed unwrap is a failed test")]

use diag_metrics::{
    IntervalKind, Measure, MeasuredInterval, Scores, predictive_value_bounds, predictive_values,
    summarise_units, wilson_interval,
};
use serde_json::Value;

fn find(intervals: &[MeasuredInterval], measure: Measure) -> MeasuredInterval {
    *intervals.iter().find(|interval| interval.measure == measure).unwrap()
}

#[test]
fn bounds_equal_those_of_numpy_and_scipy() {
    let cases: Value = serde_json::from_str(include_str!("reference/intervals.json")).unwrap();
    for case in cases.as_array().unwrap() {
        let floats = |key: &str| -> Vec<f64> {
            case[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        };
        let numbers = |key: &str| -> Vec<usize> { floats(key).into_iter().map(|x| x as usize).collect() };
        let scores = Scores::new(&floats("probs"), 3, &numbers("labels")).unwrap();
        let summary = summarise_units(&scores, &numbers("units"), 0.95).unwrap();
        let mut n_checked = 0;
        for measure in Measure::OVERALL {
            let Some(want) = case["want"].get(measure.key()) else { continue };
            let got = find(&summary.intervals, measure);
            let got = [got.value.unwrap(), got.low.unwrap(), got.high.unwrap()];
            for (got, want) in got.iter().zip(want.as_array().unwrap()) {
                let want = want.as_f64().unwrap();
                assert!((got - want).abs() < 1e-6, "{}: {got}, expected {want}", measure.key());
            }
            n_checked += 1;
        }
        assert_eq!(n_checked, 7);
    }
}

/// Twelve cases of two classes; the first `n_wrong` of each class are called wrong.
fn cohort(n_wrong: usize) -> Scores {
    let labels: Vec<usize> = (0..12).map(|case| case / 6).collect();
    let prob = |case: usize| {
        let right = case % 6 >= n_wrong;
        let own = if right { 0.9 - 0.01 * case as f64 } else { 0.3 - 0.01 * case as f64 };
        if case / 6 == 0 { [own, 1.0 - own] } else { [1.0 - own, own] }
    };
    Scores::new(&(0..12).flat_map(prob).collect::<Vec<_>>(), 2, &labels).unwrap()
}

#[test]
fn nothing_wrong_is_not_certainty() {
    let units: Vec<usize> = (0..12).collect();
    let summary = summarise_units(&cohort(0), &units, 0.95).unwrap();
    for measure in Measure::all(2) {
        let found = find(&summary.intervals, measure);
        let (low, high) = (found.low.unwrap(), found.high.unwrap());
        assert!(low < high, "{}: {low} to {high}", measure.key());
        if measure.higher_is_better() {
            assert_eq!((found.value, high), (Some(1.0), 1.0), "{}", measure.key());
            assert!(low < 0.8, "{}: {low}", measure.key());
        }
    }
    // Wilson at the cases of the class, and at all cases.
    let sensitivity = find(&summary.intervals, Measure::Sensitivity(1));
    assert_eq!(sensitivity.low, wilson_interval(6, 6, 0.95).map(|bounds| bounds.0));
    assert_eq!(sensitivity.kind, IntervalKind::Wilson);
    let balanced = find(&summary.intervals, Measure::BalancedAccuracy);
    assert!((balanced.low.unwrap() - wilson_interval(12, 12, 0.95).unwrap().0).abs() < 1e-12);
    assert_eq!(balanced.kind, IntervalKind::WilsonEffective);
}

#[test]
fn with_errors_no_bound_is_one() {
    let units: Vec<usize> = (0..12).collect();
    let summary = summarise_units(&cohort(1), &units, 0.95).unwrap();
    for interval in &summary.intervals {
        let (low, high) = (interval.low.unwrap(), interval.high.unwrap());
        let value = interval.value.unwrap();
        assert!(low < value && value < high, "{}: {low} {value} {high}", interval.measure.key());
        assert!(!interval.measure.higher_is_better() || high < 1.0, "{}: {high}", interval.measure.key());
    }
}

#[test]
fn cases_of_one_patient_count_for_less() {
    let scores = cohort(2);
    let alone: Vec<usize> = (0..12).collect();
    let paired: Vec<usize> = (0..12).map(|case| case / 2).collect();
    let width = |units: &[usize], measure: Measure| {
        let found = find(&summarise_units(&scores, units, 0.95).unwrap().intervals, measure);
        found.high.unwrap() - found.low.unwrap()
    };
    for measure in [Measure::Accuracy, Measure::BalancedAccuracy, Measure::Sensitivity(0)] {
        assert!(width(&paired, measure) > 1.2 * width(&alone, measure), "{}", measure.key());
    }
    let found = find(&summarise_units(&scores, &paired, 0.95).unwrap().intervals, Measure::Accuracy);
    assert_eq!(found.kind, IntervalKind::WilsonEffective);
}

#[test]
fn a_class_of_one_unit_has_no_spread_to_measure() {
    let scores = Scores::new(&[0.9, 0.1, 0.8, 0.2, 0.3, 0.7], 2, &[0, 0, 1]).unwrap();
    let summary = summarise_units(&scores, &[0, 1, 2], 0.95).unwrap();
    let balanced = find(&summary.intervals, Measure::BalancedAccuracy);
    assert_eq!((balanced.low, balanced.kind), (None, IntervalKind::None));
    // A share of independent cases needs none.
    assert!(find(&summary.intervals, Measure::Accuracy).low.is_some());
    assert!(summarise_units(&scores, &[0, 1, 2], 1.0).is_err());
    assert!(summarise_units(&scores, &[0, 1], 0.95).is_err());
}

#[test]
fn predictive_values_have_bounds_that_hold_them() {
    let (sensitivity, specificity) = ((0.6, 0.95), (0.7, 0.9));
    for prevalence in [0.01, 0.5] {
        let (ppv, npv) = predictive_values(0.8, 0.8, prevalence);
        let [of_ppv, of_npv] = predictive_value_bounds(sensitivity, specificity, prevalence);
        for (value, bounds) in [(ppv, of_ppv), (npv, of_npv)] {
            let ((low, high), value) = (bounds.unwrap(), value.unwrap());
            assert!(low < value && value < high);
        }
    }
    // Seven of seven right say little where one in a hundred is ill.
    let (low, _) = wilson_interval(7, 7, 0.95f64.sqrt()).unwrap();
    let [of_ppv, _] =
        predictive_value_bounds((low, 1.0), (wilson_interval(14, 14, 0.95).unwrap().0, 1.0), 0.01);
    let (low, high) = of_ppv.unwrap();
    assert!(low < 0.05 && high == 1.0, "{low} to {high}");
}
