//! Everything that training changes, and one step of it.

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

use crate::TrainError;
use crate::average::Average;
use crate::gpu_sum::GpuSum;
use crate::joint::Joint;
use crate::loader::Batch;
use crate::optimiser::Optimiser;
use crate::ranks::Ranks;
use crate::recipe::{Initialisation, OptimiserSpec, TrainSpec};

/// Network, loss, their optimisers, and the average of the weights.
pub(crate) struct Learner {
    pub network: Network,
    pub loss: Loss,
    optimisers: Vec<PartOptimiser>,
    loss_optimiser: Optimiser,
    average: Option<Average>,
    spec: OptimiserSpec,
    /// Present where several ranks share every batch.
    joint: Option<Joint>,
}

/// The optimiser of variables with one learning rate.
struct PartOptimiser {
    /// Their learning rate as a multiple of the heads'.
    factor: f64,
    names: Vec<String>,
    optimiser: Optimiser,
}

/// How the weights started.
pub(crate) struct Start {
    /// For `run.json`: "random", or the file's name and hash.
    pub initialisation: String,
    /// What was taken over and what was not.
    pub notes: Vec<String>,
}

impl Learner {
    /// Everything at its start.
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
        let optimisers = part_optimisers(&recipe.optimiser, &network)?;
        let loss_optimiser = Optimiser::new(&recipe.optimiser, loss.named_vars())?;
        let average = recipe.ema_decay.map(|decay| Average::new(decay, &network)).transpose()?;
        let spec = recipe.optimiser.clone();
        Ok((Self { network, loss, optimisers, loss_optimiser, average, spec, joint: None }, start))
    }

    /// From now on every batch is shared with the other ranks, which must hold equal learners.
    /// `gpu`: what adds up on their GPUs, if anything does.
    pub fn join(&mut self, ranks: &Arc<Ranks>, gpu: Option<GpuSum>) {
        let in_parts = self.network.named_vars().iter();
        let joint = Joint::new(ranks, gpu, in_parts.filter(|(name, _)| !self.network.arrives_whole(name)));
        self.network.join(joint.sum());
        self.joint = Some(joint);
    }

    /// Whether the ranks' GPUs add up without the host.
    pub fn adds_up_on_gpus(&self) -> bool {
        self.joint.as_ref().is_some_and(Joint::is_on_gpus)
    }

    /// The loss of a batch and the gradients of everything that learns: those of the
    /// whole batch, where this is a rank's part of it.
    pub fn gradients(&self, batch: Batch, pass: Pass) -> Result<(LossRecord, GradStore), TrainError> {
        if let Some(joint) = &self.joint {
            joint.begin(batch.share);
        }
        let sum = self.joint.as_ref().map(Joint::sum);
        let image_nchw = batch.images.tensor()?;
        let logits = self.network.forward(&image_nchw, pass)?;
        let terms = match &batch.partner {
            None => self.loss.terms_of_part(&logits, &batch.label_n, sum)?,
            Some(partner) => {
                self.loss.mixed_terms(&logits, &batch.label_n, &partner.label_n, partner.share, sum)?
            }
        };
        let record = terms.record()?;
        match &self.joint {
            None => Ok((record, backward(&terms.total)?)),
            Some(joint) => {
                let record = joint.record(record, batch.share)?;
                Ok((record, joint.backward(&terms.total, batch.share)?))
            }
        }
    }

    /// Takes a step along gradients that were added up over `n_batches`; returns
    /// the norm of their mean before clipping. Where it is not finite, nothing moves.
    pub fn step(
        &mut self,
        mut gradients: GradStore,
        n_batches: usize,
        learning_rate: f64,
        n_steps: u64,
    ) -> Result<f64, TrainError> {
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
        for part in &mut self.optimisers {
            part.optimiser.step(&gradients, learning_rate * part.factor)?;
        }
        self.loss_optimiser.step(&gradients, learning_rate * self.spec.loss_learning_rate_factor)?;
        if let Some(average) = &mut self.average {
            average.update(&self.network, n_steps)?;
        }
        Ok(norm)
    }

    /// Adds the gradients of another batch.
    pub fn add_gradients(&self, sum: &mut GradStore, mut more: GradStore) -> Result<(), TrainError> {
        for (_, var) in self.learned() {
            if let Some(gradient) = more.remove(var) {
                let gradient = match sum.remove(var) {
                    Some(before) => (before + gradient)?,
                    None => gradient,
                };
                sum.insert(var, gradient);
            }
        }
        Ok(())
    }

    /// The weights to validate and to keep: averaged where there is an average.
    pub fn kept_state(&self) -> Result<BTreeMap<String, Tensor>, TrainError> {
        Ok(match &self.average {
            Some(average) => average.state().clone(),
            None => self.network.state()?,
        })
    }

    /// Runs `measure` while the network holds the weights that are kept.
    pub fn with_kept_weights<T>(
        &self,
        measure: impl FnOnce(&Self) -> Result<T, TrainError>,
    ) -> Result<T, TrainError> {
        let Some(average) = &self.average else {
            return measure(self);
        };
        let own = self.network.state()?;
        self.network.load_state(average.state())?;
        let measured = measure(self);
        self.network.load_state(&own)?;
        measured
    }

    /// A checksum of the network and what the loss learned: equal learners have equal ones.
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
        for part in &self.optimisers {
            moments.extend(part.optimiser.state()?);
        }
        let average = self.average.as_ref().map(|average| average.state().clone()).unwrap_or_default();
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

    /// Goes on exactly where [`state`](Self::state) was taken, after `n_steps` steps.
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
        for part in &mut self.optimisers {
            let own = |(name, _): &(&String, &Tensor)| {
                let variable = name.rsplit_once('.').map_or("", |(variable, _)| variable);
                part.names.iter().any(|name| name == variable)
            };
            let moments = moments.iter().filter(own).map(|(name, t)| (name.clone(), t.clone())).collect();
            part.optimiser.load_state(&moments, n_steps)?;
        }
        self.loss_optimiser.load_state(&group("loss-optimiser"), n_steps)?;
        match &mut self.average {
            Some(average) => average.load_state(group("average")),
            None => Ok(()),
        }
    }

    fn learned(&self) -> impl Iterator<Item = &(String, Var)> {
        self.network.named_vars().iter().chain(self.loss.named_vars())
    }
}

/// One optimiser for all parts of the network, or one for each where they learn
/// at different rates.
fn part_optimisers(spec: &OptimiserSpec, network: &Network) -> Result<Vec<PartOptimiser>, TrainError> {
    let n_parts = Network::part_names().len();
    let mut by_part: BTreeMap<usize, Vec<(String, Var)>> = BTreeMap::new();
    for (named_var, &part) in network.named_vars().iter().zip(network.parts()) {
        let part = if spec.layer_decay == 1.0 { n_parts - 1 } else { part };
        by_part.entry(part).or_default().push(named_var.clone());
    }
    let optimiser = |(part, named_vars): (usize, Vec<(String, Var)>)| {
        Ok(PartOptimiser {
            factor: spec.layer_decay.powi((n_parts - 1 - part) as i32),
            names: named_vars.iter().map(|(name, _)| name.clone()).collect(),
            optimiser: Optimiser::new(spec, &named_vars)?,
        })
    };
    by_part.into_iter().map(optimiser).collect()
}
