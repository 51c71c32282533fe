//! Maps of the tiny network against PyTorch's autograd, on weights from a formula.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use diag_model::explain::{Map, OcclusionSpec, cams, occlusion};
use diag_model::{Backbone, Network, NetworkSpec};
use serde::Deserialize;

const SPEC: NetworkSpec = NetworkSpec::new(Backbone::Tiny, 3, true);
const SIDE: usize = 64;
/// Classes explained of the two images.
const CLASSES: [usize; 2] = [2, 0];

#[derive(Deserialize)]
struct Reference {
    cams: Vec<Cams>,
    occlusion: Occlusion,
}

#[derive(Deserialize)]
struct Cams {
    head: String,
    image: usize,
    side: usize,
    probability: f64,
    grad_cam: Vec<f64>,
    grad_cam_plus_plus: Vec<f64>,
}

#[derive(Deserialize)]
struct Occlusion {
    window: usize,
    stride: usize,
    fill: f32,
    drops: Vec<f64>,
}

fn reference() -> Reference {
    serde_json::from_str(include_str!("reference/explanations.json")).unwrap()
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
        let (scale, offset) = match (name.rsplit_once('.').unwrap(), &dims[..]) {
            (_, [_, inputs, kernel, _]) => ((2.0 / (inputs * kernel * kernel) as f64).sqrt(), 0.0),
            (_, [_, inputs]) => (1.0 / (*inputs as f64).sqrt(), 0.0),
            (("fusion", _), _) => (0.2, 0.25),
            ((_, "running_mean"), _) => (0.1, 0.0),
            ((_, "running_var"), _) => (0.3, 1.0),
            ((layer, "bias"), _) if layer.ends_with("fc") => (0.1, 0.0),
            ((_, "bias"), _) => (0.2, 0.0),
            _ => (0.3, 1.0),
        };
        let values = formula(&name, dims.iter().product(), scale, offset);
        state.insert(name, Tensor::from_vec(values, dims, &Device::Cpu).unwrap());
    }
    network.load_state(&state).unwrap();
    network
}

fn images() -> Vec<f64> {
    formula("image", 2 * SIDE * SIDE, 1.0, 0.0)
}

#[track_caller]
fn check_map(got: &Map, side: usize, want: &[f64], what: &str) {
    assert_eq!((got.height, got.width), (side, side), "{what}");
    let highest = want.iter().copied().fold(0.0, f64::max);
    assert!(highest > 0.0, "{what}: an empty reference proves nothing");
    for (i, (got, want)) in got.values.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= 1e-8 * highest, "{what}, cell {i}: {got}, expected {want}");
    }
}

#[test]
fn gradient_maps_of_every_head_equal_pytorch_s() {
    let image_nchw = Tensor::from_vec(images(), (2, 1, SIDE, SIDE), &Device::Cpu).unwrap();
    let got = cams(&network(DType::F64), &image_nchw, &CLASSES).unwrap();
    let reference = reference();
    assert_eq!(reference.cams.len(), 2 * 5);
    for want in &reference.cams {
        let got = got[want.image].iter().find(|cams| cams.head == want.head).unwrap();
        let what = format!("{}, image {}", want.head, want.image);
        assert!((f64::from(got.probability) - want.probability).abs() < 1e-6, "{what}");
        check_map(&got.grad_cam, want.side, &want.grad_cam, &format!("Grad-CAM of {what}"));
        check_map(
            &got.grad_cam_plus_plus,
            want.side,
            &want.grad_cam_plus_plus,
            &format!("Grad-CAM++ of {what}"),
        );
    }
}

#[test]
fn an_image_s_map_does_not_depend_on_its_neighbours() {
    let network = network(DType::F64);
    let image_nchw = Tensor::from_vec(images(), (2, 1, SIDE, SIDE), &Device::Cpu).unwrap();
    let together = cams(&network, &image_nchw, &CLASSES).unwrap();
    let alone = cams(&network, &image_nchw.narrow(0, 1, 1).unwrap(), &CLASSES[1..]).unwrap();
    for (a, b) in together[1].iter().zip(&alone[0]) {
        let largest = b.grad_cam.values.iter().copied().fold(0.0, f64::max);
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-9 * largest;
        assert!(a.grad_cam.values.iter().zip(&b.grad_cam.values).all(near), "{}", a.head);
    }
}

#[test]
fn occlusion_equals_pytorch_s_and_does_not_depend_on_the_batch() {
    let want = reference().occlusion;
    let network = network(DType::F32);
    let image: Vec<f32> = images()[..SIDE * SIDE].iter().map(|&v| v as f32).collect();
    for batch_size in [1, 7] {
        let spec =
            OcclusionSpec { window_px: want.window, stride_px: want.stride, fill: want.fill, batch_size };
        let got = occlusion(&network, &image, (SIDE, SIDE), &spec, CLASSES[0]).unwrap();
        assert_eq!((got.height, got.width), (4, 4));
        for (got, want) in got.values.iter().zip(&want.drops) {
            assert!((got - want).abs() < 2e-6, "{got}, expected {want}");
        }
    }
}

#[test]
fn a_class_or_size_that_is_not_there_is_refused() {
    let network = network(DType::F32);
    let image_nchw = Tensor::zeros((1, 1, SIDE, SIDE), DType::F32, &Device::Cpu).unwrap();
    assert!(cams(&network, &image_nchw, &[3]).is_err());
    assert!(cams(&network, &image_nchw, &[0, 1]).is_err());
    let spec = OcclusionSpec { window_px: 8, stride_px: 8, fill: 0.0, batch_size: 4 };
    assert!(occlusion(&network, &[0.0; 7], (SIDE, SIDE), &spec, 0).is_err());
}
