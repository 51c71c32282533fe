//! PyTorch's values for the same inputs: `reference/make_reference.py` made
//! `reference/reference.json`.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_train_ops::{
    Act, Activation, Conv2dSpec, RunningStats, avg_pool2d, batch_norm, conv2d, max_pool2d,
    optim::{AdamW, AdamWParams, Sgd, SgdParams, clip_grad_norm},
};
use serde_json::Value;

fn reference() -> Value {
    serde_json::from_str(include_str!("reference/reference.json")).unwrap()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    list(value).iter().map(|v| v.as_f64().unwrap()).collect()
}

fn sizes(value: &Value) -> Vec<usize> {
    floats(value).iter().map(|v| *v as usize).collect()
}

/// The inputs both sides know.
fn numbers(shape: &[usize], seed: usize, dtype: DType) -> Tensor {
    let values: Vec<f64> = (0..shape.iter().product())
        .map(|i: usize| ((i * 7919 + seed * 104_729) % 2003) as f64 / 1001.5 - 1.0)
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).and_then(|values| values.to_dtype(dtype)).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor
        .to_dtype(DType::F64)
        .and_then(|tensor| tensor.flatten_all())
        .and_then(|tensor| tensor.to_vec1())
        .unwrap()
}

#[track_caller]
fn check(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1e-3, |largest: f64, v| largest.max(v.abs()));
    for (number, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= tolerance * scale, "{what}, number {number}: {got} instead of {want}");
    }
}

fn run(case: &Value, tensors: &[Var], stats: Option<&RunningStats>) -> Result<Tensor> {
    let x = Activation::from_nchw(&tensors[0])?;
    let y = match (case["op"].as_str().unwrap(), &sizes(&case["settings"])[..], stats) {
        ("conv2d", &[stride, padding, groups], None) => {
            let spec = Conv2dSpec { stride, padding, groups };
            conv2d(&x, &tensors[1], spec)?
        }
        ("max_pool2d", &[kernel, stride, padding], None) => max_pool2d(&x, kernel, stride, padding)?,
        ("avg_pool2d", &[kernel, stride, padding], None) => avg_pool2d(&x, kernel, stride, padding)?,
        ("batch_norm", &[train], Some(stats)) => {
            let residual = Activation::from_nchw(&tensors[3])?;
            let (gamma, beta) = (&tensors[1], &tensors[2]);
            batch_norm(&x, gamma, beta, stats, Some(&residual), Act::Relu, train == 1)?
        }
        (op, ..) => panic!("unknown operation {op}"),
    };
    y.to_nchw()
}

#[test]
fn operations_agree_with_pytorch() {
    let reference = reference();
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::F64, 1e-7)] {
        for case in list(&reference["operations"]) {
            let name = format!("{} {} {dtype:?}", case["op"], case["shapes"]);
            let vars: Vec<Var> = list(&case["shapes"])
                .iter()
                .enumerate()
                .map(|(seed, shape)| Var::from_tensor(&numbers(&sizes(shape), seed, dtype)).unwrap())
                .collect();
            let stats = case.get("running").map(|running| {
                let channels = list(&running[0]).len();
                let mean = values(&numbers(&[channels], 5, DType::F64));
                let var = values(&numbers(&[channels], 6, DType::F64));
                let stats = RunningStats::new(channels);
                let mean = mean.iter().map(|mean| *mean as f32).collect();
                let var = var.iter().map(|var| (*var + 1.5) as f32).collect();
                stats.set(mean, var).unwrap();
                stats
            });
            let y = run(case, &vars, stats.as_ref()).unwrap();
            let loss = (&y * numbers(y.dims(), 99, dtype)).unwrap().sum_all().unwrap();
            let grads = loss.backward().unwrap();
            // Running statistics are f32, so evaluation in f64 starts from rounded ones.
            let tolerance = if stats.is_some() { 1e-5 } else { tolerance };
            check(&name, &values(&y), &floats(&case["results"][0]), tolerance);
            for (index, var) in vars.iter().enumerate() {
                let name = format!("{name}, gradient {index}");
                let want = floats(&case["results"][index + 1]);
                check(&name, &values(grads.get(var).unwrap()), &want, tolerance);
            }
            if let Some(stats) = stats {
                for (index, got) in [stats.mean().unwrap(), stats.var().unwrap()].iter().enumerate() {
                    let got: Vec<f64> = got.iter().map(|v| f64::from(*v)).collect();
                    let want = floats(&case["running"][index]);
                    check(&format!("{name}, running {index}"), &got, &want, 1e-6);
                }
            }
        }
    }
}

const SHAPES: [&[usize]; 2] = [&[5, 3], &[4]];

fn named_vars() -> Vec<(String, Var)> {
    SHAPES
        .iter()
        .enumerate()
        .map(|(seed, shape)| {
            let var = Var::from_tensor(&numbers(shape, seed, DType::F32)).unwrap();
            (format!("v{seed}"), var)
        })
        .collect()
}

