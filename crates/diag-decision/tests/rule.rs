//! What holds for every rule, on seeded random cases, and what a rule refuses.

#![expect(clippy::unwrap_used, reason = "in a test, a failed unwrap is a failed test")]

use std::path::Path;

use diag_data::case::{CaseId, Label, LabelSet, Split};
use diag_data::predictions::Prediction;
use diag_decision::{
    Aggregation, Call, Case, Coverage, Decision, DecisionError, DecisionMetrics, FitSpec, FittedOn,
    PriorCorrection, Terms, cases_of, fit,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const N_ROUNDS: u64 = 30;

fn labels() -> LabelSet {
    LabelSet::paper()
}

fn spec() -> FitSpec {
    FitSpec { sensitivity: 0.9, ..FitSpec::new(labels(), "weights") }
}

/// Cases whose true class gets the highest odds more often as `signal` grows.
fn cohort(seed: u64, n_k: [usize; 3], signal: f64) -> Vec<Case> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut cases = Vec::new();
    for (label, n) in n_k.into_iter().enumerate() {
        for _ in 0..n {
            let of_case: Vec<f64> = (0..3).map(|_| rng.random_range(-2.0..2.0)).collect();
            let slice = |rng: &mut ChaCha8Rng| {
                let logit = |k: usize| {
                    of_case[k] + rng.random_range(-1.0..1.0) + if k == label { signal } else { 0.0 }
                };
                let odds: Vec<f64> = (0..3).map(logit).map(f64::exp).collect();
                let sum: f64 = odds.iter().sum();
                odds.into_iter().map(|odds| odds / sum).collect()
            };
            let n_slices = rng.random_range(1..8);
            cases.push(Case {
                case_id: CaseId::new(format!("{:08x}", rng.random::<u32>())).unwrap(),
                split: Split::Validation,
                label: Label(label as u8),
                slice_nk: (0..n_slices).map(|_| slice(&mut rng)).collect(),
            });
        }
    }
    cases
}

#[test]
fn nine_separable_cases_leave_the_plain_mean() {
    let decision = fit(&cohort(1, [3, 3, 3], 20.0), &spec()).unwrap();
    let terms = decision.terms();
    assert_eq!((terms.temperature, terms.aggregation), (1.0, Aggregation::Mean));
    assert_eq!((terms.threshold, &terms.sets), (None, &None));
    assert_eq!(terms.threshold_in_words(), "not fixed: needs 9 validation cases of covid-19, has 3");
    assert_eq!(terms.sets_in_words(), "not made: needs 9 validation cases of covid-19, has 3");
    assert_eq!(terms.temperature_in_words(), "1, not fitted: needs 10 validation cases of covid-19, has 3");
    assert_eq!(terms.warnings.len(), 3);
}

#[test]
fn separable_cases_in_numbers_do_not_drive_the_temperature_far() {
    // Without a prior the best temperature is 0: every case is right at any.
    let terms = fit(&cohort(1, [10, 10, 10], 20.0), &spec()).unwrap();
    assert!(terms.terms().temperature > 0.5, "{}", terms.terms().temperature);
}

