//! Training: shards and a recipe to a run folder.

mod fitting;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use candle_core::Device;
use diag_data::DataError;
use diag_data::files;
use diag_data::run::{Epoch, RunDir};
use diag_data::shard::ShardSet;

use crate::TrainError;
use crate::dataset::Dataset;
use crate::device::{self, DeviceChoice};
use crate::plan::TrainPlan;
use crate::progress::Progress;
use crate::ranks::Ranks;
use crate::recipe::TrainSpec;
use fitting::Fitting;

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
    /// Threads; absent: as the recipe says. The result does not depend on it.
    pub threads: Option<usize>,
    /// Whether to go on with a run that was stopped.
    pub resume: bool,
    /// Seconds between checkpoints inside an epoch; one is written after every
    /// epoch besides. The result does not depend on it.
    pub checkpoint_seconds: f64,
    /// The command line for `run.json`, without paths that could name a person.
    pub command: String,
}

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

/// Trains a network and leaves its run folder, without predictions and metrics.
/// Setting `stop` ends it after the current step.
///
/// # Errors
/// A recipe or shards that cannot be read, a run that is there already, a loss
/// that is not a finite number, a stop by request. The run folder then holds the
/// last checkpoint.
pub fn fit(job: &FitJob, stop: &AtomicBool, progress: &mut Progress<'_>) -> Result<FitSummary, TrainError> {
    fit_on(&Arc::new(Ranks::alone()), job, stop, progress)
}

/// As [`fit`], on every rank at the same time. The batches are those of one process, each
/// rank works on its part of them, and rank 0 alone writes the run folder and reports
/// progress. `stop` on any rank ends all.
///
/// # Errors
/// As [`fit`]; a rank that is lost, or that differs from the others. Where the error is not
/// [common](TrainError::is_common), the caller ends the other ranks ([`Ranks::abort`]).
pub fn fit_on(
    ranks: &Arc<Ranks>,
    job: &FitJob,
    stop: &AtomicBool,
    progress: &mut Progress<'_>,
) -> Result<FitSummary, TrainError> {
    let fitted = prepare(ranks, job)
        .and_then(|prepared| prepared.fit(ranks, job, stop, progress))
        // An error that came through candle is text; this is the one behind it.
        .map_err(|err| ranks.take_failure().unwrap_or(err));
    if fitted.as_ref().err().is_none_or(TrainError::is_common) {
        // A launcher may end all ranks when one leaves: rank 0 has to finish writing first.
        let _ = ranks.any(false);
    }
    fitted
}

/// What is read before the first step.
struct Prepared {
    run: RunDir,
    plan: TrainPlan,
    shards: ShardSet,
    dataset: Dataset,
    n_threads: usize,
    device: Device,
}

fn prepare(ranks: &Ranks, job: &FitJob) -> Result<Prepared, TrainError> {
    let prepared = ranks.all_succeed(read(ranks, job))?;
    if ranks.n_ranks() > 1 {
        let plan = toml::to_string(&prepared.plan)
            .map_err(|err| TrainError::Recipe { file: job.recipe.clone(), reason: err.to_string() })?;
        ranks.agree("recipe or other shards", plan.as_bytes())?;
        ranks.agree("kind of device", device::kind(&prepared.device).as_bytes())?;
    }
    let batch_size = prepared.plan.recipe.batch_size;
    if batch_size < ranks.n_ranks() {
        return Err(TrainError::TooManyRanks { batch_size, n_ranks: ranks.n_ranks() });
    }
    Ok(prepared)
}

fn read(ranks: &Ranks, job: &FitJob) -> Result<Prepared, TrainError> {
    let recipe = TrainSpec::read(&job.recipe)?;
    let device = device_for(&recipe, job, ranks)?;
    let shards = ShardSet::open(&job.shards)?;
    let run = RunDir::new(&job.run);
    // The other ranks go by what the first one finds: it may be writing already.
    let occupied =
        ranks.is_first() && (run.info().exists() || run.plan().exists() || run.checkpoint().exists());
    if occupied && !job.resume {
        return Err(TrainError::RunExists { run: job.run.clone() });
    }
    let (plan, mut dataset) = TrainPlan::resolve(&recipe, files::sha256_file(&job.recipe)?, &shards)?;
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
    dataset.load(&shards, ranks.part())?;
    let n_threads = job.threads.or(recipe.threads).unwrap_or_else(available_threads);
    Ok(Prepared { run, plan, shards, dataset, n_threads, device })
}

/// The device that a recipe can be trained on: a batch is taken in parts on the CPU only.
fn device_for(recipe: &TrainSpec, job: &FitJob, ranks: &Ranks) -> Result<Device, TrainError> {
    if recipe.batch_parts > 1 && job.device == DeviceChoice::Auto {
        return Ok(Device::Cpu);
    }
    let device = job.device.open_as(ranks.local_rank())?;
    if recipe.batch_parts > 1 && !device.is_cpu() {
        let reason = "batch_parts above 1 is for the CPU: set it to 1, or pass --device cpu".to_owned();
        return Err(TrainError::Recipe { file: job.recipe.clone(), reason });
    }
    Ok(device)
}

impl Prepared {
    fn fit(
        &self,
        ranks: &Arc<Ranks>,
        job: &FitJob,
        stop: &AtomicBool,
        progress: &mut Progress<'_>,
    ) -> Result<FitSummary, TrainError> {
        let Self { run, plan, shards, dataset, n_threads, device } = self;
        if ranks.is_first() {
            std::fs::create_dir_all(run.root()).map_err(|source| DataError::Io {
                action: "create",
                path: job.run.clone(),
                source,
            })?;
            plan.write(&run.plan())?;
        }
        plan.recipe.set_arithmetic();
        // Each rank holds so many parts of a batch already.
        candle_train_ops::set_batch_parts((plan.recipe.batch_parts / ranks.n_ranks()).max(1));
        // The operations run on the pool that they are called in. Progress and the
        // signal flag stay outside: they are only borrowed.
        let pool = thread_pool(*n_threads)?;
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let fitting = scope.spawn(|| {
                let sender = sender;
                pool.install(|| Fitting { ranks, job, run, plan, shards, dataset, device, stop }.run(&sender))
            });
            for message in receiver {
                if ranks.is_first() {
                    message.deliver(progress);
                }
            }
            fitting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
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
