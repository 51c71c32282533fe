//! What training tells its caller while it runs.

use diag_data::run::Epoch;

/// Something happened.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A pass over the training slices begins.
    EpochStarts {
        /// From 1.
        epoch: u32,
        /// Epochs of the plan.
        n_epochs: u32,
        /// Slices of the epoch.
        n_slices: u64,
    },
    /// A step was taken.
    Step {
        /// Slices of the step.
        n_slices: u64,
        /// Loss before the step.
        loss: f64,
    },
    /// The epoch was measured and its checkpoint written.
    EpochEnds {
        /// Its line of `epochs.jsonl`.
        epoch: &'a Epoch,
        /// Whether its weights are the best so far.
        best: bool,
        /// Wall time of the epoch.
        seconds: f64,
    },
    /// A message for the log.
    Note(&'a str),
}

/// Receives events.
pub type Progress<'a> = dyn FnMut(Event<'_>) + 'a;
