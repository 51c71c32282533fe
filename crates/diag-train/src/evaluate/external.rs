//! External validation: a finished run and its rule, as they are, on a cohort that they were
//! not made with. The run is not touched; everything goes to a folder of its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use diag_data::case::Split;
use diag_data::external::{External, FORMAT_VERSION, LocalCalibration, RuleQuality};
use diag_data::predictions::Prediction;
use diag_data::run::RunDir;
use diag_data::seen::{Overlap, PatientCheck, Seen};
use diag_data::shard::ShardSet;
use diag_data::{DataError, files};
use diag_decision::{Decision, DecisionMetrics, FitSpec, cases_of};
use diag_model::{ModelCard, OpenModel, SavedModel};

use super::inference::infer;
use super::results::{Metrics, Results, in_words, predicted};
use super::split::read_split;
use crate::device::DeviceChoice;
use crate::error::TrainError;
use crate::run::info::source;
use crate::run::plan::TrainPlan;
use crate::threads::{available_threads, thread_pool};

/// k of the variant `top_k_mean` where no recipe says it.
const TOP_K: usize = 3;

/// What to validate, and on what.
#[derive(Clone, Debug)]
pub struct ExternalJob {
    /// An evaluated run: its folder, or the file that was exported of it.
    pub model: PathBuf,
    /// The other cohort.
    pub shards: PathBuf,
    /// Folder to make, or that of an earlier external validation.
    pub out: PathBuf,
    /// One split of the cohort; absent: all. What is known of the others stays.
    pub split: Option<Split>,
    /// Device to run on.
    pub device: DeviceChoice,
    /// Threads; absent: as the recipe says. The result does not depend on it.
    pub threads: Option<usize>,
}

/// Applies a run and its decided rule to another cohort; writes `external.json`, copies of what
/// the run says of itself, and predictions and metrics as [`evaluate`](super::evaluate())
/// does. The rule is that of the run: nothing is fitted to the cohort.
///
/// # Errors
/// A run that was not evaluated; shards that were read by other settings or for other classes;
/// a cohort of which the network has seen a patient, a series or a picture; a folder that holds
/// something else; a stop by request.
pub fn validate_externally(job: &ExternalJob, stop: &AtomicBool) -> Result<(Metrics, External), TrainError> {
    let out = RunDir::new(&job.out);
    if !out.external().exists() {
        files::refuse_occupied(&job.out)?;
    }
    let open = OpenModel::at(&job.model, &job.device.open()?)?;
    open.check_published()?;
    let missing = |what| TrainError::NoRun { what, run: job.model.clone() };
    let info = open.info.as_ref().ok_or_else(|| missing("run.json"))?;
    let rule = open.decision.as_ref().ok_or_else(|| missing("decision.json (run diag-train evaluate)"))?;
    // An exported file has no recipe: the settings of arithmetic are the usual ones then.
    let run = RunDir::new(&job.model);
    let plan = if job.model.is_dir() { Some(TrainPlan::read(&run.plan())?) } else { None };
    let (model, model_sha256) = (&open.model, open.sha256().to_owned());
    let decision = Decision::from_json(rule.bytes.clone(), &rule.place, &model.card.labels, &model_sha256)?;
    let seen = open.seen.as_ref().map(|part| Seen::parse(&part.place, &part.bytes)).transpose()?;
    let shards = ShardSet::open(&job.shards)?;
    let shards_sha256 = shards.sha256()?;
    if seen.as_ref().is_some_and(|seen| seen.shards_sha256 == shards_sha256) {
        return Err(TrainError::OwnShards { shards: job.shards.clone() });
    }
    check_readers(&model.card, &shards, job)?;
    let overlap = overlap(seen.as_ref(), &shards, job)?;
    if let Some(plan) = &plan {
        plan.recipe.set_arithmetic();
    }
    std::fs::create_dir_all(&job.out).map_err(|source| DataError::Io {
        action: "create",
        path: job.out.clone(),
        source,
    })?;
    let results = Results {
        folder: &out,
        card: &model.card,
        model_sha256: &model_sha256,
        shards_sha256: &shards_sha256,
        decision: &decision,
        top_k: plan.as_ref().map_or(TOP_K, |plan| plan.recipe.top_k),
    };
    let splits = job.split.map_or(Split::ALL.to_vec(), |split| vec![split]);
    let (mut rows, mut metrics) = (BTreeMap::new(), BTreeMap::new());
    let n_threads = job.threads.or_else(|| plan.as_ref()?.recipe.threads).unwrap_or_else(available_threads);
    let pool = thread_pool(n_threads)?;
    pool.install(|| -> Result<(), TrainError> {
        for &split in &splits {
            let dataset = read_split(&shards, None, split)?;
            let inference = infer(&model.network, None, &dataset, &dataset.of_split(split), stop)?;
            let inference = inference
                .ok_or_else(|| TrainError::Interrupted { place: "during the evaluation".to_owned() })?;
            if !inference.predictions.is_empty() {
                metrics.insert(split, results.measure(split, &inference, None)?);
                rows.insert(split, inference.predictions);
            }
        }
        Ok(())
    })?;
    if rows.is_empty() {
        return Err(TrainError::NoSlices { what: in_words(&splits) });
    }
    let external = External {
        format_version: FORMAT_VERSION,
        tool: format!("diag-train {}", env!("CARGO_PKG_VERSION")),
        model_sha256: model_sha256.clone(),
        trained_on_synthetic: model.card.training.synthetic,
        shards: source(&out, &shards, shards_sha256.clone()),
        overlap,
        recalibration: local_calibration(&decision, &rows)?,
    };
    // First: with it, the same command goes on in a folder that a stop left unfinished.
    files::write_json(&out.external(), &external)?;
    for (path, bytes) in [(out.info(), &info.bytes), (out.decision(), &rule.bytes)] {
        files::write_atomic(&path, bytes)?;
    }
    SavedModel::write_card(&out.model(), &model.card)?;
    out.write_epochs(&if plan.is_some() { run.read_epochs()? } else { Vec::new() })?;
    if plan.is_some() {
        files::write_atomic(&out.plan(), &files::read(&run.plan())?)?;
    }
    Ok((results.write(rows, metrics)?, external))
}

