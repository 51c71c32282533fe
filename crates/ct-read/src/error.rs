//! Why reading cannot begin.

use std::path::PathBuf;

use diag_data::DataError;

/// What prevents reading at all. A fault of one file or case is a [`crate::Fault`] instead.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The input folder is missing or unreadable.
    #[error("cannot use the folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// A key file is not what it should be.
    #[error("{why}: {}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The key of this machine's user cannot be kept.
    #[error("cannot keep a key of the pseudonyms in {}", path.display())]
    MachineKey {
        /// Its file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// A list of allowed values is not what it should be.
    #[error("{why}: {}", path.display())]
    Words {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Settings that this version cannot follow.
    #[error("{why}")]
    Settings {
        /// What is wrong.
        why: String,
        /// How to put it right.
        fix: String,
    },
    /// A file could not be read.
    #[error(transparent)]
    Data(#[from] DataError),
}

impl ReadError {
    /// What the user can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Folder { .. } => "check the path and its permissions".into(),
            Self::Key { .. } => "give a file of at least 32 random bytes with --key-file".into(),
            Self::MachineKey { .. } => {
                "make that folder writable, or give a file of at least 32 random bytes with --key-file".into()
            }
            Self::Words { .. } => "give a text file with one manufacturer, model or kernel a line".into(),
            Self::Settings { fix, .. } => fix.clone(),
            Self::Data(err) => err.remedy(),
        }
    }
}
