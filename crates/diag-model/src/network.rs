//! The network: backbone and heads, and its weights by name.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_train_ops::Activation;
use serde::{Deserialize, Serialize};

use crate::backbone::{Backbone, ResidualNet};
use crate::heads::{HeadLogits, Heads};
use crate::parameters::{Builder, Parameters};

/// What to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// Feature extractor.
    pub backbone: Backbone,
    /// Number of classes K, at least 2.
    pub n_classes: usize,
    /// Whether every stage has a side head; without, only the final head remains.
    pub deep_supervision: bool,
}

/// A deeply supervised network on the CPU.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use diag_model::{Backbone, Network, NetworkSpec};
/// # fn main() -> candle_core::Result<()> {
/// let spec = NetworkSpec { backbone: Backbone::Tiny, n_classes: 3, deep_supervision: true };
/// let network = Network::new(&spec, 1)?;
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
    backbone: ResidualNet,
    heads: Heads,
    parameters: Parameters,
}

/// A network frozen for inference; [`Network::folded`] makes it.
pub struct FoldedNetwork {
    backbone: ResidualNet,
    heads: Heads,
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
        let stages = self.backbone.forward(&Activation::from_nchw(image_nchw)?, false)?;
        self.heads.forward(&stages, false)
    }
}

/// What a partial load did, line by line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Names of the tensors that were taken over.
    pub loaded: Vec<String>,
    /// Names of the network's tensors that kept their values, with the reason.
    pub kept: Vec<(String, String)>,
}

impl Network {
    /// Builds the network in f32 with weights drawn from `seed`.
    ///
    /// # Errors
    /// None of its own; candle's if memory cannot be had.
    pub fn new(spec: &NetworkSpec, seed: u64) -> Result<Self> {
        Self::with_dtype(spec, seed, DType::F32)
    }

    /// As [`new`](Self::new), in f32 or f64; f64 is there to check gradients.
    ///
    /// # Errors
    /// Another element type.
    pub fn with_dtype(spec: &NetworkSpec, seed: u64, dtype: DType) -> Result<Self> {
        let mut builder = Builder::new(seed, dtype);
        let backbone = ResidualNet::new(spec.backbone, &mut builder)?;
        let channels = spec.backbone.stage_channels();
        let heads = Heads::new(&mut builder, &channels, spec.n_classes, spec.deep_supervision)?;
        Ok(Self { spec: *spec, backbone, heads, parameters: builder.parameters })
    }

    /// Computes the logits of every head. In training mode the running statistics move.
    ///
    /// # Shapes
    /// - `image_nchw`: `[N, 1, H, W]` in [-1, 1], dtype of the network; H, W at least 32
    /// - result: each head `[N, K]`, unnormalised, shallowest first
    ///
    /// # Errors
    /// Another shape or dtype.
    pub fn forward_t(&self, image_nchw: &Tensor, train: bool) -> Result<HeadLogits> {
        let stages = self.backbone.forward(&Activation::from_nchw(image_nchw)?, train)?;
        self.heads.forward(&stages, train)
    }

    /// A copy for inference: every batch normalisation folded into its convolution at the
    /// present weights and running statistics, no graph.
    ///
    /// # Errors
    /// A network in f64.
    pub fn folded(&self) -> Result<FoldedNetwork> {
        Ok(FoldedNetwork { backbone: self.backbone.folded()?, heads: self.heads.folded()? })
    }

    /// The outputs of the backbone's stages, shallowest first, with the running statistics.
    pub(crate) fn stages(&self, image_nchw: &Tensor) -> Result<Vec<Activation>> {
        self.backbone.forward(&Activation::from_nchw(image_nchw)?, false)
    }

    /// The logits of every head from the stages' outputs, with the running statistics.
    pub(crate) fn heads_of(&self, stages: &[Activation]) -> Result<HeadLogits> {
        self.heads.forward(stages, false)
    }

    /// What was built.
    pub fn spec(&self) -> &NetworkSpec {
        &self.spec
    }

    /// Names of the heads, shallowest first.
    pub fn head_names(&self) -> Vec<String> {
        self.heads.names()
    }

    /// The trained weights by name, in the order of the layers; torchvision's names in the backbone.
    pub fn named_vars(&self) -> &[(String, Var)] {
        &self.parameters.vars
    }

    /// Number of trained weights.
    pub fn n_parameters(&self) -> u64 {
        self.parameters.vars.iter().map(|(_, var)| var.elem_count() as u64).sum()
    }

    /// A copy of every weight and running statistic by name.
    ///
    /// # Errors
    /// None of its own; candle's if memory cannot be had.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut state = BTreeMap::new();
        for (name, var) in &self.parameters.vars {
            state.insert(name.clone(), var.as_tensor().copy()?);
        }
        for (name, stats) in &self.parameters.stats {
            for (part, values) in [("running_mean", stats.mean()), ("running_var", stats.var())] {
                let n_channels = values.len();
                state.insert(format!("{name}.{part}"), Tensor::from_vec(values, n_channels, &Device::Cpu)?);
            }
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
        if let Some(name) = state.keys().find(|name| !report.loaded.contains(name)) {
            candle_core::bail!("tensor {name} has no place in a {}", self.spec.backbone.name());
        }
        Ok(())
    }

    /// Takes over every tensor whose name and shape match, for weights published
    /// under torchvision's names. A stem for three channels is summed over them,
    /// which gives a grey image the same response.
    ///
    /// # Errors
    /// None of its own; candle's if memory cannot be had.
    pub fn load_matching(&self, tensors: &BTreeMap<String, Tensor>) -> Result<LoadReport> {
        let mut report = LoadReport::default();
        for (name, var) in &self.parameters.vars {
            let Some(tensor) = tensors.get(name) else {
                report.kept.push((name.clone(), "is missing".to_owned()));
                continue;
            };
            let tensor = match (name.as_str(), tensor.dims()) {
                ("conv1.weight", [_, 3, _, _]) => tensor.sum_keepdim(1)?,
                _ => tensor.clone(),
            };
            if tensor.dims() != var.dims() {
                let reason = format!("has shape {:?}, not {:?}", tensor.dims(), var.dims());
                report.kept.push((name.clone(), reason));
                continue;
            }
            var.set(&tensor.to_dtype(var.dtype())?.contiguous()?)?;
            report.loaded.push(name.clone());
        }
        for (name, stats) in &self.parameters.stats {
            let (mean, var) = (format!("{name}.running_mean"), format!("{name}.running_var"));
            let n_channels = stats.mean().len();
            let values = |name: &String| -> Result<Option<Vec<f32>>> {
                match tensors.get(name) {
                    Some(tensor) if tensor.dims() == [n_channels] => {
                        tensor.to_dtype(DType::F32)?.to_vec1().map(Some)
                    }
                    _ => Ok(None),
                }
            };
            if let (Some(means), Some(vars)) = (values(&mean)?, values(&var)?) {
                stats.set(means, vars)?;
                report.loaded.extend([mean, var]);
            } else {
                report.kept.push((mean, "is missing or of another shape".to_owned()));
            }
        }
        Ok(report)
    }
}
