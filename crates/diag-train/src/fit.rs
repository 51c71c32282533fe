//! Training: shards and a recipe to a run folder.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use candle_train_ops::optim::clip_grad_norm;
use diag_data::DataError;
use diag_data::case::Split;
use diag_data::files;
use diag_data::run::{Epoch, LossRecord, RunDir};
use diag_data::shard::ShardSet;
use diag_model::{
    FORMAT_VERSION, InputSpec, Loss, ModelCard, Network, NetworkSpec, SavedModel, input, tensors,
};

use crate::TrainError;
use crate::checkpoint::{self, Best, Learner, Position};
use crate::dataset::Dataset;
use crate::inference::{MeanLoss, validate};
use crate::loader::{Batch, Loading, for_each_batch, shuffled};
use crate::optimiser::Optimiser;
use crate::plan::TrainPlan;
use crate::progress::{Event, Progress};
use crate::recipe::{DeviceChoice, Initialisation, Selection, TrainSpec};
use crate::run_info;
use crate::schedule;
use crate::tensorboard::EventFile;

/// What to train, and where to leave it.
#[derive(Clone, Debug)]
pub struct FitJob {
    /// Folder of shards.
    pub shards: PathBuf,
    /// Recipe file.
    pub recipe: PathBuf,
    /// Run folder, made if it is missing.
    pub run: PathBuf,
    /// Device to run on.
    pub device: DeviceChoice,
    /// Whether to go on with a run that was stopped.
    pub resume: bool,
    /// The command line for `run.json`, without paths that could name a person.
    pub command: String,
}

/// How training ended.
#[derive(Clone, Debug, PartialEq)]
pub struct FitSummary {
    /// Epoch whose weights were kept, from 1.
    pub best_epoch: u32,
    /// All epochs of the run.
    pub epochs: Vec<Epoch>,
    /// Wall time in seconds, over all resumes.
    pub train_seconds: f64,
}

/// Trains a network and leaves its run folder, without predictions and metrics.
/// Setting `stop` ends it after the current step.
///
/// # Errors
/// A recipe or shards that cannot be read, a run that is there already, a loss
/// that is not a finite number, a stop by request. The run folder then holds the
/// checkpoint of the last whole epoch.
pub fn fit(job: &FitJob, stop: &AtomicBool, progress: &mut Progress<'_>) -> Result<FitSummary, TrainError> {
    job.device.check()?;
    let recipe = TrainSpec::read(&job.recipe)?;
    let shards = ShardSet::open(&job.shards)?;
    let run = RunDir::new(&job.run);
    let occupied = run.info().exists() || run.plan().exists() || run.checkpoint().exists();
    if occupied && !job.resume {
        return Err(TrainError::RunExists { run: job.run.clone() });
    }
    let (plan, dataset) = TrainPlan::resolve(&recipe, files::sha256_file(&job.recipe)?, &shards)?;
    if occupied && run.plan().exists() {
        let before = TrainPlan::read(&run.plan())?;
        let changed = match () {
            () if before.shards_sha256 != plan.shards_sha256 => Some("shards"),
            () if !before.computes_as(&plan) => Some("recipe"),
            () => None,
        };
        if let Some(what) = changed {
            return Err(TrainError::Changed { what, run: job.run.clone() });
        }
    }
    let n_threads = recipe.threads.unwrap_or_else(available_threads);
    std::fs::create_dir_all(run.root()).map_err(|source| DataError::Io {
        action: "create",
        path: job.run.clone(),
        source,
    })?;
    recipe.set_arithmetic();
    plan.write(&run.plan())?;
    // The operations run on the pool that they are called in. Progress and the
    // signal flag stay outside: they are only borrowed.
    let pool = thread_pool(n_threads)?;
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let fitting = scope.spawn(|| {
            let sender = sender;
            pool.install(|| {
                Fitting { job, run: &run, plan: &plan, shards: &shards, dataset: &dataset, stop }.run(&sender)
            })
        });
        for message in receiver {
            message.deliver(progress);
        }
        fitting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A pool with its own number of threads.
pub(crate) fn thread_pool(n_threads: usize) -> Result<rayon::ThreadPool, TrainError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(n_threads)
        .build()
        .map_err(|err| TrainError::Threads { n_threads, reason: err.to_string() })
}

/// Number of cores that this process may use.
pub(crate) fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// An [`Event`] on its way out of the pool.
enum Message {
    EpochStarts { epoch: u32, n_epochs: u32, n_slices: u64 },
    Step { n_slices: u64, loss: f64 },
    EpochEnds { epoch: Epoch, best: bool, seconds: f64 },
    Note(String),
}

