//! Every operation on a GPU against the one on the CPU: values and gradients, odd sizes.
//! Where no CUDA device can be used, nothing is compared, and the test says so.
#![cfg(feature = "cuda")]

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_train_ops::{
    Act, Activation, Conv2dSpec, FoldedConv2d, RunningStats, avg_pool2d, backward, batch_norm,
    concat_channels, conv2d, cuda, linear, max_pool2d,
    optim::{AdamW, AdamWParams, Sgd, SgdParams, clip_grad_norm},
    pad_end, relu, set_bf16,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Set, a missing GPU is a failure.
const REQUIRE_GPU: &str = "COVID19_DIAG_REQUIRE_GPU";

/// The switches of the arithmetic belong to the process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

#[expect(clippy::print_stderr, reason = "a test that skips says so")]
fn gpu() -> Option<Device> {
    match cuda::device(0) {
        Ok(device) => Some(device),
        Err(err) => {
            assert!(std::env::var_os(REQUIRE_GPU).is_none(), "a GPU must be here: {err}");
            eprintln!("SKIPPED: NOTHING WAS COMPARED ON A GPU: no CUDA device can be used: {err}");
            None
        }
    }
}

/// Numbers that bf16 holds, around `mean`, hardly two alike.
fn numbers(shape: &[usize], mean: f64, seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| mean + rng.random_range(-1.0..1.0)).collect();
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    tensor.to_dtype(DType::BF16).unwrap().to_dtype(DType::F64).unwrap()
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
    let weights = numbers(y.dims(), 0.0, 99).to_dtype(dtype)?.to_device(device)?;
    let gradients = (&y * weights)?.sum_all()?.backward()?;
    let home = |tensor: &Tensor| tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64);
    let mut results = vec![home(&y)?];
    for var in &vars {
        results.push(home(gradients.get(var).expect("every argument has a gradient"))?);
    }
    Ok(results)
}

fn largest(tensor: &Tensor) -> f64 {
    tensor.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap()
}

fn length(tensor: &Tensor) -> f64 {
    tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt()
}

/// Compares f32 and bf16 on the GPU with f64 on the CPU; what differs by too much.
fn differences(
    device: &Device,
    name: &str,
    arguments: &[Tensor],
    operation: &dyn Fn(&[Tensor]) -> Result<Tensor>,
) -> Vec<String> {
    let want = run(&Device::Cpu, DType::F64, arguments, operation).unwrap();
    let mut wrong = Vec::new();
    for (bf16, tolerance) in [(false, 1e-4), (true, 2e-2)] {
        set_bf16(bf16);
        let got = run(device, DType::F32, arguments, operation);
        set_bf16(false);
        let got = match got {
            Ok(got) => got,
            Err(err) => {
                wrong.push(format!("{name}, bf16 {bf16}: {err}"));
                continue;
            }
        };
        for (index, (want, got)) in want.iter().zip(&got).enumerate() {
            assert_eq!(want.dims(), got.dims(), "{name}, result {index}");
            let difference = (want - got).unwrap();
            // In bf16 a number near a bound can round to it, which cuts its gradient off.
            let difference = match bf16 {
                false => largest(&difference) / largest(want).max(1.0),
                true => length(&difference) / length(want),
            };
            if difference > tolerance || difference.is_nan() {
                wrong.push(format!(
                    "{name}, bf16 {bf16}, result {index} (0 the value, then gradients): differs by {difference:e}"
                ));
            }
        }
    }
    wrong
}

/// An operation with the shapes of its arguments and their means.
type Case<'a> = (String, Vec<(Vec<usize>, f64)>, Box<dyn Fn(&[Tensor]) -> Result<Tensor> + 'a>);

