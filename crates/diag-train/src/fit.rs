//! Training: shards and a recipe to a run folder.
//!
//! [`Training::run`] is the loop over epochs, `train_epoch` the loop over batches.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use diag_data::case::Split;
use diag_data::files;
use diag_data::run::{Epoch, LossRecord, Step, Validation};
use diag_data::seen::Seen;
use diag_model::{Pass, SavedModel, tensors};
use rand::Rng;

use crate::data::batch::n_batches;
use crate::data::loader::{Division, LoaderOptions, for_each_batch};
use crate::data::sampling;
use crate::device::DeviceChoice;
use crate::error::TrainError;
use crate::evaluate::validation::validate;
use crate::progress::{Event, Progress, Sender};
use crate::random::{Domain, stream};
use crate::recipe::TrainSpec;
use crate::run::checkpoint::{self, Position};
use crate::run::clock::Clock;
use crate::run::info::{self, Origin};
use crate::run::log::RunLog;
use crate::run::notes::{self, Predicted};
use crate::run::selection;
pub use crate::run::start::FitJob;
use crate::run::start::RunStart;
use crate::step::learner::{GradientSum, Learner};
use crate::step::population::recompute_statistics;
use crate::step::schedule;
use crate::sync::gpu_all_reduce::GpuAllReduce;
use crate::sync::ranks::Ranks;
use crate::threads::thread_pool;

/// How training ended.
#[derive(Clone, Debug, PartialEq)]
pub struct FitSummary {
    /// Epoch whose weights were kept, from 1.
    pub best_epoch: u32,
    /// All epochs of the run; on another rank than the first, those of this start.
    pub epochs: Vec<Epoch>,
    /// Wall time in seconds, over all resumes.
    pub train_seconds: f64,
}

/// Trains a network and writes its run folder, without predictions and metrics.
/// Setting `stop` ends it after the current step.
///
/// # Errors
/// A recipe or shards that cannot be read, a run that exists already, a loss
/// that is not a finite number, a stop by request. The run folder then holds the
/// last checkpoint.
pub fn fit(job: &FitJob, stop: &AtomicBool, progress: &mut Progress<'_>) -> Result<FitSummary, TrainError> {
    fit_on(&Arc::new(Ranks::alone()), job, stop, progress)
}

/// As [`fit`], on every rank at the same time. The batches are those of a single process, each
/// rank computes its share of them, and rank 0 alone writes the run folder and reports
/// progress. `stop` on any rank ends all.
///
/// # Errors
/// As [`fit`]; a rank that is lost, or that differs from the others. Where the error is not
/// [common](TrainError::is_common), the caller aborts the other ranks ([`Ranks::abort`]).
pub fn fit_on(
    ranks: &Arc<Ranks>,
    job: &FitJob,
    stop: &AtomicBool,
    progress: &mut Progress<'_>,
) -> Result<FitSummary, TrainError> {
    let fitted = RunStart::open(ranks, job)
        .and_then(|start| train(&start, ranks, job, stop, progress))
        // An error that passed through candle is text; the rank's own is more precise.
        .map_err(|err| ranks.take_failure().unwrap_or(err));
    if fitted.as_ref().err().is_none_or(TrainError::is_common) {
        // A launcher may end all ranks when one exits: rank 0 has to finish writing first.
        let _ = ranks.any(false);
    }
    fitted
}

