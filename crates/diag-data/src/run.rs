//! The run folder: what training leaves behind and the report reads.
//!
//! | file | holds |
//! | --- | --- |
//! | `plan.toml` | what was run, resolved |
//! | `run.json` | [`RunInfo`]: versions, device, seeds, hashes |
//! | `epochs.jsonl` | one [`Epoch`] a line; no times, so equal runs have equal files |
//! | `steps.jsonl` | one [`Step`] a line, likewise but for `communication_share` |
//! | `events.out.tfevents.*` | the same for TensorBoard |
//! | `model.safetensors`, `model.json` | the best weights and their architecture |
//! | `seen.json` | [`Seen`](crate::seen::Seen): hashes of the training and validation cases |
//! | `checkpoint/` | what a resume needs |
//! | `predictions.parquet` | [`Predictions`](crate::predictions::Predictions) |
//! | `decision.json` | the decided rule: aggregation, temperature, threshold, sets |
//! | `case_predictions.parquet`, `case_predictions.csv` | [`CasePrediction`](crate::case_predictions::CasePrediction)s: what the rule says of every case |
//! | `metrics.json` | numbers of the evaluation, and hashes of what they rest on |
//! | `trivial.json` | [`TrivialAudit`](crate::trivial::TrivialAudit): the baseline that never looks at the lung; absent until the audit ran |
//! | `heatmaps.parquet` | one [`Heatmap`](crate::heatmaps::Heatmap) a row; absent until `explain` ran |
//! | `explanations.json` | [`Explanations`](crate::heatmaps::Explanations): how the maps were made |
//! | `report.html` | the report |
//!
//! A folder of an external validation holds `external.json`
//! ([`External`](crate::external::External)), copies of what the run says of itself, and the
//! evaluation files of the other cohort; no weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::DataError;
use crate::case::LabelSet;
use crate::files;
use crate::manifest::{Flow, TableRow};
use crate::place;

/// Paths of a run folder.
#[derive(Clone, Debug)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// Names the folder; it need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self(root.into())
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.0
    }

    /// `plan.toml`.
    pub fn plan(&self) -> PathBuf {
        self.0.join("plan.toml")
    }

    /// `run.json`.
    pub fn info(&self) -> PathBuf {
        self.0.join("run.json")
    }

    /// `epochs.jsonl`.
    pub fn epochs(&self) -> PathBuf {
        self.0.join("epochs.jsonl")
    }

    /// `steps.jsonl`.
    pub fn steps(&self) -> PathBuf {
        self.0.join("steps.jsonl")
    }

    /// `decision.json`.
    pub fn decision(&self) -> PathBuf {
        self.0.join("decision.json")
    }

    /// `model.safetensors`.
    pub fn weights(&self) -> PathBuf {
        self.0.join("model.safetensors")
    }

    /// `model.json`.
    pub fn model(&self) -> PathBuf {
        self.0.join("model.json")
    }

    /// `seen.json`.
    pub fn seen(&self) -> PathBuf {
        self.0.join("seen.json")
    }

    /// `external.json`.
    pub fn external(&self) -> PathBuf {
        self.0.join("external.json")
    }

    /// `checkpoint/`.
    pub fn checkpoint(&self) -> PathBuf {
        self.0.join("checkpoint")
    }

    /// `predictions.parquet`.
    pub fn predictions(&self) -> PathBuf {
        self.0.join("predictions.parquet")
    }

    /// `case_predictions.parquet`.
    pub fn case_predictions(&self) -> PathBuf {
        self.0.join("case_predictions.parquet")
    }

    /// `case_predictions.csv`.
    pub fn case_predictions_csv(&self) -> PathBuf {
        self.0.join("case_predictions.csv")
    }

    /// `metrics.json`.
    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.json")
    }

    /// `attention.safetensors`: the head of a variant; absent unless the recipe asks for it.
    pub fn attention(&self) -> PathBuf {
        self.0.join("attention.safetensors")
    }

    /// `trivial.json`.
    pub fn trivial(&self) -> PathBuf {
        self.0.join("trivial.json")
    }

    /// `heatmaps.parquet`.
    pub fn heatmaps(&self) -> PathBuf {
        self.0.join("heatmaps.parquet")
    }

    /// `explanations.json`.
    pub fn explanations(&self) -> PathBuf {
        self.0.join("explanations.json")
    }

    /// The shards that `run.json` names, as they are found from here.
    pub fn shards(&self, info: &RunInfo) -> PathBuf {
        place::seen_from(&self.0, &info.shards.path)
    }

    /// `report.html`.
    pub fn report(&self) -> PathBuf {
        self.0.join("report.html")
    }

    /// Removes what an evaluation, an explanation, an audit or a report left: the weights that
    /// it was made of are about to change.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub fn remove_evaluation(&self) -> Result<(), DataError> {
        let of_evaluation = [
            // First: without it nothing takes the others for a whole.
            self.metrics(),
            self.decision(),
            self.predictions(),
            self.case_predictions(),
            self.case_predictions_csv(),
            self.attention(),
            self.trivial(),
            self.heatmaps(),
            self.explanations(),
            self.report(),
        ];
        for path in of_evaluation {
            match std::fs::remove_file(&path) {
                Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                    return Err(DataError::Io { action: "remove", path, source: err });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads `run.json`.
    ///
    /// # Errors
    /// When it is missing or of another form.
    pub fn read_info(&self) -> Result<RunInfo, DataError> {
        files::read_json(&self.info())
    }

    /// Writes `run.json`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write_info(&self, info: &RunInfo) -> Result<(), DataError> {
        files::write_json(&self.info(), info)
    }

    /// Reads `epochs.jsonl`.
    ///
    /// # Errors
    /// When it is missing or a line has another form.
    pub fn read_epochs(&self) -> Result<Vec<Epoch>, DataError> {
        let path = self.epochs();
        let bytes = files::read(&path)?;
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines
            .map(|line| serde_json::from_slice(line).map_err(|err| DataError::malformed(&path, err)))
            .collect()
    }

    /// Reads the whole lines of `steps.jsonl`; a last line that was cut off by a
    /// crash is left out.
    ///
    /// # Errors
    /// When it is missing or a whole line has another form.
    pub fn read_steps(&self) -> Result<Vec<Step>, DataError> {
        let path = self.steps();
        let bytes = files::read(&path)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(&[][..], |end| &bytes[..end]);
        let lines = whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines
            .map(|line| serde_json::from_slice(line).map_err(|err| DataError::malformed(&path, err)))
            .collect()
    }

    /// Writes all epochs so far, atomically: the file is whole after any interruption.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write_epochs(&self, epochs: &[Epoch]) -> Result<(), DataError> {
        let mut lines = Vec::new();
        for epoch in epochs {
            serde_json::to_writer(&mut lines, epoch)
                .map_err(|err| DataError::malformed(self.epochs(), err))?;
            lines.push(b'\n');
        }
        files::write_atomic(&self.epochs(), &lines)
    }
}

