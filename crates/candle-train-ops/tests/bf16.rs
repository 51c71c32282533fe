//! Mixed precision as users meet it: close to f32, the same bits on any number of
//! threads, and nothing but f32 where it is off. One test, because the switch belongs
//! to the whole process.

use candle_core::{Device, Tensor, Var};
use candle_train_ops::{
    Act, Activation, Conv2dSpec, FoldedConv2d, RunningStats, bf16_available, conv2d, set_bf16,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn random(shape: &[usize], seed: u64) -> Var {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).and_then(|tensor| Var::from_tensor(&tensor)).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().and_then(|tensor| tensor.to_vec1()).unwrap()
}

const SPEC: Conv2dSpec = Conv2dSpec { stride: 2, padding: 1, groups: 1 };

/// The result of a convolution, its gradients, and the folded convolution.
fn evaluate(bf16: bool, n_threads: usize) -> Vec<Vec<f32>> {
    set_bf16(bf16);
    let (x, weight) = (random(&[3, 48, 19, 14], 1), random(&[32, 48, 3, 3], 2));
    let run = || -> candle_core::Result<Vec<Vec<f32>>> {
        let input = Activation::from_nchw(&x)?;
        // The second user of the input has its gradient added.
        let y = conv2d(&input, &weight, SPEC)?.to_nchw()?;
        let z = conv2d(&input, &weight, SPEC)?.to_nchw()?;
        let grads = ((&y * random(y.dims(), 3).as_tensor())? + z)?.sum_all()?.backward()?;
        let (ones, zeros) = (random(&[32], 4), random(&[32], 5));
        let folded = FoldedConv2d::new(&weight, &ones, &zeros, &RunningStats::new(32), SPEC)?;
        let residual = Activation::from_nchw(&random(y.dims(), 6))?;
        let folded = folded.forward(&input, Some(&residual), Act::Relu)?.to_nchw()?;
        let gradient = |var: &Var| grads.get(var).map(values).unwrap_or_default();
        Ok(vec![values(&y), gradient(&x), gradient(&weight), values(&folded)])
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
    let results = pool.install(run).unwrap();
    set_bf16(false);
    results
}

#[test]
fn mixed_precision_is_close_to_f32_and_deterministic() {
    let (single, mixed) = (evaluate(false, 2), evaluate(true, 1));
    if !bf16_available() {
        eprintln!("SKIPPED: this processor does not multiply bf16, so f32 is used");
        assert_eq!(single, mixed);
        return;
    }
    for (index, (single, mixed)) in single.iter().zip(&mixed).enumerate() {
        let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
        let error =
            norm(&mut single.iter().zip(mixed).map(|(a, b)| a - b)) / norm(&mut single.iter().copied());
        assert!(error > 0.0 && error < 5e-3, "result {index} is off by {error} of its norm");
    }
    for n_threads in [2, 8] {
        assert_eq!(mixed, evaluate(true, n_threads), "{n_threads} threads");
    }
}
