//! The one error type of this crate.

use std::path::PathBuf;

/// Why no cohort was made. Nothing is left behind in any of these cases.
#[derive(Debug, thiserror::Error)]
pub enum PhantomError {
    /// The cohort text is not TOML, or has unknown, missing or mistyped keys.
    #[error("cohort {name}, line {line}: {reason}")]
    CohortSyntax {
        /// Name or path of the cohort.
        name: String,
        /// Line of the file, from 1.
        line: usize,
        /// What the TOML parser said, on one line.
        reason: String,
    },
    /// A cohort setting is outside its range, or contradicts another one.
    #[error("cohort {name}: {key} is {got}, but must be {want}")]
    CohortValue {
        /// Name of the cohort.
        name: String,
        /// The key, as written in the file.
        key: String,
        /// What the file says.
        got: String,
        /// What is allowed.
        want: String,
    },
    /// The output folder holds something that a run must not overwrite.
    #[error("the output folder is not empty: {}", dir.display())]
    OutputNotEmpty {
        /// The folder.
        dir: PathBuf,
    },
    /// A file or folder could not be read, written, renamed or removed.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried: `read`, `write`, `create`, `rename`, `remove`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A DICOM object could not be built or written.
    #[error("cannot write the DICOM file {}: {why}", path.display())]
    Dicom {
        /// The file.
        path: PathBuf,
        /// What the encoder said.
        why: String,
    },
    /// The progress callback asked to stop.
    #[error("interrupted; nothing was written")]
    Interrupted,
}

impl PhantomError {
    /// What the user can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::CohortSyntax { .. } => {
                "correct the file; data/cohorts/README.md lists every key with its range".into()
            }
            Self::CohortValue { key, want, .. } => format!("set {key} to {want}"),
            Self::OutputNotEmpty { .. } => {
                "name a new folder with --out, or pass --force to replace an earlier ct-phantom cohort".into()
            }
            Self::File { .. } => "check that the path exists, is writable and that the disk has room".into(),
            Self::Dicom { .. } => "check that the disk has room, then run again".into(),
            Self::Interrupted => "run again; the same seed gives the same bytes".into(),
        }
    }

    /// Whether the user asked for something that cannot be (exit code 2), rather than the run failing (1).
    pub fn is_usage(&self) -> bool {
        match self {
            Self::CohortSyntax { .. } | Self::CohortValue { .. } | Self::OutputNotEmpty { .. } => true,
            Self::File { .. } | Self::Dicom { .. } | Self::Interrupted => false,
        }
    }
}
