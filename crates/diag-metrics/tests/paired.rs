//! Paired tests against scipy.

use diag_metrics::paired_test;
use serde::Deserialize;

/// One entry of `reference/paired.json`, made by `reference/make_paired.py`.
#[derive(Deserialize)]
struct Reference {
    differences: Vec<f64>,
    mean: f64,
    low: Option<f64>,
    high: Option<f64>,
    t: Option<f64>,
    sign: f64,
}

#[test]
fn paired_tests_are_those_of_scipy() {
    let cases: Vec<Reference> = serde_json::from_str(include_str!("reference/paired.json")).unwrap();
    assert_eq!(cases.len(), 6);
    for case in cases {
        let got = paired_test(&case.differences, 0.95).unwrap();
        let near = |got: Option<f64>, want: Option<f64>| match (got, want) {
            (None, None) => true,
            (Some(got), Some(want)) => (got - want).abs() <= 1e-8 * want.abs().max(1e-3),
            _ => false,
        };
        assert!(near(Some(got.mean), Some(case.mean)), "{got:?}");
        assert!(near(got.interval.map(|i| i.0), case.low), "{got:?}, expected {:?}", case.low);
        assert!(near(got.interval.map(|i| i.1), case.high), "{got:?}, expected {:?}", case.high);
        assert!(near(got.t_p_value, case.t), "{got:?}, expected {:?}", case.t);
        assert!(near(got.sign_p_value, Some(case.sign)), "{got:?}, expected {}", case.sign);
    }
    assert_eq!(paired_test(&[], 0.95), None);
}
