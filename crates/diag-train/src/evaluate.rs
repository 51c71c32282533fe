//! Evaluation: a run and its shards to predictions, the decided rule and metrics.

mod attention;
mod external;
pub(crate) mod inference;
mod results;
pub(crate) mod split;
pub(crate) mod validation;
mod variant;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use diag_data::case::Split;
use diag_data::run::RunDir;
use diag_data::shard::ShardSet;
use diag_decision::{Decision, FitSpec, PriorCorrection, cases_of};
use diag_model::SavedModel;

use crate::data::experiment;
use crate::device::DeviceChoice;
use crate::error::TrainError;
use crate::recipe::Selection;
use crate::run::plan::{TrainPlan, ValidationSource};
use crate::threads::{available_threads, thread_pool};
use attention::AttentionHead;
pub use external::{ExternalJob, validate_externally};
use inference::{Inference, infer};
pub use results::{Metrics, SplitMetrics};
use results::{Results, in_words};
use split::{list_split, read_split};

/// What to evaluate.
#[derive(Clone, Debug)]
pub struct EvaluateJob {
    /// Folder of the run; predictions and metrics are written into it.
    pub run: PathBuf,
    /// Where the shards that it was trained on are now; absent: where they were.
    pub shards: Option<PathBuf>,
    /// One split; absent: all. What is known of the others stays.
    pub split: Option<Split>,
    /// Device to run on.
    pub device: DeviceChoice,
    /// Threads; absent: as the recipe says. The result does not depend on it.
    pub threads: Option<usize>,
}

/// Evaluates a run; writes `decision.json` where there is none, `predictions.parquet`,
/// `case_predictions.parquet`, `case_predictions.csv` and, last, `metrics.json`. Returns the
/// metrics of the splits that were asked for.
///
/// The rule is fitted on the validation split and written before a test slice is read; a rule
/// that is there is taken as it is.
///
/// # Errors
/// A folder without a finished run, shards that are not those of the run, a file of the folder
/// that belongs to other weights, a stop by request.
pub fn evaluate(job: &EvaluateJob, stop: &AtomicBool) -> Result<Metrics, TrainError> {
    let run = RunDir::new(&job.run);
    for (what, path) in [("run.json", run.info()), ("model.safetensors", run.weights())] {
        if !path.exists() {
            return Err(TrainError::NoRun { what, run: job.run.clone() });
        }
    }
    let info = run.read_info()?;
    let plan = TrainPlan::read(&run.plan())?;
    let model = SavedModel::read_to(&run.model(), &run.weights(), &job.device.open()?)?;
    // Checked against the file just now.
    let model_sha256 = model.card.networks[0].sha256.clone();
    if info.model_sha256.as_ref() != Some(&model_sha256) {
        return Err(TrainError::Apart { what: "weights", file: run.info(), other: run.model() });
    }
    let shards_path = job.shards.clone().unwrap_or_else(|| run.shards(&info));
    let shards = ShardSet::open(&shards_path)?;
    let shards_sha256 = own_shards(&shards, shards_path, &plan)?;
    plan.recipe.set_arithmetic();
    let splits = job.split.map_or(Split::ALL.to_vec(), |split| vec![split]);
    let evaluation = Evaluation {
        run: &run,
        plan: &plan,
        model: &model,
        model_sha256: &model_sha256,
        shards: &shards,
        stop,
    };
    let pool = thread_pool(job.threads.or(plan.recipe.threads).unwrap_or_else(available_threads))?;
    pool.install(|| evaluation.run(&splits, &shards_sha256))
}

/// Hash of the shards, which must be those that the run was trained on.
pub(crate) fn own_shards(shards: &ShardSet, path: PathBuf, plan: &TrainPlan) -> Result<String, TrainError> {
    let sha256 = shards.sha256()?;
    if sha256 != plan.shards_sha256 {
        let recorded = plan.shards_sha256.clone();
        return Err(TrainError::OtherShards { shards: path, found: sha256, recorded });
    }
    Ok(sha256)
}

/// Everything that stays the same during an evaluation.
struct Evaluation<'a> {
    run: &'a RunDir,
    plan: &'a TrainPlan,
    model: &'a SavedModel,
    model_sha256: &'a str,
    shards: &'a ShardSet,
    stop: &'a AtomicBool,
}

