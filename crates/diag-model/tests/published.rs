//! Every backbone against torchvision's or timm's own class with the same weights.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use diag_data::case::LabelSet;
use diag_model::loss::NoSettings;
use diag_model::{Backbone, Loss, LossSpec, Network, NetworkSpec, tensors};
use serde::Deserialize;

/// `reference/networks.json`, made by `reference/make_networks.py`.
#[derive(Deserialize)]
struct Reference {
    cases: Vec<Case>,
    /// Every fiftieth of the thousand logits.
    imagenet_logits: Vec<f64>,
    /// timm's names of EfficientNet-Lite0, with shapes.
    timm_lite0: BTreeMap<String, Vec<usize>>,
}

#[derive(Deserialize)]
struct Case {
    backbone: Backbone,
    evaluated: Vec<Vec<f64>>,
    trained: Vec<Vec<f64>>,
    /// Norm, sum and first number of some gradients of a mean cross entropy.
    gradients: BTreeMap<String, [f64; 3]>,
}

fn reference() -> Reference {
    serde_json::from_str(include_str!("reference/networks.json")).unwrap()
}

const N_CLASSES: usize = 7;

/// Numbers in [-0.5, 0.5) that follow from a name, as in `make_networks.py`.
fn weyl(name: &str, count: usize) -> Vec<f64> {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    let number = |i: u64| hash.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 40;
    (0..count as u64).map(|i| number(i) as f64 / f64::from(1 << 24) - 0.5).collect()
}

fn weight(name: &str, shape: &[usize]) -> Tensor {
    let fan_in: usize = shape[1..].iter().product();
    let scale = |u: f64| match () {
        () if shape.len() > 1 => u * 12f64.sqrt() * (2.0 / fan_in as f64).sqrt(),
        () if name.ends_with("running_var") => 1.0 + u,
        () if name.ends_with(".weight") => 1.0 + 0.4 * u,
        () => 0.2 * u,
    };
    let values: Vec<f64> = weyl(name, shape.iter().product()).into_iter().map(scale).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap()
}

fn images(n: usize, side: usize) -> Tensor {
    let noise = weyl("image", n * side * side);
    let wave = |i: usize| ((i / side % side) as f64 / 7.0).sin() * ((i % side) as f64 / 5.0).cos();
    let values: Vec<f64> = noise.iter().enumerate().map(|(i, u)| 0.5 * wave(i) + u).collect();
    Tensor::from_vec(values, (n, 1, side, side), &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap()
}

/// Our tensors as others publish them: with three input channels.
fn published_weights(network: &Network) -> BTreeMap<String, Tensor> {
    let state = network.state().unwrap().into_iter();
    state
        .map(|(name, tensor)| {
            let mut shape = tensor.dims().to_vec();
            let stem = ["conv1.weight", "_conv_stem.weight", "features.conv0.weight"];
            if stem.contains(&name.as_str()) {
                shape[1] = 3;
            }
            let tensor = weight(&name, &shape);
            (name, tensor)
        })
        .collect()
}

#[track_caller]
fn check_logits(got: &Tensor, want: &[Vec<f64>], tolerance: f64, what: &str) {
    let got = got.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap().concat();
    let want = want.concat();
    let largest = want.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    assert_eq!(got.len(), want.len(), "{what}");
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= tolerance * largest, "{what}: {got}, expected {want} of {largest}");
    }
}