#[test]
fn without_cases_the_rule_is_the_plain_mean() {
    let decision = fit(&[], &spec()).unwrap();
    assert_eq!(decision.terms().n_validation_cases, 0);
    let decided = decision.apply(&[[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]).unwrap();
    assert_eq!(decided.probability_k, [0.375, 0.375, 0.25]);
    assert_eq!((decided.class, decided.set, decided.call), (0, None, None));
    assert!(decision.terms().warnings[0].starts_with("There are no validation cases"));
}

#[test]
fn a_threshold_needs_cases_of_its_class_alone() {
    let decision = fit(&cohort(2, [9, 2, 2], 2.0), &spec()).unwrap();
    assert!(decision.terms().threshold.is_some());
    assert_eq!(decision.terms().sets_in_words(), "not made: needs 9 validation cases of normal, has 2");
    let decision = fit(&cohort(2, [8, 20, 20], 2.0), &spec()).unwrap();
    assert_eq!(decision.terms().threshold, None);
}

#[test]
fn the_order_of_cases_does_not_matter() {
    for seed in 0..N_ROUNDS {
        let cases = cohort(seed, [12, 15, 11], 1.0);
        let turned: Vec<Case> = cases.iter().rev().cloned().collect();
        assert_eq!(fit(&cases, &spec()).unwrap().sha256(), fit(&turned, &spec()).unwrap().sha256());
    }
}

#[test]
fn whatever_is_decided_holds_together() {
    for seed in 0..N_ROUNDS {
        let signal = f64::from(seed as u32 % 7) - 1.0;
        let n = 3 + seed as usize % 12;
        let decision = fit(&cohort(seed, [n, n + 3, n + 5], signal), &spec()).unwrap();
        let terms = decision.terms();
        for case in cohort(1000 + seed, [5, 5, 5], signal) {
            let decided = decision.apply(&case.slice_nk).unwrap();
            for prob_k in [&decided.probability_k, &decided.mean_probability_k] {
                assert!((prob_k.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            }
            let highest = decided.probability_k.iter().copied().fold(0.0, f64::max);
            assert_eq!(decided.probability_k[decided.class], highest);
            assert_eq!(decided.set.is_some(), terms.sets.is_some());
            assert_eq!(decided.call.is_some(), terms.threshold.is_some());
            assert!(decided.set.as_ref().is_none_or(|set| set[decided.class]));
            if let Some(threshold) = terms.threshold {
                assert_eq!(decided.call == Some(Call::Positive), decided.probability_k[0] >= threshold);
            }
            if terms.temperature == 1.0 && terms.aggregation == Aggregation::Mean {
                assert_eq!(decided.probability_k, decided.mean_probability_k);
            }
        }
    }
}

#[test]
fn the_file_gives_the_very_rule_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("decision.json");
    for seed in 0..N_ROUNDS {
        let decision = fit(&cohort(seed, [12, 15, 11], 1.0), &spec()).unwrap();
        decision.write(&path).unwrap();
        let read = Decision::read(&path, &labels(), "weights").unwrap();
        assert_eq!(read, decision);
        assert_eq!(read.sha256(), diag_data::files::sha256_file(&path).unwrap());
    }
}

#[test]
fn sensitivity_and_coverage_hold_on_further_cases() {
    // Neither the epoch nor a temperature is chosen here, so that the levels are exact on
    // average over rules; each mean lies within five of its standard errors.
    let (mut sensitivity, mut coverage) = (Vec::new(), Vec::new());
    for seed in 0..300 {
        let spec =
            FitSpec { demands: diag_decision::Demands { cases_per_class: 1000, ..spec().demands }, ..spec() };
        let decision = fit(&cohort(seed, [9, 12, 29], 1.5), &spec).unwrap();
        let rows: Vec<_> = cohort(5000 + seed, [20, 20, 20], 1.5)
            .iter()
            .map(|case| decision.predict(case).unwrap())
            .collect();
        let metrics = DecisionMetrics::of(decision.terms(), &rows).unwrap();
        sensitivity.push(metrics.at_threshold.unwrap().sensitivity.unwrap());
        coverage.push(metrics.sets.unwrap().coverage_k.into_iter().map(Option::unwrap).collect::<Vec<_>>());
    }
    let check = |values: Vec<f64>| {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
        let error = (variance / n).sqrt();
        assert!(mean > 0.9 - 5.0 * error, "{mean} +- {error}");
        assert!(mean < 0.97, "{mean}: the cuts are too low");
    };
    check(sensitivity);
    for class in 0..3 {
        check(coverage.iter().map(|coverage_k| coverage_k[class]).collect());
    }
}

#[test]
fn a_level_is_nominal_where_the_same_cases_chose() {
    let cases = cohort(3, [9, 9, 9], 2.0);
    let of = |spec: FitSpec| fit(&cases, &spec).unwrap().terms().coverage_is;
    assert_eq!(of(spec()), Coverage::Nominal);
    let untouched = FitSpec { cases_chose_epoch: false, ..spec() };
    assert_eq!(of(untouched.clone()), Coverage::Exchangeable);
    assert_eq!(of(FitSpec { fitted_on: FittedOn::OutOfFold, ..untouched.clone() }), Coverage::Nominal);
    let more = cohort(3, [10, 10, 10], 2.0);
    assert_eq!(fit(&more, &untouched).unwrap().terms().coverage_is, Coverage::Nominal);
}

/// Reads a file whose content was changed by `change`.
fn changed(change: impl Fn(&mut Terms)) -> Result<Decision, DecisionError> {
    let decision = fit(&cohort(2, [12, 12, 12], 2.0), &spec()).unwrap();
    let mut terms = decision.terms().clone();
    change(&mut terms);
    let json = serde_json::to_vec(&terms).unwrap();
    Decision::from_json(json, Path::new("decision.json"), &labels(), "weights")
}

#[test]
fn an_unchanged_file_is_taken() {
    changed(|_| ()).unwrap();
}

#[test]
fn a_file_for_other_weights_labels_or_versions_is_refused() {
    let err = changed(|terms| terms.model_sha256 = "other".into()).unwrap_err();
    assert!(matches!(&err, DecisionError::Weights { got, want, .. } if got == "other" && want == "weights"));
    assert!(err.to_string().contains("other") && err.to_string().contains("weights"));
    let err = changed(|terms| terms.format_version = 1).unwrap_err();
    assert!(matches!(err, DecisionError::Version { got: 1, want: 2, .. }));
    let renamed = LabelSet::new(vec!["covid-19".into(), "normal".into(), "other".into()]).unwrap();
    let err = changed(|terms| {
        terms.labels = renamed.clone();
        let n = terms.validation_cases.remove("bacterial-pneumonia").unwrap();
        terms.validation_cases.insert("other".into(), n);
        for count in [&mut terms.basis.sets, &mut terms.basis.aggregation, &mut terms.basis.temperature] {
            count.class = "covid-19".into();
        }
    })
    .unwrap_err();
    assert!(matches!(err, DecisionError::Labels { .. }), "{err}");
    // The form of version 1.
    let old = br#"{"format_version": 1, "model_sha256": "weights", "aggregation": "attention"}"#;
    let err =
        Decision::from_json(old.to_vec(), Path::new("decision.json"), &labels(), "weights").unwrap_err();
    assert!(matches!(err, DecisionError::Version { got: 1, .. }));
}

#[test]
fn a_file_that_contradicts_itself_is_refused() {
    let refused: [fn(&mut Terms); 15] = [
        |terms| terms.temperature = 0.0,
        |terms| terms.temperature = -1.0,
        |terms| terms.positive = "flu".into(),
        |terms| terms.threshold = Some(1.5),
        |terms| terms.threshold = None,
        |terms| terms.sets = None,
        |terms| terms.sets.as_mut().unwrap().lowest_k.truncate(2),
        |terms| terms.wanted_coverage = 1.0,
        |terms| terms.wanted_sensitivity = 0.95,
        |terms| terms.n_validation_cases += 1,
        |terms| terms.basis.threshold.has += 1,
        |terms| terms.aggregation = Aggregation::TopKMean { k: 0 },
        |terms| terms.prior_correction = PriorCorrection::TrainingShares(vec![0.5, 0.5]),
        |terms| terms.prior_correction = PriorCorrection::TrainingShares(vec![1.0, 0.0, 0.0]),
        |terms| terms.prior_correction = PriorCorrection::TrainingShares(vec![0.5, 0.5, 0.5]),
    ];
    for (i, change) in refused.into_iter().enumerate() {
        let err = changed(change).unwrap_err();
        assert!(matches!(err, DecisionError::Invalid { .. }), "{i}: {err}");
    }
}

#[test]
fn an_unknown_key_or_correction_is_refused() {
    let decision = fit(&cohort(2, [12, 12, 12], 2.0), &spec()).unwrap();
    let text = String::from_utf8(decision.json().to_vec()).unwrap();
    for (from, to) in [
        (r#""prior_correction": "none""#, r#""prior_correction": "training-shares""#),
        (r#""prior_correction": "none""#, r#""prior_correction": "none", "extra": 1"#),
    ] {
        let json = text.replace(from, to);
        assert_ne!(json, text);
        assert!(Decision::from_json(json.into_bytes(), Path::new("d.json"), &labels(), "weights").is_err());
    }
}

#[test]
fn a_corrected_rule_divides_the_joined_probabilities_by_the_shares() {
    let prior_correction = PriorCorrection::of_counts(&[60, 30, 10]).unwrap();
    let decision = fit(&[], &FitSpec { prior_correction, ..spec() }).unwrap();
    let slices = [[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]];
    let decided = decision.apply(&slices).unwrap();
    // Mean (0.6, 0.25, 0.15), over shares (0.6, 0.3, 0.1): odds (1, 5/6, 3/2).
    for (got, want) in decided.probability_k.iter().zip([0.3, 0.25, 0.45]) {
        assert!((got - want).abs() < 1e-12, "{got} is not {want}");
    }
    assert_eq!((decided.class, fit(&[], &spec()).unwrap().apply(&slices).unwrap().class), (2, 0));
    let path = Path::new("d.json");
    let read = Decision::from_json(decision.json().to_vec(), path, &labels(), "weights").unwrap();
    assert_eq!(read, decision);
    assert!(
        read.terms().aggregation_in_words().ends_with("divided by the class shares of the training slices")
    );
    let corrected = "plain mean over the slices, divided by the class shares of the training slices";
    assert!(read.terms().warnings[0].contains(corrected), "{:?}", read.terms().warnings);
    assert!(matches!(PriorCorrection::of_counts(&[4, 0, 1]), Err(DecisionError::Setting { .. })));
}

#[test]
fn a_corrected_fit_is_the_fit_on_corrected_cases() {
    let prior_correction = PriorCorrection::of_counts(&[5, 1, 2]).unwrap();
    let mut cases = cohort(4, [40, 40, 40], 1.0);
    cases.iter_mut().for_each(|case| case.slice_nk.truncate(1));
    let own = fit(&cases, &FitSpec { prior_correction: prior_correction.clone(), ..spec() }).unwrap();
    for case in &mut cases {
        case.slice_nk = vec![prior_correction.apply(&case.slice_nk[0])];
    }
    let other = fit(&cases, &spec()).unwrap();
    let (own, other) = (own.terms(), other.terms());
    assert_ne!(own.temperature, 1.0);
    assert!((own.temperature - other.temperature).abs() < 1e-9);
    assert!((own.threshold.unwrap() - other.threshold.unwrap()).abs() < 1e-9);
    let limits = |terms: &Terms| terms.sets.clone().unwrap().lowest_k;
    assert!(limits(own).iter().zip(limits(other)).all(|(a, b)| (a - b).abs() < 1e-9));
}

#[test]
fn a_rule_refuses_what_is_no_prediction() {
    let decision = fit(&[], &spec()).unwrap();
    let empty: [[f64; 3]; 0] = [];
    assert!(matches!(decision.apply(&empty), Err(DecisionError::Slices { .. })));
    for bad in [vec![0.5, 0.5], vec![0.5, 0.5, 0.5], vec![f64::NAN, 0.5, 0.5], vec![1.2, -0.1, -0.1]] {
        assert!(matches!(decision.apply(&[bad]), Err(DecisionError::Slices { .. })));
    }
}

#[test]
fn a_fit_refuses_what_cannot_be_fitted() {
    let cases = cohort(1, [3, 3, 3], 1.0);
    let setting = |spec: FitSpec| matches!(fit(&cases, &spec), Err(DecisionError::Setting { .. }));
    assert!(setting(FitSpec { sensitivity: 1.0, ..spec() }));
    assert!(setting(FitSpec { coverage: 0.0, ..spec() }));
    assert!(setting(FitSpec { positive: Some("flu".into()), ..spec() }));
    let twice = [cases.clone(), cases[..1].to_vec()].concat();
    assert!(matches!(fit(&twice, &spec()), Err(DecisionError::Case { .. })));
    let mut other = cases;
    other[0].label = Label(3);
    assert!(matches!(fit(&other, &spec()), Err(DecisionError::Case { .. })));
}

#[test]
fn slices_are_gathered_by_case_and_split() {
    let row = |case: &str, slice_index, split, label, p: f32| Prediction {
        case_id: CaseId::new(case).unwrap(),
        slice_index,
        split,
        label: Label(label),
        head_probabilities: vec![vec![0.0, 1.0], vec![p, 1.0 - p]],
    };
    let rows = [
        row("b", 1, Split::Test, 0, 0.5),
        row("a", 0, Split::Test, 1, 0.75),
        row("b", 0, Split::Test, 0, 0.25),
        row("c", 0, Split::Validation, 0, 1.0),
    ];
    let cases = cases_of(&rows, Split::Test).unwrap();
    let names: Vec<&str> = cases.iter().map(|case| case.case_id.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(cases[1].slice_nk, [[0.25, 0.75], [0.5, 0.5]]);
    let twice = [row("a", 0, Split::Test, 1, 0.75), row("a", 0, Split::Test, 1, 0.75)];
    assert!(matches!(cases_of(&twice, Split::Test), Err(DecisionError::Case { .. })));
    let mixed = [row("a", 0, Split::Test, 1, 0.75), row("a", 1, Split::Test, 0, 0.75)];
    assert!(matches!(cases_of(&mixed, Split::Test), Err(DecisionError::Case { .. })));
}
