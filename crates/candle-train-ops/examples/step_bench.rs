//! Times ResNet-18 (1 x 224 x 224, f32) built from the operations of this crate;
//! `bench/step_torch.py` and `bench/infer_onnx.py` do the same elsewhere.
//!
//! `cargo run --release --example step_bench -- MODE [threads] [steps] [batch]`
//! prints one line: the fastest wall and CPU time of a step, in milliseconds, and the
//! highest memory of the process. MODE is `train`, `infer`, one of them with `-bf16`, or
//! `gemm`: the product of two 1024 x 1024 matrices, what this machine can do at best.
//!
//! With `-cuda` behind `train` or `infer` (feature `cuda`) the first GPU does it; a "step"
//! is then the median over groups of ten, and the share of the convolutions is printed too.
#![expect(clippy::print_stdout, reason = "the measurement is the result")]

use std::time::Instant;

use candle_core::{Device, Result, Tensor};
use candle_train_ops::{
    backward, bf16_available,
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
    let (rest, bf16) = without(&mode, "-bf16");
    let (work, on_gpu) = without(rest, "-cuda");
    if bf16 && !on_gpu && !bf16_available() {
        candle_core::bail!("this processor does not multiply bf16");
    }
    set_bf16(bf16);
    let device = if on_gpu { gpu()? } else { Device::Cpu };
    let measured = pool.install(|| match work {
        "train" => train(&device, n_steps, batch),
        "infer" => infer(&device, n_steps, batch),
        "gemm" => gemm(n_steps),
        other => candle_core::bail!("unknown mode {other}"),
    })?;
    println!(
        "candle-train-ops {mode} batch {batch} threads {n_threads}: {measured}, peak {:.0} MiB",
        peak_mib()
    );
    Ok(())
}

fn without<'a>(mode: &'a str, part: &str) -> (&'a str, bool) {
    mode.strip_suffix(part).map_or((mode, false), |rest| (rest, true))
}

#[cfg(feature = "cuda")]
fn gpu() -> Result<Device> {
    candle_train_ops::cuda::device(0)
}

#[cfg(not(feature = "cuda"))]
fn gpu() -> Result<Device> {
    candle_core::bail!("built without the feature cuda")
}

/// The time of a training step.
fn train(device: &Device, n_steps: usize, batch: usize) -> Result<String> {
    let mut params = Params::new(device);
    let net = ResNet18::new(&mut params)?;
    let image_nchw = params.rng_tensor(&[batch, 1, SIZE, SIZE], 1.0)?;
    let mut optimiser = AdamW::new(params.named, AdamWParams::default())?;
    let labels: Vec<u32> = (0..batch).map(|i| (i % CLASSES) as u32).collect();
    let label_n = Tensor::from_vec(labels, batch, device)?;
    measured(device, n_steps, || {
        let loss = cross_entropy(&net.forward(&image_nchw)?, &label_n)?;
        optimiser.step(&backward(&loss)?, 1e-4)
    })
}

/// The time of a pass with folded normalisation.
fn infer(device: &Device, n_steps: usize, batch: usize) -> Result<String> {
    let mut params = Params::new(device);
    let mut net = ResNet18::new(&mut params)?;
    net.fold()?;
    let image_nchw = params.rng_tensor(&[batch, 1, SIZE, SIZE], 1.0)?;
    measured(device, n_steps, || net.forward(&image_nchw).map(drop))
}

/// The time of a product of matrices.
fn gemm(n_steps: usize) -> Result<String> {
    let matrix = Params::new(&Device::Cpu).rng_tensor(&[1024, 1024], 1.0)?;
    measured(&Device::Cpu, n_steps, || matrix.matmul(&matrix).map(drop))
}

fn measured(device: &Device, n_steps: usize, step: impl FnMut() -> Result<()>) -> Result<String> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => on_gpu(device, n_steps, step),
        _ => fastest(n_steps, step),
    }
}

/// The fastest wall and CPU time.
fn fastest(n_steps: usize, mut step: impl FnMut() -> Result<()>) -> Result<String> {
    let mut best = [f64::INFINITY; 2];
    for _ in 0..n_steps {
        let (start, cpu) = (Instant::now(), cpu_ms());
        step()?;
        let times = [start.elapsed().as_secs_f64() * 1e3, cpu_ms() - cpu];
        for (best, time) in best.iter_mut().zip(times) {
            *best = best.min(time);
        }
    }
    Ok(format!("wall {:.1} ms, cpu {:.1} ms", best[0], best[1]))
}

/// The median wall time over groups of ten steps, after five that are not counted; the
/// time that the processor needs to queue a step; the time of the convolutions alone.
#[cfg(feature = "cuda")]
fn on_gpu(device: &Device, n_groups: usize, mut step: impl FnMut() -> Result<()>) -> Result<String> {
    const GROUP: usize = 10;
    let convolutions = || candle_train_ops::cuda::convolution_ms(device);
    let mut group = || {
        let (start, before) = (Instant::now(), convolutions()?);
        for _ in 0..GROUP {
            step()?;
        }
        let queued = start.elapsed().as_secs_f64() * 1e3;
        device.synchronize()?;
        let wall = start.elapsed().as_secs_f64() * 1e3;
        Ok([wall, queued, convolutions()? - before].map(|ms| ms / GROUP as f64))
    };
    // Engines are timed once their shapes prove to be common.
    for _ in 0..5 {
        group()?;
    }
    let mut groups = (0..n_groups.max(1)).map(|_| group()).collect::<Result<Vec<_>>>()?;
    groups.sort_by(|a, b| a[0].total_cmp(&b[0]));
    let [wall, queued, convolutions] = groups[groups.len() / 2];
    Ok(format!("wall {wall:.3} ms, queued in {queued:.3} ms, convolutions alone {convolutions:.3} ms"))
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