/// A gradient store that holds the formula's numbers for the variables.
fn grads(vars: &[(String, Var)], seed: usize) -> candle_core::backprop::GradStore {
    let mut grads = candle_core::backprop::GradStore::default();
    for (index, (_, var)) in vars.iter().enumerate() {
        grads.insert(var, numbers(var.dims(), seed + index, DType::F32));
    }
    grads
}

enum Optimiser {
    AdamW(AdamW),
    Sgd(Sgd),
}

impl Optimiser {
    /// Weights with more than one axis decay, as in the script.
    fn new(case: &Value, vars: &[(String, Var)]) -> Self {
        let settings = floats(&case["settings"]);
        let decays = |_: &str, var: &Tensor| var.rank() > 1;
        match case["optimiser"].as_str().unwrap() {
            "adamw" => {
                let params = AdamWParams {
                    beta1: settings[0],
                    beta2: settings[1],
                    eps: settings[2],
                    weight_decay: settings[3],
                };
                Self::AdamW(AdamW::with_decay(vars.to_vec(), params, decays).unwrap())
            }
            _ => {
                let params = SgdParams {
                    momentum: settings[0],
                    nesterov: settings[1] == 1.0,
                    weight_decay: settings[2],
                };
                Self::Sgd(Sgd::with_decay(vars.to_vec(), params, decays).unwrap())
            }
        }
    }

    fn step(&mut self, vars: &[(String, Var)], step: usize) {
        let (grads, lr) = (grads(vars, 10 + 2 * step), 0.02 / (step + 1) as f64);
        match self {
            Self::AdamW(optimiser) => optimiser.step(&grads, lr).unwrap(),
            Self::Sgd(optimiser) => optimiser.step(&grads, lr).unwrap(),
        }
    }

    /// Moves the state into a fresh optimiser.
    fn restored(&self, case: &Value, vars: &[(String, Var)]) -> Self {
        let mut fresh = Self::new(case, vars);
        match (&mut fresh, self) {
            (Self::AdamW(fresh), Self::AdamW(old)) => {
                fresh.load_state(&old.state().unwrap(), old.n_steps()).unwrap();
            }
            (Self::Sgd(fresh), Self::Sgd(old)) => {
                fresh.load_state(&old.state().unwrap(), old.n_steps()).unwrap();
            }
            _ => panic!("one case, one optimiser"),
        }
        fresh
    }
}

fn weights(vars: &[(String, Var)]) -> Vec<Vec<f64>> {
    vars.iter().map(|(_, var)| values(var)).collect()
}

#[test]
fn optimisers_agree_with_pytorch() {
    for case in list(&reference()["optimisers"]) {
        let vars = named_vars();
        let mut optimiser = Optimiser::new(case, &vars);
        for (step, want) in list(&case["steps"]).iter().enumerate() {
            optimiser.step(&vars, step);
            for (index, got) in weights(&vars).iter().enumerate() {
                let name = format!("{} step {step} variable {index}", case["settings"]);
                check(&name, got, &floats(&want[index]), 1e-6);
            }
        }
    }
}

#[test]
fn restored_state_goes_on_with_the_same_bits() {
    for case in list(&reference()["optimisers"]) {
        let (through, resumed) = (named_vars(), named_vars());
        let mut optimiser = Optimiser::new(case, &through);
        (0..5).for_each(|step| optimiser.step(&through, step));

        let mut optimiser = Optimiser::new(case, &resumed);
        (0..2).for_each(|step| optimiser.step(&resumed, step));
        let mut optimiser = optimiser.restored(case, &resumed);
        (2..5).for_each(|step| optimiser.step(&resumed, step));
        assert_eq!(weights(&through), weights(&resumed), "{}", case["settings"]);
    }
}

#[test]
fn state_of_other_variables_is_refused() {
    let vars = named_vars();
    let mut optimiser = AdamW::new(vars.clone(), AdamWParams::default()).unwrap();
    let mut state = optimiser.state().unwrap();
    assert_eq!(state.len(), 4);
    let Some(moment) = state.remove("v0.exp_avg") else {
        panic!("no v0.exp_avg");
    };
    assert!(optimiser.load_state(&state, 1).is_err());
    state.insert("v0.exp_avg".to_owned(), moment.flatten_all().unwrap());
    assert!(optimiser.load_state(&state, 1).is_err());
    assert_eq!(optimiser.n_steps(), 0);

    let twice = vec![vars[0].clone(), vars[0].clone()];
    assert!(Sgd::new(twice, SgdParams::default()).is_err());
}

#[test]
fn clipping_agrees_with_pytorch() {
    for case in list(&reference()["clips"]) {
        let vars = named_vars();
        let mut grads = grads(&vars, 10);
        let max_norm = case["max_norm"].as_f64().unwrap();
        let norm = clip_grad_norm(&vars, &mut grads, max_norm).unwrap();
        check("norm", &[norm], &[case["norm"].as_f64().unwrap()], 1e-6);
        for (index, (_, var)) in vars.iter().enumerate() {
            let got = values(grads.get(var).unwrap());
            check("gradient", &got, &floats(&case["grads"][index]), 1e-6);
        }
    }
}
