//! What is fixed on validation data, and paired tests against scipy.

use diag_metrics::{
    ConformalSets, Scores, fit_temperature, log_loss, operating_threshold, paired_test, with_temperature,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
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

/// Labels drawn from the very probabilities, or from sharper ones.
fn drawn(n: usize, sharpness: f64, seed: u64) -> Scores {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut probs, mut labels) = (Vec::new(), Vec::new());
    for _ in 0..n {
        let odds: [f64; 3] = std::array::from_fn(|_| (2.0 * rng.random::<f64>()).exp());
        let sum: f64 = odds.iter().sum();
        probs.extend(odds.map(|odd| odd / sum));
        let sharp = odds.map(|odd| odd.powf(sharpness));
        let mut left = rng.random::<f64>() * sharp.iter().sum::<f64>();
        let label = sharp.iter().position(|odd| {
            left -= odd;
            left < 0.0
        });
        labels.push(label.unwrap_or(2));
    }
    Scores::new(&probs, 3, &labels).unwrap()
}

#[test]
fn the_temperature_undoes_what_made_probabilities_too_timid_or_too_bold() {
    for (sharpness, want) in [(1.0, 1.0), (2.0, 0.5), (0.5, 2.0)] {
        let scores = drawn(40_000, sharpness, 1);
        let temperature = fit_temperature(&scores).unwrap();
        assert!((temperature / want - 1.0).abs() < 0.05, "{temperature}, expected {want}");
        let at = |t: f64| log_loss(&with_temperature(&scores, t).unwrap());
        assert!(at(temperature) <= at(temperature * 1.01) && at(temperature) <= at(temperature / 1.01));
    }
    let certain = Scores::new(&[1.0, 0.0, 0.0, 1.0], 2, &[0, 1]).unwrap();
    assert!(fit_temperature(&certain).unwrap() > 0.0);
    assert!(with_temperature(&certain, 0.0).is_err());
}

#[test]
fn conformal_sets_cover_every_class_as_stated() {
    // Over many calibration sets the mean coverage of every class lies at or just above the stated one.
    for coverage in [0.8, 0.9] {
        let mut sums = [0.0; 3];
        let n_sets = 40;
        for seed in 0..n_sets {
            let sets = ConformalSets::fit(&drawn(150, 1.0, 2 * seed + 10), coverage).unwrap();
            let measured = sets.measure(&drawn(1000, 1.0, 2 * seed + 11));
            for (sum, of_class) in sums.iter_mut().zip(&measured.coverage_k) {
                *sum += of_class.unwrap() / n_sets as f64;
            }
            assert!(measured.mean_size >= 1.0 && measured.mean_size <= 3.0);
        }
        for mean in sums {
            assert!(mean > coverage - 0.01 && mean < coverage + 0.04, "{mean} where {coverage} is stated");
        }
    }
}

#[test]
fn a_class_with_too_few_cases_is_in_every_set() {
    let scores = Scores::new(&[0.9, 0.1, 0.8, 0.2, 0.3, 0.7], 2, &[0, 0, 1]).unwrap();
    let sets = ConformalSets::fit(&scores, 0.6).unwrap();
    assert!((sets.limit_k[0].unwrap() - 0.2).abs() < 1e-12);
    assert_eq!(sets.limit_k[1], None);
    assert_eq!(sets.set(&[1.0, 0.0]), [true, true]);
    assert_eq!(sets.set(&[0.5, 0.5]), [false, true]);
    assert!(ConformalSets::fit(&scores, 1.0).is_err());
}

#[test]
fn the_threshold_has_the_wanted_sensitivity_and_no_more_than_needed() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let prob_n: Vec<f64> = (0..200).map(|_| rng.random()).collect();
    let event_n: Vec<bool> = prob_n.iter().map(|p| rng.random::<f64>() < *p).collect();
    let n_events = event_n.iter().filter(|event| **event).count() as f64;
    for wanted in [0.5, 0.9, 0.95, 1.0] {
        let threshold = operating_threshold(&prob_n, &event_n, wanted).unwrap();
        let called = |t: f64| prob_n.iter().zip(&event_n).filter(|(p, event)| **event && **p >= t).count();
        assert!(called(threshold) as f64 / n_events >= wanted);
        assert!(((called(threshold) - 1) as f64 / n_events) < wanted, "a higher threshold would do");
    }
    assert_eq!(operating_threshold(&[0.5], &[false], 0.9), None);
}
