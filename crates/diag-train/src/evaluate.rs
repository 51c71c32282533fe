//! Evaluation: a run and its shards to predictions, the decided rule and metrics.

mod attention;
pub(crate) mod inference;
pub(crate) mod split;
pub(crate) mod validation;
mod variant;

use std::collections::{BTreeMap, btree_map};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use diag_data::case::Split;
use diag_data::case_predictions::{self, CasePrediction};
use diag_data::files;
use diag_data::predictions::{Prediction, Predictions};
use diag_data::run::RunDir;
use diag_data::shard::ShardSet;
use diag_decision::{Decision, DecisionMetrics, FitSpec, PriorCorrection, RuleInWords, cases_of};
use diag_metrics::{Aggregation, Measures, aggregate, evaluate as measure};
use diag_model::SavedModel;
use serde::Serialize;

use crate::data::experiment;
use crate::device::DeviceChoice;
use crate::error::TrainError;
use crate::recipe::Selection;
use crate::run::plan::{TrainPlan, ValidationSource};
use crate::threads::{available_threads, thread_pool};
use attention::AttentionHead;
use inference::{Inference, case_numbers, infer, scores};
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

/// Version of `metrics.json`.
const FORMAT_VERSION: u32 = 2;

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
    /// Hash of `decision.json`.
    pub decision_sha256: String,
    /// Hash of `predictions.parquet`.
    pub predictions_sha256: String,
    /// The decided rule in words.
    pub rule: RuleInWords,
    /// Measures by split.
    pub splits: BTreeMap<String, SplitMetrics>,
}

/// Measures of one split, final head.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SplitMetrics {
    /// Of the decided rule: the numbers that count. Unit of analysis: case.
    pub decision: DecisionMetrics,
    /// Variants that were not decided for, by the way slices are joined: `mean`,
    /// `top_k_mean`, and `attention` where the recipe asks for it. Unit of analysis: case.
    pub case: BTreeMap<String, Measures>,
    /// Unit of analysis: slice.
    pub slice: Measures,
    /// k of the top-k mean.
    pub top_k: usize,
    /// Balanced accuracy by head, unit of analysis: slice.
    pub slice_balanced_accuracy: BTreeMap<String, Option<f64>>,
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
    let evaluated = pool.install(|| evaluation.run(&splits))?;
    if evaluated.metrics.is_empty() {
        let what = job.split.map_or_else(|| "any".to_owned(), |split| split.to_string());
        return Err(TrainError::NoSlices { what });
    }
    evaluation.write(evaluated, shards_sha256)
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

/// What was found of the splits that were asked for.
struct Evaluated {
    decision: Decision,
    rows: BTreeMap<Split, Vec<Prediction>>,
    metrics: BTreeMap<Split, SplitMetrics>,
}

