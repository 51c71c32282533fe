//! The start of a run: what is read and checked before the first step.

use std::path::PathBuf;

use candle_core::Device;
use diag_data::DataError;
use diag_data::files;
use diag_data::run::RunDir;
use diag_data::shard::ShardSet;

use super::plan::TrainPlan;
use crate::data::dataset::Dataset;
use crate::device::{self, DeviceChoice};
use crate::error::TrainError;
use crate::recipe::TrainSpec;
use crate::sync::ranks::Ranks;
use crate::threads::available_threads;

/// What to train, and where to write it.
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
    /// Whether to continue a run that was stopped.
    pub resume: bool,
    /// Seconds between checkpoints inside an epoch; one is written after every
    /// epoch besides. The result does not depend on it.
    pub checkpoint_seconds: f64,
    /// The command line for `run.json`, without paths that could name a person.
    pub command: String,
}

/// A run whose inputs are read and checked.
pub(crate) struct RunStart {
    pub run: RunDir,
    pub plan: TrainPlan,
    pub shards: ShardSet,
    pub dataset: Dataset,
    pub n_threads: usize,
    /// Epochs of the plan that a resumed run began with.
    pub epochs_before: Option<u32>,
    pub device: Device,
}

impl RunStart {
    /// Reads recipe and shards on every rank, and checks that all ranks read the same.
    pub fn open(ranks: &Ranks, job: &FitJob) -> Result<Self, TrainError> {
        let start = ranks.all_succeed(Self::read(ranks, job))?;
        if ranks.n_ranks() > 1 {
            let plan = toml::to_string(&start.plan)
                .map_err(|err| TrainError::Recipe { file: job.recipe.clone(), reason: err.to_string() })?;
            ranks.check_equal("recipe or other shards", plan.as_bytes())?;
            ranks.check_equal("kind of device", device::kind(&start.device).as_bytes())?;
        }
        let batch_size = start.plan.recipe.batch_size;
        if batch_size < ranks.n_ranks() {
            return Err(TrainError::TooManyRanks { batch_size, n_ranks: ranks.n_ranks() });
        }
        Ok(start)
    }

    fn read(ranks: &Ranks, job: &FitJob) -> Result<Self, TrainError> {
        let recipe = TrainSpec::read(&job.recipe)?;
        let device = device_for(&recipe, job, ranks)?;
        let shards = ShardSet::open(&job.shards)?;
        check_positive(&recipe, &shards)?;
        let run = RunDir::new(&job.run);
        // Rank 0 alone looks: it may have begun to write when the others get here.
        let exists =
            ranks.is_first() && (run.info().exists() || run.plan().exists() || run.checkpoint().exists());
        if exists && !job.resume {
            return Err(TrainError::RunExists { run: job.run.clone() });
        }
        let (plan, mut dataset) = TrainPlan::resolve(&recipe, files::sha256_file(&job.recipe)?, &shards)?;
        let mut epochs_before = None;
        if exists && run.plan().exists() {
            let before = TrainPlan::read(&run.plan())?;
            let changed = |what: &'static str, how: String| {
                Err(TrainError::Changed { what, how, run: job.run.clone() })
            };
            if before.shards_sha256 != plan.shards_sha256 {
                return changed(
                    "shards",
                    format!("hash {} before, {} now", before.shards_sha256, plan.shards_sha256),
                );
            }
            let changes = before.changes(&plan);
            if !changes.is_empty() {
                return changed("recipe", changes.join("; "));
            }
            epochs_before = Some(before.recipe.epochs);
        }
        dataset.load(&shards, ranks.share())?;
        let n_threads = job.threads.or(recipe.threads).unwrap_or_else(available_threads);
        Ok(Self { run, plan, shards, dataset, n_threads, device, epochs_before })
    }

    /// Creates the run folder with its plan.
    pub fn create_folder(&self) -> Result<(), TrainError> {
        let path = self.run.root().to_path_buf();
        std::fs::create_dir_all(&path).map_err(|source| DataError::Io { action: "create", path, source })?;
        self.plan.write(&self.run.plan())
    }
}

/// Refuses a class for the operating threshold that the shards do not have: `evaluate` would, after training.
fn check_positive(recipe: &TrainSpec, shards: &ShardSet) -> Result<(), TrainError> {
    match &recipe.decision.positive {
        Some(positive) if shards.manifest().spec.labels.find(positive).is_none() => {
            Err(TrainError::Setting {
                key: "decision.positive",
                value: format!("{positive:?}"),
                expected: "a class of the shards",
            })
        }
        _ => Ok(()),
    }
}

/// The device that a recipe can be trained on: `batch_parts` is for the CPU only.
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
