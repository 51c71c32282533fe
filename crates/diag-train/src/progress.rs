//! What a command reports while it runs.

use std::sync::mpsc;

use diag_data::run::Epoch;

/// Something happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A pass over the training slices begins.
    EpochStarts {
        /// From 1.
        epoch: u32,
        /// Epochs of the plan.
        n_epochs: u32,
        /// Slices of the epoch.
        n_slices: u64,
    },
    /// The gradients of a batch were computed.
    Batch {
        /// Slices of the batch.
        n_slices: u64,
        /// Its loss.
        loss: f64,
    },
    /// The epoch was validated and its checkpoint written.
    EpochEnds {
        /// Its line of `epochs.jsonl`.
        epoch: Epoch,
        /// Whether its weights are the best so far.
        best: bool,
        /// Wall time of the epoch.
        seconds: f64,
    },
    /// A message for the log.
    Note(String),
    /// A run of a sweep changed its state.
    SweepRun {
        /// Name of the run.
        name: String,
        /// The new state.
        state: RunState,
    },
}

/// State of one run of a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// It was finished before; nothing is started.
    AlreadyDone,
    /// It starts or continues.
    Started,
    /// It is finished.
    Done,
    /// It failed; its log says why.
    Failed,
}

/// Receives events.
pub type Progress<'a> = dyn FnMut(Event) + 'a;

/// Sends events from the threads that train to the thread that called.
pub(crate) type Sender = mpsc::Sender<Event>;
