//! A run folder in memory, ready to be measured.

use std::collections::BTreeMap;

use diag_data::DataError;
use diag_data::case::{CaseId, Split};
use diag_data::files;
use diag_data::manifest::{CaseRow, Quarantined};
use diag_data::predictions::Predictions;
use diag_data::run::{Epoch, RunDir, RunInfo};
use diag_data::shard::ShardSet;
use diag_metrics::{MetricsError, Scores};

use crate::ReportError;

/// A run with the predictions of one part of the data.
pub(crate) struct Run {
    /// Name of its folder.
    pub(crate) name: String,
    pub(crate) dir: RunDir,
    pub(crate) info: RunInfo,
    pub(crate) epochs: Vec<Epoch>,
    /// `plan.toml` as text; absent when there is none.
    pub(crate) plan: Option<String>,
    /// SHA-256 of `predictions.parquet`.
    pub(crate) predictions_sha256: String,
    /// Sorted.
    pub(crate) case_ids: Vec<CaseId>,
    /// Sorted by case and slice.
    pub(crate) slices: Vec<SliceRow>,
    /// The shards, or in words why they are not at hand.
    pub(crate) shards: Result<Shards, String>,
}

/// One predicted slice.
pub(crate) struct SliceRow {
    /// Index into [`Run::case_ids`].
    pub(crate) case: usize,
    pub(crate) slice_index: i32,
    pub(crate) label: usize,
    /// By head and class; the last head is the final output.
    pub(crate) heads: Vec<Vec<f64>>,
}

impl SliceRow {
    /// Probabilities of the final head.
    pub(crate) fn probs(&self) -> &[f64] {
        self.heads.last().map_or(&[], Vec::as_slice)
    }
}

/// The shard folder of a run.
pub(crate) struct Shards {
    pub(crate) set: ShardSet,
    pub(crate) cases: Vec<CaseRow>,
    pub(crate) quarantined: Vec<Quarantined>,
}

impl Run {
    /// Predictions of one head by slice.
    pub(crate) fn slice_scores(&self, head: usize) -> Result<Scores, MetricsError> {
        let probs: Vec<f64> = self.slices.iter().flat_map(|s| s.heads[head].iter().copied()).collect();
        let labels: Vec<usize> = self.slices.iter().map(|s| s.label).collect();
        Scores::new(&probs, self.info.labels.len(), &labels)
    }

    /// Case of every slice.
    pub(crate) fn case_of_slice(&self) -> Vec<usize> {
        self.slices.iter().map(|s| s.case).collect()
    }

    /// Names of the heads in the predictions, the final one last.
    pub(crate) fn heads(&self) -> &[String] {
        &self.info.heads
    }
}

pub(crate) fn load_all(dirs: &[RunDir], split: Split) -> Result<Vec<Run>, ReportError> {
    if dirs.is_empty() {
        return Err(ReportError::NoRun);
    }
    dirs.iter().map(|dir| load(dir, split)).collect()
}

fn load(dir: &RunDir, split: Split) -> Result<Run, ReportError> {
    let of_run = |source| ReportError::Run { run: dir.root().into(), source };
    let mut info = dir.read_info().map_err(of_run)?;
    let epochs = dir.read_epochs().map_err(of_run)?;
    let predictions = Predictions::read(&dir.predictions(), &info.labels).map_err(of_run)?;
    // What was predicted counts, should the two ever differ.
    info.heads = predictions.heads;
    let mut rows: Vec<_> = predictions.rows.into_iter().filter(|row| row.split == split).collect();
    if rows.is_empty() {
        return Err(ReportError::NoRows { split, run: dir.root().into() });
    }
    rows.sort_by(|a, b| (&a.case_id, a.slice_index).cmp(&(&b.case_id, b.slice_index)));
    let mut case_ids: Vec<CaseId> = rows.iter().map(|row| row.case_id.clone()).collect();
    case_ids.dedup();
    let index: BTreeMap<&CaseId, usize> = case_ids.iter().enumerate().map(|(i, id)| (id, i)).collect();
    let widen = |head: &Vec<f32>| head.iter().map(|&p| f64::from(p)).collect();
    let slices = rows.iter().map(|row| SliceRow {
        case: index[&row.case_id],
        slice_index: row.slice_index,
        label: row.label.index(),
        heads: row.head_probabilities.iter().map(widen).collect(),
    });
    let slices = slices.collect();
    // A name is not worth an error: a run in the file system's root has none.
    let folder = std::fs::canonicalize(dir.root()).unwrap_or_else(|_| dir.root().into());
    let name = folder.file_name().map_or("run".into(), |name| name.to_string_lossy().into_owned());
    Ok(Run {
        name,
        plan: std::fs::read_to_string(dir.plan()).ok(),
        predictions_sha256: files::sha256_file(&dir.predictions()).map_err(of_run)?,
        shards: open_shards(dir, &info),
        dir: dir.clone(),
        info,
        epochs,
        case_ids,
        slices,
    })
}

/// Pictures and scanners come from the shards only when they are the very ones
/// that the run used.
fn open_shards(dir: &RunDir, info: &RunInfo) -> Result<Shards, String> {
    let recorded = &info.shards.path;
    let beside = dir.root().join(recorded);
    let root = if beside.exists() { beside } else { recorded.clone() };
    let in_words = |err: DataError| format!("the shards cannot be read: {err}");
    let set = ShardSet::open(&root).map_err(|_| {
        "the shard folder that the run names is not there, so scanners and pictures cannot be shown"
            .to_string()
    })?;
    if set.sha256().map_err(in_words)? != info.shards.sha256 {
        return Err("the shard folder changed since the run (its hash differs), so it is not used".into());
    }
    Ok(Shards {
        cases: set.cases().map_err(in_words)?,
        quarantined: set.quarantined().map_err(in_words)?,
        set,
    })
}