/// The network may only see pictures that were made as those that it was trained on.
fn check_readers(card: &ModelCard, shards: &ShardSet, job: &ExternalJob) -> Result<(), TrainError> {
    let spec = &shards.manifest().spec;
    let mut differences: Vec<String> =
        card.input.reader.differences(&spec.reader).iter().map(|difference| difference.to_string()).collect();
    if card.labels != spec.labels {
        let names = |labels: &diag_data::case::LabelSet| labels.names().join(", ");
        differences.push(format!("classes: {} here, {} there", names(&card.labels), names(&spec.labels)));
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(TrainError::OtherReader { shards: job.shards.clone(), differences: differences.join("; ") })
}

/// What the cohort shares with what the network has seen; refused where that is a patient, a
/// series or a picture.
fn overlap(seen: Option<&Seen>, shards: &ShardSet, job: &ExternalJob) -> Result<Overlap, TrainError> {
    let Some(seen) = seen else {
        return Ok(Overlap {
            patients: PatientCheck::NothingRecorded,
            n_seen_cases: 0,
            n_cases: shards.cases()?.len(),
            shared: Vec::new(),
            near_duplicates: Vec::new(),
        });
    };
    let overlap = seen.overlap(shards)?;
    if overlap.shared.is_empty() {
        return Ok(overlap);
    }
    let cases = overlap.shared.iter().map(|shared| {
        let what = shared.what.iter().map(|what| what.as_str()).collect::<Vec<_>>().join(", ");
        format!("{} ({what} of {}, {})", shared.case_id, shared.seen_as, shared.seen_in)
    });
    Err(TrainError::SeenBefore { shards: job.shards.clone(), cases: cases.collect::<Vec<_>>().join("; ") })
}

/// The frozen rule beside one that is fitted on the training and validation cases of the cohort
/// itself; `None` without such cases, or without test cases.
fn local_calibration(
    frozen: &Decision,
    rows: &BTreeMap<Split, Vec<Prediction>>,
) -> Result<Option<LocalCalibration>, TrainError> {
    let Some(test) = rows.get(&Split::Test) else { return Ok(None) };
    let mut cases = Vec::new();
    for split in [Split::Train, Split::Validation] {
        if let Some(rows) = rows.get(&split) {
            cases.extend(cases_of(rows, split)?);
        }
    }
    if cases.is_empty() {
        return Ok(None);
    }
    let terms = frozen.terms();
    let spec = FitSpec {
        positive: Some(terms.positive.clone()),
        sensitivity: terms.wanted_sensitivity,
        coverage: terms.wanted_coverage,
        cases_chose_epoch: false,
        ..FitSpec::new(terms.labels.clone(), terms.model_sha256.clone())
    };
    let local = diag_decision::fit(&cases, &spec)?;
    let n_test_cases = cases_of(test, Split::Test)?.len();
    let quality = |decision: &Decision| -> Result<RuleQuality, TrainError> {
        let measures = DecisionMetrics::of(decision.terms(), &predicted(decision, test, Split::Test)?)?.case;
        Ok(RuleQuality {
            temperature: decision.terms().temperature,
            log_loss: measures.log_loss,
            brier: measures.brier,
            balanced_accuracy: measures.balanced_accuracy,
        })
    };
    Ok(Some(LocalCalibration {
        n_local_cases: cases.len(),
        n_test_cases,
        frozen: quality(frozen)?,
        local: quality(&local)?,
    }))
}
