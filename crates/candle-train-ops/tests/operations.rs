//! Every operation, one table of cases, four rules: gradients agree with finite
//! differences in f64, f32 agrees with f64, the bits do not depend on the number
//! of threads, and bad arguments are errors.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_train_ops::{
    Act, Activation, Conv2dSpec, OpError, RunningStats, avg_pool2d, batch_norm, concat_channels, conv2d,
    linear, max_pool2d, pad_end, relu,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// An operation as a function of its differentiable tensors.
struct Case {
    name: String,
    shapes: Vec<Vec<usize>>,
    run: Box<dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync>,
}

fn case(
    name: impl Into<String>,
    shapes: &[&[usize]],
    run: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Case {
    Case {
        name: name.into(),
        shapes: shapes.iter().map(|shape| shape.to_vec()).collect(),
        run: Box::new(run),
    }
}

fn conv_case(
    image: [usize; 4],
    (out_channels, kernel_h, kernel_w): (usize, usize, usize),
    (stride, padding, groups): (usize, usize, usize),
) -> Case {
    let weight = [out_channels, image[1] / groups, kernel_h, kernel_w];
    let spec = Conv2dSpec { stride, padding, groups };
    case(format!("conv2d {image:?} * {weight:?}, {spec:?}"), &[&image, &weight], move |t| {
        conv2d(&Activation::from_nchw(&t[0])?, &t[1], spec)?.to_nchw()
    })
}

fn norm_case(image: [usize; 4], residual: bool, act: Act, train: bool) -> Case {
    let channels = image[1];
    let name = format!("batch_norm {image:?}, residual {residual}, {act:?}, train {train}");
    let mut shapes: Vec<&[usize]> = vec![&image];
    let affine = [channels];
    shapes.extend([&affine[..], &affine[..]]);
    if residual {
        shapes.push(&image);
    }
    case(name, &shapes, move |t| {
        let stats = RunningStats::new(channels);
        stats.set(vec![0.3; channels], vec![0.7; channels])?;
        let x = Activation::from_nchw(&t[0])?;
        let residual = t.get(3).map(Activation::from_nchw).transpose()?;
        batch_norm(&x, &t[1], &t[2], &stats, residual.as_ref(), act, train)?.to_nchw()
    })
}

fn pool_case(average: bool, image: [usize; 4], kernel: usize, stride: usize, padding: usize) -> Case {
    let pool = if average { avg_pool2d } else { max_pool2d };
    case(format!("pool {image:?}, average {average}, {kernel}, {stride}, {padding}"), &[&image], move |t| {
        pool(&Activation::from_nchw(&t[0])?, kernel, stride, padding)?.to_nchw()
    })
}

/// A residual block with a projection: several operations share one activation.
fn block_case() -> Case {
    let shapes: [&[usize]; 7] =
        [&[2, 16, 9, 7], &[32, 16, 3, 3], &[32], &[32], &[32, 16, 1, 1], &[5, 32], &[5]];
    case("residual block", &shapes, |t| {
        let x = relu(&Activation::from_nchw(&t[0])?)?;
        let spec = |padding| Conv2dSpec { stride: 2, padding, groups: 1 };
        let (gamma, beta, stats) = (&t[2], &t[3], RunningStats::new(32));
        let shortcut = conv2d(&x, &t[4], spec(0))?;
        let y = conv2d(&x, &t[1], spec(1))?;
        let y = batch_norm(&y, gamma, beta, &stats, Some(&shortcut), Act::Relu, true)?;
        linear(&y.global_avg_pool()?, &t[5], &t[6])
    })
}

/// Activations of which one, both or neither lie in blocks of 16 channels.
fn joining_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for channels in [3, 16, 32] {
        let shape = [2, channels, 5, 6];
        cases.push(case(format!("pad_end {shape:?}"), &[&shape], |t| {
            pad_end(&Activation::from_nchw(&t[0])?, 1, 2)?.to_nchw()
        }));
        for others in [4, 16] {
            let other = [2, others, 5, 6];
            cases.push(case(format!("concat_channels {shape:?}, {other:?}"), &[&shape, &other], |t| {
                let [first, second] = [0, 1].map(|i| Activation::from_nchw(&t[i]));
                let (first, second) = (first?, second?);
                // The first one is used twice: its gradients have to add up.
                concat_channels(&concat_channels(&first, &second)?, &first)?.to_nchw()
            }));
        }
    }
    cases
}

