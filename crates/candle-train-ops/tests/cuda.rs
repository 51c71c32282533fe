//! The operations on a GPU against those on the CPU: values and gradients, odd sizes.
//! Where no CUDA device can be used, nothing is compared, and the test says so.
#![cfg(feature = "cudnn")]

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_train_ops::{Activation, Conv2dSpec, avg_pool2d, conv2d, cuda, max_pool2d};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Number types, and the largest difference allowed, relative to the largest value: the
/// f32 of a GPU is held against the f64 of the CPU.
const PRECISIONS: [(DType, f64); 2] = [(DType::F64, 1e-10), (DType::F32, 1e-4)];

#[expect(clippy::print_stderr, reason = "a test that skips says so")]
fn gpu() -> Option<Device> {
    match cuda::device(0) {
        Ok(device) => Some(device),
        Err(err) => {
            eprintln!("SKIPPED: NOTHING WAS COMPARED ON A GPU: no CUDA device can be used: {err}");
            None
        }
    }
}

/// Distinct numbers, so that a maximum has one place.
fn numbers(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The result and the gradient of every argument, brought to the CPU in f64.
fn run(
    device: &Device,
    dtype: DType,
    arguments: &[Tensor],
    operation: &dyn Fn(&[Tensor]) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    let vars = arguments
        .iter()
        .map(|argument| Var::from_tensor(&argument.to_dtype(dtype)?.to_device(device)?))
        .collect::<Result<Vec<_>>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let y = operation(&tensors)?;
    let weights = numbers(y.dims(), 99).to_dtype(dtype)?.to_device(device)?;
    let gradients = (&y * weights)?.sum_all()?.backward()?;
    let home = |tensor: &Tensor| tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64);
    let mut results = vec![home(&y)?];
    for var in &vars {
        results.push(home(gradients.get(var).expect("every argument has a gradient"))?);
    }
    Ok(results)
}

#[track_caller]
fn check(
    name: &str,
    shapes: &[&[usize]],
    on_cpu: &dyn Fn(&[Tensor]) -> Result<Tensor>,
    on_gpu: &dyn Fn(&[Tensor]) -> Result<Tensor>,
) {
    let Some(device) = gpu() else { return };
    let arguments: Vec<Tensor> =
        shapes.iter().enumerate().map(|(seed, shape)| numbers(shape, seed as u64)).collect();
    let want = run(&Device::Cpu, DType::F64, &arguments, on_cpu).unwrap();
    let largest = |tensor: &Tensor| tensor.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
    for (dtype, tolerance) in PRECISIONS {
        let got = run(&device, dtype, &arguments, on_gpu).unwrap();
        for (index, (want, got)) in want.iter().zip(&got).enumerate() {
            assert_eq!(want.dims(), got.dims(), "{name}, result {index}");
            let difference = largest(&(want - got).unwrap());
            assert!(
                difference <= tolerance * largest(want).max(1.0),
                "{name}, {dtype:?}, result {index} (0 the value, then gradients): differs by {difference:e}"
            );
        }
    }
}

#[test]
fn convolutions_agree() {
    // Without it f32 would be rounded to TF32.
    cuda::set_deterministic(true);
    for (image, (out_channels, kernel_h, kernel_w), (stride, padding, groups)) in [
        ([2, 1, 9, 7], (3, 3, 3), (1, 1, 1)),
        ([1, 3, 11, 13], (16, 7, 7), (2, 3, 1)),
        ([3, 15, 8, 5], (17, 1, 1), (1, 0, 1)),
        ([2, 17, 10, 9], (16, 3, 5), (3, 2, 1)),
        ([1, 16, 12, 12], (64, 11, 11), (1, 5, 1)),
        ([2, 64, 7, 7], (64, 3, 3), (2, 1, 4)),
        ([2, 15, 9, 8], (15, 3, 3), (1, 1, 15)),
        ([2, 16, 9, 8], (16, 5, 5), (2, 2, 16)),
    ] {
        let weight = [out_channels, image[1] / groups, kernel_h, kernel_w];
        let spec = Conv2dSpec { stride, padding, groups };
        check(
            &format!("conv2d {image:?} * {weight:?}, {spec:?}"),
            &[&image, &weight],
            &|t| conv2d(&Activation::from_nchw(&t[0])?, &t[1], spec)?.to_nchw(),
            &|t| cuda::conv2d(&t[0], &t[1], spec),
        );
    }
}

#[test]
fn pools_agree() {
    for (image, kernel, stride, padding) in [
        ([2, 1, 9, 7], 3, 2, 1),
        ([1, 17, 12, 11], 2, 2, 0),
        ([2, 16, 8, 8], 3, 1, 1),
        ([3, 3, 13, 5], 5, 3, 2),
    ] {
        let name = format!("pool2d {image:?}, {kernel}/{stride}, padding {padding}");
        check(
            &format!("max {name}"),
            &[&image],
            &|t| max_pool2d(&Activation::from_nchw(&t[0])?, kernel, stride, padding)?.to_nchw(),
            &|t| cuda::max_pool2d(&t[0], kernel, stride, padding),
        );
        check(
            &format!("average {name}"),
            &[&image],
            &|t| avg_pool2d(&Activation::from_nchw(&t[0])?, kernel, stride, padding)?.to_nchw(),
            &|t| cuda::avg_pool2d(&t[0], kernel, stride, padding),
        );
    }
}

/// This one needs no GPU.
#[test]
fn a_tensor_on_the_cpu_is_refused() {
    let x = Tensor::zeros((1, 1, 4, 4), DType::F32, &Device::Cpu).unwrap();
    let err = cuda::max_pool2d(&x, 2, 2, 0).unwrap_err();
    assert!(err.to_string().contains("x_nchw is not on a CUDA device"), "{err}");
    let err = cuda::conv2d(&x, &x, Conv2dSpec::default()).unwrap_err();
    assert!(err.to_string().contains("x_nchw is not on a CUDA device"), "{err}");
}
