//! The epochs of a run, from its first step or its last checkpoint on.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_core::Device;
use candle_core::backprop::GradStore;
use diag_data::case::Split;
use diag_data::files;
use diag_data::run::{Epoch, LossRecord, RunDir, Step};
use diag_data::shard::ShardSet;
use diag_model::{
    FORMAT_VERSION, InputSpec, ModelCard, Network, Pass, SavedModel, SavedNetwork, TrainingData, WEIGHTS,
    input, tensors,
};
use rand::Rng;

use super::{FitJob, FitSummary};
use crate::TrainError;
use crate::checkpoint::{self, Best, Position};
use crate::clock::Clock;
use crate::dataset::Dataset;
use crate::device::DeviceChoice;
use crate::gpu_sum::GpuSum;
use crate::inference::validate;
use crate::learner::Learner;
use crate::loader::{Batch, Loading, for_each_batch, n_batches};
use crate::message::{Message, Sender};
use crate::plan::TrainPlan;
use crate::random::{Domain, stream};
use crate::ranks::Ranks;
use crate::recipe::Selection;
use crate::run_info::{self, Beginning};
use crate::sampling::order;
use crate::schedule;
use crate::trail::Trail;

/// Everything that stays the same during a run.
pub(super) struct Fitting<'a> {
    pub ranks: &'a Arc<Ranks>,
    pub job: &'a FitJob,
    pub run: &'a RunDir,
    pub plan: &'a TrainPlan,
    pub shards: &'a ShardSet,
    pub dataset: &'a Dataset,
    pub device: &'a Device,
    pub stop: &'a AtomicBool,
}

