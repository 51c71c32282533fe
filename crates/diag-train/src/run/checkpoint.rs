//! What a resume needs, in one file that is replaced atomically.

use std::path::Path;

use diag_data::DataError;
use diag_data::run::RunDir;
use diag_model::tensors;
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::step::learner::Learner;
use crate::step::mean_loss::MeanLoss;

/// Where training stands. Random generators need no state: their numbers follow from the
/// seed, the epoch and the index in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// Finished epochs.
    pub epoch: u32,
    /// Optimiser steps taken.
    pub step: u64,
    /// Batches of the current epoch that were used.
    pub n_batches: usize,
    /// Their mean loss.
    pub mean: MeanLoss,
    /// Learning rate of the last step.
    pub learning_rate: f64,
    /// The best epoch so far.
    pub best: Option<Best>,
    /// Wall time so far.
    pub train_seconds: f64,
}

/// The best epoch so far.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Best {
    /// From 1.
    pub epoch: u32,
    /// What is compared: higher is better.
    pub score: f64,
    /// Decides between equal scores: higher is better.
    pub tie_break: f64,
}

/// Writes the checkpoint.
pub(crate) fn save(run: &RunDir, learner: &Learner, position: &Position) -> Result<(), TrainError> {
    let folder = run.checkpoint();
    std::fs::create_dir_all(&folder).map_err(|source| DataError::Io {
        action: "create",
        path: folder.clone(),
        source,
    })?;
    let path = file(run);
    let note = serde_json::to_string(position).map_err(|err| malformed(&path, &err))?;
    Ok(tensors::write(&path, &learner.state()?, &note)?)
}

/// Restores the learner of the checkpoint; `None` when there is none.
pub(crate) fn load(run: &RunDir, learner: &mut Learner) -> Result<Option<Position>, TrainError> {
    let path = file(run);
    if !path.exists() {
        return Ok(None);
    }
    let (state, note) = tensors::read(&path)?;
    let position: Position = serde_json::from_str(&note).map_err(|err| malformed(&path, &err))?;
    learner.load_state(state, position.step)?;
    Ok(Some(position))
}

fn file(run: &RunDir) -> std::path::PathBuf {
    run.checkpoint().join("state.safetensors")
}

fn malformed(path: &Path, err: &serde_json::Error) -> DataError {
    DataError::Malformed { path: path.into(), why: err.to_string() }
}