impl Message {
    fn deliver(&self, progress: &mut Progress<'_>) {
        progress(match self {
            &Self::EpochStarts { epoch, n_epochs, n_slices } => {
                Event::EpochStarts { epoch, n_epochs, n_slices }
            }
            &Self::Step { n_slices, loss } => Event::Step { n_slices, loss },
            Self::EpochEnds { epoch, best, seconds } => {
                Event::EpochEnds { epoch, best: *best, seconds: *seconds }
            }
            Self::Note(text) => Event::Note(text),
        });
    }
}

type Sender = std::sync::mpsc::Sender<Message>;

/// Everything that stays the same during a run.
struct Fitting<'a> {
    job: &'a FitJob,
    run: &'a RunDir,
    plan: &'a TrainPlan,
    shards: &'a ShardSet,
    dataset: &'a Dataset,
    stop: &'a AtomicBool,
}

impl Fitting<'_> {
    fn run(&self, out: &Sender) -> Result<FitSummary, TrainError> {
        let started = Instant::now();
        let (mut learner, initialisation, notes) = self.learner()?;
        for note in notes {
            let _ = out.send(Message::Note(note));
        }
        let mut info = run_info::describe(
            self.run,
            self.plan,
            self.shards,
            self.dataset,
            &learner,
            initialisation,
            &self.job.command,
        )?;
        let mut position = Position { epoch: 0, step: 0, best: None, train_seconds: 0.0 };
        let mut epochs = Vec::new();
        if let Some(saved) = checkpoint::load(self.run, &mut learner)? {
            epochs = if saved.epoch > 0 { self.run.read_epochs()? } else { Vec::new() };
            epochs.truncate(saved.epoch as usize);
            position = saved;
            let text = format!("going on after epoch {}", position.epoch);
            let _ = out.send(Message::Note(text));
        }
        let seconds_before = position.train_seconds;
        self.run.write_info(&info)?;
        SavedModel::write_card(&self.run.model(), &self.card(&learner.network))?;
        let events = EventFile::create(self.run.root(), &epochs)?;
        while position.epoch < self.plan.recipe.epochs {
            let epoch_started = Instant::now();
            let epoch = self.epoch(&mut learner, &mut position, out)?;
            let best = self.is_best(&epoch, &mut position);
            if best {
                tensors::write(&self.run.weights(), &learner.network.state()?, "")?;
            }
            epochs.push(epoch.clone());
            self.run.write_epochs(&epochs)?;
            position.train_seconds = seconds_before + started.elapsed().as_secs_f64();
            checkpoint::save(self.run, &learner, &position)?;
            events.append(&epoch)?;
            let seconds = epoch_started.elapsed().as_secs_f64();
            let _ = out.send(Message::EpochEnds { epoch, best, seconds });
        }
        let best_epoch = position.best.map_or(position.epoch, |best| best.epoch);
        info.best_epoch = Some(best_epoch);
        info.model_sha256 = Some(files::sha256_file(&self.run.weights())?);
        info.train_seconds = position.train_seconds;
        self.run.write_info(&info)?;
        Ok(FitSummary { best_epoch, epochs, train_seconds: position.train_seconds })
    }

    /// One pass over the training slices and one over the validation slices.
    fn epoch(
        &self,
        learner: &mut Learner,
        position: &mut Position,
        out: &Sender,
    ) -> Result<Epoch, TrainError> {
        let recipe = &self.plan.recipe;
        let epoch = position.epoch + 1;
        learner.loss.set_share_done(f64::from(position.epoch) / f64::from(recipe.epochs));
        let order = shuffled(&self.dataset.of_split(Split::Train), recipe.seed, epoch);
        let n_slices = order.len() as u64;
        let _ = out.send(Message::EpochStarts { epoch, n_epochs: recipe.epochs, n_slices });
        let loading = Loading {
            seed: recipe.seed,
            batch_size: recipe.batch_size,
            augmentation: recipe.augmentation.clone(),
        };
        let mut mean = MeanLoss::default();
        let mut learning_rate = 0.0;
        let mut interrupted = false;
        let mut step = position.step;
        for_each_batch(self.dataset, &order, &loading, epoch, |batch| {
            let n_slices = batch.label_n.len();
            let share =
                schedule::share(&recipe.schedule, step, self.plan.steps_per_epoch, self.plan.n_steps());
            learning_rate = recipe.optimiser.learning_rate * share;
            step += 1;
            let record = self.step(learner, batch, learning_rate, (epoch, step))?;
            let _ = out.send(Message::Step { n_slices: n_slices as u64, loss: record.total });
            mean.add(&record, n_slices);
            interrupted = self.stop.load(Ordering::Relaxed);
            Ok(if interrupted { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        let has_validation = self.dataset.items.iter().any(|item| item.split == Split::Validation);
        let validation = if has_validation && !interrupted {
            validate(&learner.network, &learner.loss, self.dataset, self.stop)?
        } else {
            None
        };
        if interrupted || has_validation && validation.is_none() {
            // The checkpoint of the epoch before is whole; a resume repeats this one exactly.
            return Err(TrainError::Interrupted { epoch });
        }
        (position.epoch, position.step) = (epoch, step);
        Ok(Epoch {
            epoch,
            step,
            learning_rate,
            train: mean.record(),
            validation,
            loss_state: learner.loss.state()?,
        })
    }

    fn step(
        &self,
        learner: &mut Learner,
        batch: Batch,
        learning_rate: f64,
        (epoch, step): (u32, u64),
    ) -> Result<LossRecord, TrainError> {
        let diverged = |head: &str, part: &str| TrainError::Diverged {
            epoch,
            step,
            head: head.to_owned(),
            part: part.to_owned(),
        };
        let optimiser = &self.plan.recipe.optimiser;
        let image_nchw = input::from_scaled(batch.values, self.dataset.height, self.dataset.width)?;
        let logits = learner.network.forward_t(&image_nchw, true)?;
        let terms = learner.loss.terms(&logits, &batch.label_n)?;
        let record = terms.record()?;
        for (head, parts) in &record.heads {
            if let Some((part, _)) = parts.iter().find(|(_, value)| !value.is_finite()) {
                return Err(diverged(head, part));
            }
        }
        if !record.total.is_finite() {
            return Err(diverged("all", "total"));
        }
        let mut gradients = terms.total.backward()?;
        let limit = optimiser.max_gradient_norm.unwrap_or(f64::INFINITY);
        let norm = clip_grad_norm(learner.network.named_vars(), &mut gradients, limit)?;
        if !norm.is_finite() {
            return Err(diverged("all", "gradient norm"));
        }
        tracing::debug!(step, loss = record.total, gradient_norm = norm, learning_rate, "step");
        learner.optimiser.step(&gradients, learning_rate)?;
        learner.loss_optimiser.step(&gradients, learning_rate * optimiser.loss_learning_rate_factor)?;
        Ok(record)
    }

    /// Network, loss and optimisers at their start; how the weights were made; remarks.
    fn learner(&self) -> Result<(Learner, String, Vec<String>), TrainError> {
        let recipe = &self.plan.recipe;
        let spec = NetworkSpec {
            backbone: recipe.backbone,
            n_classes: self.dataset.labels.len(),
            deep_supervision: recipe.deep_supervision,
        };
        let network = Network::new(&spec, recipe.seed)?;
        let (initialisation, notes) = match &recipe.init {
            Initialisation::Random => ("random".to_owned(), Vec::new()),
            Initialisation::File(path) => {
                let (weights, _) = tensors::read(path)?;
                let report = network.load_matching(&weights)?;
                let mut notes =
                    vec![format!("{} tensors taken from {}", report.loaded.len(), path.display())];
                notes.extend(
                    report.kept.iter().map(|(name, why)| format!("{name} starts at random: it {why}")),
                );
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                (format!("{name}, sha256 {}", files::sha256_file(path)?), notes)
            }
        };
        let heads = network.head_names();
        let loss = Loss::new(&recipe.loss, &heads, &self.dataset.labels, &self.plan.slices_per_class)?;
        let optimiser = Optimiser::new(&recipe.optimiser, network.named_vars())?;
        let loss_optimiser = Optimiser::new(&recipe.optimiser, loss.named_vars())?;
        Ok((Learner { network, loss, optimiser, loss_optimiser }, initialisation, notes))
    }

    fn card(&self, network: &Network) -> ModelCard {
        let manifest = self.shards.manifest();
        ModelCard {
            format_version: FORMAT_VERSION,
            network: *network.spec(),
            labels: self.dataset.labels.clone(),
            heads: network.head_names(),
            input: InputSpec {
                height: manifest.spec.height,
                width: manifest.spec.width,
                window: manifest.spec.window,
                resize: manifest.spec.resize.clone(),
                range: (input::scale(0.0), input::scale(255.0)),
                ingest: manifest.config.clone(),
            },
        }
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
}
