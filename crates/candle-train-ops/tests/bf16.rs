//! Mixed precision as users meet it: every operation close to f64 where activations are
//! stored in bf16, a network close to f32, the same bits on any number of threads, and
//! nothing but f32 where it is off.

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_train_ops::{
    Act, Activation, Conv2dSpec, FoldedConv2d, RunningStats, avg_pool2d, batch_norm, bf16_available,
    concat_channels, conv2d, max_pool2d,
    optim::{Sgd, SgdParams},
    pad_end, relu, set_bf16, set_winograd,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use resnet18::{CLASSES, Params, ResNet18, cross_entropy};

#[path = "../examples/support/resnet18.rs"]
#[expect(dead_code, reason = "only training is tested here")]
mod resnet18;

/// The switches belong to the whole process: one test at a time.
fn switches() -> MutexGuard<'static, ()> {
    static SWITCHES: Mutex<()> = Mutex::new(());
    SWITCHES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// With bf16 switched on or off, on so many threads.
fn run<T: Send>(bf16: bool, n_threads: usize, work: impl FnOnce() -> T + Send) -> T {
    set_bf16(bf16);
    let result = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap().install(work);
    set_bf16(false);
    result
}

/// Numbers in [-1, 1) that bf16 holds, so that a maximum or the edge of a ReLU lies where
/// f64 has it.
fn random(shape: &[usize], dtype: DType, seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|_| rng.random_range(-128..128) as f32 / 128.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).and_then(|values| values.to_dtype(dtype)).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    let values = tensor.to_dtype(DType::F64).and_then(|tensor| tensor.flatten_all());
    values.and_then(|values| values.to_vec1()).unwrap()
}

/// An operation as a function of its differentiable tensors.
struct Case {
    name: &'static str,
    shapes: Vec<Vec<usize>>,
    run: Box<dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync>,
}

