//! Losses that learn nothing, against an independent PyTorch script, finite
//! differences and extremes.

use candle_core::{DType, Device, Tensor, Var};
use diag_data::case::LabelSet;
use diag_model::{HeadLogits, Loss, LossSpec};
use serde::Deserialize;

/// One entry of `reference/fixed_losses.json`, made by `reference/make_fixed_losses.py`.
#[derive(Deserialize)]
struct Reference {
    name: String,
    spec: LossSpec,
    counts: Vec<u64>,
    share_done: f64,
    logits: Vec<Vec<Vec<f64>>>,
    labels: Vec<usize>,
    total: f64,
    logit_gradients: Vec<Vec<Vec<f64>>>,
}

fn references() -> Vec<Reference> {
    serde_json::from_str(include_str!("reference/fixed_losses.json")).unwrap()
}

const HEADS: [&str; 2] = ["stage1", "final"];

fn loss(spec: &LossSpec, counts: &[u64], share_done: f64) -> Loss {
    let mut loss = Loss::new(spec, &HEADS.map(str::to_owned), &LabelSet::paper(), counts).unwrap();
    loss.set_share_done(share_done);
    loss
}

fn logits(values: &[Vec<Vec<f64>>], dtype: DType) -> (HeadLogits, Vec<Var>) {
    let var = |rows: &Vec<Vec<f64>>| {
        let tensor = Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu).unwrap();
        Var::from_tensor(&tensor.to_dtype(dtype).unwrap()).unwrap()
    };
    let vars: Vec<Var> = values.iter().map(var).collect();
    let named = HEADS.iter().zip(&vars).map(|(name, var)| ((*name).to_owned(), var.as_tensor().clone()));
    (HeadLogits::new(named.collect()), vars)
}

fn gradients(terms: &diag_model::LossTerms, vars: &[Var]) -> Vec<Vec<Vec<f64>>> {
    let store = terms.total.backward().unwrap();
    let of = |var: &Var| store.get(var).unwrap().to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
    vars.iter().map(of).collect()
}

#[track_caller]
fn near(got: f64, want: f64, tolerance: f64, what: &str) {
    assert!((got - want).abs() <= tolerance * want.abs().max(1e-3), "{what}: {got}, expected {want}");
}

#[test]
fn values_and_gradients_are_those_of_pytorch() {
    let cases = references();
    assert_eq!(cases.len(), 12 * 5);
    for case in cases {
        let name = format!("{}, {}", case.spec.name(), case.name);
        let (logits, vars) = logits(&case.logits, DType::F64);
        let terms = loss(&case.spec, &case.counts, case.share_done).terms(&logits, &case.labels).unwrap();
        near(terms.total.to_scalar().unwrap(), case.total, 1e-9, &name);
        for (got, want) in
            gradients(&terms, &vars).concat().concat().iter().zip(case.logit_gradients.concat().concat())
        {
            near(*got, want, 1e-7, &format!("{name}, gradient"));
        }
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for case in references() {
        // The weights of gradient harmonising are constants of the batch by definition.
        if case.spec.name() == "ghm" {
            continue;
        }
        let loss = loss(&case.spec, &case.counts, case.share_done);
        let total = |values: &[Vec<Vec<f64>>]| {
            let terms = loss.terms(&logits(values, DType::F64).0, &case.labels).unwrap();
            terms.total.to_scalar::<f64>().unwrap()
        };
        let (at, vars) = logits(&case.logits, DType::F64);
        let got = gradients(&loss.terms(&at, &case.labels).unwrap(), &vars);
        for head in 0..HEADS.len() {
            for row in 0..case.labels.len() {
                for class in 0..3 {
                    let moved = |by: f64| {
                        let mut values = case.logits.clone();
                        values[head][row][class] += by;
                        total(&values)
                    };
                    let want = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                    near(got[head][row][class], want, 1e-5, &format!("{}, {}", case.spec.name(), case.name));
                }
            }
        }
    }
}

#[test]
fn extremes_stay_finite_in_either_precision() {
    let rows = [vec![1e4, -1e4, 0.0], vec![-1e4, 1e4, 0.0], vec![0.0, 0.0, 0.0]];
    for case in references() {
        for (counts, labels) in [([1256, 2674, 1], [0, 0, 2]), ([5, 0, 1], [2, 0, 0]), ([1, 1, 1], [1, 1, 1])]
        {
            for (n, dtype) in [(3, DType::F32), (3, DType::F64), (1, DType::F32)] {
                let loss = loss(&case.spec, &counts, 1.0);
                let rows = rows[..n].to_vec();
                let (logits, vars) = logits(&[rows.clone(), rows], dtype);
                let terms = loss.terms(&logits, &labels[..n]).unwrap();
                let name = format!("{}, {counts:?}, batch of {n}", case.spec.name());
                assert!(terms.total.to_scalar::<f64>().unwrap().is_finite(), "{name}");
                let gradients = gradients(&terms, &vars).concat().concat();
                assert!(gradients.iter().all(|value| value.is_finite()), "{name}: {gradients:?}");
                let parts = terms.heads.values().flat_map(|parts| parts.values());
                assert!(parts.into_iter().all(|value| value.is_finite()), "{name}");
            }
        }
    }
}

#[test]
fn deferred_weights_wait_for_their_share_of_the_run() {
    let spec = references().into_iter().find(|case| case.spec.name() == "ldam").unwrap().spec;
    let before = loss(&spec, &[300, 50, 1], 0.79).state().unwrap();
    assert!(before.is_empty(), "{before:?}");
    let after = loss(&spec, &[300, 50, 1], 0.8).state().unwrap();
    assert!(after["class_weight/bacterial-pneumonia"] > 2.5, "{after:?}");
}

#[test]
fn mixed_labels_cost_the_mixture() {
    for case in references().into_iter().filter(|case| case.labels.len() == 6) {
        let loss = loss(&case.spec, &case.counts, case.share_done);
        let (logits, _) = logits(&case.logits, DType::F64);
        let partner: Vec<usize> = case.labels.iter().map(|label| 2 - label).collect();
        let total = |terms: diag_model::LossTerms| terms.total.to_scalar::<f64>().unwrap();
        let mixed = total(loss.mixed_terms(&logits, &case.labels, &partner, 0.3, None).unwrap());
        let own = total(loss.terms(&logits, &case.labels).unwrap());
        let other = total(loss.terms(&logits, &partner).unwrap());
        near(mixed, 0.3 * own + 0.7 * other, 1e-12, case.spec.name());
    }
}

#[test]
fn settings_out_of_range_are_named() {
    for (text, setting) in [
        (r#"{"name": "focal", "gamma": -1}"#, "gamma"),
        (r#"{"name": "class-balanced", "alpha": 1}"#, "alpha"),
        (r#"{"name": "ldam", "scale": 0}"#, "scale"),
        (r#"{"name": "ghm", "bins": 0}"#, "bins"),
        (r#"{"name": "generalised-cross-entropy", "q": 0}"#, "q"),
        (r#"{"name": "symmetric-cross-entropy", "log_zero": 0}"#, "log_zero"),
        (r#"{"name": "label-smoothing", "smoothing": 1}"#, "smoothing"),
    ] {
        let spec: LossSpec = serde_json::from_str(text).unwrap();
        let err = spec.check().unwrap_err();
        assert!(err.to_string().starts_with(setting), "{err}");
    }
    assert!(serde_json::from_str::<LossSpec>(r#"{"name": "focal", "alpha": 1}"#).is_err());
}