#[track_caller]
fn check(cases: Vec<Case<'_>>) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(device) = gpu() else { return };
    let mut wrong = Vec::new();
    for (name, shapes, operation) in &cases {
        let arguments: Vec<Tensor> =
            shapes.iter().zip(0..).map(|((shape, mean), seed)| numbers(shape, *mean, seed)).collect();
        wrong.extend(differences(&device, name, &arguments, operation));
    }
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

fn shapes(shapes: &[&[usize]]) -> Vec<(Vec<usize>, f64)> {
    shapes.iter().map(|shape| (shape.to_vec(), 0.0)).collect()
}

#[test]
fn convolutions_agree() {
    let mut cases: Vec<Case<'_>> = Vec::new();
    for (image, (out_channels, kernel_h, kernel_w), (stride, padding, groups)) in [
        ([2, 1, 9, 7], (3, 3, 3), (1, 1, 1)),
        ([1, 3, 11, 13], (16, 7, 7), (2, 3, 1)),
        ([3, 15, 8, 5], (17, 1, 1), (1, 0, 1)),
        ([2, 17, 10, 9], (16, 3, 5), (3, 2, 1)),
        ([1, 16, 12, 12], (64, 11, 11), (1, 5, 1)),
        ([2, 16, 13, 9], (32, 3, 3), (2, 1, 1)),
        ([2, 64, 7, 7], (64, 3, 3), (2, 1, 4)),
        ([2, 15, 9, 8], (15, 3, 3), (1, 1, 15)),
        ([2, 16, 9, 8], (16, 5, 5), (2, 2, 16)),
    ] {
        let weight = [out_channels, image[1] / groups, kernel_h, kernel_w];
        let spec = Conv2dSpec { stride, padding, groups };
        cases.push((
            format!("conv2d {image:?} * {weight:?}, {spec:?}"),
            shapes(&[&image, &weight]),
            Box::new(move |t| conv2d(&Activation::from_nchw(&t[0])?, &t[1], spec)?.to_nchw()),
        ));
    }
    check(cases);
}

#[test]
fn normalisations_agree() {
    let mut cases: Vec<Case<'_>> = Vec::new();
    for (image, mean) in
        [([3, 5, 4, 3], 0.5), ([2, 16, 7, 9], 4.0), ([4, 24, 33, 31], 0.0), ([2, 520, 3, 3], -2.0)]
    {
        for act in [Act::Identity, Act::Relu, Act::Relu6] {
            for (with_residual, train) in [(false, true), (true, true), (true, false)] {
                let c = image[1];
                let mut arguments = vec![(image.to_vec(), mean), (vec![c], 1.5), (vec![c], 0.3)];
                if with_residual {
                    arguments.push((image.to_vec(), 0.1));
                }
                cases.push((
                    format!("batch_norm {image:?}, {act:?}, residual {with_residual}, train {train}"),
                    arguments,
                    Box::new(move |t| {
                        let stats = RunningStats::new(c);
                        stats.set(vec![mean as f32; c], vec![0.5; c])?;
                        let residual = t.get(3).map(Activation::from_nchw).transpose()?;
                        let x = Activation::from_nchw(&t[0])?;
                        batch_norm(&x, &t[1], &t[2], &stats, residual.as_ref(), act, train)?.to_nchw()
                    }),
                ));
            }
        }
    }
    check(cases);
}

#[test]
fn pools_and_joins_agree() {
    let mut cases: Vec<Case<'_>> = Vec::new();
    for (image, kernel, stride, padding) in [
        ([2, 1, 9, 7], 3, 2, 1),
        ([1, 17, 12, 11], 2, 2, 0),
        ([2, 16, 8, 8], 3, 1, 1),
        ([3, 3, 13, 5], 5, 3, 2),
        ([3, 24, 13, 6], 3, 2, 1),
    ] {
        let name = format!("pool2d {image:?}, {kernel}/{stride}, padding {padding}");
        cases.push((
            format!("max {name}"),
            shapes(&[&image]),
            Box::new(move |t| max_pool2d(&Activation::from_nchw(&t[0])?, kernel, stride, padding)?.to_nchw()),
        ));
        cases.push((
            format!("average {name}"),
            shapes(&[&image]),
            Box::new(move |t| avg_pool2d(&Activation::from_nchw(&t[0])?, kernel, stride, padding)?.to_nchw()),
        ));
        cases.push((
            format!("global_avg_pool {image:?}"),
            shapes(&[&image]),
            Box::new(|t| Activation::from_nchw(&t[0])?.global_avg_pool()),
        ));
        cases.push((
            format!("relu {image:?}"),
            shapes(&[&image]),
            Box::new(|t| relu(&Activation::from_nchw(&t[0])?)?.to_nchw()),
        ));
        cases.push((
            format!("pad_end {image:?}"),
            shapes(&[&image]),
            Box::new(|t| pad_end(&Activation::from_nchw(&t[0])?, 2, 1)?.to_nchw()),
        ));
        let [n, c, h, w] = image;
        cases.push((
            format!("concat_channels {image:?}"),
            shapes(&[&image, &[n, c + 3, h, w]]),
            Box::new(|t| {
                concat_channels(&Activation::from_nchw(&t[0])?, &Activation::from_nchw(&t[1])?)?.to_nchw()
            }),
        ));
        cases.push((
            format!("gradients of two uses {image:?}"),
            shapes(&[&image]),
            Box::new(|t| {
                let x = Activation::from_nchw(&t[0])?;
                concat_channels(&relu(&x)?, &x)?.to_nchw()
            }),
        ));
    }
    cases.push((
        "linear".to_owned(),
        shapes(&[&[5, 7], &[3, 7], &[3]]),
        Box::new(|t| linear(&t[0], &t[1], &t[2])),
    ));
    check(cases);
}

/// What a network does: stem, pool, a block with a shortcut, running statistics.
struct Small {
    vars: Vec<(String, Var)>,
    stats: Vec<RunningStats>,
    image_nchw: Tensor,
}

impl Small {
    fn new(device: &Device, dtype: DType) -> Self {
        let place = |tensor: Tensor| tensor.to_dtype(dtype).unwrap().to_device(device).unwrap();
        let shapes: [&[usize]; 9] =
            [&[16, 1, 7, 7], &[16], &[16], &[16, 16, 3, 3], &[16], &[16], &[16, 16, 3, 3], &[16], &[16]];
        let var = |(index, shape): (usize, &&[usize])| {
            let mean = if shape.len() == 1 && index % 3 == 1 { 1.0 } else { 0.0 };
            (format!("v{index}"), Var::from_tensor(&place(numbers(shape, mean, index as u64))).unwrap())
        };
        Self {
            vars: shapes.iter().enumerate().map(var).collect(),
            stats: (0..3).map(|_| RunningStats::new(16)).collect(),
            image_nchw: place(numbers(&[4, 1, 31, 29], 0.0, 50)),
        }
    }

    fn forward(&self) -> Result<Tensor> {
        let weight = |index: usize| self.vars[index].1.as_tensor();
        let norm = |x: &Activation, index: usize, residual: Option<&Activation>| {
            let stats = &self.stats[index];
            batch_norm(x, weight(3 * index + 1), weight(3 * index + 2), stats, residual, Act::Relu, true)
        };
        let spec = |stride, padding| Conv2dSpec { stride, padding, groups: 1 };
        let x = Activation::from_nchw(&self.image_nchw)?;
        let x = norm(&conv2d(&x, weight(0), spec(2, 3))?, 0, None)?;
        let x = max_pool2d(&x, 3, 2, 1)?;
        let y = norm(&conv2d(&x, weight(3), spec(1, 1))?, 1, None)?;
        let y = norm(&conv2d(&y, weight(6), spec(1, 1))?, 2, Some(&x))?;
        y.global_avg_pool()?.sqr()?.mean_all()
    }
}

#[test]
fn training_steps_agree() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(device) = gpu() else { return };
    let home = |tensor: &Tensor| tensor.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
    for adam in [true, false] {
        let (cpu, gpu) = (Small::new(&Device::Cpu, DType::F32), Small::new(&device, DType::F32));
        for small in [&cpu, &gpu] {
            let decays = |_: &str, var: &Tensor| var.rank() > 1;
            // So much that its loss would show within three steps.
            let params = AdamWParams { weight_decay: 1.0, ..AdamWParams::default() };
            let mut adamw = AdamW::with_decay(small.vars.clone(), params, decays).unwrap();
            let params = SgdParams { momentum: 0.9, nesterov: true, weight_decay: 1.0 };
            let mut sgd = Sgd::with_decay(small.vars.clone(), params, decays).unwrap();
            for _ in 0..3 {
                let loss = small.forward().unwrap();
                // Once the way past candle's store, once through it.
                let mut gradients = if adam { backward(&loss) } else { loss.backward() }.unwrap();
                let norm = clip_grad_norm(&small.vars, &mut gradients, 0.05).unwrap();
                assert!(norm > 0.05, "clipping had nothing to do: {norm}");
                match adam {
                    true => adamw.step(&gradients, 1e-3).unwrap(),
                    false => sgd.step(&gradients, 1e-2).unwrap(),
                }
            }
            // The state can be taken and put back.
            let (state, n_steps) = (adamw.state().unwrap(), adamw.n_steps());
            adamw.load_state(&state, n_steps).unwrap();
        }
        for ((name, want), (_, got)) in cpu.vars.iter().zip(&gpu.vars) {
            let difference = largest(&(home(want) - home(got)).unwrap());
            assert!(difference <= 1e-4, "adam {adam}: {name} differs by {difference:e}");
        }
        for (want, got) in cpu.stats.iter().zip(&gpu.stats) {
            for (want, got) in [(want.mean(), got.mean()), (want.var(), got.var())] {
                for (want, got) in want.unwrap().iter().zip(got.unwrap()) {
                    assert!(
                        (want - got).abs() <= 1e-4 * want.abs().max(1.0),
                        "running {want}, on the GPU {got}"
                    );
                }
            }
        }
    }
}