#[test]
fn forward_and_gradients_are_those_of_the_published_classes() {
    for case in reference().cases {
        let name = case.backbone.name();
        let network = Network::new(&NetworkSpec::new(case.backbone, N_CLASSES, false), 1).unwrap();
        let report = network.load_matching(&published_weights(&network)).unwrap();
        assert_eq!((report.kept.len(), report.unused.len()), (0, 0), "{name}: {:?}", report.lines());
        assert_eq!(report.loaded.iter().filter(|loaded| loaded.folded).count(), 1, "{name}");
        let image_nchw = images(4, 64);
        let evaluated = network.forward_t(&image_nchw, false).unwrap();
        check_logits(evaluated.get("final").unwrap(), &case.evaluated, 1e-4, name);
        let folded = network.folded().unwrap().forward(&image_nchw).unwrap();
        check_logits(folded.get("final").unwrap(), &case.evaluated, 1e-4, &format!("{name}, folded"));

        // In training mode with so few numbers a channel, batch statistics magnify
        // rounding: in f64 they do not matter.
        let network = Network::with_dtype(network.spec(), 1, DType::F64).unwrap();
        network.load_matching(&published_weights(&network)).unwrap();
        let trained = network.forward_t(&image_nchw.to_dtype(DType::F64).unwrap(), true).unwrap();
        check_logits(trained.get("final").unwrap(), &case.trained, 1e-7, &format!("{name}, training"));
        let labels = LabelSet::new((0..N_CLASSES).map(|k| format!("class-{k}")).collect()).unwrap();
        let spec = LossSpec::CrossEntropy(NoSettings {});
        let loss = Loss::new(&spec, &["final".to_owned()], &labels, &[1; N_CLASSES]).unwrap();
        let gradients = loss.terms(&trained, &[0, 1, 2, 3]).unwrap().total.backward().unwrap();
        for (weight, [norm, sum, first]) in case.gradients {
            let (_, var) = network.named_vars().iter().find(|(name, _)| *name == weight).unwrap();
            let gradient = gradients.get(var).unwrap().to_dtype(DType::F64).unwrap();
            let gradient = gradient.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let got_norm = gradient.iter().map(|value| value * value).sum::<f64>().sqrt();
            let got = [got_norm, gradient.iter().sum(), gradient[0]];
            for (got, want) in got.into_iter().zip([norm, sum, first]) {
                assert!((got - want).abs() <= 1e-6 * norm, "{name}, {weight}: {got}, expected {want}");
            }
        }
    }
}

#[test]
fn timm_s_names_are_found() {
    let network = Network::new(&NetworkSpec::new(Backbone::EfficientNetLite0, 1000, false), 1).unwrap();
    let tensors = reference().timm_lite0.into_iter().map(|(name, shape)| {
        let tensor = weight(&name, &shape);
        (name, tensor)
    });
    let report = network.load_matching(&tensors.collect()).unwrap();
    assert!(report.kept.is_empty() && report.unused.is_empty(), "{:?}", report.lines());
}

#[test]
fn imagenet_weights_give_imagenet_logits() {
    let Some(data) = std::env::var_os("COVID19_DIAG_TEST_DATA") else {
        eprintln!("SKIPPED: imagenet weights: COVID19_DIAG_TEST_DATA is not set");
        return;
    };
    let file = Path::new(&data).join("weights/efficientnet_lite0_imagenet.safetensors");
    let (weights, _) = tensors::read(&file).unwrap();
    let network = Network::new(&NetworkSpec::new(Backbone::EfficientNetLite0, 1000, false), 1).unwrap();
    let report = network.load_matching(&weights).unwrap();
    assert!(report.kept.is_empty() && report.unused.is_empty(), "{:?}", report.lines());
    let logits = network.forward_t(&images(1, 224), false).unwrap();
    let logits = logits.get("final").unwrap().to_vec2::<f32>().unwrap().concat();
    for (got, want) in logits.iter().step_by(50).zip(reference().imagenet_logits) {
        assert!((f64::from(*got) - want).abs() < 2e-3, "{got}, expected {want}");
    }
}

#[test]
fn a_partial_load_is_explained_line_by_line() {
    let network = Network::new(&NetworkSpec::new(Backbone::ResNet34, 3, true), 2).unwrap();
    let file = BTreeMap::from([
        ("conv1.weight".to_owned(), weight("conv1.weight", &[64, 3, 7, 7])),
        ("classifier.weight".to_owned(), weight("fc.weight", &[1000, 512])),
        ("layer9.weight".to_owned(), weight("layer9.weight", &[2])),
        ("bn1.num_batches_tracked".to_owned(), weight("count", &[1])),
    ]);
    let lines = network.load_matching(&file).unwrap().lines();
    let n_tensors = network.state().unwrap().len();
    // A missing pair of statistics is one line.
    let n_kept = n_tensors - 1 - (n_tensors - network.named_vars().len()) / 2;
    assert_eq!(lines[0], format!("1 tensors taken over, {n_kept} kept as they were, 1 of the file not used"));
    assert_eq!(lines.len(), 1 + 1 + n_kept + 1);
    assert_eq!(lines[1], "conv1.weight: three input channels of conv1.weight summed to one");
    for line in [
        "bn1.weight starts at random: it is missing",
        "fc.weight starts at random: it has shape [1000, 512], not [3, 512]",
        "layer9.weight of the file has no place",
    ] {
        assert!(lines.iter().any(|have| have == line), "{line}: {lines:?}");
    }
}
