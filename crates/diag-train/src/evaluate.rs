//! Evaluation: a run and shards to predictions and metrics.

mod attention;
mod decision;
pub(crate) mod inference;
pub(crate) mod split;
pub(crate) mod validation;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use diag_data::case::Split;
use diag_data::files;
use diag_data::predictions::{Prediction, Predictions};
use diag_data::run::RunDir;
use diag_data::shard::ShardSet;
use diag_metrics::{Aggregation, Measures, aggregate, evaluate as measure};
use diag_model::{SavedModel, tensors};
use serde::Serialize;

use crate::data::experiment;
use crate::device::DeviceChoice;
use crate::error::TrainError;
use crate::run::plan::TrainPlan;
use crate::threads::{available_threads, thread_pool};
use attention::AttentionHead;
pub use decision::{Candidate, CaseRule, Decision, DecisionMetrics, ThresholdMeasures};
use decision::{Part, train_attention};
use inference::{Inference, case_numbers, infer, scores};
use split::{list_split, read_split};

/// What to evaluate.
#[derive(Clone, Debug)]
pub struct EvaluateJob {
    /// Folder of the run; predictions and metrics are written into it.
    pub run: PathBuf,
    /// Shards; absent: those it was trained on.
    pub shards: Option<PathBuf>,
    /// One split; absent: all.
    pub split: Option<Split>,
    /// Device to run on.
    pub device: DeviceChoice,
    /// Threads; absent: as the recipe says. The result does not depend on it.
    pub threads: Option<usize>,
}

/// `metrics.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// Version of this form.
    pub format_version: u32,
    /// Class names in the order of every list.
    pub labels: Vec<String>,
    /// Hash of the weights that were evaluated.
    pub model_sha256: String,
    /// Hash of the shards that were evaluated.
    pub shards_sha256: String,
    /// Measures by split.
    pub splits: BTreeMap<String, SplitMetrics>,
}

/// Measures of one split, final head.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SplitMetrics {
    /// Unit of analysis: slice.
    pub slice: Measures,
    /// Unit of analysis: case, by the way its slices are joined: `mean`, `top_k_mean`.
    pub case: BTreeMap<String, Measures>,
    /// k of the top-k mean.
    pub top_k: usize,
    /// Balanced accuracy by head, unit of analysis: slice.
    pub slice_balanced_accuracy: BTreeMap<String, Option<f64>>,
    /// Measures of the decision that was fixed on the validation split; absent without one.
    pub decision: Option<DecisionMetrics>,
}

/// Evaluates a run; writes `predictions.parquet` and `metrics.json` and returns the latter.
///
/// Where the run has no `decision.json` for its weights yet, the decision is
/// fitted on the validation split and written first, before a test slice is read.
///
/// # Errors
/// A folder without a finished run, shards that are not there or have other
/// labels or another image size, a stop by request.
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
    let shards_path = job.shards.clone().unwrap_or_else(|| run.shards(&info));
    let shards = ShardSet::open(&shards_path)?;
    let shards_sha256 = shards.sha256()?;
    let spec = &shards.manifest().spec;
    let input = &model.card.input;
    if spec.labels != model.card.labels || spec.reader != input.reader {
        return Err(TrainError::Changed {
            what: "labels or reader settings of the shards",
            run: job.run.clone(),
        });
    }
    plan.recipe.set_arithmetic();
    let splits = job.split.map_or(Split::ALL.to_vec(), |split| vec![split]);
    let evaluation = Evaluation {
        run: &run,
        plan: &plan,
        model: &model,
        model_sha256: files::sha256_file(&run.weights())?,
        own_shards: shards_sha256 == plan.shards_sha256,
        shards: &shards,
        stop,
    };
    let pool = thread_pool(job.threads.or(plan.recipe.threads).unwrap_or_else(available_threads))?;
    let (predictions, measured) = pool.install(|| evaluation.run(&splits))?;
    if predictions.rows.is_empty() {
        let what = job.split.map_or_else(|| "any".to_owned(), |split| split.to_string());
        return Err(TrainError::NoSlices { what });
    }
    let metrics = Metrics {
        format_version: 1,
        labels: model.card.labels.names().to_vec(),
        model_sha256: evaluation.model_sha256,
        shards_sha256,
        splits: measured,
    };
    predictions.write(&run.predictions())?;
    files::write_json(&run.metrics(), &metrics)?;
    Ok(metrics)
}

/// Everything that stays the same during an evaluation.
struct Evaluation<'a> {
    run: &'a RunDir,
    plan: &'a TrainPlan,
    model: &'a SavedModel,
    model_sha256: String,
    /// Whether these are the shards of the training.
    own_shards: bool,
    shards: &'a ShardSet,
    stop: &'a AtomicBool,
}

