//! Whole rules against an independent script in numpy and scipy; both lie in
//! `tests/reference/`.

#![expect(clippy::unwrap_used, reason = "in a test, a failed unwrap is a failed test")]

use diag_data::case::{CaseId, Label, LabelSet, Split};
use diag_decision::{Aggregation, Call, Case, FitSpec, fit};
use serde_json::Value;

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn case(number: usize, value: &Value) -> Case {
    Case {
        case_id: CaseId::new(format!("case-{number:05}")).unwrap(),
        split: Split::Validation,
        label: Label(value["label"].as_u64().unwrap() as u8),
        slice_nk: value["slices"].as_array().unwrap().iter().map(floats).collect(),
    }
}

#[track_caller]
fn close(got: f64, want: &Value, what: &str) {
    let want = want.as_f64().unwrap();
    assert!((got - want).abs() <= 1e-7, "{what}: {got} is not {want}");
}

#[track_caller]
fn all_close(got: &[f64], want: &Value, what: &str) {
    let want_all = want.as_array().unwrap();
    assert_eq!(got.len(), want_all.len(), "{what}");
    for (got, want) in got.iter().zip(want_all) {
        close(*got, want, what);
    }
}

fn aggregation(k: &Value) -> Aggregation {
    match k.as_u64().unwrap() {
        0 => Aggregation::Mean,
        k => Aggregation::TopKMean { k: k as usize },
    }
}

#[test]
fn rules_are_those_of_scipy() {
    let reference: Value = serde_json::from_str(include_str!("reference/decision.json")).unwrap();
    let scenarios = reference.as_array().unwrap();
    assert_eq!(scenarios.len(), 6);
    for scenario in scenarios {
        let name = scenario["name"].as_str().unwrap();
        let n_classes = scenario["n_classes"].as_u64().unwrap();
        let positive = scenario["positive"].as_u64().unwrap();
        let labels = LabelSet::new((0..n_classes).map(|k| k.to_string()).collect()).unwrap();
        let spec = FitSpec {
            positive: Some(positive.to_string()),
            sensitivity: 0.9,
            ..FitSpec::new(labels, "weights")
        };
        let cases: Vec<Case> =
            scenario["cases"].as_array().unwrap().iter().enumerate().map(|(i, c)| case(i, c)).collect();
        let decision = fit(&cases, &spec).unwrap();
        let (terms, want) = (decision.terms(), &scenario["rule"]);
        assert_eq!(terms.aggregation, aggregation(&want["k"]), "{name}");
        close(terms.temperature, &want["temperature"], name);
        let candidates = want["candidates"].as_array().unwrap();
        assert_eq!(terms.candidates.len(), candidates.len(), "{name}");
        for (got, want) in terms.candidates.iter().zip(candidates) {
            assert_eq!(got.aggregation, aggregation(&want["k"]), "{name}");
            close(got.temperature, &want["temperature"], name);
            close(got.log_loss, &want["log_loss"], name);
            close(got.difference, &want["difference"], name);
            close(got.standard_error, &want["standard_error"], name);
        }
        match terms.threshold {
            Some(threshold) => close(threshold, &want["threshold"], name),
            None => assert!(want["threshold"].is_null(), "{name}"),
        }
        match &terms.sets {
            Some(sets) => all_close(&sets.lowest_k, &want["lowest"], name),
            None => assert!(want["lowest"].is_null(), "{name}"),
        }
        for (number, further) in scenario["further"].as_array().unwrap().iter().enumerate() {
            let decided = decision.apply(&case(number, further).slice_nk).unwrap();
            let want = &further["applied"];
            assert_eq!(Some(decided.class as u64), want["class"].as_u64(), "{name}");
            all_close(&decided.probability_k, &want["probability"], name);
            all_close(&decided.mean_probability_k, &want["mean"], name);
            let call = decided.call.map_or(Value::Null, |call| (call == Call::Positive).into());
            assert_eq!(call, want["call"], "{name}");
            assert_eq!(decided.set.map_or(Value::Null, Value::from), want["set"], "{name}");
        }
    }
}
