//! Events on their way from the threads that train to the caller's.

use diag_data::run::Epoch;

use crate::progress::{Event, Progress};

/// An [`Event`] on its way out of the pool.
pub(crate) enum Message {
    EpochStarts { epoch: u32, n_epochs: u32, n_slices: u64 },
    Step { n_slices: u64, loss: f64 },
    EpochEnds { epoch: Epoch, best: bool, seconds: f64 },
    Note(String),
}

impl Message {
    pub fn deliver(&self, progress: &mut Progress<'_>) {
        progress(match self {
            &Self::EpochStarts { epoch, n_epochs, n_slices } => {
                Event::EpochStarts { epoch, n_epochs, n_slices }
            }
            &Self::Step { n_slices, loss } => Event::Step { n_slices, loss },
            Self::EpochEnds { epoch, best, seconds } => {
                Event::EpochEnds { epoch, best: *best, seconds: *seconds }
            }
            Self::Note(text) => Event::Note(text),
        });
    }
}

/// The way out of the pool.
pub(crate) type Sender = std::sync::mpsc::Sender<Message>;