impl Evaluation<'_> {
    fn run(&self, splits: &[Split]) -> Result<Evaluated, TrainError> {
        let mut inferred: BTreeMap<Split, Inference> = BTreeMap::new();
        let decision = self.decision(&mut inferred)?;
        let attention = self.attention(&mut inferred)?;
        let (mut rows, mut metrics) = (BTreeMap::new(), BTreeMap::new());
        for &split in splits {
            let inference = match inferred.remove(&split) {
                Some(inference) => inference,
                None => self.infer(split)?,
            };
            if inference.predictions.is_empty() {
                continue;
            }
            metrics.insert(split, self.measure(split, &inference, &decision, attention.as_ref())?);
            rows.insert(split, inference.predictions);
        }
        Ok(Evaluated { decision, rows, metrics })
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
        let file = self.run.root().join("attention.safetensors");
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

    fn measure(
        &self,
        split: Split,
        inference: &Inference,
        decision: &Decision,
        attention: Option<&AttentionHead>,
    ) -> Result<SplitMetrics, TrainError> {
        let (card, top_k) = (&self.model.card, self.plan.recipe.top_k);
        let (rows, n_classes) = (&inference.predictions, card.labels.len());
        let slices = scores(rows, card.heads.len() - 1, n_classes)?;
        let cases = case_numbers(rows);
        let mut case = BTreeMap::new();
        for (name, how) in [("mean", Aggregation::Mean), ("top_k_mean", Aggregation::TopKMean { k: top_k })] {
            case.insert(name.to_owned(), measure(&aggregate(&slices, &cases, how)?.scores));
        }
        if let Some(head) = attention {
            case.insert("attention".to_owned(), variant::measured(head, inference, n_classes)?);
        }
        let mut slice_balanced_accuracy = BTreeMap::new();
        for (h, head) in card.heads.iter().enumerate() {
            let measures = measure(&scores(rows, h, n_classes)?);
            slice_balanced_accuracy.insert(head.clone(), measures.balanced_accuracy);
        }
        Ok(SplitMetrics {
            decision: DecisionMetrics::of(decision.terms(), &predicted(decision, rows, split)?)?,
            case,
            slice: measure(&slices),
            top_k,
            slice_balanced_accuracy,
        })
    }

    /// Writes all files, together with what is known of splits that were not asked for.
    fn write(&self, evaluated: Evaluated, shards_sha256: String) -> Result<Metrics, TrainError> {
        let Evaluated { decision, mut rows, metrics } = evaluated;
        let (run, card) = (self.run, &self.model.card);
        let mut of_splits = self.known(&decision, &shards_sha256, &mut rows)?;
        let mut predictions =
            Predictions { labels: card.labels.clone(), heads: card.heads.clone(), rows: Vec::new() };
        let mut case_rows = Vec::new();
        for (split, rows) in rows {
            case_rows.extend(predicted(&decision, &rows, split)?);
            predictions.rows.extend(rows);
        }
        predictions.write(&run.predictions())?;
        case_predictions::write_parquet(&run.case_predictions(), &card.labels, &case_rows)?;
        case_predictions::write_csv(&run.case_predictions_csv(), &card.labels, &case_rows)?;
        let metrics = Metrics {
            format_version: FORMAT_VERSION,
            labels: card.labels.names().to_vec(),
            model_sha256: self.model_sha256.to_owned(),
            shards_sha256,
            decision_sha256: decision.sha256().to_owned(),
            predictions_sha256: files::sha256_file(&run.predictions())?,
            rule: decision.terms().in_words(),
            splits: metrics.into_iter().map(|(split, of_split)| (split.to_string(), of_split)).collect(),
        };
        let refused = |err: serde_json::Error| diag_data::DataError::Malformed {
            path: run.metrics(),
            why: err.to_string(),
        };
        let mut file = serde_json::to_value(&metrics).map_err(refused)?;
        for (split, of_split) in &metrics.splits {
            of_splits.insert(split.clone(), serde_json::to_value(of_split).map_err(refused)?);
        }
        file["splits"] = of_splits.into_iter().collect();
        files::write_json(&run.metrics(), &file)?;
        Ok(metrics)
    }

    /// Metrics of an earlier evaluation by this rule of these weights on these shards. Its
    /// predictions of splits that `rows` lacks are put there.
    fn known(
        &self,
        decision: &Decision,
        shards_sha256: &str,
        rows: &mut BTreeMap<Split, Vec<Prediction>>,
    ) -> Result<BTreeMap<String, serde_json::Value>, TrainError> {
        let run = self.run;
        if !run.metrics().exists() || !run.predictions().exists() || rows.len() == Split::ALL.len() {
            return Ok(BTreeMap::new());
        }
        let metrics: serde_json::Value = files::read_json(&run.metrics())?;
        let predictions_sha256 = files::sha256_file(&run.predictions())?;
        let recorded = [
            ("model_sha256", self.model_sha256),
            ("shards_sha256", shards_sha256),
            ("decision_sha256", decision.sha256()),
            ("predictions_sha256", &predictions_sha256),
        ];
        if recorded.iter().any(|(key, value)| metrics[key].as_str() != Some(value)) {
            return Ok(BTreeMap::new());
        }
        let mut known: BTreeMap<Split, Vec<Prediction>> = BTreeMap::new();
        for row in Predictions::read(&run.predictions(), &self.model.card.labels)?.rows {
            known.entry(row.split).or_default().push(row);
        }
        let mut of_splits = BTreeMap::new();
        for (split, of_split) in known {
            if let btree_map::Entry::Vacant(entry) = rows.entry(split) {
                entry.insert(of_split);
                of_splits.insert(split.to_string(), metrics["splits"][split.as_str()].clone());
            }
        }
        Ok(of_splits)
    }
}

/// Cases of a split as the rule decides them, sorted by name.
fn predicted(
    decision: &Decision,
    rows: &[Prediction],
    split: Split,
) -> Result<Vec<CasePrediction>, TrainError> {
    let cases = cases_of(rows, split)?;
    Ok(cases.iter().map(|case| decision.predict(case)).collect::<Result<_, _>>()?)
}
