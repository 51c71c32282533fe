//! Population statistics of the normalisations against PyTorch, on weights from a formula.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use diag_model::{Backbone, Network, NetworkSpec};
use serde::Deserialize;

const SPEC: NetworkSpec = NetworkSpec::new(Backbone::Tiny, 3, true);
const SIDE: usize = 64;
/// Stem and stage 1 of the second reference do not learn.
const N_FROZEN: usize = 2;

#[derive(Deserialize)]
struct Layer {
    mean: Vec<f64>,
    var: Vec<f64>,
}

fn reference(name: &str) -> BTreeMap<String, Layer> {
    let mut all: BTreeMap<String, BTreeMap<String, Layer>> =
        serde_json::from_str(include_str!("reference/batch_statistics.json")).unwrap();
    all.remove(name).unwrap()
}

/// The numbers that the script beside the reference computes, too.
fn formula(name: &str, n: usize, scale: f64, offset: f64) -> Vec<f64> {
    let start: f64 = name.bytes().map(f64::from).sum();
    (0..n).map(|i| offset + scale * (0.37 * i as f64 * (1 + i % 3) as f64 + start).sin()).collect()
}

fn network(dtype: DType) -> Network {
    let network = Network::with_dtype(&SPEC, 1, dtype).unwrap();
    let mut state = BTreeMap::new();
    for (name, tensor) in network.state().unwrap() {
        let dims = tensor.dims().to_vec();
        let ending = name.rsplit_once('.').unwrap().1;
        let (scale, offset) = match (ending, &dims[..]) {
            (_, [_, inputs, kernel, _]) => ((2.0 / (inputs * kernel * kernel) as f64).sqrt(), 0.0),
            ("running_mean", _) => (0.1, 0.0),
            ("running_var", _) => (0.3, 1.0),
            ("bias", _) => (0.2, 0.0),
            _ => (0.3, 1.0),
        };
        let values = formula(&name, dims.iter().product(), scale, offset);
        state.insert(name, Tensor::from_vec(values, dims, &Device::Cpu).unwrap());
    }
    network.load_state(&state).unwrap();
    network
}

fn batches(dtype: DType) -> Vec<Tensor> {
    let batch = |b: usize| {
        let values = formula(&format!("image{b}"), 4 * SIDE * SIDE, 1.0, 0.1 * b as f64);
        Tensor::from_vec(values, (4, 1, SIDE, SIDE), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    };
    (0..3).map(batch).collect()
}

fn numbers(network: &Network, suffix: &str) -> BTreeMap<String, Vec<f64>> {
    let state = network.state().unwrap().into_iter();
    let of_suffix = state.filter_map(|(name, tensor)| Some((name.strip_suffix(suffix)?.to_owned(), tensor)));
    let values = |tensor: Tensor| tensor.to_dtype(DType::F64).unwrap().to_vec1().unwrap();
    of_suffix.map(|(layer, tensor)| (layer, values(tensor))).collect()
}

#[track_caller]
fn check(dtype: DType, n_frozen: usize, name: &str, tolerance: f64) {
    let network = network(dtype);
    let before = (numbers(&network, ".running_mean"), numbers(&network, ".running_var"));
    let batches: Vec<Vec<f64>> =
        batches(dtype).iter().map(|batch| network.batch_statistics(batch, n_frozen).unwrap()).collect();
    assert_eq!((numbers(&network, ".running_mean"), numbers(&network, ".running_var")), before);
    network.set_population_statistics(&batches, n_frozen).unwrap();
    let (means, vars) = (numbers(&network, ".running_mean"), numbers(&network, ".running_var"));
    let reference = reference(name);
    assert!(reference.len() >= 10, "{} layers", reference.len());
    for (layer, got) in &means {
        let Some(want) = reference.get(layer) else {
            // A frozen layer keeps its statistics.
            assert_eq!((got, &vars[layer]), (&before.0[layer], &before.1[layer]), "{layer}");
            continue;
        };
        for (c, (mean, var)) in want.mean.iter().zip(&want.var).enumerate() {
            let (got_mean, got_var) = (got[c], vars[layer][c]);
            let near = |got: f64, want: f64, scale: f64| (got - want).abs() <= tolerance * scale;
            assert!(
                near(got_mean, *mean, var.sqrt().max(mean.abs())),
                "{layer}[{c}]: mean {got_mean}, not {mean}"
            );
            assert!(near(got_var, *var, *var), "{layer}[{c}]: variance {got_var}, not {var}");
        }
    }
    let frozen = means.keys().filter(|layer| !reference.contains_key(*layer)).count();
    assert_eq!(frozen > 0, n_frozen > 0, "{frozen} frozen layers");
}

#[test]
fn they_equal_pytorch_s_in_f64() {
    // Statistics are stored in f32.
    check(DType::F64, 0, "all", 2e-7);
}

#[test]
fn they_equal_pytorch_s_in_f32() {
    check(DType::F32, 0, "all", 1e-4);
}

#[test]
fn frozen_parts_keep_theirs() {
    check(DType::F64, N_FROZEN, "frozen", 2e-7);
}

#[test]
fn a_training_pass_afterwards_moves_the_running_statistics_again() {
    let network = network(DType::F32);
    let batch = &batches(DType::F32)[0];
    let population = network.batch_statistics(batch, 0).unwrap();
    network.set_population_statistics(&[population], 0).unwrap();
    let before = numbers(&network, ".running_var");
    network.forward_t(&batches(DType::F32)[1], true).unwrap();
    assert!(numbers(&network, ".running_var").iter().all(|(layer, var)| *var != before[layer]));
}

#[test]
fn statistics_of_no_batch_or_of_another_network_are_refused() {
    let network = network(DType::F32);
    assert!(network.set_population_statistics(&[], 0).is_err());
    let short = network.batch_statistics(&batches(DType::F32)[0], N_FROZEN).unwrap();
    assert!(network.set_population_statistics(&[short], 0).is_err());
}