fn case(
    name: &'static str,
    shapes: &[&[usize]],
    run: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Case {
    Case { name, shapes: shapes.iter().map(|shape| shape.to_vec()).collect(), run: Box::new(run) }
}

/// The tensor behind a convolution that changes nothing: stored in bf16 where that is on.
fn stored(x: &Tensor) -> Result<Activation> {
    let channels = x.dim(1)?;
    let one = Tensor::eye(channels, x.dtype(), &Device::Cpu)?.reshape((channels, channels, 1, 1))?;
    conv2d(&Activation::from_nchw(x)?, &one, Conv2dSpec::default())
}

fn conv(name: &'static str, image: [usize; 4], weight: [usize; 4], spec: (usize, usize, usize)) -> Case {
    let (stride, padding, groups) = spec;
    let spec = Conv2dSpec { stride, padding, groups };
    case(name, &[&image, &weight], move |t| {
        // The second user of the input has its gradient added.
        let x = stored(&t[0])?;
        conv2d(&x, &t[1], spec)?.to_nchw()? + conv2d(&x, &t[1], spec)?.to_nchw()?.sqr()
    })
}

fn norm(name: &'static str, channels: usize, residual: bool, act: Act, train: bool) -> Case {
    let (image, affine) = ([3, channels, 5, 7], [channels]);
    let mut shapes: Vec<&[usize]> = vec![&image, &affine, &affine];
    if residual {
        shapes.push(&image);
    }
    case(name, &shapes, move |t| {
        let stats = RunningStats::new(channels);
        let residual = t.get(3).map(stored).transpose()?;
        batch_norm(&stored(&t[0])?, &t[1], &t[2], &stats, residual.as_ref(), act, train)?.to_nchw()
    })
}

fn cases() -> Vec<Case> {
    let image: [usize; 4] = [2, 32, 11, 9];
    vec![
        conv("3x3", [3, 48, 19, 14], [32, 48, 3, 3], (2, 1, 1)),
        conv("3x3, Winograd", [2, 48, 19, 14], [32, 48, 3, 3], (1, 1, 1)),
        conv("3x3, small", [2, 64, 7, 7], [64, 64, 3, 3], (1, 1, 1)),
        conv("1x1", [2, 32, 9, 8], [48, 32, 1, 1], (2, 0, 1)),
        conv("first layer", [2, 1, 23, 19], [16, 1, 7, 7], (2, 3, 1)),
        conv("odd channels", [1, 15, 6, 5], [17, 15, 3, 3], (1, 1, 1)),
        conv("groups", [2, 64, 9, 8], [32, 32, 3, 3], (2, 1, 2)),
        conv("depthwise", [2, 32, 7, 7], [32, 1, 3, 3], (1, 1, 32)),
        norm("batch_norm", 32, false, Act::Relu, true),
        norm("batch_norm, residual", 32, true, Act::Relu6, true),
        norm("batch_norm, plain", 15, true, Act::Identity, true),
        norm("batch_norm, running", 16, false, Act::Identity, false),
        case("batch_norm, residual in f32", &[&image, &[32], &[32], &image], |t| {
            let (stats, residual) = (RunningStats::new(32), Activation::from_nchw(&t[3])?);
            batch_norm(&stored(&t[0])?, &t[1], &t[2], &stats, Some(&residual), Act::Relu, true)?.to_nchw()
        }),
        case("relu", &[&image], |t| relu(&stored(&t[0])?)?.to_nchw()),
        case("max_pool2d", &[&image], |t| max_pool2d(&stored(&t[0])?, 3, 2, 1)?.to_nchw()),
        case("avg_pool2d", &[&image], |t| avg_pool2d(&stored(&t[0])?, 5, 1, 2)?.to_nchw()),
        case("global_avg_pool", &[&image], |t| stored(&t[0])?.global_avg_pool()),
        case("pad_end", &[&image], |t| pad_end(&stored(&t[0])?, 1, 2)?.to_nchw()),
        case("concat_channels", &[&image, &[2, 15, 11, 9]], |t| {
            let (first, second) = (stored(&t[0])?, Activation::from_nchw(&t[1])?);
            concat_channels(&concat_channels(&first, &second)?, &first)?.to_nchw()
        }),
    ]
}

/// Value of the case and gradient of every tensor, for one fixed loss.
fn evaluate(case: &Case, dtype: DType) -> Vec<Vec<f64>> {
    let tensors = case.shapes.iter().zip(1..).map(|(shape, seed)| random(shape, dtype, seed));
    let vars: Vec<Var> = tensors.map(|tensor| Var::from_tensor(&tensor).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let y = (case.run)(&tensors).unwrap();
    // Another number for every pixel, none of which bf16 holds.
    let weight = (random(y.dims(), dtype, 99) * 0.7).unwrap();
    let grads = (&y * weight).and_then(|loss| loss.sum_all()?.backward()).unwrap();
    let gradients = vars.iter().map(|var| values(grads.get(var).unwrap()));
    std::iter::once(values(&y)).chain(gradients).collect()
}

/// Norm of the difference over the norm.
fn error(got: &[f64], want: &[f64]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    norm(&mut got.iter().zip(want).map(|(a, b)| a - b)) / norm(&mut want.iter().copied())
}

#[test]
fn operations_are_close_to_f64_and_deterministic() {
    let _switches = switches();
    for case in cases() {
        let exact = evaluate(&case, DType::F64);
        let mixed = run(true, 1, || evaluate(&case, DType::F32));
        if !bf16_available() {
            eprintln!("SKIPPED: this processor does not multiply bf16, so f32 is used");
            assert_eq!(mixed, run(false, 1, || evaluate(&case, DType::F32)), "{}", case.name);
            continue;
        }
        for (index, (mixed, exact)) in mixed.iter().zip(&exact).enumerate() {
            let error = error(mixed, exact);
            assert!(error < 2e-2, "{}: result {index} is off by {error} of its norm", case.name);
        }
        let gradient = error(&mixed[1], &exact[1]);
        assert!(gradient > 1e-5, "{}: the gradient is too exact for bf16, {gradient}", case.name);
        for n_threads in [2, 8] {
            let again = run(true, n_threads, || evaluate(&case, DType::F32));
            assert_eq!(mixed, again, "{}, {n_threads} threads", case.name);
        }
    }
}

#[test]
fn folded_layers_are_close_to_f32_and_deterministic() {
    let _switches = switches();
    // Strided; by Winograd's algorithm; with an input of another size after that.
    for (image, stride) in [([3, 48, 19, 14], 2), ([3, 48, 19, 14], 1)] {
        let folded = || -> Result<Vec<Vec<f64>>> {
            let spec = Conv2dSpec { stride, padding: 1, groups: 1 };
            let numbers = |shape: &[usize], seed| random(shape, DType::F32, seed);
            let weight = numbers(&[32, 48, 3, 3], 2);
            let (gamma, beta) = (numbers(&[32], 4), numbers(&[32], 5));
            let folded = FoldedConv2d::new(&weight, &gamma, &beta, &RunningStats::new(32), spec)?;
            let x = stored(&numbers(&image, 1))?;
            let y = folded.forward(&x, None, Act::Identity)?;
            let small = folded.forward(&stored(&numbers(&[1, 48, 8, 7], 7))?, None, Act::Relu6)?;
            let y = folded.forward(&x, Some(&y), Act::Relu)?;
            Ok(vec![values(&y.to_nchw()?), values(&small.to_nchw()?)])
        };
        let (single, mixed) = (run(false, 2, folded).unwrap(), run(true, 1, folded).unwrap());
        for (single, mixed) in single.iter().zip(&mixed) {
            let error = error(mixed, single);
            assert!(error < 1e-2, "stride {stride}: off by {error} of the norm");
            assert_eq!(error > 1e-5, bf16_available(), "stride {stride}: {error}");
        }
        assert_eq!(mixed, run(true, 8, folded).unwrap());
    }
}

/// Losses of a ResNet-18 over some steps from the same start.
fn losses() -> Vec<f32> {
    const BATCH: usize = 8;
    let mut params = Params::new(&Device::Cpu);
    let net = ResNet18::new(&mut params).unwrap();
    let image_nchw = params.rng_tensor(&[BATCH, 1, 64, 64], 1.0).unwrap();
    let settings = SgdParams { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
    let mut optimiser = Sgd::new(params.named, settings).unwrap();
    let labels: Vec<u32> = (0..BATCH).map(|i| (i % CLASSES) as u32).collect();
    let label_n = Tensor::from_vec(labels, BATCH, &Device::Cpu).unwrap();
    let mut step = || -> Result<f32> {
        let loss = cross_entropy(&net.forward(&image_nchw)?, &label_n)?;
        optimiser.step(&loss.backward()?, 1e-3)?;
        loss.to_scalar()
    };
    (0..4).map(|_| step().unwrap()).collect()
}

#[test]
fn a_network_learns_as_in_f32() {
    let _switches = switches();
    let single = run(false, 2, losses);
    for (winograd, n_threads) in [(false, 2), (true, 8)] {
        set_winograd(winograd);
        let mixed = run(true, 1, losses);
        println!("Winograd {winograd}: losses {mixed:?}, in f32 {single:?}");
        // The images are learnt by heart in a few steps: relative to where that starts.
        for (step, (mixed, of_f32)) in mixed.iter().zip(&single).enumerate() {
            let off = (mixed - of_f32).abs() / single[0];
            assert!(off < 2e-2, "Winograd {winograd}, step {step}: loss {mixed}, in f32 {of_f32}");
        }
        assert_eq!(mixed, run(true, n_threads, losses), "{n_threads} threads");
    }
}
