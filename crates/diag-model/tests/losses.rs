//! Losses against an independent PyTorch script, finite differences and extremes.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use candle_train_ops::optim::{AdamW, AdamWParams};
use diag_data::case::LabelSet;
use diag_model::loss::{Form, Part, SaalSpec};
use diag_model::{HeadLogits, Loss, LossSpec};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

/// One entry of `reference/losses.json`, made by `reference/make_losses.py`.
#[derive(Deserialize)]
struct Reference {
    name: String,
    form: Form,
    use_weights: bool,
    use_reverse: bool,
    use_head_weights: bool,
    counts: Vec<u64>,
    logits: Vec<Vec<Vec<f64>>>,
    labels: Vec<usize>,
    total: f64,
    parts: Vec<[f64; 2]>,
    weights: Vec<f64>,
    alpha: f64,
    logit_gradients: Vec<Vec<Vec<f64>>>,
    alpha_gradient: f64,
    beta_gradients: Vec<f64>,
    head_weight_gradients: Vec<f64>,
}

const HEADS: [&str; 2] = ["stage1", "final"];

fn loss(spec: SaalSpec, counts: &[u64]) -> Loss {
    let heads = HEADS.map(str::to_owned);
    Loss::new(&LossSpec::Saal(spec), &heads, &LabelSet::paper(), counts).unwrap()
}

fn logits(values: &[Vec<Vec<f64>>]) -> (HeadLogits, Vec<Var>) {
    let flat = |rows: &Vec<Vec<f64>>| {
        let shape = (rows.len(), rows[0].len());
        Var::from_tensor(&Tensor::from_vec(rows.concat(), shape, &Device::Cpu).unwrap()).unwrap()
    };
    let vars: Vec<Var> = values.iter().map(flat).collect();
    let named = HEADS.iter().zip(&vars).map(|(name, var)| ((*name).to_owned(), var.as_tensor().clone()));
    (HeadLogits::new(named.collect()), vars)
}

#[track_caller]
fn near(got: f64, want: f64, tolerance: f64, what: &str) {
    assert!((got - want).abs() <= tolerance * want.abs().max(1e-3), "{what}: {got}, expected {want}");
}

