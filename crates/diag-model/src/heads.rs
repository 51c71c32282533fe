//! Side heads on chosen stages and the fused final head.
//!
//! The design is ours: a side head is 1x1 convolution (to 512 channels at most),
//! batch normalisation, ReLU, mean over the image, linear layer. The final head
//! is a linear layer on the last features, with the side heads joined to it as
//! [`Fusion`] says. Gradients flow through the fusion into the side heads.

use candle_core::{DType, Device, Result, Tensor};
use candle_train_ops::{Act, Activation, BatchSum, batch_parts, scale_jointly};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::backbone::Features;
use crate::network::{NetworkSpec, Pass};
use crate::parameters::{Builder, ConvNorm, Linear, name_hash};

/// Name of the head whose probabilities are the network's answer.
pub const FINAL_HEAD: &str = "final";

/// Name of the weights that fuse the side heads.
pub(crate) const FUSION_WEIGHT: &str = "fusion.weight";

/// The part number of the heads: behind the stem and the four stages.
pub(crate) const HEADS_PART: usize = 5;

/// A side head's 1x1 convolution has no more results than this.
const WIDEST_SIDE_HEAD: usize = 512;

/// How the side heads take part in the final logits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fusion {
    /// Added, each times one learned weight that starts at 1 / number of side heads.
    #[default]
    Learned,
    /// The mean of the side heads' logits and the linear layer's.
    Averaged,
    /// Not at all: they supervise, and no more.
    None,
}

/// Logits of every head by name, shallowest first; the last one is [`FINAL_HEAD`].
#[derive(Clone, Debug)]
pub struct HeadLogits {
    heads: Vec<(String, Tensor)>,
}

impl HeadLogits {
    /// Names logits; for tests of losses, otherwise [`Network::forward_t`](crate::Network::forward_t) makes them.
    ///
    /// # Shapes
    /// - each: `[N, K]`
    pub fn new(heads: Vec<(String, Tensor)>) -> Self {
        Self { heads }
    }

    /// Name and logits `[N, K]`, shallowest first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Tensor)> {
        self.heads.iter().map(|(name, logits)| (name.as_str(), logits))
    }

    /// Logits of one head.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.heads.iter().find(|(head, _)| head == name).map(|(_, logits)| logits)
    }

    /// The same numbers, cut off from the graph.
    pub fn detach(&self) -> Self {
        Self { heads: self.heads.iter().map(|(name, logits)| (name.clone(), logits.detach())).collect() }
    }
}

/// All heads of a network.
pub(crate) struct Heads {
    sides: Vec<SideHead>,
    final_linear: Linear,
    fusion: Fusion,
    /// One weight a side head, where the fusion is learned.
    fusion_weight: Option<Tensor>,
    dropout: f64,
    /// Joins the processes that hold the parts of a batch.
    pub sum: Option<BatchSum>,
}

impl Heads {
    pub fn new(builder: &mut Builder, spec: &NetworkSpec) -> Result<Self> {
        builder.part = HEADS_PART;
        let final_linear = builder.linear("fc", spec.backbone.feature_channels(), spec.n_classes)?;
        let mut sides = Vec::new();
        for (s, &channels) in spec.backbone.stage_channels().iter().enumerate() {
            if spec.deep_supervision && spec.side_stages.has(s) {
                sides.push(SideHead::new(builder, s, channels, spec.n_classes)?);
            }
        }
        let fusion_weight = match (spec.fusion, sides.len()) {
            (Fusion::Learned, 1..) => {
                Some(builder.constant(FUSION_WEIGHT, &[sides.len()], 1.0 / sides.len() as f64)?)
            }
            _ => None,
        };
        let (fusion, dropout) = (spec.fusion, spec.dropout);
        Ok(Self { sides, final_linear, fusion, fusion_weight, dropout, sum: None })
    }

    /// A copy for inference, without a graph.
    pub fn folded(&self) -> Result<Self> {
        Ok(Self {
            sides: self.sides.iter().map(SideHead::folded).collect::<Result<_>>()?,
            final_linear: self.final_linear.detached(),
            fusion: self.fusion,
            fusion_weight: self.fusion_weight.as_ref().map(Tensor::detach),
            dropout: self.dropout,
            sum: None,
        })
    }

    pub fn names(&self) -> Vec<String> {
        let sides = self.sides.iter().map(|side| side.name.clone());
        sides.chain([FINAL_HEAD.to_owned()]).collect()
    }

