//! Processes that hold parts of a batch, played by threads, get bit for bit what one
//! process gets that takes its sums in as many parts.

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

use std::sync::{Arc, Barrier, Mutex, PoisonError};

use candle_core::{Device, Tensor, Var};
use candle_train_ops::{
    Act, Activation, BatchSum, Conv2dSpec, RunningStats, batch_norm, conv2d, linear, set_batch_parts,
    take_weight_gradients,
};

/// In how many parts a batch is taken belongs to the process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

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
    n_offered: usize,
}

/// Convolution, normalisation and linear layer over some images of the batch.
fn pass(device: &Device, first: usize, n: usize, sum: Option<BatchSum>) -> Pass {
    let var_on = |device: &Device, numbers: &Tensor| {
        Var::from_tensor(&numbers.contiguous().unwrap().to_device(device).unwrap()).unwrap()
    };
    let x = var_on(device, &numbers(&[4, 16, 6, 6], 1).narrow(0, first, n).unwrap());
    let var = |shape: &[usize], seed| var_on(device, &numbers(shape, seed));
    let (conv, gamma, beta) = (var(&[32, 16, 3, 3], 2), var(&[32], 3), var(&[32], 4));
    // Linear layers stay on the CPU, as in a network.
    let (weight, bias) =
        (var_on(&Device::Cpu, &numbers(&[3, 32], 5)), var_on(&Device::Cpu, &numbers(&[3], 6)));
    let stats = RunningStats::new(32);
    if let Some(sum) = sum {
        stats.join(sum);
    }
    let activation = Activation::from_nchw(&x).unwrap();
    let spec = Conv2dSpec { padding: 1, ..Conv2dSpec::default() };
    let y = conv2d(&activation, &conv, spec).unwrap();
    let y = batch_norm(&y, &gamma, &beta, &stats, None, Act::Relu, true).unwrap();
    let pooled = y.global_avg_pool().unwrap().to_device(&Device::Cpu).unwrap();
    let logits = linear(&pooled, &weight, &bias).unwrap();
    let upstream = numbers(&[4, 3], 7).narrow(0, first, n).unwrap();
    let loss = (&logits * upstream).unwrap().sum_all().unwrap();
    let n_offered = Arc::new(Mutex::new(0));
    let seen = Arc::clone(&n_offered);
    let taker = move |_: &Tensor, gradient: Tensor| {
        *seen.lock().unwrap() += 1;
        Ok(Some(gradient))
    };
    let gradients = take_weight_gradients(taker, || loss.backward()).unwrap();
    let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let gradient = |var: &Var| flat(gradients.get(var).unwrap());
    let n_offered = *n_offered.lock().unwrap();
    Pass {
        logits: flat(&logits),
        input_gradient: gradient(&x),
        in_parts: [&conv, &weight, &bias].map(gradient).to_vec(),
        whole: [&gamma, &beta].map(gradient).to_vec(),
        running: [stats.mean().unwrap(), stats.var().unwrap()].concat(),
        n_offered,
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
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    set_batch_parts(2);
    let whole = pass(&Device::Cpu, 0, 4, None);
    set_batch_parts(1);
    let [a, b] = sums();
    let other = std::thread::spawn(move || pass(&Device::Cpu, 2, 2, Some(b)));
    let halves = [pass(&Device::Cpu, 0, 2, Some(a)), other.join().unwrap()];
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
        // The convolution's: the linear layer is not offered.
        assert_eq!(half.n_offered, 1);
    }
    // Without parts the order of the sums differs, and nothing else.
    let close = pass(&Device::Cpu, 0, 4, None);
    for (got, want) in close.input_gradient.iter().zip(&whole.input_gradient) {
        assert!((got - want).abs() <= 1e-5 * want.abs().max(1e-2), "{got} instead of {want}");
    }
}