#[test]
fn gradients_past_candle_s_store_are_those_in_it() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(device) = gpu() else { return };
    let var = |shape: &[usize], seed| {
        let tensor = numbers(shape, 1.0, seed).to_dtype(DType::F32).unwrap();
        Var::from_tensor(&tensor.to_device(&device).unwrap()).unwrap()
    };
    let [image, weight, gamma, beta] = [(&[2, 4, 6, 5][..], 1), (&[4, 4, 3, 3], 2), (&[4], 3), (&[4], 4)]
        .map(|(shape, seed)| var(shape, seed));
    // The sum of the squares of what is normalised would not depend on anything before.
    let shares = var(&[2, 4, 6, 5], 5).as_tensor().detach();
    let loss = || -> Result<Tensor> {
        let mut x = Activation::from_nchw(&image)?;
        // Two layers share all they have, and what is neither uses the scale as well.
        for _ in 0..2 {
            x = conv2d(&x, &weight, Conv2dSpec { stride: 1, padding: 1, groups: 1 })?;
            x = batch_norm(&x, &gamma, &beta, &RunningStats::new(4), None, Act::Identity, true)?;
        }
        (x.to_nchw()? * &shares)?.sum_all()? + gamma.sqr()?.sum_all()?
    };
    cuda::set_deterministic(true);
    let (got, want) = (backward(&loss().unwrap()).unwrap(), loss().unwrap().backward().unwrap());
    cuda::set_deterministic(false);
    for (name, var) in [("image", &image), ("weight", &weight), ("gamma", &gamma), ("beta", &beta)] {
        let [got, want] = [&got, &want].map(|store| store.get(var).unwrap().to_device(&Device::Cpu).unwrap());
        let want = want.to_dtype(DType::F64).unwrap();
        let apart = largest(&(got.to_dtype(DType::F64).unwrap() - &want).unwrap());
        // Sums of a few numbers, in another order.
        assert!(apart <= 1e-5 * largest(&want), "{name} differs by {apart:e}");
        assert!(largest(&want) > 1e-3, "{name} has no gradient to compare");
    }
}

