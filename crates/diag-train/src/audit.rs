//! Audits of a run: labels that look wrong, and what else its features know.
//!
//! The third audit, how much leakage between slices inflates a result, is a sweep
//! of two variants: see [`leakage`].

mod noise;
mod probe;
mod shortcut;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use diag_data::case::Split;
use diag_data::run::RunDir;
use diag_data::shard::ShardSet;
use diag_model::SavedModel;

use crate::TrainError;
use crate::dataset::Dataset;
use crate::evaluate::read_split;
use crate::fit::{available_threads, thread_pool};
use crate::inference::{Inference, infer};
use crate::plan::TrainPlan;
use crate::sweep::{SummarySpec, SweepSpec, Variant};
pub use noise::{NoiseAudit, SuspectSlice, label_noise};
pub use shortcut::{Attribute, ShortcutAudit, shortcut};

/// Which run to audit.
#[derive(Clone, Debug)]
pub struct AuditJob {
    /// Run folder.
    pub run: PathBuf,
    /// Shards; absent: those it was trained on.
    pub shards: Option<PathBuf>,
}

/// A run that was read back, with its shards.
struct Audited {
    plan: TrainPlan,
    model: SavedModel,
    shards: ShardSet,
}

impl Audited {
    fn read(job: &AuditJob) -> Result<Self, TrainError> {
        let run = RunDir::new(&job.run);
        for (what, path) in [("run.json", run.info()), ("model.safetensors", run.weights())] {
            if !path.exists() {
                return Err(TrainError::NoRun { what, run: job.run.clone() });
            }
        }
        let info = run.read_info()?;
        let plan = TrainPlan::read(&run.plan())?;
        let shards_path = job.shards.clone().unwrap_or_else(|| run.shards(&info));
        let shards = ShardSet::open(&shards_path)?;
        if shards.sha256()? != plan.shards_sha256 {
            return Err(TrainError::Changed { what: "shards", run: job.run.clone() });
        }
        plan.recipe.set_arithmetic();
        Ok(Self { plan, model: SavedModel::read(&run.model(), &run.weights())?, shards })
    }

    /// One part of the data as it was for training, with what the network says of it.
    fn infer(&self, split: Split, stop: &AtomicBool) -> Result<(Dataset, Inference), TrainError> {
        let dataset = read_split(&self.shards, Some(&self.plan), split)?;
        let items = dataset.of_split(split);
        let pool = thread_pool(self.plan.recipe.threads.unwrap_or_else(available_threads))?;
        let inference = pool.install(|| infer(&self.model.network, None, &dataset, &items, stop))?;
        let interrupted = || TrainError::Interrupted { place: "during the audit".to_owned() };
        Ok((dataset, inference.ok_or_else(interrupted)?))
    }
}

/// The sweep that measures leakage: the recipe with cases kept whole, and with
/// slices dealt one by one, so that slices of a test case are trained on. How much
/// better the latter looks on its test slices is the inflation.
pub fn leakage(shards: &Path, recipe: &Path, seeds: Vec<u64>) -> SweepSpec {
    let by_slice = toml::Table::from_iter([("split_by".to_owned(), toml::Value::from("slice"))]);
    let set = toml::Table::from_iter([("data".to_owned(), toml::Value::Table(by_slice))]);
    SweepSpec {
        recipe: recipe.into(),
        shards: shards.into(),
        processes: None,
        seeds,
        folds: None,
        class_ratios: Vec::new(),
        label_noise: Vec::new(),
        variants: vec![
            Variant { name: "split-by-case".to_owned(), set: toml::Table::new() },
            Variant { name: "split-by-slice".to_owned(), set },
        ],
        reference: None,
        summary: SummarySpec {
            unit: "slice".to_owned(),
            measures: ["accuracy", "balanced_accuracy", "macro_f1", "macro_auroc"]
                .map(str::to_owned)
                .to_vec(),
            ..SummarySpec::default()
        },
    }
}
