//! Times ResNet-18 (1 x 224 x 224, f32) built from the operations of this crate;
//! `bench/step_torch.py` and `bench/infer_onnx.py` do the same elsewhere.
//!
//! `cargo run --release --example step_bench -- MODE [threads] [steps] [batch]`
//! prints one line: the fastest wall and CPU time of a step, in milliseconds, and the
//! highest memory of the process. MODE is `train`, `infer`, one of them with `-bf16`, or
//! `gemm`: the product of two 1024 x 1024 matrices, what this machine can do at best.
#![expect(clippy::print_stdout, reason = "the measurement is the result")]

use std::time::Instant;

use candle_core::{Device, Result, Tensor};
use candle_train_ops::{
    bf16_available,
    optim::{AdamW, AdamWParams},
    set_bf16,
};

use resnet18::{CLASSES, Params, ResNet18, cross_entropy};

#[path = "support/resnet18.rs"]
mod resnet18;

const SIZE: usize = 224;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mode = args.next().unwrap_or_else(|| "train".to_owned());
    let mut numbers = args.map(|arg| arg.parse::<usize>());
    let mut number = |default| numbers.next().and_then(|number| number.ok()).unwrap_or(default);
    let (n_threads, n_steps, batch) = (number(1), number(5), number(16));
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().map_err(candle_core::Error::wrap)?;
    let (work, bf16) = match mode.strip_suffix("-bf16") {
        Some(work) => (work, true),
        None => (mode.as_str(), false),
    };
    if bf16 && !bf16_available() {
        candle_core::bail!("this processor does not multiply bf16");
    }
    set_bf16(bf16);
    let [wall, cpu] = pool.install(|| match work {
        "train" => train(n_steps, batch),
        "infer" => infer(n_steps, batch),
        "gemm" => gemm(n_steps),
        other => candle_core::bail!("unknown mode {other}"),
    })?;
    println!(
        "candle-train-ops {mode} batch {batch} threads {n_threads}: wall {wall:.1} ms, cpu {cpu:.1} ms, \
         peak {:.0} MiB",
        peak_mib()
    );
    Ok(())
}

/// The fastest wall and CPU time of a training step.
fn train(n_steps: usize, batch: usize) -> Result<[f64; 2]> {
    let mut params = Params::new();
    let net = ResNet18::new(&mut params)?;
    let image_nchw = params.rng_tensor(&[batch, 1, SIZE, SIZE], 1.0)?;
    let mut optimiser = AdamW::new(params.named, AdamWParams::default())?;
    let labels: Vec<u32> = (0..batch).map(|i| (i % CLASSES) as u32).collect();
    let label_n = Tensor::from_vec(labels, batch, &Device::Cpu)?;
    fastest(n_steps, || {
        let loss = cross_entropy(&net.forward(&image_nchw)?, &label_n)?;
        optimiser.step(&loss.backward()?, 1e-4)
    })
}

/// The fastest wall and CPU time of a pass with folded normalisation.
fn infer(n_steps: usize, batch: usize) -> Result<[f64; 2]> {
    let mut params = Params::new();
    let mut net = ResNet18::new(&mut params)?;
    net.fold()?;
    let image_nchw = params.rng_tensor(&[batch, 1, SIZE, SIZE], 1.0)?;
    fastest(n_steps, || net.forward(&image_nchw).map(drop))
}

/// The fastest wall and CPU time of a product of matrices.
fn gemm(n_steps: usize) -> Result<[f64; 2]> {
    let matrix = Params::new().rng_tensor(&[1024, 1024], 1.0)?;
    fastest(n_steps, || matrix.matmul(&matrix).map(drop))
}

fn fastest(n_steps: usize, mut step: impl FnMut() -> Result<()>) -> Result<[f64; 2]> {
    let mut best = [f64::INFINITY; 2];
    for _ in 0..n_steps {
        let (start, cpu) = (Instant::now(), cpu_ms());
        step()?;
        let times = [start.elapsed().as_secs_f64() * 1e3, cpu_ms() - cpu];
        for (best, time) in best.iter_mut().zip(times) {
            *best = best.min(time);
        }
    }
    Ok(best)
}

/// Time on a CPU of all threads so far, from the scheduler's account.
fn cpu_ms() -> f64 {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return f64::NAN;
    };
    let on_cpu_ns = tasks.flatten().filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    });
    on_cpu_ns.sum::<f64>() / 1e6
}

fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.and_then(|peak| peak.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}