impl Evaluation<'_> {
    fn run(&self, splits: &[Split]) -> Result<(Predictions, BTreeMap<String, SplitMetrics>), TrainError> {
        let mut inferred: BTreeMap<Split, Inference> = BTreeMap::new();
        let decision = self.decision(&mut inferred)?;
        let card = &self.model.card;
        let mut predictions =
            Predictions { labels: card.labels.clone(), heads: card.heads.clone(), rows: Vec::new() };
        let mut measured = BTreeMap::new();
        for &split in splits {
            let inference = match inferred.remove(&split) {
                Some(inference) => inference,
                None => self.infer(split)?,
            };
            if inference.predictions.is_empty() {
                continue;
            }
            let mut metrics = measure_split(&inference.predictions, &predictions, self.plan.recipe.top_k)?;
            if let Some((decision, attention)) = &decision {
                let part = part(&inference, card.heads.len());
                metrics.decision = Some(decision.measure(&part, &card.labels, attention.as_ref())?);
            }
            measured.insert(split.to_string(), metrics);
            predictions.rows.extend(inference.predictions);
        }
        Ok((predictions, measured))
    }

    /// The decision of the run: as it was written, or fitted on the validation split
    /// of the shards it was trained on. What is inferred for that is put into `inferred`.
    fn decision(
        &self,
        inferred: &mut BTreeMap<Split, Inference>,
    ) -> Result<Option<(Decision, Option<AttentionHead>)>, TrainError> {
        let attention_file = self.run.root().join("attention.safetensors");
        if self.run.decision().exists() {
            let decision: Decision = files::read_json(&self.run.decision())?;
            if decision.model_sha256 == self.model_sha256 {
                let attention = match decision.aggregation {
                    CaseRule::Attention => {
                        Some(AttentionHead::from_weights(tensors::read(&attention_file)?.0))
                    }
                    CaseRule::Fixed(_) => None,
                };
                return Ok(Some((decision, attention)));
            }
        }
        if !self.own_shards {
            return Ok(None);
        }
        let validation = self.infer(Split::Validation)?;
        if validation.predictions.is_empty() {
            return Ok(None);
        }
        let (card, recipe) = (&self.model.card, &self.plan.recipe);
        let attention = if recipe.decision.attention && !recipe.shuffle_labels {
            let training = self.infer(Split::Train)?;
            let part = part(&training, card.heads.len());
            let labels = self.training_labels()?;
            let head = train_attention(&part, &labels, card.labels.len(), recipe.seed)?;
            inferred.insert(Split::Train, training);
            head
        } else {
            None
        };
        let model_sha256 = self.model_sha256.clone();
        let part = part(&validation, card.heads.len());
        let decision = Decision::fit(
            &recipe.decision,
            recipe.top_k,
            &card.labels,
            model_sha256,
            &part,
            attention.as_ref(),
        )?;
        if let Some(head) = &attention {
            tensors::write(&attention_file, head.weights(), "")?;
        }
        files::write_json(&self.run.decision(), &decision)?;
        inferred.insert(Split::Validation, validation);
        Ok(Some((decision, attention)))
    }

    fn infer(&self, split: Split) -> Result<Inference, TrainError> {
        let dataset = read_split(self.shards, self.own_shards.then_some(self.plan), split)?;
        let items = dataset.of_split(split);
        let inference = infer(&self.model.network, None, &dataset, &items, self.stop)?;
        inference.ok_or_else(|| TrainError::Interrupted { place: "during the evaluation".to_owned() })
    }

    /// The labels that were trained on, wrong ones included, slice by slice.
    fn training_labels(&self) -> Result<Vec<usize>, TrainError> {
        let mut dataset = list_split(self.shards, self.own_shards.then_some(self.plan), Split::Train)?;
        experiment::add_label_noise(&mut dataset, &self.plan.recipe.data, self.plan.recipe.seed);
        Ok(dataset.items.iter().map(|item| item.label.index()).collect())
    }
}

fn part(inference: &Inference, n_heads: usize) -> Part<'_> {
    Part { rows: &inference.predictions, features: &inference.features, n_heads }
}

fn measure_split(rows: &[Prediction], table: &Predictions, top_k: usize) -> Result<SplitMetrics, TrainError> {
    let n_classes = table.labels.len();
    let slices = scores(rows, table.heads.len() - 1, n_classes)?;
    let cases = case_numbers(rows);
    let mut case = BTreeMap::new();
    for (name, how) in [("mean", Aggregation::Mean), ("top_k_mean", Aggregation::TopKMean { k: top_k })] {
        case.insert(name.to_owned(), measure(&aggregate(&slices, &cases, how)?.scores));
    }
    let mut slice_balanced_accuracy = BTreeMap::new();
    for (h, head) in table.heads.iter().enumerate() {
        let measures = measure(&scores(rows, h, n_classes)?);
        slice_balanced_accuracy.insert(head.clone(), measures.balanced_accuracy);
    }
    Ok(SplitMetrics { slice: measure(&slices), case, top_k, slice_balanced_accuracy, decision: None })
}
