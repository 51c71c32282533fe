//! What must not drift: the memory of a long run, and the bits of a whole training
//! step on any number of threads.

use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Result, Tensor};
use candle_train_ops::{
    backward,
    optim::{AdamW, AdamWParams},
};

use resnet18::{CLASSES, Params, ResNet18, cross_entropy};

#[path = "../examples/support/resnet18.rs"]
#[expect(dead_code, reason = "only training is tested here")]
mod resnet18;

/// Memory is that of the process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Trains for some steps and returns all weights; `after` sees every step's number.
fn train(size: usize, n_steps: usize, mut after: impl FnMut(usize)) -> Result<Vec<Vec<f32>>> {
    const BATCH: usize = 4;
    let mut params = Params::new(&Device::Cpu);
    let net = ResNet18::new(&mut params)?;
    let image_nchw = params.rng_tensor(&[BATCH, 1, size, size], 1.0)?;
    let vars = params.named;
    let mut optimiser = AdamW::new(vars.clone(), AdamWParams::default())?;
    let labels: Vec<u32> = (0..BATCH).map(|i| (i % CLASSES) as u32).collect();
    let label_n = Tensor::from_vec(labels, BATCH, &Device::Cpu)?;
    for step in 1..=n_steps {
        let loss = cross_entropy(&net.forward(&image_nchw)?, &label_n)?;
        optimiser.step(&backward(&loss)?, 1e-4)?;
        after(step);
    }
    vars.iter().map(|(_, var)| var.flatten_all()?.to_vec1()).collect()
}

#[test]
fn whole_steps_have_the_same_bits_on_any_number_of_threads() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let on_threads = |n_threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        pool.install(|| train(64, 3, |_| ())).unwrap()
    };
    let one = on_threads(1);
    for n_threads in [2, 8] {
        assert!(one == on_threads(n_threads), "{n_threads} threads");
    }
}

/// Memory in use, in KiB; Linux alone tells.
fn resident_kib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Steps over which memory is watched at the beginning and at the end: from step to step it goes up
/// and down by 5 percent, as the allocator gives one buffer back or keeps it.
const WATCHED: usize = 20;

/// The most memory within the last steps against that within the first, within 5 percent.
#[track_caller]
#[expect(clippy::print_stderr, reason = "a check that is left out says so")]
fn check_memory(n_steps: usize) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut resident = vec![];
    train(32, n_steps, |_| resident.push(resident_kib())).unwrap();
    let most = |steps: &[Option<f64>]| steps.iter().flatten().copied().reduce(f64::max);
    match (most(&resident[..WATCHED]), most(&resident[n_steps - WATCHED..])) {
        (Some(early), Some(late)) => {
            assert!(late <= 1.05 * early, "{early} KiB within {WATCHED} steps, {late} at {n_steps}");
        }
        _ => eprintln!("SKIPPED: this system does not tell a process its memory"),
    }
}

#[test]
fn memory_does_not_grow() {
    check_memory(60);
}

#[test]
#[ignore = "takes minutes: cargo test --release -p candle-train-ops --test steadiness -- --ignored"]
fn memory_after_1000_steps_is_that_of_the_first() {
    check_memory(1000);
}
