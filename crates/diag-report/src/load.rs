//! A run folder in memory, ready to be measured.

use std::collections::BTreeMap;

use diag_data::DataError;
use diag_data::case::{CaseId, Split};
use diag_data::external::External;
use diag_data::files;
use diag_data::heatmaps::{self, Explanations, Heatmap};
use diag_data::manifest::{CaseRow, Quarantined};
use diag_data::predictions::Predictions;
use diag_data::run::{Epoch, RunDir, RunInfo};
use diag_data::shard::ShardSet;
use diag_data::trivial::TrivialAudit;
use diag_metrics::{MetricsError, Scores};

use crate::ReportError;
use crate::decision::{self, Decided};
use crate::evidence::{self, Evidence, Link};

/// A run with the predictions of one part of the data.
pub(crate) struct Run {
    /// Name of its folder.
    pub(crate) name: String,
    pub(crate) dir: RunDir,
    pub(crate) info: RunInfo,
    /// Set where the folder is that of an external validation: `info.shards` is then the other cohort.
    pub(crate) external: Option<External>,
    pub(crate) epochs: Vec<Epoch>,
    /// `plan.toml` as text; absent when there is none.
    pub(crate) plan: Option<String>,
    /// Hashes from the source files to the maps.
    pub(crate) chain: Vec<Link>,
    /// Sorted.
    pub(crate) case_ids: Vec<CaseId>,
    /// Sorted by case and slice.
    pub(crate) slices: Vec<SliceRow>,
    /// The shards, or in words why they are not at hand.
    pub(crate) shards: Result<Shards, String>,
    /// What the decided rule says of the split; its rows are in the order of `case_ids`.
    pub(crate) decided: Decided,
    /// What a classifier gets that never looks at the lung; absent where it was not measured.
    pub(crate) baseline: Option<TrivialAudit>,
    /// Maps of where the network looked, or in words why there are none.
    pub(crate) maps: Result<Maps, String>,
}

/// Heat maps of the part reported on.
pub(crate) struct Maps {
    pub(crate) how: Explanations,
    pub(crate) rows: Vec<Heatmap>,
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
    pub(crate) evidence: Evidence,
}

impl Shards {
    /// What the shards say of one case.
    pub(crate) fn case(&self, case_id: &str) -> Option<&CaseRow> {
        self.cases.iter().find(|row| row.case_id.as_str() == case_id)
    }
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
    let mut runs = dirs.iter().map(|dir| load(dir, split)).collect::<Result<Vec<_>, _>>()?;
    tell_apart(&mut runs);
    Ok(runs)
}

/// Pipelines call every run folder alike: then the folder above is part of the name, and
/// a number where even that does not help.
fn tell_apart(runs: &mut [Run]) {
    let has_twin = |runs: &[Run]| -> Vec<bool> {
        let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
        names.iter().map(|name| names.iter().filter(|other| *other == name).count() > 1).collect()
    };
    let twins = has_twin(runs);
    for (run, twin) in runs.iter_mut().zip(twins) {
        let above = std::fs::canonicalize(run.dir.root()).ok();
        let above = above.as_deref().and_then(std::path::Path::parent).and_then(std::path::Path::file_name);
        if let Some(above) = above.filter(|_| twin) {
            run.name = format!("{}/{}", above.to_string_lossy(), run.name);
        }
    }
    for (i, twin) in has_twin(runs).into_iter().enumerate() {
        if twin {
            runs[i].name = format!("{} ({})", runs[i].name, i + 1);
        }
    }
}

fn load(dir: &RunDir, split: Split) -> Result<Run, ReportError> {
    let of_run = |source| ReportError::Run { run: dir.root().into(), source };
    let mut info = dir.read_info().map_err(of_run)?;
    let external = External::read(&dir.external()).map_err(of_run)?;
    if let Some(external) = &external {
        if info.model_sha256.as_ref() != Some(&external.model_sha256) {
            return Err(ReportError::Apart { what: "weights", file: dir.external(), other: dir.info() });
        }
        info.shards = external.shards.clone();
    }
    let epochs = dir.read_epochs().map_err(of_run)?;
    let predictions = Predictions::read(&dir.predictions(), &info.labels).map_err(of_run)?;
    let recorded = decision::recorded(dir, &info)?;
    if !predictions.rows.iter().any(|row| row.split == split) {
        return Err(ReportError::NoRows { split, run: dir.root().into() });
    }
    let decided = decision::decide(dir, &info, &recorded, &predictions, split)?;
    // What was predicted counts, should the two ever differ.
    info.heads = predictions.heads;
    let split_of: BTreeMap<CaseId, Split> =
        predictions.rows.iter().map(|row| (row.case_id.clone(), row.split)).collect();
    let mut rows: Vec<_> = predictions.rows.into_iter().filter(|row| row.split == split).collect();
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
    let shards = open_shards(dir, &info, &split_of);
    let maps = read_maps(dir, &info, split)?;
    let evidence = shards.as_ref().ok().map(|shards| &shards.evidence);
    Ok(Run {
        name,
        plan: files::read(&dir.plan()).ok().and_then(|text| String::from_utf8(text).ok()),
        chain: evidence::chain(
            dir,
            &info,
            &recorded,
            evidence,
            maps.as_ref().ok().map(|maps| &maps.how),
            external.is_some(),
        ),
        shards,
        maps,
        baseline: read_baseline(dir, &info, split)?,
        decided,
        external,
        dir: dir.clone(),
        info,
        epochs,
        case_ids,
        slices,
    })
}

