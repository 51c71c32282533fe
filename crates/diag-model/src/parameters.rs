//! Named weights, drawn from a seed.

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_train_ops::{
    Act, Activation, Conv2dSpec, FoldedConv2d, RunningStats, batch_norm, conv2d, linear, pad_end,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// All weights and running statistics of a network, in the order of its layers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parameters {
    pub vars: Vec<(String, Var)>,
    /// The part of the network that each variable belongs to, in the order of `vars`.
    pub parts: Vec<usize>,
    pub stats: Vec<(String, RunningStats)>,
    /// The part of the network that each normalisation belongs to, in the order of `stats`.
    pub stats_parts: Vec<usize>,
}

/// Makes layers and keeps their weights.
///
/// A weight depends on the seed and its own name only, so that networks with and
/// without side heads start from the same backbone.
pub(crate) struct Builder {
    pub parameters: Parameters,
    /// The part that is being built: 0 the stem, then the stages, then the heads.
    pub part: usize,
    /// What the next convolutions and normalisations are like.
    pub style: Style,
    seed: u64,
    dtype: DType,
    /// Where the layers of the backbone's activations are; what comes behind the means
    /// over the image is on the CPU.
    device: Device,
}

/// Conventions of the framework that a backbone was published in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Style {
    /// PyTorch: half a kernel of padding on every side; 1e-5 is added to variances.
    Torch,
    /// TensorFlow: ceil(size / stride) results, the odd padding pixel at the end; 1e-3.
    TensorFlow,
}

impl Builder {
    pub fn new(seed: u64, dtype: DType, device: &Device) -> Self {
        let device = device.clone();
        Self { parameters: Parameters::default(), part: 0, style: Style::Torch, seed, dtype, device }
    }

    /// Convolution without bias, `NAME.weight`: He et al. 2015, fan-out, as torchvision.
    pub fn conv(&mut self, name: &str, io: (usize, usize), kernel: usize, stride: usize) -> Result<Conv> {
        self.grouped_conv(name, io, kernel, stride, 1)
    }

    fn grouped_conv(
        &mut self,
        name: &str,
        (inputs, outputs): (usize, usize),
        kernel: usize,
        stride: usize,
        groups: usize,
    ) -> Result<Conv> {
        let deviation = (2.0 / (outputs / groups * kernel * kernel) as f64).sqrt();
        let shape = [outputs, inputs / groups, kernel, kernel];
        let weight =
            self.draw(format!("{name}.weight"), &shape, &self.device.clone(), |rng| normal(rng) * deviation)?;
        let spec = Conv2dSpec { stride, padding: kernel / 2, groups };
        Ok(Conv { weight, spec, style: self.style })
    }

    /// Batch normalisation: weight 1, bias 0, as torchvision.
    pub fn norm(&mut self, name: &str, channels: usize) -> Result<Norm> {
        let gamma = self.draw(format!("{name}.weight"), &[channels], &self.device.clone(), |_| 1.0)?;
        let beta = self.draw(format!("{name}.bias"), &[channels], &self.device.clone(), |_| 0.0)?;
        let stats = match self.style {
            Style::Torch => RunningStats::new(channels),
            Style::TensorFlow => RunningStats::with_epsilon(channels, 1e-3),
        };
        self.parameters.stats.push((name.to_owned(), stats.clone()));
        self.parameters.stats_parts.push(self.part);
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

    /// As [`conv_norm`](Self::conv_norm), each channel on its own.
    pub fn depthwise_norm(
        &mut self,
        (conv, norm): (&str, &str),
        channels: usize,
        kernel: usize,
        stride: usize,
    ) -> Result<ConvNorm> {
        let conv = self.grouped_conv(conv, (channels, channels), kernel, stride, channels)?;
        Ok(ConvNorm { conv, norm: self.norm(norm, channels)?, folded: None })
    }

    /// Linear layer, on the CPU: uniform in ±1/√inputs, as PyTorch.
    pub fn linear(&mut self, name: &str, inputs: usize, outputs: usize) -> Result<Linear> {
        let bound = 1.0 / (inputs as f64).sqrt();
        let uniform = |rng: &mut ChaCha8Rng| rng.random_range(-bound..bound);
        let weight = self.draw(format!("{name}.weight"), &[outputs, inputs], &Device::Cpu, uniform)?;
        let bias = self.draw(format!("{name}.bias"), &[outputs], &Device::Cpu, uniform)?;
        Ok(Linear { weight, bias })
    }

    /// A tensor on the CPU whose every number is `value`.
    pub fn constant(&mut self, name: &str, shape: &[usize], value: f64) -> Result<Tensor> {
        self.draw(name.to_owned(), shape, &Device::Cpu, |_| value)
    }

    fn draw(
        &mut self,
        name: String,
        shape: &[usize],
        device: &Device,
        mut value: impl FnMut(&mut ChaCha8Rng) -> f64,
    ) -> Result<Tensor> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(name_hash(&name));
        let values: Vec<f64> = (0..shape.iter().product()).map(|_| value(&mut rng)).collect();
        let tensor =
            Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(self.dtype)?.to_device(device)?;
        let var = Var::from_tensor(&tensor)?;
        let weight = var.as_tensor().clone();
        self.parameters.vars.push((name, var));
        self.parameters.parts.push(self.part);
        Ok(weight)
    }
}