/// Trains in a pool of its own, and reports events on the caller's thread.
fn train(
    start: &RunStart,
    ranks: &Arc<Ranks>,
    job: &FitJob,
    stop: &AtomicBool,
    progress: &mut Progress<'_>,
) -> Result<FitSummary, TrainError> {
    if ranks.is_first() {
        start.create_folder()?;
    }
    let recipe = &start.plan.recipe;
    recipe.set_arithmetic();
    // Of these parts, each rank holds its share already.
    candle_train_ops::set_batch_parts((recipe.batch_parts / ranks.n_ranks()).max(1));
    let pool = thread_pool(start.n_threads)?;
    let (events, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        let training = Training { start, recipe, ranks, job, stop, events };
        let thread = scope.spawn(|| {
            let training = training;
            pool.install(|| training.run())
        });
        for event in receiver {
            if ranks.is_first() {
                progress(event);
            }
        }
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What stays the same during a run.
struct Training<'a> {
    start: &'a RunStart,
    recipe: &'a TrainSpec,
    ranks: &'a Arc<Ranks>,
    job: &'a FitJob,
    stop: &'a AtomicBool,
    events: Sender,
}

impl Training<'_> {
    /// Trains epoch by epoch, from the first step or the last checkpoint on.
    fn run(&self) -> Result<FitSummary, TrainError> {
        let clock = Clock::start();
        let RunStart { run, plan, shards, dataset, .. } = self.start;
        let recipe = self.recipe;
        let (mut learner, initialisation) = self.learner()?;
        let origin = Origin { initialisation, ranks: self.ranks, command: &self.job.command };
        let mut info = info::describe(run, plan, shards, dataset, &learner, origin)?;
        let mut position = self.load_checkpoint(&mut learner)?;
        let clock = clock.after(position.train_seconds);
        let mut log = self.ranks.is_first().then(|| RunLog::open(run, &position)).transpose()?;
        if self.ranks.is_first() {
            run.write_info(&info)?;
        }
        if self.ranks.is_first() && position.epoch < recipe.epochs {
            // It would be of other weights than the run will have.
            run.remove_evaluation()?;
        }
        if let Some(before) = self.start.epochs_before.filter(|before| *before != recipe.epochs) {
            self.report(Event::Note(format!(
                "{} epochs instead of {before}: from here on the learning rate follows the longer schedule, so that \
                 the run is not one of {} epochs from its start",
                recipe.epochs, recipe.epochs
            )));
        }
        for line in notes::of_data(recipe, dataset, shards.manifest()) {
            self.report(Event::Note(line));
        }
        let (mut epochs, mut predicted_by_best) = (Vec::new(), None);
        while position.epoch < recipe.epochs && !selection::out_of_patience(recipe, &position) {
            let started = Instant::now();
            let train = self.train_epoch(&mut learner, &mut position, log.as_mut(), &clock)?;
            let (measured, weights) = learner.with_evaluation_weights(|learner| {
                self.recompute_statistics(learner, &position)?;
                Ok((self.validate(learner, &position)?, learner.network.state()?))
            })?;
            let (validation, predicted) = measured.unzip();
            (position.epoch, position.n_batches) = (position.epoch + 1, 0);
            let epoch = Epoch {
                epoch: position.epoch,
                step: position.step,
                learning_rate: position.learning_rate,
                train,
                validation,
                loss_state: learner.loss.state()?,
            };
            let best = selection::is_best(recipe.selection, &epoch, &mut position);
            position.train_seconds = clock.seconds();
            if best {
                predicted_by_best = predicted;
            }
            if let Some(log) = &mut log {
                if best {
                    tensors::write(&run.weights(), &weights, "")?;
                }
                log.add_epoch(&epoch)?;
                checkpoint::save(run, &learner, &position)?;
            }
            epochs.push(epoch.clone());
            self.report(Event::EpochEnds { epoch, best, seconds: started.elapsed().as_secs_f64() });
        }
        let best_epoch = position.best.map_or(position.epoch, |best| best.epoch);
        if let Some(log) = log {
            info.best_epoch = Some(best_epoch);
            info.model_sha256 = Some(files::sha256_file(&run.weights())?);
            info.train_seconds = position.train_seconds;
            run.write_info(&info)?;
            Seen::of(shards, &dataset.seen_cases())?.write(&run.seen())?;
            // Last: until then the folder holds no model that can be used.
            let card = info::model_card(run, plan, shards, dataset, &learner.network)?;
            SavedModel::write_card(&run.model(), &card)?;
            epochs = log.epochs;
            let predicted = predicted_by_best.as_ref();
            let steps = run.read_steps()?;
            for line in notes::of_training(recipe, &dataset.labels, &epochs, best_epoch, predicted, &steps) {
                self.report(Event::Note(line));
            }
        }
        Ok(FitSummary { best_epoch, epochs, train_seconds: position.train_seconds })
    }

    /// One pass over the training slices; returns the mean loss.
    fn train_epoch(
        &self,
        learner: &mut Learner,
        position: &mut Position,
        mut log: Option<&mut RunLog<'_>>,
        clock: &Clock,
    ) -> Result<LossRecord, TrainError> {
        let (recipe, plan, dataset) = (self.recipe, &self.start.plan, &self.start.dataset);
        let epoch = position.epoch + 1;
        learner.loss.set_share_done(f64::from(position.epoch) / f64::from(recipe.epochs));
        let order = self.order(epoch);
        let n_slices = order.len() as u64;
        self.report(Event::EpochStarts { epoch, n_epochs: recipe.epochs, n_slices });
        let options = LoaderOptions {
            seed: recipe.seed,
            batch_size: recipe.batch_size,
            augmentation: recipe.augmentation.clone(),
            mixing: recipe.mixing.clone(),
            ranks: self.ranks,
            division: Division::Rows,
            epoch,
            n_skip: position.n_batches,
            device: &self.start.device,
        };
        let n_batches = n_batches(order.len(), recipe.batch_size);
        let mut gradient_sum = GradientSum::default();
        let mut interrupted = false;
        let (mut saved, mut step_started) = (Instant::now(), Instant::now());
        // Waiting before the first step belongs to no step.
        self.ranks.take_wait_time();
        for_each_batch(dataset, &order, &options, |batch| {
            let n_slices = batch.n_slices;
            let pass = self.pass(epoch, position.n_batches, batch.first_row);
            let (loss, gradients) = learner.gradients(batch, pass)?;
            check_finite(&loss, epoch, position.step + 1)?;
            self.report(Event::Batch { n_slices: n_slices as u64, loss: loss.total });
            position.mean.add(&loss, n_slices);
            position.n_batches += 1;
            learner.accumulate(&mut gradient_sum, gradients, loss.total)?;
            if gradient_sum.n_batches < recipe.accumulate && position.n_batches < n_batches {
                return Ok(ControlFlow::Continue(()));
            }
            let rate = schedule::share(&recipe.schedule, position.step, plan.steps_per_epoch, plan.n_steps());
            position.learning_rate = recipe.optimiser.learning_rate * rate;
            position.step += 1;
            let step = position.step;
            let gradient_sum = std::mem::take(&mut gradient_sum);
            let loss = gradient_sum.loss();
            let gradient_norm = learner.step(gradient_sum, position.learning_rate, step)?;
            if !gradient_norm.is_finite() {
                return Err(diverged(epoch, step, "all", "gradient norm"));
            }
            tracing::debug!(step, loss, gradient_norm, "step");
            // Decided by all ranks together: one that stopped alone would leave the others waiting.
            interrupted = self.ranks.any(self.stop.load(Ordering::Relaxed))?;
            let step_seconds = std::mem::replace(&mut step_started, Instant::now()).elapsed().as_secs_f64();
            let wait_seconds = self.ranks.take_wait_time().as_secs_f64();
            if let Some(log) = &mut log {
                log.add_step(&Step {
                    step,
                    epoch,
                    learning_rate: position.learning_rate,
                    loss,
                    gradient_norm,
                    loss_state: learner.loss.state()?,
                    communication_share: (self.ranks.n_ranks() > 1).then(|| wait_seconds / step_seconds),
                })?;
                if interrupted || saved.elapsed().as_secs_f64() >= self.job.checkpoint_seconds {
                    position.train_seconds = clock.seconds();
                    checkpoint::save(&self.start.run, learner, position)?;
                    saved = Instant::now();
                }
            }
            Ok(if interrupted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if interrupted {
            return Err(stopped(position));
        }
        if self.ranks.n_ranks() > 1 {
            // Different processors round differently: the weights of the ranks would drift apart.
            self.ranks.check_equal("weights", &learner.checksum()?.to_le_bytes())?;
        }
        Ok(std::mem::take(&mut position.mean).record())
    }

    /// The slices of an epoch in their order.
    fn order(&self, epoch: u32) -> Vec<usize> {
        let RunStart { dataset, .. } = self.start;
        let items = dataset.of_split(Split::Train);
        sampling::order(dataset, &items, self.recipe.sampling, self.recipe.seed, epoch)
    }

    /// Replaces the moving averages of the normalisations by statistics of the first slices of
    /// the epoch, which the seed has put in a random order; not where the recipe takes the former.
    fn recompute_statistics(&self, learner: &Learner, position: &Position) -> Result<(), TrainError> {
        let RunStart { plan, dataset, device, .. } = self.start;
        if plan.statistics_slices == 0 {
            return Ok(());
        }
        let epoch = position.epoch + 1;
        let order = self.order(epoch);
        let data = (dataset, &order[..plan.statistics_slices]);
        let on = (&**self.ranks, device);
        match recompute_statistics(&learner.network, self.recipe, data, epoch, on, self.stop)? {
            true => Err(stopped(position)),
            false => Ok(()),
        }
    }

    /// Measures the validation slices; `None` where there are none.
    fn validate(
        &self,
        learner: &Learner,
        position: &Position,
    ) -> Result<Option<(Validation, Predicted)>, TrainError> {
        let dataset = &self.start.dataset;
        if dataset.of_split(Split::Validation).is_empty() {
            return Ok(None);
        }
        let measured = validate(&learner.network, &learner.loss, dataset, self.ranks, self.stop)?;
        measured.map(Some).ok_or_else(|| stopped(position))
    }

    /// How the network runs on a batch of an epoch, counted from 0.
    fn pass(&self, epoch: u32, batch: usize, first_row: usize) -> Pass {
        let noise_seed = stream(self.recipe.seed, Domain::Dropout, epoch, batch as u32).random();
        Pass::Train { noise_seed, first_row, n_frozen: self.recipe.n_frozen(epoch) }
    }

    /// Network, loss and optimisers before the first step, and where the weights are from.
    fn learner(&self) -> Result<(Learner, String), TrainError> {
        let RunStart { plan, dataset, device, .. } = self.start;
        let (mut learner, start) =
            Learner::new(self.recipe, &dataset.labels, &plan.slices_per_class, device)?;
        for note in start.notes {
            self.report(Event::Note(note));
        }
        if cfg!(feature = "cuda") && self.job.device == DeviceChoice::Auto && device.is_cpu() {
            let text = "training on the CPU: no GPU can be used for this; --device cuda says why";
            self.report(Event::Note(text.to_owned()));
        }
        if self.ranks.n_ranks() > 1 {
            let gpu = if device.is_cpu() { None } else { self.gpu_all_reduce()? };
            learner.distribute(self.ranks, gpu);
        }
        Ok((learner, start.initialisation))
    }

    /// NCCL between the GPUs of the ranks; without it, a note says why.
    fn gpu_all_reduce(&self) -> Result<Option<GpuAllReduce>, TrainError> {
        Ok(match GpuAllReduce::connect(self.ranks, &self.start.device)? {
            Ok(gpu) => Some(gpu),
            Err(why) => {
                let link = self.ranks.describe();
                self.report(Event::Note(format!(
                    "adding up through the host and {link}, which is slower, as NCCL cannot be used: {why}"
                )));
                None
            }
        })
    }

    /// Restores the last checkpoint, if there is one, on all ranks.
    fn load_checkpoint(&self, learner: &mut Learner) -> Result<Position, TrainError> {
        let saved = checkpoint::load(&self.start.run, learner)?;
        if let Some(Position { epoch, step, .. }) = &saved {
            self.report(Event::Note(format!("continuing after epoch {epoch}, step {step}")));
        }
        let position = saved.unwrap_or_default();
        // Before rank 0 writes anything: all must have read the same checkpoint.
        self.ranks.check_equal("checkpoint", &position.step.to_le_bytes())?;
        Ok(position)
    }

    fn report(&self, event: Event) {
        // Fails only where the caller's thread panicked.
        let _ = self.events.send(event);
    }
}

/// Refuses a loss that is not a finite number.
fn check_finite(loss: &LossRecord, epoch: u32, step: u64) -> Result<(), TrainError> {
    for (head, terms) in &loss.heads {
        if let Some((term, _)) = terms.iter().find(|(_, value)| !value.is_finite()) {
            return Err(diverged(epoch, step, head, term));
        }
    }
    if loss.total.is_finite() { Ok(()) } else { Err(diverged(epoch, step, "all", "total")) }
}

fn diverged(epoch: u32, step: u64, head: &str, term: &str) -> TrainError {
    TrainError::Diverged { epoch, step, head: head.to_owned(), term: term.to_owned() }
}

fn stopped(position: &Position) -> TrainError {
    let (epoch, step) = (position.epoch + 1, position.step);
    TrainError::Interrupted { place: format!("in epoch {epoch}, after step {step}") }
}
