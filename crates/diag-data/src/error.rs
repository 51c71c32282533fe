//! The one error type of this crate.

use std::path::PathBuf;

use crate::place::is_store;

/// What can go wrong between the stages.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A value broke the rule of its type.
    #[error("{what} is not valid: {why}")]
    Invalid {
        /// The kind of value, for example "case id".
        what: &'static str,
        /// The rule that it broke.
        why: String,
    },
    /// The operating system refused a file.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// "read", "write", "create" and so on.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's own words.
        source: std::io::Error,
    },
    /// A file exists but does not hold what its format says.
    #[error("{} does not hold what it should: {why}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What was wrong in it.
        why: String,
    },
    /// A shard folder of another format version.
    #[error("shard format version {} where this program reads {supported}: {}", found.map_or("unknown".into(), |found| found.to_string()), path.display())]
    OtherVersion {
        /// Its manifest.
        path: PathBuf,
        /// The version that it states, if any.
        found: Option<u64>,
        /// The version of this program.
        supported: u32,
    },
    /// The Parquet or Arrow library refused.
    #[error("cannot encode or decode {}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// The library's own words.
        source: parquet::errors::ParquetError,
    },
    /// A folder that should be new already holds something.
    #[error("output already exists: {}", path.display())]
    OutputExists {
        /// The folder or file.
        path: PathBuf,
    },
    /// Another process is writing there.
    #[error("another run is writing to {}", path.display())]
    InUse {
        /// The folder under construction.
        path: PathBuf,
    },
    /// The URL of a store, and no client for it.
    #[error("this program was built without object stores: {}", path.display())]
    NoObjectStores {
        /// The URL.
        path: PathBuf,
    },
    /// A recorded hash differs from the file's.
    #[error("hash differs from SHA256SUMS: {}", path.display())]
    HashMismatch {
        /// The file.
        path: PathBuf,
    },
}

impl DataError {
    /// What the user can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Invalid { what, .. } => format!("correct the {what} and run again"),
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                "free some disk space, or write to another disk; nothing half-written was left".into()
            }
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                "check the path; the stage that writes it may not have run yet".into()
            }
            Self::Io { path, source, .. }
                if is_store(path) && source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                "renew the credential in the environment, or ask for access to the bucket (docs/scaling.md)".into()
            }
            Self::Io { path, .. } if is_store(path) => {
                "check the URL, the endpoint and the network, and run again; ten tries did not help".into()
            }
            Self::Io { .. } => "check that the path and its permissions are right".into(),
            Self::Malformed { .. } => {
                "make the file again with the stage that writes it, or check its version".into()
            }
            Self::OtherVersion { found, supported, .. } => match found {
                Some(found) if *found > u64::from(*supported) => {
                    "made by a newer version: use that version of the programs".into()
                }
                _ => "made by an older version: run ct-ingest again".into(),
            },
            Self::Parquet { .. } => "make the shards again with ct-ingest".into(),
            Self::OutputExists { .. } => "choose a new output folder, or delete this one".into(),
            Self::InUse { .. } => "wait for the other run to end, or choose another output folder".into(),
            Self::NoObjectStores { .. } => {
                "build it with `cargo build --release --workspace --bins --features diag-data/cloud`, or copy the files here"
                    .into()
            }
            Self::HashMismatch { .. } => {
                "the file was changed or damaged after it was written; make the shards again".into()
            }
        }
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn malformed(path: impl Into<PathBuf>, why: impl std::fmt::Display) -> Self {
        Self::Malformed { path: path.into(), why: why.to_string() }
    }

    pub(crate) fn invalid(what: &'static str, why: impl Into<String>) -> Self {
        Self::Invalid { what, why: why.into() }
    }
}
