//! Why a whole run ends without a result.

use std::path::PathBuf;

use ct_read::ReadError;
use diag_data::DataError;
use diag_data::case::CaseId;
use diag_data::manifest::{KeyInfo, KeyKind};

/// What stops a run. A fault of one file or case is a [`crate::fault::Fault`] instead.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// The input folder is missing or unreadable, or a folder cannot be made.
    #[error("cannot use the folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// The input folder has nothing to work on.
    #[error("found no {what} below {}", path.display())]
    Empty {
        /// "files", "DICOM files", "images".
        what: &'static str,
        /// The folder.
        path: PathBuf,
    },
    /// A table of labels or splits cannot be read.
    #[error("cannot read the table {}", path.display())]
    Table {
        /// The table.
        path: PathBuf,
        /// The reader's words.
        source: csv::Error,
    },
    /// A table of labels or splits lacks a column.
    #[error("the header `{found}` has no column {missing}: {}", path.display())]
    Columns {
        /// The table.
        path: PathBuf,
        /// The columns that are missing.
        missing: String,
        /// The header.
        found: String,
        /// All known columns.
        wanted: String,
    },
    /// A table of labels or splits breaks a rule.
    #[error("{why}, in line {line} of {}", path.display())]
    TableRow {
        /// The table.
        path: PathBuf,
        /// Line, from 1; the header is line 1.
        line: u64,
        /// The rule.
        why: String,
    },
    /// A settings file is not what it should be.
    #[error("{why}: {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Settings that contradict each other or the input.
    #[error("{why}")]
    Settings {
        /// What is wrong.
        why: String,
        /// How to put it right.
        fix: String,
    },
    /// Every case was set aside.
    #[error("none of the {n_cases} cases could be used")]
    NothingUsable {
        /// Number of cases in the label table.
        n_cases: u64,
    },
    /// The user stopped the run.
    #[error("interrupted before the output was complete")]
    Interrupted,
    /// Folders do not make a whole.
    #[error("the partitions cannot be joined: {why}")]
    Partitions {
        /// What is missing or wrong.
        why: String,
    },
    /// Partitions with pseudonyms by different keys.
    #[error(
        "the partitions cannot be joined: their pseudonyms are by different keys ({} and {}): {}",
        name_of(first), name_of(found), path.display()
    )]
    Keys {
        /// The partition with the other key.
        path: PathBuf,
        /// Its key.
        found: KeyInfo,
        /// That of the first partition.
        first: KeyInfo,
    },
    /// Synthetic and other images in one cohort.
    #[error("the images of {synthetic} are synthetic, those of {other} are not")]
    Mixture {
        /// A case of synthetic images.
        synthetic: CaseId,
        /// A case of others.
        other: CaseId,
    },
    /// Finished output could not be copied to its store.
    #[error("the output is finished in {}, but not in {}", folder.display(), store.display())]
    NotDelivered {
        /// Where it lies.
        folder: PathBuf,
        /// Where it should be.
        store: PathBuf,
        /// What broke the copy off.
        source: DataError,
    },
    /// Reading of the input cannot begin.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Reading or writing of shards failed.
    #[error(transparent)]
    Data(#[from] DataError),
}

impl IngestError {
    /// What the user can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Folder { .. } => "check the path and its permissions".into(),
            Self::Empty { .. } => "point the command at the folder that holds them".into(),
            Self::Table { .. } => {
                "give a CSV file with the header case_id,label and optionally split and patient_id".into()
            }
            Self::Columns { wanted, .. } => format!("name the columns {wanted}; the others are optional"),
            Self::TableRow { .. } => "correct the line and run again".into(),
            Self::File { .. } => "correct the file and run again".into(),
            Self::Settings { fix, .. } => fix.clone(),
            Self::NothingUsable { .. } => "see the reasons above, case by case".into(),
            Self::Interrupted => {
                "run the same command again: finished cases are kept, and not read again".into()
            }
            Self::Partitions { .. } => {
                "give every partition of one run once, as --partition 0/N to N-1/N made them".into()
            }
            Self::Keys { .. } => {
                "make every partition again with the same --key-file (or the variable COVID19_DIAG_KEY_FILE)"
                    .into()
            }
            Self::Mixture { .. } => {
                "run ct-ingest once for the synthetic and once for the other cases, into folders of their own"
                    .into()
            }
            Self::NotDelivered { folder, store, source } => format!(
                "{}; then `ct-ingest copy {} --out {}` repeats the copy alone",
                source.remedy(),
                folder.display(),
                store.display()
            ),
            Self::Read(err) => err.remedy(),
            Self::Data(err) if is_disk_full(err) => {
                "free some disk space, or write to another disk; nothing half-written was left".into()
            }
            Self::Data(err) => err.remedy(),
        }
    }
}

/// A key in words.
fn name_of(key: &KeyInfo) -> String {
    let kind = match key.kind {
        KeyKind::Machine => "a machine's",
        KeyKind::File => "of a file",
        KeyKind::Public => "public",
    };
    format!("{} {kind}", key.id)
}

/// Whether a full disk lies behind an error: encoders wrap the system's error
/// more than once, and not all of them hand it on as a value.
fn is_disk_full(err: &DataError) -> bool {
    let first: &(dyn std::error::Error + 'static) = err;
    std::iter::successors(Some(first), |err| err.source()).any(|err| {
        let io = err.downcast_ref::<std::io::Error>();
        io.is_some_and(|io| io.kind() == std::io::ErrorKind::StorageFull)
            || err.to_string().contains("No space left on device")
    })
}
