//! What is logged while training runs: `steps.jsonl`, `epochs.jsonl` and the event file.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use diag_data::DataError;
use diag_data::files;
use diag_data::run::{Epoch, RunDir, Step};

use super::checkpoint::Position;
use super::tensorboard::EventFile;
use crate::error::TrainError;

/// The log files of a run, open for appending.
pub(crate) struct RunLog<'a> {
    run: &'a RunDir,
    /// All epochs so far.
    pub epochs: Vec<Epoch>,
    steps: File,
    steps_path: PathBuf,
    events: EventFile,
}

impl<'a> RunLog<'a> {
    /// Opens the files and truncates them to a checkpoint: later steps will be done again.
    pub fn open(run: &'a RunDir, position: &Position) -> Result<Self, TrainError> {
        let mut epochs = if position.epoch > 0 { run.read_epochs()? } else { Vec::new() };
        epochs.truncate(position.epoch as usize);
        let mut steps = if position.step > 0 { run.read_steps()? } else { Vec::new() };
        steps.retain(|step| step.step <= position.step);
        let steps_path = run.steps();
        let mut lines = Vec::new();
        for step in &steps {
            lines.extend(line(step, &steps_path)?);
        }
        files::write_atomic(&steps_path, &lines)?;
        let events = EventFile::create(run.root(), &steps, &epochs)?;
        let steps = OpenOptions::new().append(true).open(&steps_path).map_err(|source| DataError::Io {
            action: "open",
            path: steps_path.clone(),
            source,
        })?;
        Ok(Self { run, epochs, steps, steps_path, events })
    }

    pub fn add_step(&mut self, step: &Step) -> Result<(), TrainError> {
        let line = line(step, &self.steps_path)?;
        self.steps.write_all(&line).map_err(|source| DataError::Io {
            action: "write",
            path: self.steps_path.clone(),
            source,
        })?;
        Ok(self.events.append_step(step)?)
    }

    pub fn add_epoch(&mut self, epoch: &Epoch) -> Result<(), TrainError> {
        self.epochs.push(epoch.clone());
        self.run.write_epochs(&self.epochs)?;
        Ok(self.events.append_epoch(epoch)?)
    }
}

fn line(step: &Step, path: &std::path::Path) -> Result<Vec<u8>, DataError> {
    let mut line = serde_json::to_vec(step)
        .map_err(|err| DataError::Malformed { path: path.into(), why: err.to_string() })?;
    line.push(b'\n');
    Ok(line)
}
