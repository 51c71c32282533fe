//! Everything that training changes, and one step of the optimiser.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use candle_train_ops::backward;
use candle_train_ops::optim::clip_grad_norm;
use diag_data::case::LabelSet;
use diag_data::files;
use diag_data::run::LossRecord;
use diag_model::{Loss, Network, Pass, tensors};

use super::ema::Ema;
use super::optimiser::Optimiser;
use crate::data::batch::Batch;
use crate::error::TrainError;
use crate::recipe::{Initialisation, OptimiserSpec, TrainSpec};
use crate::sync::all_reduce::GradientAllReduce;
use crate::sync::gpu_all_reduce::GpuAllReduce;
use crate::sync::ranks::Ranks;

/// Network, loss, their optimisers, and the moving average of the weights.
pub(crate) struct Learner {
    pub network: Network,
    pub loss: Loss,
    optimisers: Vec<StageOptimiser>,
    loss_optimiser: Optimiser,
    ema: Option<Ema>,
    spec: OptimiserSpec,
    /// Present where several ranks share every batch.
    all_reduce: Option<GradientAllReduce>,
}

/// The optimiser of variables with one learning rate.
struct StageOptimiser {
    /// Their learning rate as a multiple of the heads'.
    factor: f64,
    names: Vec<String>,
    optimiser: Optimiser,
}

/// The sum of the gradients of some batches, for one step.
#[derive(Default)]
pub(crate) struct GradientSum {
    gradients: Option<GradStore>,
    pub n_batches: usize,
    loss: f64,
}

impl GradientSum {
    /// Mean loss of the batches.
    pub fn loss(&self) -> f64 {
        self.loss / self.n_batches.max(1) as f64
    }
}

/// How the weights were initialised.
pub(crate) struct Start {
    /// For `run.json`: "random", or the file's name and hash.
    pub initialisation: String,
    /// Which weights of the file were loaded and which were not.
    pub notes: Vec<String>,
}

impl Learner {
    /// A learner before its first step.
    pub fn new(
        recipe: &TrainSpec,
        labels: &LabelSet,
        slices_per_class: &[u64],
        device: &Device,
    ) -> Result<(Self, Start), TrainError> {
        let network = Network::on_device(&recipe.network(labels.len()), recipe.seed, device)?;
        let start = match &recipe.init {
            Initialisation::Random => Start { initialisation: "random".to_owned(), notes: Vec::new() },
            Initialisation::File(path) => {
                let (weights, _) = tensors::read(path)?;
                let notes = network.load_matching(&weights)?.lines();
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let initialisation = format!("{name}, sha256 {}", files::sha256_file(path)?);
                Start { initialisation, notes }
            }
        };
        let loss = Loss::new(&recipe.loss, &network.head_names(), labels, slices_per_class)?;
        let optimisers = stage_optimisers(&recipe.optimiser, &network)?;
        let loss_optimiser = Optimiser::new(&recipe.optimiser, loss.named_vars())?;
        let ema = recipe.ema_decay.map(|decay| Ema::new(decay, &network)).transpose()?;
        let spec = recipe.optimiser.clone();
        Ok((Self { network, loss, optimisers, loss_optimiser, ema, spec, all_reduce: None }, start))
    }

    /// From now on every batch is divided among the ranks, which must hold equal learners.
    /// `gpu`: NCCL, where it is used.
    pub fn distribute(&mut self, ranks: &Arc<Ranks>, gpu: Option<GpuAllReduce>) {
        let vars = self.network.named_vars().iter();
        let partial = vars.filter(|(name, _)| !self.network.arrives_whole(name));
        let all_reduce = GradientAllReduce::new(ranks, gpu, partial);
        self.network.join(all_reduce.sum());
        self.all_reduce = Some(all_reduce);
    }

    /// Whether gradients are all-reduced on the GPUs.
    pub fn reduces_on_gpus(&self) -> bool {
        self.all_reduce.as_ref().is_some_and(GradientAllReduce::is_on_gpus)
    }