/// Convolution without bias.
#[derive(Clone)]
pub(crate) struct Conv {
    weight: Tensor,
    spec: Conv2dSpec,
    style: Style,
}

impl Conv {
    pub fn forward(&self, x: &Activation) -> Result<Activation> {
        let (x, spec) = self.padded(x)?;
        conv2d(&x, &self.weight, spec)
    }

    /// A copy without a graph.
    pub fn detached(&self) -> Self {
        Self { weight: self.weight.detach(), ..self.clone() }
    }

    /// The image with the padding pixels that the convolution cannot add itself.
    fn padded(&self, x: &Activation) -> Result<(Activation, Conv2dSpec)> {
        if self.style == Style::Torch || self.spec.stride == 1 {
            return Ok((x.clone(), self.spec));
        }
        let (_, _, height, width) = x.dims();
        let (_, _, kernel, _) = self.weight.dims4()?;
        let stride = self.spec.stride;
        let total = |size: usize| ((size.div_ceil(stride) - 1) * stride + kernel).saturating_sub(size);
        // The same padding on both axes, and what one axis needs more at its end.
        let before = (total(height) / 2).min(total(width) / 2);
        let x = pad_end(x, total(height) - 2 * before, total(width) - 2 * before)?;
        Ok((x, Conv2dSpec { padding: before, ..self.spec }))
    }
}

/// Batch normalisation.
#[derive(Clone)]
pub(crate) struct Norm {
    gamma: Tensor,
    beta: Tensor,
    stats: RunningStats,
}

impl Norm {
    /// Normalises, adds the residual if there is one, and applies `act`, in one pass.
    pub fn forward(
        &self,
        x: &Activation,
        residual: Option<&Activation>,
        act: Act,
        train: bool,
    ) -> Result<Activation> {
        batch_norm(x, &self.gamma, &self.beta, &self.stats, residual, act, train)
    }

    /// A copy without a graph.
    pub fn detached(&self) -> Self {
        Self { gamma: self.gamma.detach(), beta: self.beta.detach(), stats: self.stats.clone() }
    }
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
        let (Conv { weight, spec, style }, Norm { gamma, beta, stats }) = (&self.conv, &self.norm);
        // Where the padding follows from the image, the convolution stays apart.
        let folded = match style == &Style::TensorFlow && spec.stride > 1 {
            true => None,
            false => Some(FoldedConv2d::new(weight, gamma, beta, stats, *spec)?),
        };
        Ok(Self { conv: self.conv.detached(), norm: self.norm.detached(), folded })
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
        self.norm.forward(&self.conv.forward(x)?, residual, act, train)
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
pub(crate) fn name_hash(name: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

/// One number of the standard normal distribution (Box and Muller 1958).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}
