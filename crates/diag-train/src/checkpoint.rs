//! What a resume needs, in one file: it is whole or of the epoch before.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use diag_data::DataError;
use diag_data::run::RunDir;
use diag_model::{Loss, Network, tensors};
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::optimiser::Optimiser;

/// Where training stands. Random numbers need no state: they follow from the
/// seed, the epoch and the slice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// Finished epochs.
    pub epoch: u32,
    /// Optimiser steps taken.
    pub step: u64,
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

/// Everything that training changes.
pub(crate) struct Learner {
    pub network: Network,
    pub loss: Loss,
    pub optimiser: Optimiser,
    pub loss_optimiser: Optimiser,
}

impl Learner {
    fn state(&self) -> Result<BTreeMap<String, Tensor>, TrainError> {
        let mut loss = BTreeMap::new();
        for (name, var) in self.loss.named_vars() {
            loss.insert(name.clone(), var.as_tensor().copy()?);
        }
        let groups = [
            ("network", self.network.state()?),
            ("loss", loss),
            ("optimiser", self.optimiser.state()),
            ("loss-optimiser", self.loss_optimiser.state()),
        ];
        let named = |(group, tensors): (&str, BTreeMap<String, Tensor>)| {
            let group = group.to_owned();
            tensors.into_iter().map(move |(name, tensor)| (format!("{group}/{name}"), tensor))
        };
        Ok(groups.into_iter().flat_map(named).collect())
    }

    fn load_state(&mut self, state: BTreeMap<String, Tensor>, n_steps: u64) -> candle_core::Result<()> {
        let mut groups: BTreeMap<String, BTreeMap<String, Tensor>> = BTreeMap::new();
        for (name, tensor) in state {
            if let Some((group, name)) = name.split_once('/') {
                groups.entry(group.to_owned()).or_default().insert(name.to_owned(), tensor);
            }
        }
        let mut group = |name: &str| groups.remove(name).unwrap_or_default();
        self.network.load_state(&group("network"))?;
        let loss = group("loss");
        for (name, var) in self.loss.named_vars() {
            match loss.get(name) {
                Some(tensor) => var.set(tensor)?,
                None => candle_core::bail!("tensor {name} is missing"),
            }
        }
        self.optimiser.load_state(&group("optimiser"), n_steps)?;
        self.loss_optimiser.load_state(&group("loss-optimiser"), n_steps)
    }
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

/// Puts a learner where the checkpoint was taken; `None` when there is none.
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