    /// Forward and backward pass: the loss of a batch and the gradients of everything that
    /// learns, over all ranks where these share the batch.
    pub fn gradients(&self, batch: Batch, pass: Pass) -> Result<(LossRecord, GradStore), TrainError> {
        if let Some(all_reduce) = &self.all_reduce {
            all_reduce.begin(batch.fraction);
        }
        let sum = self.all_reduce.as_ref().map(GradientAllReduce::sum);
        let image_nchw = batch.images.tensor()?;
        let logits = self.network.forward(&image_nchw, pass)?;
        let terms = match &batch.partner {
            None => self.loss.terms_of_part(&logits, &batch.label_n, sum)?,
            Some(partner) => {
                self.loss.mixed_terms(&logits, &batch.label_n, &partner.label_n, partner.share, sum)?
            }
        };
        let record = terms.record()?;
        match &self.all_reduce {
            None => Ok((record, backward(&terms.total)?)),
            Some(all_reduce) => {
                let record = all_reduce.record(record, batch.fraction)?;
                Ok((record, all_reduce.backward(&terms.total, batch.fraction)?))
            }
        }
    }

    /// Updates the weights along the mean of some gradients, as step number `n_steps`; returns
    /// its norm before clipping. Where that is not finite, no weight changes.
    pub fn step(&mut self, sum: GradientSum, learning_rate: f64, n_steps: u64) -> Result<f64, TrainError> {
        let GradientSum { gradients: Some(mut gradients), n_batches, .. } = sum else {
            return Ok(0.0);
        };
        if n_batches > 1 {
            for (_, var) in self.learned() {
                if let Some(gradient) = gradients.remove(var) {
                    gradients.insert(var, (gradient / n_batches as f64)?);
                }
            }
        }
        let limit = self.spec.max_gradient_norm.unwrap_or(f64::INFINITY);
        let norm = clip_grad_norm(self.network.named_vars(), &mut gradients, limit)?;
        if !norm.is_finite() {
            return Ok(norm);
        }
        for stage in &mut self.optimisers {
            stage.optimiser.step(&gradients, learning_rate * stage.factor)?;
        }
        self.loss_optimiser.step(&gradients, learning_rate * self.spec.loss_learning_rate_factor)?;
        if let Some(ema) = &mut self.ema {
            ema.update(&self.network, n_steps)?;
        }
        Ok(norm)
    }

    /// Adds the gradients of another batch, and its loss.
    pub fn accumulate(
        &self,
        sum: &mut GradientSum,
        mut gradients: GradStore,
        loss: f64,
    ) -> Result<(), TrainError> {
        sum.n_batches += 1;
        sum.loss += loss;
        let Some(sum) = &mut sum.gradients else {
            sum.gradients = Some(gradients);
            return Ok(());
        };
        for (_, var) in self.learned() {
            if let Some(gradient) = gradients.remove(var) {
                let gradient = match sum.remove(var) {
                    Some(before) => (before + gradient)?,
                    None => gradient,
                };
                sum.insert(var, gradient);
            }
        }
        Ok(())
    }

    /// Runs `measure` while the network holds the weights that are validated and saved, the moving
    /// average where there is one; it may change their batch statistics. Restores everything after.
    pub fn with_evaluation_weights<T>(
        &self,
        measure: impl FnOnce(&Self) -> Result<T, TrainError>,
    ) -> Result<T, TrainError> {
        let own = self.network.state()?;
        if let Some(ema) = &self.ema {
            self.network.load_state(ema.state())?;
        }
        let measured = measure(self);
        self.network.load_state(&own)?;
        measured
    }

    /// A checksum of the network and the learned weights of the loss.
    pub fn checksum(&self) -> Result<u32, TrainError> {
        let mut checksum = 0;
        let loss = self.loss.named_vars().iter().map(|(_, var)| var.as_tensor().clone());
        for tensor in self.network.state()?.into_values().chain(loss) {
            let numbers = tensor.flatten_all()?.to_vec1::<f32>()?;
            checksum = crc32c::crc32c_append(checksum, bytemuck::cast_slice(&numbers));
        }
        Ok(checksum)
    }