fn cases() -> Vec<Case> {
    let mut cases = vec![
        conv_case([2, 3, 5, 7], (4, 1, 1), (1, 0, 1)),
        conv_case([1, 1, 9, 8], (1, 3, 3), (1, 1, 1)),
        conv_case([2, 16, 7, 9], (16, 3, 3), (1, 1, 1)),
        conv_case([1, 64, 9, 7], (64, 3, 3), (1, 1, 1)),
        conv_case([2, 16, 9, 11], (32, 3, 3), (2, 1, 1)),
        conv_case([3, 48, 8, 14], (48, 3, 3), (2, 1, 1)),
        conv_case([2, 32, 9, 8], (16, 1, 1), (2, 0, 1)),
        conv_case([2, 32, 9, 8], (48, 1, 1), (1, 0, 1)),
        conv_case([1, 1, 23, 19], (16, 7, 7), (2, 3, 1)),
        conv_case([2, 3, 15, 40], (32, 7, 7), (2, 3, 1)),
        conv_case([1, 17, 6, 6], (16, 3, 3), (1, 1, 1)),
        conv_case([1, 15, 6, 5], (17, 3, 3), (1, 1, 1)),
        conv_case([1, 16, 8, 7], (17, 3, 3), (1, 1, 1)),
        conv_case([1, 16, 11, 10], (16, 3, 3), (3, 1, 1)),
        conv_case([1, 16, 10, 10], (32, 5, 5), (1, 2, 1)),
        conv_case([1, 16, 10, 11], (16, 5, 5), (2, 2, 1)),
        conv_case([1, 3, 17, 15], (16, 11, 11), (2, 5, 1)),
        conv_case([1, 16, 13, 12], (16, 11, 11), (1, 5, 1)),
        conv_case([1, 16, 5, 5], (16, 1, 1), (1, 2, 1)),
        conv_case([1, 16, 6, 6], (16, 3, 3), (2, 3, 1)),
        conv_case([1, 16, 8, 8], (16, 3, 3), (2, 0, 1)),
        conv_case([1, 16, 8, 9], (16, 2, 2), (2, 0, 1)),
        conv_case([1, 16, 8, 9], (16, 1, 5), (1, 2, 1)),
        conv_case([1, 3, 8, 9], (16, 4, 2), (1, 1, 1)),
        conv_case([2, 16, 7, 7], (16, 3, 3), (1, 1, 16)),
        conv_case([1, 15, 7, 8], (15, 5, 5), (2, 2, 15)),
        conv_case([1, 16, 7, 8], (32, 3, 3), (1, 1, 16)),
        conv_case([1, 32, 6, 6], (32, 3, 3), (1, 1, 2)),
        conv_case([2, 64, 9, 8], (32, 3, 3), (2, 1, 2)),
        conv_case([1, 30, 7, 8], (10, 3, 3), (2, 1, 5)),
        conv_case([1, 64, 9, 7], (64, 3, 3), (2, 1, 64)),
        conv_case([2, 17, 9, 7], (17, 3, 3), (3, 1, 17)),
        conv_case([1, 16, 13, 12], (16, 11, 11), (1, 5, 16)),
        conv_case([1, 15, 12, 9], (64, 5, 4), (3, 2, 1)),
        conv_case([1, 1, 8, 7], (15, 2, 3), (3, 1, 1)),
        pool_case(false, [2, 3, 9, 8], 3, 2, 1),
        pool_case(false, [2, 16, 9, 8], 3, 2, 1),
        pool_case(false, [1, 16, 7, 7], 2, 2, 0),
        pool_case(false, [1, 15, 11, 7], 5, 3, 2),
        pool_case(true, [2, 3, 9, 8], 3, 2, 1),
        pool_case(true, [1, 16, 7, 6], 2, 1, 0),
        pool_case(true, [1, 16, 11, 7], 5, 3, 2),
        case("relu", &[&[2, 16, 5, 3]], |t| relu(&Activation::from_nchw(&t[0])?)?.to_nchw()),
        case("global_avg_pool", &[&[2, 17, 5, 3]], |t| Activation::from_nchw(&t[0])?.global_avg_pool()),
        case("global_avg_pool blocked", &[&[2, 32, 5, 3]], |t| {
            Activation::from_nchw(&t[0])?.global_avg_pool()
        }),
        case("linear", &[&[3, 7], &[5, 7], &[5]], |t| linear(&t[0], &t[1], &t[2])),
        block_case(),
    ];
    cases.extend(joining_cases());
    for channels in [1, 15, 16, 64] {
        for (residual, act, train) in [
            (false, Act::Identity, true),
            (false, Act::Relu, true),
            (false, Act::Relu6, true),
            (true, Act::Relu, true),
            (true, Act::Identity, false),
            (false, Act::Relu, false),
        ] {
            cases.push(norm_case([3, channels, 5, 7], residual, act, train));
        }
    }
    cases
}

