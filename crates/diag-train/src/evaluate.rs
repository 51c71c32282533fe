//! Evaluation: a run's model over shards to predictions and metrics.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use diag_data::case::{CaseId, Split};
use diag_data::files;
use diag_data::predictions::{Prediction, Predictions};
use diag_data::run::RunDir;
use diag_data::shard::ShardSet;
use diag_metrics::{Aggregation, Measures, aggregate, evaluate as measure};
use diag_model::SavedModel;
use serde::Serialize;

use crate::TrainError;
use crate::dataset::Dataset;
use crate::fit::{available_threads, thread_pool};
use crate::inference::{case_numbers, infer, scores};
use crate::plan::TrainPlan;
use crate::recipe::DeviceChoice;

/// What to evaluate.
#[derive(Clone, Debug)]
pub struct EvaluateJob {
    /// Folder of the run; predictions and metrics are written into it.
    pub run: PathBuf,
    /// Shards; absent: those it was trained on.
    pub shards: Option<PathBuf>,
    /// One part of the data; absent: all.
    pub split: Option<Split>,
    /// Device to run on.
    pub device: DeviceChoice,
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
    /// Measures by part of the data.
    pub splits: BTreeMap<String, SplitMetrics>,
}

/// Measures of one part of the data, final head.
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
}

/// Evaluates a run; writes `predictions.parquet` and `metrics.json` and returns the latter.
///
/// # Errors
/// A folder without a finished run, shards that are not there or have other
/// labels or another image size, a stop by request.
pub fn evaluate(job: &EvaluateJob, stop: &AtomicBool) -> Result<Metrics, TrainError> {
    job.device.check()?;
    let run = RunDir::new(&job.run);
    for (what, path) in [("run.json", run.info()), ("model.safetensors", run.weights())] {
        if !path.exists() {
            return Err(TrainError::NoRun { what, run: job.run.clone() });
        }
    }
    let info = run.read_info()?;
    let plan = TrainPlan::read(&run.plan())?;
    let model = SavedModel::read(&run.model(), &run.weights())?;
    let shards_path = job.shards.clone().unwrap_or_else(|| run.root().join(&info.shards.path));
    let shards = ShardSet::open(&shards_path)?;
    let shards_sha256 = shards.sha256()?;
    let spec = &shards.manifest().spec;
    let input = &model.card.input;
    if spec.labels != model.card.labels || (spec.height, spec.width) != (input.height, input.width) {
        return Err(TrainError::Changed { what: "labels or image size of the shards", run: job.run.clone() });
    }
    plan.recipe.set_arithmetic();
    let splits = job.split.map_or(Split::ALL.to_vec(), |split| vec![split]);
    let dataset = read_splits(&shards, &plan, &shards_sha256, &splits)?;
    if dataset.items.is_empty() {
        let what = job.split.map_or_else(|| "any".to_owned(), |split| split.to_string());
        return Err(TrainError::NoSlices { what });
    }
    let items: Vec<usize> = splits.iter().flat_map(|&split| dataset.of_split(split)).collect();
    let pool = thread_pool(plan.recipe.threads.unwrap_or_else(available_threads))?;
    let inference = pool.install(|| infer(&model.network, None, &dataset, &items, stop))?;
    let Some(inference) = inference else {
        return Err(TrainError::Interrupted { epoch: plan.recipe.epochs + 1 });
    };
    let predictions = Predictions {
        labels: dataset.labels.clone(),
        heads: model.card.heads.clone(),
        rows: inference.predictions,
    };
    let metrics = Metrics {
        format_version: 1,
        labels: dataset.labels.names().to_vec(),
        model_sha256: files::sha256_file(&run.weights())?,
        shards_sha256,
        splits: measure_splits(&predictions, &splits, plan.recipe.top_k)?,
    };
    predictions.write(&run.predictions())?;
    files::write_json(&run.metrics(), &metrics)?;
    Ok(metrics)
}

/// Reads parts of the data, with the validation cases of the run set aside
/// where these are the shards it was trained on.
fn read_splits(
    shards: &ShardSet,
    plan: &TrainPlan,
    shards_sha256: &str,
    splits: &[Split],
) -> Result<Dataset, TrainError> {
    let own = shards_sha256 == plan.shards_sha256;
    let mut stored = splits.to_vec();
    if own && !plan.validation_cases.is_empty() && splits == [Split::Validation] {
        stored.push(Split::Train);
    }
    let mut dataset = Dataset::read(shards, &stored)?;
    if own {
        let cases: std::collections::BTreeSet<CaseId> = plan.validation_cases.iter().cloned().collect();
        dataset.set_aside(&cases);
    }
    dataset.items.retain(|item| splits.contains(&item.split));
    Ok(dataset)
}

fn measure_splits(
    predictions: &Predictions,
    splits: &[Split],
    top_k: usize,
) -> Result<BTreeMap<String, SplitMetrics>, TrainError> {
    let n_classes = predictions.labels.len();
    let mut measured = BTreeMap::new();
    for &split in splits {
        let rows: Vec<Prediction> =
            predictions.rows.iter().filter(|row| row.split == split).cloned().collect();
        if rows.is_empty() {
            continue;
        }
        let slices = scores(&rows, predictions.heads.len() - 1, n_classes)?;
        let cases = case_numbers(&rows);
        let mut case = BTreeMap::new();
        for (name, how) in [("mean", Aggregation::Mean), ("top_k_mean", Aggregation::TopKMean { k: top_k })] {
            case.insert(name.to_owned(), measure(&aggregate(&slices, &cases, how)?.scores));
        }
        let mut slice_balanced_accuracy = BTreeMap::new();
        for (h, head) in predictions.heads.iter().enumerate() {
            let measures = measure(&scores(&rows, h, n_classes)?);
            slice_balanced_accuracy.insert(head.clone(), measures.balanced_accuracy);
        }
        let metrics = SplitMetrics { slice: measure(&slices), case, top_k, slice_balanced_accuracy };
        measured.insert(split.to_string(), metrics);
    }
    Ok(measured)
}