#[test]
fn deterministic_steps_repeat_bit_for_bit() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(device) = gpu() else { return };
    cuda::set_deterministic(true);
    for bf16 in [false, true] {
        set_bf16(bf16);
        // Enough steps that engines would be timed.
        let weights = || {
            let small = Small::new(&device, DType::F32);
            let mut optimiser = AdamW::new(small.vars.clone(), AdamWParams::default()).unwrap();
            for _ in 0..40 {
                optimiser.step(&small.forward().unwrap().backward().unwrap(), 1e-2).unwrap();
            }
            small
                .vars
                .iter()
                .map(|(_, var)| var.flatten_all().unwrap().to_vec1::<f32>().unwrap())
                .collect::<Vec<_>>()
        };
        assert!(weights() == weights(), "two runs differ, bf16 {bf16}");
    }
    set_bf16(false);
    cuda::set_deterministic(false);
}

#[test]
fn folding_agrees() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(device) = gpu() else { return };
    let run = |device: &Device| -> Result<Tensor> {
        let place = |tensor: Tensor| tensor.to_dtype(DType::F32)?.to_device(device);
        let (weight, gamma) = (place(numbers(&[16, 3, 3, 3], 0.0, 1))?, place(numbers(&[16], 1.0, 2))?);
        let (beta, image) = (place(numbers(&[16], 0.0, 3))?, place(numbers(&[2, 3, 9, 11], 0.0, 4))?);
        let stats = RunningStats::new(16);
        stats.set(vec![0.25; 16], vec![2.0; 16])?;
        let spec = Conv2dSpec { stride: 1, padding: 1, groups: 1 };
        let conv = FoldedConv2d::new(&weight, &gamma, &beta, &stats, spec)?;
        let residual = Activation::from_nchw(&place(numbers(&[2, 16, 9, 11], 0.0, 5))?)?;
        let x = Activation::from_nchw(&image)?;
        conv.forward(&x, Some(&residual), Act::Relu)?.to_nchw()?.to_device(&Device::Cpu)?.to_dtype(DType::F64)
    };
    let (want, got) = (run(&Device::Cpu).unwrap(), run(&device).unwrap());
    let difference = largest(&(want - got).unwrap());
    assert!(difference <= 1e-4, "differs by {difference:e}");
}