    pub fn forward(&self, features: &Features, pass: Pass) -> Result<HeadLogits> {
        let mut heads = Vec::with_capacity(self.sides.len() + 1);
        for side in &self.sides {
            let Some(stage) = features.stages.get(side.stage) else {
                candle_core::bail!("the backbone has no stage for head {}", side.name);
            };
            let pooled = dropped(side.features(stage, pass)?, self.dropout, pass, &side.name)?;
            heads.push((side.name.clone(), side.linear.forward(&pooled)?));
        }
        let pooled = dropped(pooled(&features.last)?, self.dropout, pass, FINAL_HEAD)?;
        let mut logits = self.final_linear.forward(&pooled)?;
        for (s, (_, side)) in heads.iter().enumerate() {
            logits = match (self.fusion, &self.fusion_weight) {
                (Fusion::Learned, Some(weight)) => {
                    let weight = weight.narrow(0, s, 1)?;
                    let apart = self.sum.is_some() || batch_parts() > 1;
                    let weighted = match pass {
                        Pass::Train { .. } if apart => scale_jointly(side, &weight, self.sum.as_ref())?,
                        _ => side.broadcast_mul(&weight)?,
                    };
                    (logits + weighted)?
                }
                (Fusion::Averaged, _) => (logits + side)?,
                _ => logits,
            };
        }
        if self.fusion == Fusion::Averaged {
            logits = (logits / (heads.len() + 1) as f64)?;
        }
        heads.push((FINAL_HEAD.to_owned(), logits));
        Ok(HeadLogits { heads })
    }
}

struct SideHead {
    name: String,
    /// From 0.
    stage: usize,
    conv: ConvNorm,
    linear: Linear,
}

impl SideHead {
    fn new(builder: &mut Builder, stage: usize, channels: usize, n_classes: usize) -> Result<Self> {
        let name = format!("stage{}", stage + 1);
        let width = channels.min(WIDEST_SIDE_HEAD);
        let names = (format!("heads.{name}.conv"), format!("heads.{name}.bn"));
        let conv = builder.conv_norm((&names.0, &names.1), (channels, width), 1, 1)?;
        let linear = builder.linear(&format!("heads.{name}.fc"), width, n_classes)?;
        Ok(Self { name, stage, conv, linear })
    }

    fn folded(&self) -> Result<Self> {
        let (conv, linear) = (self.conv.folded()?, self.linear.detached());
        Ok(Self { name: self.name.clone(), stage: self.stage, conv, linear })
    }

    /// `[N, C]`.
    fn features(&self, stage: &Activation, pass: Pass) -> Result<Tensor> {
        pooled(&self.conv.forward(stage, None, Act::Relu, pass.trains(HEADS_PART))?)
    }
}

/// Means over the image `[N, C]`, on the CPU: what follows is small, and most of it f64.
fn pooled(x: &Activation) -> Result<Tensor> {
    x.global_avg_pool()?.to_device(&Device::Cpu)
}

/// Sets features to 0 with the given chance and scales the others up, in training
/// alone; which ones follows from the pass's seed and the head's name.
fn dropped(pooled_nc: Tensor, chance: f64, pass: Pass, head: &str) -> Result<Tensor> {
    let Pass::Train { noise_seed, first_row, .. } = pass else {
        return Ok(pooled_nc);
    };
    if chance == 0.0 {
        return Ok(pooled_nc);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(noise_seed);
    rng.set_stream(name_hash(head));
    let keep = 1.0 / (1.0 - chance);
    let (before, own) = (first_row * pooled_nc.dim(1)?, pooled_nc.elem_count());
    let drawn = (0..before + own).map(|_| if rng.random::<f64>() < chance { 0.0 } else { keep });
    let mask: Vec<f64> = drawn.skip(before).collect();
    let mask = Tensor::from_vec(mask, pooled_nc.shape(), &Device::Cpu)?;
    let mask = if pooled_nc.dtype() == DType::F64 { mask } else { mask.to_dtype(DType::F32)? };
    pooled_nc * mask
}

/// Probabilities of one row of logits, computed in f64; they sum to 1.
///
/// ```
/// assert_eq!(diag_model::softmax(&[1e4, 1e4]), [0.5, 0.5]);
/// ```
pub fn softmax(logits_k: &[f32]) -> Vec<f32> {
    let highest = logits_k.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let odds: Vec<f64> = logits_k.iter().map(|&logit| f64::from(logit - highest).exp()).collect();
    let sum: f64 = odds.iter().sum();
    odds.into_iter().map(|odd| (odd / sum) as f32).collect()
}
