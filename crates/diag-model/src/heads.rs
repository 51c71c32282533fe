//! Side heads on every stage and the fused final head.
//!
//! The design is ours: a side head is 1x1 convolution, batch normalisation,
//! ReLU, mean over the image, linear layer. The final logits are a linear layer
//! on the deepest features plus the side logits, each with one learned weight
//! that starts at 1/S. Gradients flow through the fusion into the side heads.

use candle_core::{Result, Tensor};
use candle_train_ops::{Act, Activation};

use crate::parameters::{Builder, ConvNorm, Linear};

/// Name of the head whose probabilities are the network's answer.
pub const FINAL_HEAD: &str = "final";

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
    fusion: Option<Tensor>,
}

impl Heads {
    pub fn new(
        builder: &mut Builder,
        stage_channels: &[usize],
        n_classes: usize,
        deep_supervision: bool,
    ) -> Result<Self> {
        let deepest = stage_channels.last().copied().unwrap_or_default();
        let final_linear = builder.linear("fc", deepest, n_classes)?;
        let mut sides = Vec::new();
        if deep_supervision {
            for (s, &channels) in stage_channels.iter().enumerate() {
                sides.push(SideHead::new(builder, format!("stage{}", s + 1), channels, n_classes)?);
            }
        }
        let fusion = match sides.len() {
            0 => None,
            n_sides => Some(builder.constant("fusion.weight", &[n_sides], 1.0 / n_sides as f64)?),
        };
        Ok(Self { sides, final_linear, fusion })
    }

    /// A copy for inference, without a graph.
    pub fn folded(&self) -> Result<Self> {
        Ok(Self {
            sides: self.sides.iter().map(SideHead::folded).collect::<Result<_>>()?,
            final_linear: self.final_linear.detached(),
            fusion: self.fusion.as_ref().map(Tensor::detach),
        })
    }

    pub fn names(&self) -> Vec<String> {
        let sides = self.sides.iter().map(|side| side.name.clone());
        sides.chain([FINAL_HEAD.to_owned()]).collect()
    }

    pub fn forward(&self, stages: &[Activation], train: bool) -> Result<HeadLogits> {
        let mut heads = Vec::with_capacity(self.sides.len() + 1);
        for (side, stage) in self.sides.iter().zip(stages) {
            heads.push((side.name.clone(), side.forward(stage, train)?));
        }
        let Some(deepest) = stages.last() else {
            candle_core::bail!("a backbone without stages has no final head");
        };
        let mut logits = self.final_linear.forward(&deepest.global_avg_pool()?)?;
        if let Some(fusion) = &self.fusion {
            for (s, (_, side)) in heads.iter().enumerate() {
                logits = (logits + side.broadcast_mul(&fusion.narrow(0, s, 1)?)?)?;
            }
        }
        heads.push((FINAL_HEAD.to_owned(), logits));
        Ok(HeadLogits { heads })
    }
}

struct SideHead {
    name: String,
    conv: ConvNorm,
    linear: Linear,
}

impl SideHead {
    fn new(builder: &mut Builder, name: String, channels: usize, n_classes: usize) -> Result<Self> {
        let names = (format!("heads.{name}.conv"), format!("heads.{name}.bn"));
        let conv = builder.conv_norm((&names.0, &names.1), (channels, channels), 1, 1)?;
        let linear = builder.linear(&format!("heads.{name}.fc"), channels, n_classes)?;
        Ok(Self { name, conv, linear })
    }

    fn folded(&self) -> Result<Self> {
        let (conv, linear) = (self.conv.folded()?, self.linear.detached());
        Ok(Self { name: self.name.clone(), conv, linear })
    }

    fn forward(&self, stage: &Activation, train: bool) -> Result<Tensor> {
        let y = self.conv.forward(stage, None, Act::Relu, train)?;
        self.linear.forward(&y.global_avg_pool()?)
    }
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