#[test]
fn values_and_gradients_are_those_of_pytorch() {
    let cases: Vec<Reference> = serde_json::from_str(include_str!("reference/losses.json")).unwrap();
    assert_eq!(cases.len(), 10);
    for case in cases {
        let name = format!("{}, {:?}", case.name, case.form);
        let part = |used: bool| if used { Part::Learned } else { Part::Off };
        let spec = SaalSpec {
            form: case.form,
            effective_number: part(case.use_weights),
            reverse: part(case.use_reverse),
            head_weights: part(case.use_head_weights),
            ..SaalSpec::default()
        };
        let loss = loss(spec, &case.counts);
        let (logits, vars) = logits(&case.logits);
        let terms = loss.terms(&logits, &case.labels).unwrap();
        near(terms.total.to_scalar::<f64>().unwrap(), case.total, 1e-9, &name);
        for (head, [cross_entropy, reverse]) in HEADS.iter().zip(case.parts) {
            near(terms.heads[*head]["cross_entropy"], cross_entropy, 1e-9, &name);
            if case.use_reverse {
                near(terms.heads[*head]["reverse_cross_entropy"], reverse, 1e-9, &name);
            }
        }
        let state = loss.state().unwrap();
        for (class, weight) in LabelSet::paper().names().iter().zip(&case.weights) {
            near(state[&format!("class_weight/{class}")], *weight, 1e-6, &name);
        }
        if case.use_weights {
            near(state["alpha"], case.alpha, 1e-9, &name);
        }
        let gradients = terms.total.backward().unwrap();
        for (var, want) in vars.iter().zip(&case.logit_gradients) {
            let got = gradients.get(var).unwrap().to_vec2::<f64>().unwrap();
            for (got, want) in got.concat().iter().zip(want.concat()) {
                near(*got, want, 1e-7, &format!("{name}, logit gradient"));
            }
        }
        let wanted = BTreeMap::from([
            ("loss.alpha", case.alpha_gradient),
            ("loss.beta.stage1", case.beta_gradients[0]),
            ("loss.beta.final", case.beta_gradients[1]),
            ("loss.head_weight.stage1", case.head_weight_gradients[0]),
            ("loss.head_weight.final", case.head_weight_gradients[1]),
        ]);
        for (variable, var) in loss.named_vars() {
            let got = gradients.get(var).unwrap().to_scalar::<f32>().unwrap();
            near(got.into(), wanted[variable.as_str()], 1e-4, &format!("{name}, gradient of {variable}"));
        }
        let n_learned = usize::from(case.use_weights)
            + 2 * usize::from(case.use_reverse)
            + 2 * usize::from(case.use_head_weights);
        assert_eq!(loss.named_vars().len(), n_learned, "{name}");
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let values = vec![
        vec![vec![0.3, -1.2, 2.0], vec![1.1, 0.4, -0.7]],
        vec![vec![-0.5, 0.1, 0.9], vec![2.3, -2.0, 0.2]],
    ];
    let heads = HEADS.map(str::to_owned);
    let labels = [0, 2];
    for spec in [
        LossSpec::Saal(SaalSpec::default()),
        LossSpec::Saal(SaalSpec { head_weights: Part::Learned, ..SaalSpec::default() }),
        LossSpec::Saal(SaalSpec { form: Form::Literal, ..SaalSpec::default() }),
    ] {
        let loss = Loss::new(&spec, &heads, &LabelSet::paper(), &[40, 200, 9]).unwrap();
        let total = |values: &[Vec<Vec<f64>>]| {
            loss.terms(&logits(values).0, &labels).unwrap().total.to_scalar::<f64>().unwrap()
        };
        let (at, vars) = logits(&values);
        let gradients = loss.terms(&at, &labels).unwrap().total.backward().unwrap();
        for head in 0..2 {
            let got = gradients.get(&vars[head]).unwrap().to_vec2::<f64>().unwrap();
            for row in 0..2 {
                for class in 0..3 {
                    let moved = |by: f64| {
                        let mut values = values.clone();
                        values[head][row][class] += by;
                        total(&values)
                    };
                    let want = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                    near(got[row][class], want, 1e-6, spec.name());
                }
            }
        }
    }
}

#[test]
fn extreme_logits_stay_finite() {
    let rows = vec![vec![1e4, -1e4, 0.0], vec![-1e4, 1e4, 0.0]];
    for form in [Form::Stabilised, Form::Literal] {
        let loss = loss(SaalSpec { form, ..SaalSpec::default() }, &[1256, 2674, 1]);
        let (logits, vars) = logits(&[rows.clone(), rows.clone()]);
        let terms = loss.terms(&logits, &[1, 0]).unwrap();
        assert!(terms.total.to_scalar::<f64>().unwrap().is_finite());
        let gradients = terms.total.backward().unwrap();
        for var in &vars {
            let gradient = gradients.get(var).unwrap().to_vec2::<f64>().unwrap();
            assert!(gradient.concat().iter().all(|value| value.is_finite()), "{form:?}: {gradient:?}");
        }
        assert_eq!(terms.heads["final"]["cross_entropy"], 2e4);
        assert_eq!(terms.heads["final"]["reverse_cross_entropy"], 4.0);
    }
}

/// Descends on alpha and the betas alone, from a start, under losses that never
/// change; returns the state at the end.
fn descend(form: Form, initial_alpha: f64, initial_beta: f64, logit: f64) -> BTreeMap<String, f64> {
    let loss =
        loss(SaalSpec { form, initial_alpha, initial_beta, ..SaalSpec::default() }, &[1256, 2674, 980]);
    let row = vec![logit, 0.0, -logit];
    let (logits, _) = logits(&[vec![row.clone(); 3], vec![row; 3]]);
    let logits = logits.detach();
    for _ in 0..1000 {
        let gradients = loss.terms(&logits, &[0, 1, 2]).unwrap().total.backward().unwrap();
        for (_, var) in loss.named_vars() {
            let moved = (var.as_tensor() - (gradients.get(var).unwrap() * 0.5).unwrap()).unwrap();
            var.set(&moved).unwrap();
        }
    }
    loss.state().unwrap()
}

/// The bounds that the documentation states, all of them open.
#[track_caller]
fn check_bounds(state: &BTreeMap<String, f64>, how: &str) {
    let inside = |value: f64, low: f64, high: f64| value.is_finite() && value > low && value < high;
    assert!(inside(state["alpha"], 0.99, 0.99999), "{how}: {state:?}");
    for head in HEADS {
        assert!(inside(state[&format!("beta/{head}")], 0.0, 2.0), "{how}: {state:?}");
        assert!(inside(state[&format!("head_weight/{head}")], 0.0, 2.0), "{how}: {state:?}");
    }
    let weights = state.iter().filter(|(name, _)| name.starts_with("class_weight/")).map(|(_, value)| *value);
    let sum: f64 = weights.clone().sum();
    assert!(weights.into_iter().all(|weight| inside(weight, 0.0, 3.0)), "{how}: {state:?}");
    assert!((sum - 3.0).abs() < 1e-9, "{how}: class weights sum to {sum}");
}

/// How many steps the bounds are watched for; the environment asks for more.
const BOUND_STEPS: &str = "COVID19_DIAG_BOUND_STEPS";

/// Random starts, counts and rates; every step sees other labels and logits, one
/// in fifty of them of size 1e4. Plain descent has no step bound, Adam has one.
#[test]
fn stabilised_parameters_stay_inside_their_bounds_from_any_start() {
    let n_steps: u32 = std::env::var(BOUND_STEPS).map_or(1000, |text| text.parse().unwrap());
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for run in 0..24 {
        let spec = SaalSpec {
            head_weights: Part::Learned,
            initial_alpha: 1.0 - 10f64.powf(-rng.random_range(2.0001..4.9999)),
            initial_beta: rng.random_range(1e-6..1.999_999),
            ..SaalSpec::default()
        };
        let counts: [u64; 3] = std::array::from_fn(|_| 10f64.powf(rng.random_range(0.0..5.0)) as u64);
        let loss = loss(spec, &counts);
        let rate = 10f64.powf(rng.random_range(-3.0..1.0));
        let vars = loss.named_vars().to_vec();
        let mut adam = (run % 2 == 0)
            .then(|| AdamW::with_decay(vars.clone(), AdamWParams::default(), |_, _| false).unwrap());
        for step in 0..n_steps {
            let size = if rng.random_range(0..50) == 0 { 1e4 } else { rng.random_range(0.0..10.0) };
            let mut rows = || -> Vec<Vec<f64>> {
                (0..4).map(|_| (0..3).map(|_| rng.random_range(-1.0..=1.0) * size).collect()).collect()
            };
            let (logits, _) = logits(&[rows(), rows()]);
            let labels: [usize; 4] = std::array::from_fn(|_| rng.random_range(0..3));
            let gradients = loss.terms(&logits.detach(), &labels).unwrap().total.backward().unwrap();
            match &mut adam {
                Some(adam) => adam.step(&gradients, rate).unwrap(),
                None => {
                    for (_, var) in &vars {
                        let moved =
                            (var.as_tensor() - (gradients.get(var).unwrap() * rate).unwrap()).unwrap();
                        var.set(&moved).unwrap();
                    }
                }
            }
            check_bounds(&loss.state().unwrap(), &format!("run {run}, step {step}, rate {rate}"));
        }
    }
}

/// Where nothing changes any more, the barriers have found the optimum that
/// `docs/method.md` derives: R = lambda (1 / beta - 1 / (2 - beta)).
#[test]
fn beta_settles_where_the_derivation_says() {
    for logit in [0.0, 0.5, 2.0] {
        let state = descend(Form::Stabilised, 0.999, 0.5, logit);
        let row = [logit, 0.0, -logit];
        let sum: f64 = row.iter().map(|x: &f64| x.exp()).sum();
        // Labels 0, 1 and 2, weighted by class.
        let reverse: f64 = LabelSet::paper()
            .names()
            .iter()
            .zip(row)
            .map(|(class, x)| state[&format!("class_weight/{class}")] * 4.0 * (1.0 - x.exp() / sum) / 3.0)
            .sum();
        let beta = state["beta/final"];
        near(0.5 * (1.0 / beta - 1.0 / (2.0 - beta)), reverse, 1e-3, "slope at the optimum");
    }
}

#[test]
fn the_literal_form_collapses_as_the_notes_say() {
    let state = descend(Form::Literal, 0.9, 0.5, 1.0);
    assert!(state["alpha"] > 0.99, "{state:?}");
    assert!(state["beta/final"] < 0.49, "{state:?}");
}

#[test]
fn settings_out_of_range_are_named() {
    let heads = HEADS.map(str::to_owned);
    for (spec, name) in [
        (SaalSpec { initial_alpha: 0.5, ..SaalSpec::default() }, "initial_alpha"),
        (SaalSpec { initial_beta: 2.0, ..SaalSpec::default() }, "initial_beta"),
        (SaalSpec { log_zero: 1.0, ..SaalSpec::default() }, "log_zero"),
        (SaalSpec { beta_barrier: 0.0, ..SaalSpec::default() }, "beta_barrier"),
        (SaalSpec { head_weights: Part::Fixed, ..SaalSpec::default() }, "head_weights"),
    ] {
        let err = Loss::new(&LossSpec::Saal(spec), &heads, &LabelSet::paper(), &[1, 1, 1]).err().unwrap();
        assert!(err.to_string().starts_with(name), "{err}");
    }
}
