//! A folded convolution gives what convolution and batch normalisation in
//! evaluation mode give one after the other, and keeps no graph.

use candle_core::{DType, Device, Tensor, Var};
use candle_train_ops::{Act, Activation, Conv2dSpec, FoldedConv2d, RunningStats, batch_norm, conv2d};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn values(activation: &Activation) -> Vec<f32> {
    activation.to_nchw().and_then(|y| y.flatten_all()).and_then(|y| y.to_vec1()).unwrap()
}

/// Statistics that differ from channel to channel.
fn statistics(channels: usize) -> RunningStats {
    let stats = RunningStats::new(channels);
    let mean = (0..channels).map(|c| 0.1 * c as f32 - 0.4).collect();
    let var = (0..channels).map(|c| 0.3 + 0.05 * c as f32).collect();
    stats.set(mean, var).unwrap();
    stats
}

/// `weight` is `[O, I / groups, KH, KW]`.
#[track_caller]
fn check(image: [usize; 4], weight: [usize; 4], (stride, padding, groups): (usize, usize, usize)) {
    let spec = Conv2dSpec { stride, padding, groups };
    let channels = weight[0];
    let x = Activation::from_nchw(&random(&image, 1)).unwrap();
    let (weight, gamma, beta) = (random(&weight, 2), random(&[channels], 3), random(&[channels], 4));
    let stats = statistics(channels);
    let folded = FoldedConv2d::new(&weight, &gamma, &beta, &stats, spec).unwrap();
    let y = conv2d(&x, &weight, spec).unwrap();
    let (n, c, h, w) = y.dims();
    let residual = Activation::from_nchw(&random(&[n, c, h, w], 5)).unwrap();
    // Rounding goes by the sums, not by what the bounds leave of them.
    let sums = values(&batch_norm(&y, &gamma, &beta, &stats, None, Act::Identity, false).unwrap());
    let scale = sums.iter().fold(1f32, |largest, v| largest.max(v.abs()));
    for residual in [None, Some(&residual)] {
        for act in [Act::Identity, Act::Relu, Act::Relu6] {
            let want = values(&batch_norm(&y, &gamma, &beta, &stats, residual, act, false).unwrap());
            let got = values(&folded.forward(&x, residual, act).unwrap());
            for (got, want) in got.iter().zip(&want) {
                let name = format!("{image:?}, {spec:?}, {act:?}, residual {}", residual.is_some());
                assert!((got - want).abs() <= 2e-5 * scale, "{name}: {got} instead of {want}");
            }
        }
    }
}

#[test]
fn direct_layers_fold() {
    check([2, 1, 23, 19], [16, 1, 7, 7], (2, 3, 1));
    check([9, 32, 7, 7], [48, 32, 3, 3], (1, 1, 1));
    check([1, 512, 7, 7], [64, 512, 3, 3], (1, 1, 1));
    check([2, 16, 13, 9], [32, 16, 1, 1], (2, 0, 1));
}

#[test]
fn winograd_layers_fold() {
    check([3, 32, 29, 14], [48, 32, 3, 3], (1, 1, 1));
    check([9, 16, 12, 12], [16, 16, 3, 3], (1, 1, 1));
}

#[test]
fn other_layers_fold() {
    check([2, 16, 9, 8], [16, 1, 3, 3], (1, 1, 16));
    check([2, 32, 9, 8], [32, 1, 5, 5], (2, 2, 32));
    check([2, 15, 9, 8], [17, 15, 3, 3], (3, 1, 1));
}

#[test]
fn no_gradient_flows() {
    let weight = Var::from_tensor(&random(&[16, 16, 3, 3], 0)).unwrap();
    let (gamma, beta) = (random(&[16], 1), random(&[16], 2));
    let folded = FoldedConv2d::new(&weight, &gamma, &beta, &statistics(16), Conv2dSpec::default()).unwrap();
    let x = Var::from_tensor(&random(&[1, 16, 5, 5], 3)).unwrap();
    let y = folded.forward(&Activation::from_nchw(&x).unwrap(), None, Act::Relu).unwrap();
    assert!(!y.to_nchw().unwrap().track_op());
}

#[test]
fn bad_arguments_are_errors() {
    let (weight, ones) = (random(&[16, 3, 3, 3], 0), random(&[16], 1));
    let stats = RunningStats::new(16);
    let spec = Conv2dSpec::default();
    let fold = |weight: &Tensor, gamma: &Tensor, stats: &RunningStats| {
        FoldedConv2d::new(weight, gamma, &ones, stats, spec)
    };
    assert!(fold(&weight, &random(&[15], 1), &stats).is_err());
    assert!(fold(&weight, &ones, &RunningStats::new(15)).is_err());
    assert!(fold(&random(&[16, 3, 3], 0), &ones, &stats).is_err());
    assert!(fold(&weight.to_dtype(DType::F64).unwrap(), &ones, &stats).is_err());
    let folded = fold(&weight, &ones, &stats).unwrap();
    let image = |shape: &[usize]| Activation::from_nchw(&random(shape, 2)).unwrap();
    let wrong = image(&[1, 16, 4, 4]);
    assert!(folded.forward(&image(&[1, 4, 5, 5]), None, Act::Relu).is_err());
    assert!(folded.forward(&image(&[1, 3, 5, 5]), Some(&wrong), Act::Relu).is_err());
}
