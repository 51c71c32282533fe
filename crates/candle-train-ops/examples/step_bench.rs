//! Times training steps of ResNet-18 (16 x 1 x 224 x 224, f32, AdamW) built from the
//! operations of this crate; `bench/step_torch.py` does the same in PyTorch.
//!
//! `cargo run --release --example step_bench -- [threads] [steps]` prints one line:
//! the fastest wall and CPU time of a step and of its parts, in milliseconds.
#![expect(clippy::print_stdout, reason = "the measurement is the result")]

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_train_ops::{
    Act, Activation, Conv2dSpec, RunningStats, batch_norm, conv2d, linear, max_pool2d,
    optim::{AdamW, AdamWParams},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const BATCH: usize = 16;
const SIZE: usize = 224;
const CLASSES: usize = 3;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<usize>());
    let mut number = |default| args.next().and_then(|arg| arg.ok()).unwrap_or(default);
    let (n_threads, n_steps) = (number(1), number(5));
    let pool =
        rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().map_err(candle_core::Error::wrap)?;
    pool.install(|| measure(n_threads, n_steps))
}

fn measure(n_threads: usize, n_steps: usize) -> Result<()> {
    let mut params = Params::new();
    let net = ResNet18::new(&mut params)?;
    let image_nchw = params.rng_tensor(&[BATCH, 1, SIZE, SIZE], 1.0)?;
    let mut optimiser = AdamW::new(params.named, AdamWParams::default())?;
    let labels: Vec<u32> = (0..BATCH).map(|i| (i % CLASSES) as u32).collect();
    let label_n = Tensor::from_vec(labels, BATCH, &Device::Cpu)?;

    let mut best = [f64::INFINITY; 5];
    let mut last_loss = 0.0;
    for _ in 0..n_steps {
        let (start, cpu) = (Instant::now(), cpu_ms());
        let loss = cross_entropy(&net.forward(&image_nchw)?, &label_n)?;
        let forward = start.elapsed().as_secs_f64() * 1e3;
        let grads = loss.backward()?;
        let backward = start.elapsed().as_secs_f64() * 1e3 - forward;
        optimiser.step(&grads, 1e-4)?;
        last_loss = loss.to_scalar::<f32>()?;
        drop((loss, grads));
        let wall = start.elapsed().as_secs_f64() * 1e3;
        let times = [wall, cpu_ms() - cpu, forward, backward, wall - forward - backward];
        for (best, time) in best.iter_mut().zip(times) {
            *best = best.min(time);
        }
    }
    let [wall, cpu, forward, backward, update] = best;
    println!(
        "candle-train-ops threads {n_threads}: wall {wall:.0} ms, cpu {cpu:.0} ms \
         (forward {forward:.0}, backward {backward:.0}, update {update:.0}), peak {:.0} MiB, \
         loss {last_loss:.4}",
        peak_mib()
    );
    Ok(())
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

/// Variables in the order of their making, drawn from one seeded stream.
struct Params {
    named: Vec<(String, Var)>,
    rng: ChaCha8Rng,
}

impl Params {
    fn new() -> Self {
        Self { named: Vec::new(), rng: ChaCha8Rng::seed_from_u64(0) }
    }

    fn rng_tensor(&mut self, shape: &[usize], bound: f32) -> Result<Tensor> {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| self.rng.random_range(-bound..bound)).collect();
        Tensor::from_vec(values, shape, &Device::Cpu)
    }

    fn add(&mut self, tensor: &Tensor) -> Result<Tensor> {
        let var = Var::from_tensor(tensor)?;
        let tensor = var.as_tensor().clone();
        self.named.push((format!("v{}", self.named.len()), var));
        Ok(tensor)
    }

    fn random(&mut self, shape: &[usize]) -> Result<Tensor> {
        let fan_in: usize = shape[1..].iter().product();
        let tensor = self.rng_tensor(shape, (6.0 / fan_in as f32).sqrt())?;
        self.add(&tensor)
    }
}

/// Convolution and batch normalisation.
struct ConvNorm {
    weight_oihw: Tensor,
    gamma_c: Tensor,
    beta_c: Tensor,
    stats: RunningStats,
    spec: Conv2dSpec,
}

impl ConvNorm {
    fn new(params: &mut Params, shape: [usize; 3], stride: usize) -> Result<Self> {
        let [out_channels, in_channels, kernel] = shape;
        Ok(Self {
            weight_oihw: params.random(&[out_channels, in_channels, kernel, kernel])?,
            gamma_c: params.add(&Tensor::ones(out_channels, DType::F32, &Device::Cpu)?)?,
            beta_c: params.add(&Tensor::zeros(out_channels, DType::F32, &Device::Cpu)?)?,
            stats: RunningStats::new(out_channels),
            spec: Conv2dSpec { stride, padding: kernel / 2, groups: 1 },
        })
    }

    fn forward(&self, x: &Activation, residual: Option<&Activation>, act: Act) -> Result<Activation> {
        let y = conv2d(x, &self.weight_oihw, self.spec)?;
        batch_norm(&y, &self.gamma_c, &self.beta_c, &self.stats, residual, act, true)
    }
}

struct Block {
    first: ConvNorm,
    second: ConvNorm,
    shortcut: Option<ConvNorm>,
}

impl Block {
    fn forward(&self, x: &Activation) -> Result<Activation> {
        let y = self.first.forward(x, None, Act::Relu)?;
        let shortcut = match &self.shortcut {
            Some(shortcut) => shortcut.forward(x, None, Act::Identity)?,
            None => x.clone(),
        };
        self.second.forward(&y, Some(&shortcut), Act::Relu)
    }
}

struct ResNet18 {
    stem: ConvNorm,
    blocks: Vec<Block>,
    weight_oc: Tensor,
    bias_o: Tensor,
}

impl ResNet18 {
    fn new(params: &mut Params) -> Result<Self> {
        let stem = ConvNorm::new(params, [64, 1, 7], 2)?;
        let mut blocks = Vec::new();
        let mut channels = 64;
        for (width, stride) in [(64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)]
        {
            blocks.push(Block {
                first: ConvNorm::new(params, [width, channels, 3], stride)?,
                second: ConvNorm::new(params, [width, width, 3], 1)?,
                shortcut: if stride == 1 {
                    None
                } else {
                    Some(ConvNorm::new(params, [width, channels, 1], stride)?)
                },
            });
            channels = width;
        }
        Ok(Self {
            stem,
            blocks,
            weight_oc: params.random(&[CLASSES, channels])?,
            bias_o: params.add(&Tensor::zeros(CLASSES, DType::F32, &Device::Cpu)?)?,
        })
    }

    fn forward(&self, image_nchw: &Tensor) -> Result<Tensor> {
        let x = Activation::from_nchw(image_nchw)?;
        let x = self.stem.forward(&x, None, Act::Relu)?;
        let mut x = max_pool2d(&x, 3, 2, 1)?;
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        linear(&x.global_avg_pool()?, &self.weight_oc, &self.bias_o)
    }
}

/// Mean of `-log softmax(logit)[label]`.
fn cross_entropy(logit_nk: &Tensor, label_n: &Tensor) -> Result<Tensor> {
    let largest = logit_nk.max_keepdim(1)?.detach();
    let shifted = logit_nk.broadcast_sub(&largest)?;
    let log_sum = shifted.exp()?.sum_keepdim(1)?.log()?;
    let log_probability = shifted.broadcast_sub(&log_sum)?;
    log_probability.gather(&label_n.unsqueeze(1)?, 1)?.mean_all()?.neg()
}