impl Evaluation<'_> {
    fn run(&self, splits: &[Split], shards_sha256: &str) -> Result<Metrics, TrainError> {
        let mut inferred: BTreeMap<Split, Inference> = BTreeMap::new();
        let decision = self.decision(&mut inferred)?;
        let attention = self.attention(&mut inferred)?;
        let results = Results {
            folder: self.run,
            card: &self.model.card,
            model_sha256: self.model_sha256,
            shards_sha256,
            decision: &decision,
            top_k: self.plan.recipe.top_k,
        };
        let (mut rows, mut metrics) = (BTreeMap::new(), BTreeMap::new());
        for &split in splits {
            let inference = match inferred.remove(&split) {
                Some(inference) => inference,
                None => self.infer(split)?,
            };
            if inference.predictions.is_empty() {
                continue;
            }
            metrics.insert(split, results.measure(split, &inference, attention.as_ref())?);
            rows.insert(split, inference.predictions);
        }
        if rows.is_empty() {
            return Err(TrainError::NoSlices { what: in_words(splits) });
        }
        results.write(rows, metrics)
    }

    /// The rule of the run: as it was written, or fitted on the validation split. What is
    /// inferred for that is put into `inferred`.
    fn decision(&self, inferred: &mut BTreeMap<Split, Inference>) -> Result<Decision, TrainError> {
        let (file, card) = (self.run.decision(), &self.model.card);
        if file.exists() {
            return Ok(Decision::read(&file, &card.labels, self.model_sha256)?);
        }
        let validation = self.infer(Split::Validation)?;
        let recipe = &self.plan.recipe;
        let spec = FitSpec {
            positive: Some(card.positive.clone()),
            sensitivity: recipe.decision.sensitivity,
            coverage: recipe.decision.coverage,
            top_ks: vec![recipe.top_k],
            prior_correction: match recipe.decision.prior_correction {
                true => PriorCorrection::of_counts(&self.plan.slices_per_class)?,
                false => PriorCorrection::None,
            },
            cases_chose_epoch: recipe.selection != Selection::Last
                && self.plan.validation != ValidationSource::None,
            ..FitSpec::new(card.labels.clone(), self.model_sha256)
        };
        let decision = diag_decision::fit(&cases_of(&validation.predictions, Split::Validation)?, &spec)?;
        decision.write(&file)?;
        inferred.insert(Split::Validation, validation);
        Ok(decision)
    }

    /// The attention head, where the recipe asks for that variant.
    fn attention(
        &self,
        inferred: &mut BTreeMap<Split, Inference>,
    ) -> Result<Option<AttentionHead>, TrainError> {
        let recipe = &self.plan.recipe;
        if !recipe.decision.attention || recipe.shuffle_labels {
            return Ok(None);
        }
        let file = self.run.attention();
        if let Some(head) = variant::read(&file, self.model_sha256)? {
            return Ok(Some(head));
        }
        let training = self.infer(Split::Train)?;
        let (labels, n_classes) = (self.training_labels()?, self.model.card.labels.len());
        let head = variant::train(&file, self.model_sha256, &training, &labels, n_classes, recipe.seed)?;
        inferred.insert(Split::Train, training);
        Ok(head)
    }

    fn infer(&self, split: Split) -> Result<Inference, TrainError> {
        let dataset = read_split(self.shards, Some(self.plan), split)?;
        let items = dataset.of_split(split);
        let inference = infer(&self.model.network, None, &dataset, &items, self.stop)?;
        inference.ok_or_else(|| TrainError::Interrupted { place: "during the evaluation".to_owned() })
    }

    /// The labels that were trained on, wrong ones included, slice by slice.
    fn training_labels(&self) -> Result<Vec<usize>, TrainError> {
        let mut dataset = list_split(self.shards, Some(self.plan), Split::Train)?;
        experiment::add_label_noise(&mut dataset, &self.plan.recipe.data, self.plan.recipe.seed);
        Ok(dataset.items.iter().map(|item| item.label.index()).collect())
    }
}