/// `run.json`: where a run came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Name and version of the program.
    pub tool: String,
    /// Versions of the libraries that do the arithmetic.
    pub libraries: BTreeMap<String, String>,
    /// Device in words, for example "cpu, 2 threads, avx512".
    pub device: String,
    /// Seed of the run.
    pub seed: u64,
    /// Class names.
    pub labels: LabelSet,
    /// Names of the heads, shallowest first; the last one is the final output.
    pub heads: Vec<String>,
    /// Backbone, for example "resnet18".
    pub backbone: String,
    /// Number of trained weights.
    pub n_parameters: u64,
    /// Loss, for example "saal-stabilised".
    pub loss: String,
    /// Initialisation: "random" or the file's name and hash.
    pub initialisation: String,
    /// SHA-256 of the recipe file.
    pub recipe_sha256: String,
    /// SHA-256 of `model.safetensors`; absent until training ended.
    pub model_sha256: Option<String>,
    /// The shards it was trained on.
    pub shards: ShardSource,
    /// Cases by split name and class name, after the validation part was taken.
    pub cases: BTreeMap<String, BTreeMap<String, u64>>,
    /// Epoch whose weights were kept, counted from 1; absent until training ended.
    pub best_epoch: Option<u32>,
    /// By which rule it was chosen, for example "lowest validation loss".
    pub selection: String,
    /// Wall time of training in seconds.
    pub train_seconds: f64,
    /// Command lines, stage by stage, without the paths that could name a person.
    pub commands: Vec<String>,
}

/// The shards of a run, as far as the report needs them without the folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShardSource {
    /// Folder, relative to the run folder where possible.
    pub path: PathBuf,
    /// [`ShardSet::sha256`](crate::shard::ShardSet::sha256).
    pub sha256: String,
    /// Whether the data is synthetic.
    pub synthetic: bool,
    /// Program that wrote them.
    pub tool: String,
    /// Table 1.
    pub table: Vec<TableRow>,
    /// Inclusion and exclusion.
    pub flow: Flow,
}

/// One line of `steps.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Optimiser step, from 1.
    pub step: u64,
    /// Epoch, from 1.
    pub epoch: u32,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Loss before the step.
    pub loss: f64,
    /// Norm of the network's gradient before clipping.
    pub gradient_norm: f64,
    /// As [`Epoch::loss_state`], after the step.
    pub loss_state: BTreeMap<String, f64>,
    /// Share of the step's wall time that rank 0 waited for other ranks; absent where
    /// one process trains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub communication_share: Option<f64>,
}

/// One line of `epochs.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// From 1.
    pub epoch: u32,
    /// Optimiser steps so far.
    pub step: u64,
    /// Learning rate of the last step.
    pub learning_rate: f64,
    /// Mean training loss.
    pub train: LossRecord,
    /// Validation; absent when the plan has no validation part.
    pub validation: Option<Validation>,
    /// The loss's own state at the end of the epoch, by name: `alpha`,
    /// `beta/HEAD`, `class_weight/CLASS`, `head_weight/HEAD`.
    pub loss_state: BTreeMap<String, f64>,
}

/// A loss taken apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossRecord {
    /// What was minimised.
    pub total: f64,
    /// By head and part: `final` → `cross_entropy` → value, before weighting.
    pub heads: BTreeMap<String, BTreeMap<String, f64>>,
}

/// What validation measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Loss on the validation slices.
    pub loss: LossRecord,
    /// Macro F1 of the final head, unit of analysis: case.
    pub case_macro_f1: f64,
    /// Macro area under the ROC curve of the final head, unit of analysis: case;
    /// absent where a class is.
    #[serde(default)]
    pub case_macro_auroc: Option<f64>,
    /// Balanced accuracy of the final head, unit of analysis: case.
    pub case_balanced_accuracy: f64,
    /// Macro F1 of the final head, unit of analysis: slice.
    pub slice_macro_f1: f64,
    /// Balanced accuracy by head, unit of analysis: slice.
    pub slice_balanced_accuracy: BTreeMap<String, f64>,
}