/// Uniform numbers in [-1, 1), the same for every call with one seed.
fn random(shape: &[usize], dtype: DType, seed: u64) -> Tensor {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f64> =
        (0..shape.iter().product()).map(|_| f64::from(rng.random_range(-1f32..1f32))).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).and_then(|values| values.to_dtype(dtype)).unwrap()
}

/// Value of the case and gradient of every tensor, for one fixed loss.
fn evaluate(case: &Case, dtype: DType) -> Result<Vec<Tensor>> {
    let vars: Vec<Var> = case
        .shapes
        .iter()
        .enumerate()
        .map(|(seed, shape)| Var::from_tensor(&random(shape, dtype, seed as u64)))
        .collect::<Result<_>>()?;
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let y = (case.run)(&tensors)?;
    let grads = (&y * random(y.dims(), dtype, 99))?.sum_all()?.backward()?;
    let mut results = vec![y.detach()];
    for var in &vars {
        results.push(grads.get(var).unwrap().clone());
    }
    Ok(results)
}

fn loss(case: &Case, tensors: &[Tensor]) -> Result<f64> {
    let y = (case.run)(tensors)?;
    (&y * random(y.dims(), DType::F64, 99))?.sum_all()?.to_scalar::<f64>()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor
        .to_dtype(DType::F64)
        .and_then(|tensor| tensor.flatten_all())
        .and_then(|tensor| tensor.to_vec1())
        .unwrap()
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |largest, v| v.abs().max(largest))
}

/// Numbers of each tensor whose gradient is checked.
const N_PROBES: usize = 12;
const DIFFERENCE: f64 = 1e-5;

#[test]
fn gradients_agree_with_finite_differences() {
    for case in cases() {
        let results = evaluate(&case, DType::F64).unwrap();
        let tensors: Vec<Tensor> = case
            .shapes
            .iter()
            .enumerate()
            .map(|(seed, shape)| random(shape, DType::F64, seed as u64))
            .collect();
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for (index, gradient) in results[1..].iter().enumerate() {
            let gradient = values(gradient);
            let scale = largest(&gradient).max(1e-3);
            for _ in 0..N_PROBES {
                let probe = rng.random_range(0..gradient.len());
                let moved = |step: f64| {
                    let mut moved = values(&tensors[index]);
                    moved[probe] += step;
                    let shape = tensors[index].shape();
                    let mut tensors = tensors.clone();
                    tensors[index] = Tensor::from_vec(moved, shape, &Device::Cpu).unwrap();
                    loss(&case, &tensors).unwrap()
                };
                let want = (moved(DIFFERENCE) - moved(-DIFFERENCE)) / (2.0 * DIFFERENCE);
                let got = gradient[probe];
                assert!(
                    (got - want).abs() <= 1e-6 * scale,
                    "{}: tensor {index} number {probe}: {got} instead of {want}",
                    case.name
                );
            }
        }
    }
}

