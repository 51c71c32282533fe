//! The network: backbone and heads, and its weights by name.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_train_ops::{Activation, BatchSum};
use serde::{Deserialize, Serialize};

use crate::backbone::{Backbone, Extractor, Features};
use crate::heads::{FUSION_WEIGHT, Fusion, HEADS_PART, HeadLogits, Heads};
use crate::parameters::{Builder, Parameters};

/// What to build.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Feature extractor.
    pub backbone: Backbone,
    /// Number of classes K, at least 2.
    pub n_classes: usize,
    /// Whether the chosen stages have side heads; without, only the final head remains.
    pub deep_supervision: bool,
    /// The stages that have a side head.
    #[serde(default)]
    pub side_stages: SideStages,
    /// How the side heads take part in the final logits.
    #[serde(default)]
    pub fusion: Fusion,
    /// Chance of each pooled feature to be left out of a training step, in [0, 1).
    #[serde(default)]
    pub dropout: f64,
}

impl NetworkSpec {
    /// A network with the defaults: side heads on all stages if on any, learned fusion, no dropout.
    pub const fn new(backbone: Backbone, n_classes: usize, deep_supervision: bool) -> Self {
        let side_stages = SideStages([true; 4]);
        Self { backbone, n_classes, deep_supervision, side_stages, fusion: Fusion::Learned, dropout: 0.0 }
    }
}

/// Which of the four stages have a side head; in files a list of numbers from 1.
/// Invariant: at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct SideStages([bool; 4]);

impl SideStages {
    /// Whether a stage, counted from 0, is among them.
    pub fn has(self, stage: usize) -> bool {
        self.0.get(stage).copied().unwrap_or(false)
    }
}

impl Default for SideStages {
    fn default() -> Self {
        Self([true; 4])
    }
}

impl TryFrom<Vec<u8>> for SideStages {
    type Error = String;

    fn try_from(numbers: Vec<u8>) -> std::result::Result<Self, String> {
        let mut stages = [false; 4];
        for number in &numbers {
            match stages.get_mut(usize::from(*number).wrapping_sub(1)) {
                Some(stage) if !*stage => *stage = true,
                _ => return Err(format!("side stages {numbers:?} are not distinct numbers from 1 to 4")),
            }
        }
        if numbers.is_empty() {
            return Err("no side stage; set deep_supervision = false instead".to_owned());
        }
        Ok(Self(stages))
    }
}

impl From<SideStages> for Vec<u8> {
    fn from(stages: SideStages) -> Self {
        (1..=4).filter(|&number| stages.has(usize::from(number) - 1)).collect()
    }
}

/// One pass through a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// With the running statistics, every feature kept.
    Evaluate,
    /// With the statistics of the batch.
    Train {
        /// Decides which features dropout leaves out.
        noise_seed: u64,
        /// Place of the first image in its batch: not 0 where other processes hold the
        /// images before it.
        first_row: usize,
        /// Parts that do not learn, from the stem on (see [`Network::part_names`]):
        /// they keep their statistics, and no gradient reaches them.
        n_frozen: usize,
    },
}

impl Pass {
    /// Whether a part learns in this pass.
    pub(crate) fn trains(self, part: usize) -> bool {
        matches!(self, Self::Train { n_frozen, .. } if part >= n_frozen)
    }

    /// Stops the gradient behind the output of a frozen part.
    pub(crate) fn cut(self, part: usize, output: Activation) -> Activation {
        match self {
            Self::Train { n_frozen, .. } if part < n_frozen => output.detach(),
            _ => output,
        }
    }
}

/// A deeply supervised network, on the CPU or with its convolutions on a GPU.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use diag_model::{Backbone, Network, NetworkSpec};
/// # fn main() -> candle_core::Result<()> {
/// let network = Network::new(&NetworkSpec::new(Backbone::Tiny, 3, true), 1)?;
/// let image_nchw = Tensor::zeros((2, 1, 64, 64), DType::F32, &Device::Cpu)?;
/// let logits = network.forward_t(&image_nchw, false)?;
/// let names: Vec<&str> = logits.iter().map(|(name, _)| name).collect();
/// assert_eq!(names, ["stage1", "stage2", "stage3", "stage4", "final"]);
/// assert!(logits.iter().all(|(_, logits_nk)| logits_nk.dims() == [2, 3]));
/// # Ok(())
/// # }
/// ```
pub struct Network {
    spec: NetworkSpec,
    backbone: Extractor,
    heads: Heads,
    device: Device,
    pub(crate) parameters: Parameters,
}