#[test]
fn an_empty_part_keeps_its_place_among_the_pairs() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // The weight's gradient of some rows of three.
    let gradient = |rows: std::ops::Range<usize>| -> Vec<f32> {
        let weight = Var::from_tensor(&numbers(&[5, 7], 1)).unwrap();
        let of = |shape: &[usize], seed| numbers(shape, seed).narrow(0, rows.start, rows.len()).unwrap();
        let y = linear(&of(&[3, 7], 2), &weight, &numbers(&[5], 3)).unwrap();
        let loss = (y * of(&[3, 5], 4)).unwrap().sum_all().unwrap();
        loss.backward().unwrap().get(&weight).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let [a, b, c] = [0..1, 1..2, 2..3].map(gradient);
    // Of four processes the first has no row: (nothing + a) + (b + c).
    let want: Vec<f32> = a.iter().zip(&b).zip(&c).map(|((a, b), c)| a + (b + c)).collect();
    let in_turn: Vec<f32> = a.iter().zip(&b).zip(&c).map(|((a, b), c)| (a + b) + c).collect();
    assert_ne!(want, in_turn, "these numbers do not tell one order from another");
    set_batch_parts(4);
    let got = gradient(0..3);
    set_batch_parts(1);
    assert_eq!(got, want);
}

#[test]
fn a_process_that_is_left_out_counts_nothing() {
    let [a, b] = sums();
    b.leave_out(true);
    // A number that would spoil every sum.
    let other = std::thread::spawn(move || b.add_up(&mut [f64::NAN]).unwrap());
    let mut numbers = [2.0];
    a.add_up(&mut numbers).unwrap();
    other.join().unwrap();
    assert_eq!(numbers, [2.0]);
}

#[cfg(feature = "cuda")]
mod gpu {
    use candle_train_ops::cuda;

    use super::*;

    /// So many GPUs; prints that the test skips where there are fewer.
    #[expect(clippy::print_stderr, reason = "a test that skips says so")]
    fn gpus(n: usize) -> Option<Vec<Device>> {
        match (0..n).map(cuda::device).collect() {
            Ok(devices) => Some(devices),
            Err(err) => {
                assert!(
                    std::env::var_os("COVID19_DIAG_REQUIRE_GPU").is_none(),
                    "{n} GPUs must be here: {err}"
                );
                eprintln!("SKIPPED: NOTHING WAS ADDED UP ON GPUS, {n} wanted: {err}");
                None
            }
        }
    }

