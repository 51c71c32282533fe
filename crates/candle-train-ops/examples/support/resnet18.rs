//! ResNet-18 for one-channel images, built from the operations of this crate; shared
//! by the benchmark and the test against PyTorch.

use candle_core::{Device, Result, Tensor, Var};
use candle_train_ops::{
    Act, Activation, Conv2dSpec, FoldedConv2d, RunningStats, batch_norm, conv2d, linear, max_pool2d,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Logits of the network.
pub const CLASSES: usize = 3;

/// Variables in the order of their making, drawn from one seeded stream.
pub struct Params {
    pub named: Vec<(String, Var)>,
    device: Device,
    rng: ChaCha8Rng,
}

impl Params {
    pub fn new(device: &Device) -> Self {
        Self { named: Vec::new(), device: device.clone(), rng: ChaCha8Rng::seed_from_u64(0) }
    }

    pub fn rng_tensor(&mut self, shape: &[usize], bound: f32) -> Result<Tensor> {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| self.rng.random_range(-bound..bound)).collect();
        Tensor::from_vec(values, shape, &self.device)
    }

    fn filled(&mut self, count: usize, value: f32) -> Result<Tensor> {
        self.add(&Tensor::from_vec(vec![value; count], count, &self.device)?)
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

/// Convolution and batch normalisation; folded into one for inference.
struct ConvNorm {
    folded: Option<FoldedConv2d>,
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
            folded: None,
            weight_oihw: params.random(&[out_channels, in_channels, kernel, kernel])?,
            gamma_c: params.filled(out_channels, 1.0)?,
            beta_c: params.filled(out_channels, 0.0)?,
            stats: RunningStats::new(out_channels),
            spec: Conv2dSpec { stride, padding: kernel / 2, groups: 1 },
        })
    }

    fn fold(&mut self) -> Result<()> {
        let (weight, gamma, beta) = (&self.weight_oihw, &self.gamma_c, &self.beta_c);
        self.folded = Some(FoldedConv2d::new(weight, gamma, beta, &self.stats, self.spec)?);
        Ok(())
    }

    fn forward(&self, x: &Activation, residual: Option<&Activation>, act: Act) -> Result<Activation> {
        if let Some(folded) = &self.folded {
            return folded.forward(x, residual, act);
        }
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

/// The network.
pub struct ResNet18 {
    stem: ConvNorm,
    blocks: Vec<Block>,
    weight_oc: Tensor,
    bias_o: Tensor,
}

impl ResNet18 {
    pub fn new(params: &mut Params) -> Result<Self> {
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
            bias_o: params.filled(CLASSES, 0.0)?,
        })
    }

    /// Turns to inference with the running statistics, without a graph.
    pub fn fold(&mut self) -> Result<()> {
        self.stem.fold()?;
        for block in &mut self.blocks {
            block.first.fold()?;
            block.second.fold()?;
            block.shortcut.as_mut().map_or(Ok(()), ConvNorm::fold)?;
        }
        (self.weight_oc, self.bias_o) = (self.weight_oc.detach(), self.bias_o.detach());
        Ok(())
    }

    /// Logits `[N, 3]` of images `[N, 1, H, W]`.
    pub fn forward(&self, image_nchw: &Tensor) -> Result<Tensor> {
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
pub fn cross_entropy(logit_nk: &Tensor, label_n: &Tensor) -> Result<Tensor> {
    let largest = logit_nk.max_keepdim(1)?.detach();
    let shifted = logit_nk.broadcast_sub(&largest)?;
    let log_sum = shifted.exp()?.sum_keepdim(1)?.log()?;
    let log_probability = shifted.broadcast_sub(&log_sum)?;
    log_probability.gather(&label_n.unsqueeze(1)?, 1)?.mean_all()?.neg()
}
