//! What a run reports to, and what ends it early.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::IngestError;
use crate::fault::Fault;

/// What happens during a run. Logs are kept and mailed about: sources are named
/// as in `quarantine.jsonl`, by a keyed hash unless paths were asked for.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The listing is complete and its headers are read.
    Scanned {
        /// Number of files.
        n_files: usize,
        /// Number of cases to be read.
        n_cases: usize,
    },
    /// Cases were read and written.
    Advanced {
        /// Cases finished so far.
        n_done: usize,
        /// Slices written so far.
        n_slices: usize,
    },
    /// A file or case was set aside.
    SetAside {
        /// The file or case, as `quarantine.jsonl` names it.
        source: &'a str,
        /// Why.
        fault: &'a Fault,
    },
    /// Something the operator should know.
    Note(&'a str),
}

/// What a run reports to and is stopped by.
pub struct Control<'a> {
    /// Called from any of the run's threads.
    pub on_event: &'a (dyn Fn(Event<'_>) + Sync),
    /// Set from outside to end the run after the cases at hand; the next run continues.
    pub stop: &'a AtomicBool,
}

impl Control<'_> {
    /// Whether the run shall end.
    pub fn check(&self) -> Result<(), IngestError> {
        if self.stop.load(Ordering::Relaxed) { Err(IngestError::Interrupted) } else { Ok(()) }
    }
}