    #[track_caller]
    fn check_close(got: &[f32], want: &[f32], what: &str) {
        let largest = want.iter().fold(1.0f32, |largest, x| largest.max(x.abs()));
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            // Not "greater": a NaN is wrong too.
            let close = (got - want).abs() <= 1e-4 * largest;
            assert!(close, "{what}: {got} instead of {want}");
        }
    }

    /// Two halves of a batch together against the whole on the CPU.
    #[track_caller]
    fn check_halves(halves: &[Pass; 2]) {
        let whole = pass(&Device::Cpu, 0, 4, None);
        let joined = |of: fn(&Pass) -> &Vec<f32>| [of(&halves[0]).clone(), of(&halves[1]).clone()].concat();
        check_close(&joined(|pass| &pass.logits), &whole.logits, "logits");
        check_close(&joined(|pass| &pass.input_gradient), &whole.input_gradient, "gradient of the images");
        for (i, want) in whole.in_parts.iter().enumerate() {
            let [a, b] = [&halves[0].in_parts[i], &halves[1].in_parts[i]];
            let sum: Vec<f32> = a.iter().zip(b).map(|(a, b)| a + b).collect();
            check_close(&sum, want, &format!("gradient {i}"));
        }
        for half in halves {
            for (got, want) in half.whole.iter().zip(&whole.whole) {
                check_close(got, want, "gradient of scale or shift");
            }
            check_close(&half.running, &whole.running, "running statistics");
            assert_eq!(half.n_offered, 1);
        }
        assert_eq!(halves[0].running, halves[1].running);
    }

    #[test]
    fn halves_of_a_batch_are_normalised_as_one() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(devices) = gpus(1) else { return };
        let [a, b] = sums();
        let device = devices[0].clone();
        let other = std::thread::spawn(move || pass(&device, 2, 2, Some(b)));
        check_halves(&[pass(&devices[0], 0, 2, Some(a)), other.join().unwrap()]);
    }

    #[cfg(feature = "nccl")]
    mod nccl {
        use candle_train_ops::cuda::{Nccl, NcclId};

        use super::*;

        fn meet(device: &Device, id: &NcclId, rank: usize, n_ranks: usize) -> Arc<Nccl> {
            Arc::new(Nccl::meet(device, id, rank, n_ranks).unwrap())
        }

        /// What must not be asked: everything lies on a GPU.
        fn by_nccl(nccl: &Arc<Nccl>) -> BatchSum {
            let host = |_: &mut [f64]| -> candle_core::Result<()> { panic!("the host was asked for a sum") };
            BatchSum::with_nccl(host, Arc::clone(nccl))
        }

        /// The sums of `[rank + 1, 2 (rank + 1), ...]` over all.
        fn sums_of_gradients(nccl: &Nccl, device: &Device, rank: usize) -> Vec<Vec<f32>> {
            let of = |len: usize| {
                let numbers: Vec<f32> = (1..=len).map(|i| (i * (rank + 1)) as f32).collect();
                Tensor::from_vec(numbers, len, device).unwrap()
            };
            let gradients = [of(3), of(1 << 18), of(1)];
            nccl.start(&gradients[..2]).unwrap();
            nccl.start(&gradients[2..]).unwrap();
            nccl.finish().unwrap();
            gradients.iter().map(|gradient| gradient.to_vec1().unwrap()).collect()
        }

        #[test]
        fn a_single_rank_gets_what_it_gives() {
            let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(devices) = gpus(1) else { return };
            let device = &devices[0];
            let nccl = meet(device, &Nccl::new_id().unwrap(), 0, 1);
            let own = |len: usize| (1..=len).map(|i| i as f32).collect::<Vec<_>>();
            assert_eq!(sums_of_gradients(&nccl, device, 0), [own(3), own(1 << 18), own(1)]);
            // Bits are compared: convolutions must not differ from call to call.
            cuda::set_deterministic(true);
            let [got, want] =
                [by_nccl(&nccl), BatchSum::new(|_| Ok(()))].map(|sum| pass(device, 0, 4, Some(sum)));
            cuda::set_deterministic(false);
            assert_eq!(got.input_gradient, want.input_gradient);
            assert_eq!(got.whole, want.whole);
            assert_eq!(got.running, want.running);
            // Left out, it counts nothing: no values, so no mean.
            let sum = by_nccl(&nccl);
            sum.leave_out(true);
            assert!(pass(device, 0, 4, Some(sum)).logits.iter().all(|logit| logit.is_nan()));
        }

        #[test]
        fn two_gpus_add_up() {
            let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(devices) = gpus(2) else { return };
            let id = Nccl::new_id().unwrap();
            let of_rank = move |rank: usize| {
                let device = devices[rank].clone();
                std::thread::spawn(move || {
                    let nccl = meet(&device, &id, rank, 2);
                    let sums = sums_of_gradients(&nccl, &device, rank);
                    (sums, pass(&device, 2 * rank, 2, Some(by_nccl(&nccl))))
                })
            };
            let [a, b] = [of_rank(0), of_rank(1)].map(|rank| rank.join().unwrap());
            let want = |len: usize| (1..=len).map(|i| 3.0 * i as f32).collect::<Vec<_>>();
            assert_eq!(a.0, [want(3), want(1 << 18), want(1)]);
            assert_eq!(b.0, a.0);
            check_halves(&[a.1, b.1]);
        }
    }
}