/// `trivial.json`, where it was made for these shards and predictions.
fn read_baseline(dir: &RunDir, info: &RunInfo, split: Split) -> Result<Option<TrivialAudit>, ReportError> {
    let of_run = |source| ReportError::Run { run: dir.root().into(), source };
    let path = dir.trivial();
    if split != Split::Test || !path.exists() {
        return Ok(None);
    }
    let audit: TrivialAudit = files::read_json(&path).map_err(of_run)?;
    let predictions_sha256 = files::sha256_file(&dir.predictions()).map_err(of_run)?;
    let decision_sha256 = files::sha256_file(&dir.decision()).map_err(of_run)?;
    let is_of_run = audit.shards_sha256 == info.shards.sha256
        && audit.predictions_sha256.as_ref().is_none_or(|sha256| *sha256 == predictions_sha256)
        && audit.decision_sha256.as_ref().is_none_or(|sha256| *sha256 == decision_sha256);
    if is_of_run {
        return Ok(Some(audit));
    }
    let why = "it was measured with other shards, predictions or rule than this run has; run diag-train audit \
               trivial again";
    Err(of_run(DataError::Malformed { path, why: why.into() }))
}

/// Pictures and scanners come from the shards only when they are the very ones
/// that the run used.
fn open_shards(dir: &RunDir, info: &RunInfo, split_of: &BTreeMap<CaseId, Split>) -> Result<Shards, String> {
    let recorded = &info.shards.path;
    let beside = dir.root().join(recorded);
    let root = if beside.exists() { beside } else { recorded.clone() };
    let in_words = |err: DataError| format!("the shards cannot be read: {err}");
    // The hash first: it also tells changed shards from missing ones.
    let sha256 = files::sha256_file(&root.join("SHA256SUMS")).map_err(|_| {
        "the shard folder that the run names is not there, so scanners and pictures cannot be shown"
            .to_string()
    })?;
    if sha256 != info.shards.sha256 {
        return Err("the shard folder changed since the run (its hash differs), so it is not used".into());
    }
    let set = ShardSet::open(&root).map_err(in_words)?;
    Ok(Shards {
        cases: set.cases().map_err(in_words)?,
        quarantined: set.quarantined().map_err(in_words)?,
        evidence: evidence::gather(&set, split_of).map_err(in_words)?,
        set,
    })
}

/// The maps of this split, or in words why there are none. Those of other weights, or other
/// bytes than were described, are an error.
fn read_maps(dir: &RunDir, info: &RunInfo, split: Split) -> Result<Result<Maps, String>, ReportError> {
    if !dir.explanations().exists() {
        return Ok(Err("no heat maps were made (run `diag-train explain RUN`)".into()));
    }
    let of_run = |source| ReportError::Run { run: dir.root().into(), source };
    let how: Explanations = files::read_json(&dir.explanations()).map_err(of_run)?;
    if how.format_version != heatmaps::FORMAT_VERSION {
        return Ok(Err("the heat maps are of another version".into()));
    }
    let apart = |what, other| Err(ReportError::Apart { what, file: dir.explanations(), other });
    if info.model_sha256.as_ref() != Some(&how.model_sha256) {
        return apart("weights", dir.info());
    }
    if files::sha256_file(&dir.heatmaps()).map_err(of_run)? != how.heatmaps_sha256 {
        return apart("heat maps", dir.heatmaps());
    }
    if how.split != split {
        return Ok(Err(format!("the heat maps are of the {} split", how.split)));
    }
    let rows = heatmaps::read(&dir.heatmaps(), &info.labels).map_err(of_run)?;
    Ok(Ok(Maps { how, rows }))
}