    /// Every tensor that a resume needs, by group and name.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>, TrainError> {
        let mut loss = BTreeMap::new();
        for (name, var) in self.loss.named_vars() {
            loss.insert(name.clone(), var.as_tensor().copy()?);
        }
        let mut moments = BTreeMap::new();
        for stage in &self.optimisers {
            moments.extend(stage.optimiser.state()?);
        }
        let average = self.ema.as_ref().map(|ema| ema.state().clone()).unwrap_or_default();
        let groups = [
            ("network", self.network.state()?),
            ("loss", loss),
            ("optimiser", moments),
            ("loss-optimiser", self.loss_optimiser.state()?),
            ("average", average),
        ];
        let named = |(group, tensors): (&str, BTreeMap<String, Tensor>)| {
            let group = group.to_owned();
            tensors.into_iter().map(move |(name, tensor)| (format!("{group}/{name}"), tensor))
        };
        Ok(groups.into_iter().flat_map(named).collect())
    }

    /// Restores exactly the learner that [`state`](Self::state) was taken of, after `n_steps` steps.
    pub fn load_state(&mut self, state: BTreeMap<String, Tensor>, n_steps: u64) -> candle_core::Result<()> {
        let mut groups: BTreeMap<String, BTreeMap<String, Tensor>> = BTreeMap::new();
        for (name, tensor) in state {
            if let Some((group, name)) = name.split_once('/') {
                groups.entry(group.to_owned()).or_default().insert(name.to_owned(), tensor);
            }
        }
        let mut group = |name: &str| groups.remove(name).unwrap_or_default();
        self.network.load_state(&group("network"))?;
        let loss = group("loss");
        for (name, var) in self.loss.named_vars() {
            match loss.get(name) {
                Some(tensor) => var.set(tensor)?,
                None => candle_core::bail!("tensor {name} is missing"),
            }
        }
        let moments = group("optimiser");
        for stage in &mut self.optimisers {
            let own = |(name, _): &(&String, &Tensor)| {
                let variable = name.rsplit_once('.').map_or("", |(variable, _)| variable);
                stage.names.iter().any(|name| name == variable)
            };
            let moments = moments.iter().filter(own).map(|(name, t)| (name.clone(), t.clone())).collect();
            stage.optimiser.load_state(&moments, n_steps)?;
        }
        self.loss_optimiser.load_state(&group("loss-optimiser"), n_steps)?;
        match &mut self.ema {
            Some(ema) => ema.load_state(group("average")),
            None => Ok(()),
        }
    }

    fn learned(&self) -> impl Iterator<Item = &(String, Var)> {
        self.network.named_vars().iter().chain(self.loss.named_vars())
    }
}

/// One optimiser for the whole network, or one for each stage where they learn
/// at different rates.
fn stage_optimisers(spec: &OptimiserSpec, network: &Network) -> Result<Vec<StageOptimiser>, TrainError> {
    let n_stages = Network::part_names().len();
    let mut by_stage: BTreeMap<usize, Vec<(String, Var)>> = BTreeMap::new();
    for (named_var, &stage) in network.named_vars().iter().zip(network.parts()) {
        let stage = if spec.layer_decay == 1.0 { n_stages - 1 } else { stage };
        by_stage.entry(stage).or_default().push(named_var.clone());
    }
    let optimiser = |(stage, named_vars): (usize, Vec<(String, Var)>)| {
        Ok(StageOptimiser {
            factor: spec.layer_decay.powi((n_stages - 1 - stage) as i32),
            names: named_vars.iter().map(|(name, _)| name.clone()).collect(),
            optimiser: Optimiser::new(spec, &named_vars)?,
        })
    };
    by_stage.into_iter().map(optimiser).collect()
}