/// A network frozen for inference; [`Network::folded`] makes it.
pub struct FoldedNetwork {
    backbone: Extractor,
    heads: Heads,
    device: Device,
}

/// Logits, and the features that the final head reads.
pub struct Answer {
    /// Every head `[N, K]`.
    pub logits: HeadLogits,
    /// Means over the image of the last features, `[N, C]`.
    pub features_nc: Tensor,
}

impl FoldedNetwork {
    /// Computes the logits of every head, as [`Network::forward_t`] without training
    /// does up to rounding.
    ///
    /// # Shapes
    /// - `image_nchw`: `[N, 1, H, W]` f32 in [-1, 1]; H, W at least 32
    /// - result: each head `[N, K]`, unnormalised, shallowest first
    ///
    /// # Errors
    /// Another shape or dtype.
    pub fn forward(&self, image_nchw: &Tensor) -> Result<HeadLogits> {
        Ok(self.answer(image_nchw)?.logits)
    }

    /// As [`forward`](Self::forward), with the features.
    ///
    /// # Errors
    /// Another shape or dtype.
    pub fn answer(&self, image_nchw: &Tensor) -> Result<Answer> {
        let image_nchw = image_nchw.to_device(&self.device)?;
        let features = self.backbone.forward(&Activation::from_nchw(&image_nchw)?, Pass::Evaluate)?;
        Ok(Answer {
            logits: self.heads.forward(&features, Pass::Evaluate)?,
            features_nc: features.last.global_avg_pool()?.to_device(&Device::Cpu)?,
        })
    }
}

impl Network {
    /// Builds the network in f32 with weights drawn from `seed`.
    ///
    /// # Errors
    /// None of its own; candle's if memory cannot be had.
    pub fn new(spec: &NetworkSpec, seed: u64) -> Result<Self> {
        Self::with_dtype(spec, seed, DType::F32)
    }

    /// As [`new`](Self::new), with the convolutions and normalisations on `device`: the CPU, or a
    /// GPU that `candle_train_ops::cuda::device` gave. Linear layers and logits stay on the CPU.
    ///
    /// # Errors
    /// A device that the training operations do not know.
    pub fn on_device(spec: &NetworkSpec, seed: u64, device: &Device) -> Result<Self> {
        Self::build(spec, seed, DType::F32, device)
    }

    /// As [`new`](Self::new), in f32 or f64; f64 is there to check gradients.
    ///
    /// # Errors
    /// Another element type; a dropout outside [0, 1).
    pub fn with_dtype(spec: &NetworkSpec, seed: u64, dtype: DType) -> Result<Self> {
        Self::build(spec, seed, dtype, &Device::Cpu)
    }

    fn build(spec: &NetworkSpec, seed: u64, dtype: DType, device: &Device) -> Result<Self> {
        if !(0.0..1.0).contains(&spec.dropout) {
            candle_core::bail!("dropout {} is not in [0, 1)", spec.dropout);
        }
        let mut builder = Builder::new(seed, dtype, device);
        let backbone = Extractor::new(spec.backbone, &mut builder)?;
        let heads = Heads::new(&mut builder, spec)?;
        Ok(Self { spec: *spec, backbone, heads, device: device.clone(), parameters: builder.parameters })
    }

    /// Computes the logits of every head.
    ///
    /// # Shapes
    /// - `image_nchw`: `[N, 1, H, W]` in [-1, 1], dtype of the network; H, W at least 32
    /// - result: each head `[N, K]`, unnormalised, shallowest first
    ///
    /// # Errors
    /// Another shape or dtype.
    pub fn forward(&self, image_nchw: &Tensor, pass: Pass) -> Result<HeadLogits> {
        let features = self.backbone.forward(&self.activation(image_nchw)?, pass)?;
        self.heads.forward(&features, pass)
    }

    /// [`forward`](Self::forward) with every part learning, or none. In training
    /// mode the running statistics move.
    ///
    /// # Errors
    /// Another shape or dtype.
    pub fn forward_t(&self, image_nchw: &Tensor, train: bool) -> Result<HeadLogits> {
        let pass =
            if train { Pass::Train { noise_seed: 0, first_row: 0, n_frozen: 0 } } else { Pass::Evaluate };
        self.forward(image_nchw, pass)
    }

