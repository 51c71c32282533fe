//! Processes that hold parts of a batch, played by threads, get bit for bit what one
//! process gets that takes its sums in as many parts.

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

use std::sync::{Arc, Barrier, Mutex};

use candle_core::{Device, Tensor, Var};
use candle_train_ops::{
    Act, Activation, BatchSum, Conv2dSpec, RunningStats, batch_norm, conv2d, linear,
    observe_weight_gradients, set_batch_parts,
};

/// Numbers in [-1, 1] without a pattern.
fn numbers(shape: &[usize], seed: usize) -> Tensor {
    let number = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0;
    let count: usize = shape.iter().product();
    Tensor::from_vec((0..count).map(number).collect::<Vec<f32>>(), shape, &Device::Cpu).unwrap()
}

/// What a pass leaves behind.
struct Pass {
    logits: Vec<f32>,
    input_gradient: Vec<f32>,
    /// Of convolution and linear layer: a part each.
    in_parts: Vec<Vec<f32>>,
    /// Of scale and shift: whole.
    whole: Vec<Vec<f32>>,
    running: Vec<f32>,
    n_reported: usize,
}

/// Convolution, normalisation and linear layer over some images of the batch.
fn pass(first: usize, n: usize, sum: Option<BatchSum>) -> Pass {
    let var = |shape: &[usize], seed| Var::from_tensor(&numbers(shape, seed)).unwrap();
    let x = Var::from_tensor(&numbers(&[4, 16, 6, 6], 1).narrow(0, first, n).unwrap()).unwrap();
    let (conv, gamma, beta) = (var(&[32, 16, 3, 3], 2), var(&[32], 3), var(&[32], 4));
    let (weight, bias) = (var(&[3, 32], 5), var(&[3], 6));
    let stats = RunningStats::new(32);
    if let Some(sum) = sum {
        stats.join(sum);
    }
    let activation = Activation::from_nchw(&x).unwrap();
    let spec = Conv2dSpec { padding: 1, ..Conv2dSpec::default() };
    let y = conv2d(&activation, &conv, spec).unwrap();
    let y = batch_norm(&y, &gamma, &beta, &stats, None, Act::Relu, true).unwrap();
    let logits = linear(&y.global_avg_pool().unwrap(), &weight, &bias).unwrap();
    let upstream = numbers(&[4, 3], 7).narrow(0, first, n).unwrap();
    let loss = (&logits * upstream).unwrap().sum_all().unwrap();
    let n_reported = Arc::new(Mutex::new(0));
    let seen = Arc::clone(&n_reported);
    let observer = move |_: &Tensor, _: &Tensor| {
        *seen.lock().unwrap() += 1;
        Ok(())
    };
    let gradients = observe_weight_gradients(observer, || loss.backward()).unwrap();
    let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let gradient = |var: &Var| flat(gradients.get(var).unwrap());
    let n_reported = *n_reported.lock().unwrap();
    Pass {
        logits: flat(&logits),
        input_gradient: gradient(&x),
        in_parts: [&conv, &weight, &bias].map(gradient).to_vec(),
        whole: [&gamma, &beta].map(gradient).to_vec(),
        running: [stats.mean().unwrap(), stats.var().unwrap()].concat(),
        n_reported,
    }
}

/// A sum over two threads, in their order.
fn sums() -> [BatchSum; 2] {
    let slots = Arc::new([Mutex::new(Vec::new()), Mutex::new(Vec::new())]);
    let barrier = Arc::new(Barrier::new(2));
    [0, 1].map(|rank| {
        let (slots, barrier) = (Arc::clone(&slots), Arc::clone(&barrier));
        BatchSum::new(move |numbers| {
            *slots[rank].lock().unwrap() = numbers.to_vec();
            barrier.wait();
            numbers.fill(0.0);
            for slot in slots.iter() {
                for (sum, number) in numbers.iter_mut().zip(slot.lock().unwrap().iter()) {
                    *sum += number;
                }
            }
            barrier.wait();
            Ok(())
        })
    })
}

#[test]
fn two_processes_get_the_bits_of_one_in_two_parts() {
    set_batch_parts(2);
    let whole = pass(0, 4, None);
    set_batch_parts(1);
    let [a, b] = sums();
    let other = std::thread::spawn(move || pass(2, 2, Some(b)));
    let halves = [pass(0, 2, Some(a)), other.join().unwrap()];
    let joined = |of: fn(&Pass) -> &Vec<f32>| [of(&halves[0]).clone(), of(&halves[1]).clone()].concat();
    assert_eq!(joined(|pass| &pass.logits), whole.logits);
    assert_eq!(joined(|pass| &pass.input_gradient), whole.input_gradient);
    for (i, want) in whole.in_parts.iter().enumerate() {
        let [a, b] = [&halves[0].in_parts[i], &halves[1].in_parts[i]];
        let sum: Vec<f32> = a.iter().zip(b).map(|(a, b)| a + b).collect();
        assert_eq!(&sum, want, "gradient {i}");
    }
    for half in &halves {
        assert_eq!(half.whole, whole.whole);
        assert_eq!(half.running, whole.running);
        // The convolution's: the linear layer is not reported.
        assert_eq!(half.n_reported, 1);
    }
    // Without parts the order of the sums differs, and nothing else.
    let close = pass(0, 4, None);
    for (got, want) in close.input_gradient.iter().zip(&whole.input_gradient) {
        assert!((got - want).abs() <= 1e-5 * want.abs().max(1e-2), "{got} instead of {want}");
    }
}