#[test]
fn wrong_arguments_are_errors() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(device) = gpu() else { return };
    let zeros = |shape: &[usize], dtype, device: &Device| Tensor::zeros(shape, dtype, device).unwrap();
    let says = |result: Result<Activation>, words: &str| {
        let message = result.map(|_| ()).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    };
    says(Activation::from_nchw(&zeros(&[1, 1, 4, 4], DType::F64, &device)), "expected f32");
    says(Activation::from_nchw(&zeros(&[0, 1, 4, 4], DType::F32, &device)), "is empty");
    let x = Activation::from_nchw(&zeros(&[1, 1, 4, 4], DType::F32, &device)).unwrap();
    let weight = zeros(&[1, 1, 3, 3], DType::F32, &Device::Cpu);
    says(conv2d(&x, &weight, Conv2dSpec::default()), "is not on the GPU");
    let weight = zeros(&[1, 2, 3, 3], DType::F32, &device);
    says(conv2d(&x, &weight, Conv2dSpec::default()), "expected [O, 1, KH, KW]");
}

#[test]
fn the_engine_that_was_chosen_by_time_computes_the_same() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(device) = gpu() else { return };
    let x = numbers(&[4, 16, 20, 20], 0.0, 1).to_dtype(DType::F32).unwrap();
    let weight = numbers(&[32, 16, 3, 3], 0.0, 2).to_dtype(DType::F32).unwrap();
    let spec = Conv2dSpec { stride: 1, padding: 1, groups: 1 };
    let convolved = |device: &Device| -> Tensor {
        let x = Activation::from_nchw(&x.to_device(device).unwrap()).unwrap();
        let y = conv2d(&x, &weight.to_device(device).unwrap(), spec).unwrap().to_nchw().unwrap();
        y.to_device(&Device::Cpu).unwrap()
    };
    let want = convolved(&Device::Cpu);
    // More uses than a shape has before its engines are timed.
    for use_of_it in 0..40 {
        let difference = largest(&(convolved(&device) - &want).unwrap().to_dtype(DType::F64).unwrap());
        assert!(difference < 1e-3, "use {use_of_it}: {difference:e}");
    }
}

#[test]
fn batches_arrive_as_they_were_sent() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(device) = gpu() else { return };
    let mut uploader = cuda::Uploader::new(&device).unwrap();
    // Sizes that grow and shrink; every third batch is not wanted after all.
    for (turn, len) in [7usize, 4096, 12, 1 << 20, 1 << 20, 5, 9000, 1 << 20, 3].into_iter().enumerate() {
        let values: Vec<f32> = (0..len).map(|index| (index * 31 + turn) as f32).collect();
        let upload = uploader.send(&values, &[len]).unwrap();
        if turn % 3 == 2 {
            drop(upload);
            continue;
        }
        assert_eq!(upload.tensor().unwrap().to_vec1::<f32>().unwrap(), values, "batch {turn}");
    }
    // More on their way than there are buffers.
    let batch = |turn: usize| -> Vec<f32> { (0..5000).map(|index| (index * 7 + turn) as f32).collect() };
    let uploads: Vec<_> = (0..5).map(|turn| uploader.send(&batch(turn), &[5000]).unwrap()).collect();
    for (turn, upload) in uploads.into_iter().enumerate() {
        assert_eq!(upload.tensor().unwrap().to_vec1::<f32>().unwrap(), batch(turn), "batch {turn} of five");
    }
    assert!(uploader.send(&[1.0], &[2]).is_err());
}

#[test]
fn a_device_is_opened_once_and_its_memory_given_back() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(device) = gpu() else { return };
    assert!(device.same_device(&cuda::device(0).unwrap()));
    let x = Activation::from_nchw(&Tensor::ones((8, 64, 64, 64), DType::F32, &device).unwrap()).unwrap();
    let y = relu(&x).unwrap();
    drop(x);
    candle_train_ops::release_buffers();
    // What is in use stays.
    let sum = y.to_nchw().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    assert_eq!(sum, (8 * 64 * 64 * 64) as f32);
}