    /// From now on every training pass normalises with the statistics of the batches of
    /// all processes that `sum` joins, each of which holds the same network.
    pub fn join(&mut self, sum: &BatchSum) {
        for (_, stats) in &self.parameters.stats {
            stats.join(sum.clone());
        }
        self.heads.sum = Some(sum.clone());
    }

    /// Whether the gradient of a variable is that of the whole batch in every process
    /// after [`join`](Self::join); of any other each process has a part.
    pub fn arrives_whole(&self, name: &str) -> bool {
        let of_norm = name
            .rsplit_once('.')
            .is_some_and(|(layer, _)| self.parameters.stats.iter().any(|(norm, _)| norm == layer));
        of_norm || name == FUSION_WEIGHT
    }

    /// A copy for inference: every batch normalisation folded into its convolution at the
    /// present weights and running statistics, no graph.
    ///
    /// # Errors
    /// A network in f64.
    pub fn folded(&self) -> Result<FoldedNetwork> {
        let (backbone, heads) = (self.backbone.folded()?, self.heads.folded()?);
        Ok(FoldedNetwork { backbone, heads, device: self.device.clone() })
    }

    /// Images as the backbone takes them.
    fn activation(&self, image_nchw: &Tensor) -> Result<Activation> {
        Activation::from_nchw(&image_nchw.to_device(&self.device)?)
    }

    /// The outputs of the backbone's stages, shallowest first, with the running statistics.
    pub(crate) fn stages(&self, image_nchw: &Tensor) -> Result<Vec<Activation>> {
        Ok(self.backbone.forward(&self.activation(image_nchw)?, Pass::Evaluate)?.stages)
    }

    /// The logits of every head from the stages' outputs, with the running statistics.
    pub(crate) fn heads_of(&self, stages: &[Activation]) -> Result<HeadLogits> {
        let last = self.backbone.last(stages)?;
        self.heads.forward(&Features { stages: stages.to_vec(), last }, Pass::Evaluate)
    }

    /// Where the convolutions run.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What was built.
    pub fn spec(&self) -> &NetworkSpec {
        &self.spec
    }

    /// Names of the heads, shallowest first.
    pub fn head_names(&self) -> Vec<String> {
        self.heads.names()
    }

    /// The trained weights by name, in the order of the layers; the backbone's under
    /// the names it is published with.
    pub fn named_vars(&self) -> &[(String, Var)] {
        &self.parameters.vars
    }

    /// Names of the parts that [`named_vars`](Self::named_vars) fall into, input first.
    pub fn part_names() -> [&'static str; HEADS_PART + 1] {
        ["stem", "stage1", "stage2", "stage3", "stage4", "heads"]
    }

    /// The part of every variable, in the order of [`named_vars`](Self::named_vars).
    pub fn parts(&self) -> &[usize] {
        &self.parameters.parts
    }

    /// Number of trained weights.
    pub fn n_parameters(&self) -> u64 {
        self.parameters.vars.iter().map(|(_, var)| var.elem_count() as u64).sum()
    }

    /// A copy of every weight and running statistic by name, where they are.
    ///
    /// # Errors
    /// None of its own; candle's if memory cannot be had.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for (name, var) in &self.parameters.vars {
            state.insert(name.clone(), var.as_tensor().copy()?);
        }
        for (name, stats) in &self.parameters.stats {
            let (mean, var) = stats.to_tensors()?;
            state.insert(format!("{name}.running_mean"), mean);
            state.insert(format!("{name}.running_var"), var);
        }
        Ok(state)
    }

    /// Replaces every weight and running statistic. Where it fails, some may have been replaced.
    ///
    /// # Errors
    /// A tensor is missing, of another shape, or left over; the message names it.
    pub fn load_state(&self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let report = self.load_matching(state)?;
        if let Some((name, reason)) = report.kept.first() {
            candle_core::bail!("tensor {name} {reason}");
        }
        if let Some(name) = report.unused.first() {
            candle_core::bail!("tensor {name} has no place in a {}", self.spec.backbone.name());
        }
        Ok(())
    }
}