impl Fitting<'_> {
    pub fn run(&self, out: &Sender) -> Result<FitSummary, TrainError> {
        let clock = Clock::start();
        let recipe = &self.plan.recipe;
        let (mut learner, start) =
            Learner::new(recipe, &self.dataset.labels, &self.plan.slices_per_class, self.device)?;
        for note in start.notes {
            let _ = out.send(Message::Note(note));
        }
        if cfg!(feature = "cuda") && self.job.device == DeviceChoice::Auto && self.device.is_cpu() {
            let text = "training on the CPU: no GPU can be used for this; --device cuda says why";
            let _ = out.send(Message::Note(text.to_owned()));
        }
        if self.ranks.n_ranks() > 1 {
            let gpu = if self.device.is_cpu() { None } else { self.gpu_sum(out)? };
            learner.join(self.ranks, gpu);
        }
        let initialisation = start.initialisation;
        let mut info = run_info::describe(
            self.run,
            self.plan,
            self.shards,
            self.dataset,
            &learner,
            Beginning { initialisation, ranks: self.ranks, command: &self.job.command },
        )?;
        let mut position = Position::default();
        if let Some(saved) = checkpoint::load(self.run, &mut learner)? {
            position = saved;
            let text = format!("going on after epoch {}, step {}", position.epoch, position.step);
            let _ = out.send(Message::Note(text));
        }
        let clock = clock.after(position.train_seconds);
        // Before rank 0 writes anything: all must have read the same checkpoint.
        self.ranks.agree("checkpoint", &position.step.to_le_bytes())?;
        let mut trail = self.ranks.is_first().then(|| Trail::open(self.run, &position)).transpose()?;
        let mut epochs = Vec::new();
        if self.ranks.is_first() {
            self.run.write_info(&info)?;
        }
        while position.epoch < recipe.epochs && !self.out_of_patience(&position) {
            let epoch_started = Instant::now();
            let epoch = self.epoch(&mut learner, &mut position, trail.as_mut(), &clock, out)?;
            let best = self.is_best(&epoch, &mut position);
            position.train_seconds = clock.seconds();
            if let Some(trail) = &mut trail {
                if best {
                    tensors::write(&self.run.weights(), &learner.kept_state()?, "")?;
                }
                trail.add_epoch(&epoch)?;
                checkpoint::save(self.run, &learner, &position)?;
            }
            epochs.push(epoch.clone());
            let seconds = epoch_started.elapsed().as_secs_f64();
            let _ = out.send(Message::EpochEnds { epoch, best, seconds });
        }
        let best_epoch = position.best.map_or(position.epoch, |best| best.epoch);
        if let Some(trail) = trail {
            info.best_epoch = Some(best_epoch);
            info.model_sha256 = Some(files::sha256_file(&self.run.weights())?);
            info.train_seconds = position.train_seconds;
            self.run.write_info(&info)?;
            SavedModel::write_card(&self.run.model(), &self.card(&learner.network)?)?;
            epochs = trail.epochs;
        }
        Ok(FitSummary { best_epoch, epochs, train_seconds: position.train_seconds })
    }

    /// What adds up on the ranks' GPUs, or a word to say that nothing does and why.
    fn gpu_sum(&self, out: &Sender) -> Result<Option<GpuSum>, TrainError> {
        Ok(match GpuSum::meet(self.ranks, self.device)? {
            Ok(gpu) => Some(gpu),
            Err(why) => {
                let link = self.ranks.describe();
                let text = format!(
                    "adding up through the host and {link}, which is slower, as NCCL cannot be used: {why}"
                );
                let _ = out.send(Message::Note(text));
                None
            }
        })
    }

    /// One pass over the training slices and one over the validation slices.
    fn epoch(
        &self,
        learner: &mut Learner,
        position: &mut Position,
        mut trail: Option<&mut Trail<'_>>,
        clock: &Clock,
        out: &Sender,
    ) -> Result<Epoch, TrainError> {
        let recipe = &self.plan.recipe;
        let epoch = position.epoch + 1;
        learner.loss.set_share_done(f64::from(position.epoch) / f64::from(recipe.epochs));
        let items = self.dataset.of_split(Split::Train);
        let order = order(self.dataset, &items, recipe.sampling, recipe.seed, epoch);
        let n_slices = order.len() as u64;
        let _ = out.send(Message::EpochStarts { epoch, n_epochs: recipe.epochs, n_slices });
        let loading = Loading {
            seed: recipe.seed,
            batch_size: recipe.batch_size,
            augmentation: recipe.augmentation.clone(),
            mixing: recipe.mixing.clone(),
            ranks: self.ranks,
            epoch,
            n_done: position.n_batches,
            device: self.device,
        };
        let mut interrupted = false;
        let last_batch = n_batches(order.len(), recipe.batch_size);
        let mut pending: Option<Pending> = None;
        let (mut saved, mut step_started) = (Instant::now(), Instant::now());
        // What came before belongs to no step.
        self.ranks.take_waited();
        for_each_batch(self.dataset, &order, &loading, |batch| {
            let n_slices = batch.n_slices;
            let at = Place { epoch, step: position.step + 1 };
            let pass = self.pass(epoch, position.n_batches, batch.first_row);
            let (record, gradients) = self.gradients(learner, batch, pass, at)?;
            let _ = out.send(Message::Step { n_slices: n_slices as u64, loss: record.total });
            position.mean.add(&record, n_slices);
            position.n_batches += 1;
            let (gradients, n_pending, loss) = match pending.take() {
                None => (gradients, 1, record.total),
                Some(mut before) => {
                    learner.add_gradients(&mut before.gradients, gradients)?;
                    (before.gradients, before.n_batches + 1, before.loss + record.total)
                }
            };
            if n_pending < recipe.accumulate && position.n_batches < last_batch {
                pending = Some(Pending { gradients, n_batches: n_pending, loss });
                return Ok(ControlFlow::Continue(()));
            }
            let share = schedule::share(
                &recipe.schedule,
                position.step,
                self.plan.steps_per_epoch,
                self.plan.n_steps(),
            );
            position.learning_rate = recipe.optimiser.learning_rate * share;
            position.step += 1;
            let gradient_norm = learner.step(gradients, n_pending, position.learning_rate, position.step)?;
            if !gradient_norm.is_finite() {
                return Err(at.diverged("all", "gradient norm"));
            }
            tracing::debug!(step = position.step, loss, gradient_norm, "step");
            // Together: a rank that stopped on its own would leave the others waiting.
            interrupted = self.ranks.any(self.stop.load(Ordering::Relaxed))?;
            let step_seconds = std::mem::replace(&mut step_started, Instant::now()).elapsed().as_secs_f64();
            let waited = self.ranks.take_waited().as_secs_f64();
            if let Some(trail) = &mut trail {
                trail.add_step(&Step {
                    step: position.step,
                    epoch,
                    learning_rate: position.learning_rate,
                    loss: loss / n_pending as f64,
                    gradient_norm,
                    loss_state: learner.loss.state()?,
                    communication_share: (self.ranks.n_ranks() > 1).then(|| waited / step_seconds),
                })?;
                if interrupted || saved.elapsed().as_secs_f64() >= self.job.checkpoint_seconds {
                    position.train_seconds = clock.seconds();
                    checkpoint::save(self.run, learner, position)?;
                    saved = Instant::now();
                }
            }
            Ok(if interrupted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        let stopped =
            || TrainError::Interrupted { place: format!("in epoch {epoch}, after step {}", position.step) };
        if interrupted {
            return Err(stopped());
        }
        if self.ranks.n_ranks() > 1 {
            // Equal sums on unequal processors would drift apart unseen.
            self.ranks.agree("weights", &learner.checksum()?.to_le_bytes())?;
        }
        let has_validation = self.dataset.items.iter().any(|item| item.split == Split::Validation);
        let validation = if has_validation {
            let measured = learner.with_kept_weights(|learner| {
                validate(&learner.network, &learner.loss, self.dataset, self.ranks, self.stop)
            })?;
            Some(measured.ok_or_else(stopped)?)
        } else {
            None
        };
        let train = std::mem::take(&mut position.mean).record();
        (position.epoch, position.n_batches) = (epoch, 0);
        Ok(Epoch {
            epoch,
            step: position.step,
            learning_rate: position.learning_rate,
            train,
            validation,
            loss_state: learner.loss.state()?,
        })
    }

    /// How the network runs on a batch of an epoch, counted from 0.
    fn pass(&self, epoch: u32, batch: usize, first_row: usize) -> Pass {
        let recipe = &self.plan.recipe;
        let noise_seed = stream(recipe.seed, Domain::Dropout, epoch, batch as u32).random();
        Pass::Train { noise_seed, first_row, n_frozen: recipe.n_frozen(epoch) }
    }

    fn gradients(
        &self,
        learner: &Learner,
        batch: Batch,
        pass: Pass,
        at: Place,
    ) -> Result<(LossRecord, GradStore), TrainError> {
        let (record, gradients) = learner.gradients(batch, pass)?;
        for (head, parts) in &record.heads {
            if let Some((part, _)) = parts.iter().find(|(_, value)| !value.is_finite()) {
                return Err(at.diverged(head, part));
            }
        }
        if !record.total.is_finite() {
            return Err(at.diverged("all", "total"));
        }
        Ok((record, gradients))
    }

    /// The model's description, once its weights are written.
    fn card(&self, network: &Network) -> Result<ModelCard, TrainError> {
        let manifest = self.shards.manifest();
        let labels = self.dataset.labels.clone();
        let training = self.dataset.cases_where(|split| split == Split::Train);
        let n_cases = |class: usize| training.values().filter(|label| label.index() == class).count() as u64;
        let positive = self.plan.recipe.decision.positive.clone();
        Ok(ModelCard {
            format_version: FORMAT_VERSION,
            networks: vec![SavedNetwork {
                spec: *network.spec(),
                weights: WEIGHTS.into(),
                sha256: files::sha256_file(&self.run.weights())?,
            }],
            training: TrainingData {
                synthetic: manifest.synthetic,
                cases: (0..labels.len()).map(n_cases).collect(),
            },
            positive: positive.unwrap_or_else(|| labels.names()[0].clone()),
            labels,
            heads: network.head_names(),
            input: InputSpec {
                reader: manifest.spec.reader.clone(),
                range: (input::scale(0.0), input::scale(255.0)),
            },
        })
    }

    /// Whether an epoch is the best so far; if so, remembers it.
    fn is_best(&self, epoch: &Epoch, position: &mut Position) -> bool {
        let score = match (&epoch.validation, self.plan.recipe.selection) {
            (None, _) | (_, Selection::Last) => (f64::from(epoch.epoch), 0.0),
            (Some(validation), rule) => {
                let cross_entropy = validation
                    .loss
                    .heads
                    .get(diag_model::FINAL_HEAD)
                    .and_then(|parts| parts.get("cross_entropy"))
                    .copied()
                    .unwrap_or(f64::INFINITY);
                match rule {
                    Selection::MacroF1 => (validation.case_macro_f1, -cross_entropy),
                    Selection::MacroAuroc => {
                        (validation.case_macro_auroc.unwrap_or_default(), -cross_entropy)
                    }
                    Selection::ValidationLoss | Selection::Last => (-cross_entropy, 0.0),
                }
            }
        };
        let better = position.best.is_none_or(|best| score > (best.score, best.tie_break));
        if better {
            position.best = Some(Best { epoch: epoch.epoch, score: score.0, tie_break: score.1 });
        }
        better
    }

    fn out_of_patience(&self, position: &Position) -> bool {
        match (self.plan.recipe.patience, position.best) {
            (Some(patience), Some(best)) => position.epoch - best.epoch >= patience,
            _ => false,
        }
    }
}

/// Gradients of batches that wait for their step.
struct Pending {
    gradients: GradStore,
    n_batches: usize,
    loss: f64,
}

/// Where training is, for messages.
#[derive(Clone, Copy)]
struct Place {
    epoch: u32,
    step: u64,
}

impl Place {
    fn diverged(self, head: &str, part: &str) -> TrainError {
        let Self { epoch, step } = self;
        TrainError::Diverged { epoch, step, head: head.to_owned(), part: part.to_owned() }
    }
}
