//! Named weights, drawn from a seed.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_train_ops::{Act, Activation, Conv2dSpec, FoldedConv2d, RunningStats, batch_norm, conv2d, linear};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// All weights and running statistics of a network, in the order of its layers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parameters {
    pub vars: Vec<(String, Var)>,
    pub stats: Vec<(String, RunningStats)>,
}

/// Makes layers and keeps their weights.
///
/// A weight depends on the seed and its own name only, so that networks with and
/// without side heads start from the same backbone.
pub(crate) struct Builder {
    pub parameters: Parameters,
    seed: u64,
    dtype: DType,
}

impl Builder {
    pub fn new(seed: u64, dtype: DType) -> Self {
        Self { parameters: Parameters::default(), seed, dtype }
    }

    /// Convolution without bias, `NAME.weight`: He et al. 2015, fan-out, as torchvision.
    fn conv(&mut self, name: &str, io: (usize, usize), kernel: usize, stride: usize) -> Result<Conv> {
        let (inputs, outputs) = io;
        let deviation = (2.0 / (outputs * kernel * kernel) as f64).sqrt();
        let weight = self.draw(format!("{name}.weight"), &[outputs, inputs, kernel, kernel], |rng| {
            normal(rng) * deviation
        })?;
        Ok(Conv { weight, spec: Conv2dSpec { stride, padding: kernel / 2, groups: 1 } })
    }

    /// Batch normalisation: weight 1, bias 0, as torchvision.
    fn norm(&mut self, name: &str, channels: usize) -> Result<Norm> {
        let gamma = self.draw(format!("{name}.weight"), &[channels], |_| 1.0)?;
        let beta = self.draw(format!("{name}.bias"), &[channels], |_| 0.0)?;
        let stats = RunningStats::new(channels);
        self.parameters.stats.push((name.to_owned(), stats.clone()));
        Ok(Norm { gamma, beta, stats })
    }

    /// Convolution `CONV.weight` followed by batch normalisation `NORM.weight`, `NORM.bias`.
    pub fn conv_norm(
        &mut self,
        (conv, norm): (&str, &str),
        io: (usize, usize),
        kernel: usize,
        stride: usize,
    ) -> Result<ConvNorm> {
        let conv = self.conv(conv, io, kernel, stride)?;
        Ok(ConvNorm { conv, norm: self.norm(norm, io.1)?, folded: None })
    }

    /// Linear layer: uniform in ±1/√inputs, as PyTorch.
    pub fn linear(&mut self, name: &str, inputs: usize, outputs: usize) -> Result<Linear> {
        let bound = 1.0 / (inputs as f64).sqrt();
        let uniform = |rng: &mut ChaCha8Rng| rng.random_range(-bound..bound);
        let weight = self.draw(format!("{name}.weight"), &[outputs, inputs], uniform)?;
        let bias = self.draw(format!("{name}.bias"), &[outputs], uniform)?;
        Ok(Linear { weight, bias })
    }

    /// A tensor whose every number is `value`.
    pub fn constant(&mut self, name: &str, shape: &[usize], value: f64) -> Result<Tensor> {
        self.draw(name.to_owned(), shape, |_| value)
    }

    fn draw(
        &mut self,
        name: String,
        shape: &[usize],
        mut value: impl FnMut(&mut ChaCha8Rng) -> f64,
    ) -> Result<Tensor> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(name_hash(&name));
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| value(&mut rng)).collect();
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(self.dtype)?;
        let var = Var::from_tensor(&tensor)?;
        let weight = var.as_tensor().clone();
        self.parameters.vars.push((name, var));
        Ok(weight)
    }
}

#[derive(Clone)]
struct Conv {
    weight: Tensor,
    spec: Conv2dSpec,
}

#[derive(Clone)]
struct Norm {
    gamma: Tensor,
    beta: Tensor,
    stats: RunningStats,
}

/// Convolution and batch normalisation.
pub(crate) struct ConvNorm {
    conv: Conv,
    norm: Norm,
    /// Both in one, for inference.
    folded: Option<FoldedConv2d>,
}

impl ConvNorm {
    /// A copy for inference: folded at the present weights, without a graph.
    pub fn folded(&self) -> Result<Self> {
        let (Conv { weight, spec }, Norm { gamma, beta, stats }) = (&self.conv, &self.norm);
        let folded = FoldedConv2d::new(weight, gamma, beta, stats, *spec)?;
        Ok(Self { conv: self.conv.clone(), norm: self.norm.clone(), folded: Some(folded) })
    }

    /// Convolves, normalises, adds the residual if there is one, and applies `act`.
    pub fn forward(
        &self,
        x: &Activation,
        residual: Option<&Activation>,
        act: Act,
        train: bool,
    ) -> Result<Activation> {
        if let Some(folded) = &self.folded {
            return folded.forward(x, residual, act);
        }
        let x = conv2d(x, &self.conv.weight, self.conv.spec)?;
        let Norm { gamma, beta, stats } = &self.norm;
        batch_norm(&x, gamma, beta, stats, residual, act, train)
    }
}

pub(crate) struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// A copy without a graph.
    pub fn detached(&self) -> Self {
        Self { weight: self.weight.detach(), bias: self.bias.detach() }
    }

    pub fn forward(&self, x_nc: &Tensor) -> Result<Tensor> {
        linear(x_nc, &self.weight, &self.bias)
    }
}

/// FNV-1a, 64 bits: fixed by its definition, unlike the standard library's hasher.
fn name_hash(name: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

/// One number of the standard normal distribution (Box and Muller 1958).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}
