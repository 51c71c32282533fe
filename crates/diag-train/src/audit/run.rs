//! The run that is audited.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use diag_data::case::Split;
use diag_data::run::RunDir;
use diag_data::shard::ShardSet;
use diag_model::SavedModel;

use crate::data::dataset::Dataset;
use crate::error::TrainError;
use crate::evaluate::inference::{Inference, infer};
use crate::evaluate::own_shards;
use crate::evaluate::split::read_split;
use crate::run::plan::TrainPlan;
use crate::threads::{available_threads, thread_pool};

/// Which run to audit.
#[derive(Clone, Debug)]
pub struct AuditJob {
    /// Run folder.
    pub run: PathBuf,
    /// Shards; absent: those it was trained on.
    pub shards: Option<PathBuf>,
}

/// The shards of a run, divided as for training.
pub(super) struct AuditedShards {
    pub plan: TrainPlan,
    pub shards: ShardSet,
}

impl AuditedShards {
    pub fn read(job: &AuditJob) -> Result<Self, TrainError> {
        let run = RunDir::new(&job.run);
        if !run.info().exists() {
            return Err(TrainError::NoRun { what: "run.json", run: job.run.clone() });
        }
        let info = run.read_info()?;
        let plan = TrainPlan::read(&run.plan())?;
        let shards_path = job.shards.clone().unwrap_or_else(|| run.shards(&info));
        let shards = ShardSet::open(&shards_path)?;
        own_shards(&shards, shards_path, &plan)?;
        Ok(Self { plan, shards })
    }
}

/// A finished run with its shards.
pub(super) struct AuditedRun {
    pub plan: TrainPlan,
    pub model: SavedModel,
    pub shards: ShardSet,
}

impl AuditedRun {
    pub fn read(job: &AuditJob) -> Result<Self, TrainError> {
        let run = RunDir::new(&job.run);
        if !run.weights().exists() {
            return Err(TrainError::NoRun { what: "model.safetensors", run: job.run.clone() });
        }
        let AuditedShards { plan, shards } = AuditedShards::read(job)?;
        plan.recipe.set_arithmetic();
        Ok(Self { plan, model: SavedModel::read(&run.model(), &run.weights())?, shards })
    }

    /// One split as it was for training, with the network's outputs.
    pub fn infer(&self, split: Split, stop: &AtomicBool) -> Result<(Dataset, Inference), TrainError> {
        let dataset = read_split(&self.shards, Some(&self.plan), split)?;
        let items = dataset.of_split(split);
        let pool = thread_pool(self.plan.recipe.threads.unwrap_or_else(available_threads))?;
        let inference = pool.install(|| infer(&self.model.network, None, &dataset, &items, stop))?;
        let interrupted = || TrainError::Interrupted { place: "during the audit".to_owned() };
        Ok((dataset, inference.ok_or_else(interrupted)?))
    }
}