#[test]
fn f32_agrees_with_f64() {
    let mut cases = cases();
    // Large enough for several tiles, chunks of channels and partial sums.
    cases.push(conv_case([3, 64, 29, 31], (80, 3, 3), (1, 1, 1)));
    cases.push(conv_case([2, 320, 14, 14], (64, 3, 3), (2, 1, 1)));
    cases.push(conv_case([5, 1, 64, 62], (64, 7, 7), (2, 3, 1)));
    cases.push(conv_case([2, 256, 7, 7], (48, 3, 3), (1, 1, 1)));
    cases.push(norm_case([4, 32, 33, 31], true, Act::Relu, true));
    cases.push(norm_case([4, 3, 73, 71], true, Act::Relu, true));
    for case in cases {
        let want = evaluate(&case, DType::F64).unwrap();
        let got = evaluate(&case, DType::F32).unwrap();
        for (index, (got, want)) in got.iter().zip(&want).enumerate() {
            let (got, want) = (values(got), values(want));
            let scale = largest(&want).max(1e-3);
            for (number, (got, want)) in got.iter().zip(&want).enumerate() {
                assert!(
                    (got - want).abs() <= 1e-5 * scale,
                    "{}: result {index} number {number}: {got} instead of {want}",
                    case.name
                );
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let mut cases = cases();
    cases.push(conv_case([5, 64, 29, 31], (80, 3, 3), (1, 1, 1)));
    cases.push(conv_case([5, 1, 64, 62], (64, 7, 7), (2, 3, 1)));
    cases.push(conv_case([7, 15, 29, 31], (80, 3, 3), (1, 1, 1)));
    cases.push(norm_case([4, 32, 33, 31], true, Act::Relu, true));
    for case in cases {
        let bits = |n_threads: usize| -> Vec<Vec<u64>> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            let results = pool.install(|| evaluate(&case, DType::F32)).unwrap();
            let bits = |tensor| values(tensor).into_iter().map(f64::to_bits).collect();
            results.iter().map(bits).collect()
        };
        let one = bits(1);
        for n_threads in [2, 8] {
            assert!(one == bits(n_threads), "{}: {n_threads} threads", case.name);
        }
    }
}

#[track_caller]
fn check_refused<T>(result: Result<T>, want: &str) {
    let error = result.err().expect("accepted");
    let text = error.to_string();
    assert!(text.contains(want), "{text:?} lacks {want:?}");
}

fn image(shape: &[usize]) -> Activation {
    Activation::from_nchw(&random(shape, DType::F32, 0)).unwrap()
}

#[test]
fn bad_arguments_are_errors() {
    let tensor = |shape: &[usize]| random(shape, DType::F32, 0);
    let spec = Conv2dSpec::default();
    check_refused(Activation::from_nchw(&tensor(&[0, 3, 4, 4])), "is empty");
    check_refused(Activation::from_nchw(&tensor(&[3, 4, 4])), "[N, C, H, W]");
    let bytes = Tensor::zeros((1, 1, 2, 2), DType::U8, &Device::Cpu).unwrap();
    check_refused(Activation::from_nchw(&bytes), "expected f32");

    let x = image(&[1, 3, 4, 4]);
    check_refused(conv2d(&x, &tensor(&[8, 4, 3, 3]), spec), "weight_oihw");
    check_refused(conv2d(&x, &tensor(&[8, 3, 3]), spec), "weight_oihw");
    check_refused(conv2d(&x, &tensor(&[8, 3, 5, 5]), spec), "larger than");
    check_refused(conv2d(&x, &tensor(&[0, 3, 3, 3]), spec), "is empty");
    let weight_f64 = random(&[8, 3, 3, 3], DType::F64, 0);
    check_refused(conv2d(&x, &weight_f64, spec), "is f64");
    for spec in
        [Conv2dSpec { groups: 2, ..spec }, Conv2dSpec { groups: 0, ..spec }, Conv2dSpec { stride: 0, ..spec }]
    {
        assert!(conv2d(&x, &tensor(&[8, 3, 3, 3]), spec).is_err());
    }

    check_refused(max_pool2d(&x, 5, 1, 0), "larger than");
    check_refused(max_pool2d(&x, 2, 1, 2), "padding 2");
    check_refused(avg_pool2d(&x, 2, 0, 0), "at least 1");

    let (ones, stats) = (tensor(&[3]), RunningStats::new(3));
    let norm = |x: &Activation, gamma: &Tensor, stats: &RunningStats, residual: Option<&Activation>| {
        batch_norm(x, gamma, &ones, stats, residual, Act::Relu, true)
    };
    check_refused(norm(&x, &tensor(&[4]), &stats, None), "gamma_c");
    check_refused(norm(&x, &ones, &RunningStats::new(4), None), "stats");
    check_refused(norm(&x, &ones, &stats, Some(&image(&[1, 3, 4, 5]))), "residual");
    check_refused(norm(&image(&[1, 3, 1, 1]), &ones, &stats, None), "more than one");
    check_refused(stats.set(vec![0.0; 2], vec![1.0; 3]), "mean");

    let (x, weight, bias) = (tensor(&[2, 3]), tensor(&[4, 3]), tensor(&[4]));
    check_refused(linear(&x, &tensor(&[4, 2]), &bias), "weight_oc");
    check_refused(linear(&x, &weight, &tensor(&[3])), "weight_oc");
    check_refused(linear(&tensor(&[0, 3]), &weight, &bias), "is empty");
}

#[test]
fn every_error_has_a_remedy() {
    let error = OpError::Device { op: "conv2d", argument: "x" };
    assert!(error.remedy().contains("Device::Cpu"));
}

#[test]
fn zeros_are_added_below_and_to_the_right_and_channels_behind() {
    let x = image(&[1, 1, 2, 2]);
    let wide = pad_end(&x, 1, 1).unwrap().to_nchw().unwrap();
    let values = x.to_nchw().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let want = [values[0], values[1], 0.0, values[2], values[3], 0.0, 0.0, 0.0, 0.0];
    assert_eq!(wide.flatten_all().unwrap().to_vec1::<f32>().unwrap(), want);
    let (first, second) = (image(&[2, 16, 3, 3]), image(&[2, 5, 3, 3]));
    let joined = concat_channels(&first, &second).unwrap().to_nchw().unwrap();
    let want = Tensor::cat(&[first.to_nchw().unwrap(), second.to_nchw().unwrap()], 1).unwrap();
    assert_eq!(
        joined.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
        want.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    );
}

#[test]
fn relu_has_gradient_zero_at_zero() {
    let x = Var::zeros((1, 1, 1, 2), DType::F32, &Device::Cpu).unwrap();
    let y = relu(&Activation::from_nchw(&x).unwrap()).unwrap();
    let grads = y.to_nchw().unwrap().sum_all().unwrap().backward().unwrap();
    assert_eq!(values(grads.get(&x).unwrap()), [0.0, 0.0]);
}

#[test]
fn nothing_flows_through_detach() {
    let x = Var::ones((1, 1, 1, 2), DType::F32, &Device::Cpu).unwrap();
    let activation = Activation::from_nchw(&x).unwrap();
    let sum = (activation.detach().to_nchw().unwrap() + activation.to_nchw().unwrap()).unwrap();
    let grads = sum.sum_all().unwrap().backward().unwrap();
    assert_eq!(values(grads.get(&x).unwrap()), [1.0, 1.0]);
}

#[test]
fn a_second_backward_pass_gives_the_same_gradient() {
    let x = Var::ones((1, 16, 3, 3), DType::F32, &Device::Cpu).unwrap();
    let weight = Var::ones((16, 16, 3, 3), DType::F32, &Device::Cpu).unwrap();
    let x_activation = Activation::from_nchw(&x).unwrap();
    let y = conv2d(&x_activation, &weight, Conv2dSpec::default()).unwrap();
    let loss = y.to_nchw().unwrap().sum_all().unwrap();
    let first = loss.backward().unwrap();
    let second = loss.backward().unwrap();
    for var in [&x, &weight] {
        let (first, second) = (first.get(var).unwrap(), second.get(var).unwrap());
        assert_eq!(values(first), values(second));
    }
}

#[test]
fn max_pool_passes_nan_on() {
    let x =
        Tensor::new(&[1f32, f32::NAN, 3.0, 2.0], &Device::Cpu).and_then(|x| x.reshape((1, 1, 2, 2))).unwrap();
    let y = max_pool2d(&Activation::from_nchw(&x).unwrap(), 2, 2, 0).unwrap();
    assert!(values(&y.to_nchw().unwrap())[0].is_nan());
}
