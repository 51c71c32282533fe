//! Finished output on its way to an object store.
//!
//! A run writes to a folder of this machine, whose name follows from the URL, so
//! that a run that was stopped continues there. What is finished is then copied,
//! `manifest.json` or `part.json` last: until that is there, nothing reads the rest.

use std::path::{Path, PathBuf};

use diag_data::DataError;
use diag_data::files;
use diag_data::place;
use diag_data::shard::staging::PART_FILE;

use crate::IngestError;

/// What a reader asks for first.
const LAST: [&str; 3] = ["SHA256SUMS", "manifest.json", PART_FILE];

/// Where a run writes, and where its output goes from there.
#[derive(Debug)]
pub struct Delivery {
    folder: PathBuf,
    store: Option<PathBuf>,
}

impl Delivery {
    /// `out` itself, or for a store a folder among the system's temporary files (`TMPDIR`), into
    /// which only its owner can look.
    ///
    /// # Errors
    /// When the store already holds finished output there, or does not answer.
    pub fn to(out: &Path) -> Result<Self, IngestError> {
        if !place::is_store(out) {
            // A file:// URL is a folder; any other path is what it was.
            let folder = place::WorkingCopy::of(out)?.path().to_path_buf();
            return Ok(Self { folder, store: None });
        }
        refuse_finished(out)?;
        let name = &files::sha256_hex(out.to_string_lossy().as_bytes())[..16];
        let closed = std::env::temp_dir().join(format!("ct-ingest-{name}"));
        let refused = |source| IngestError::Folder { path: closed.clone(), source };
        std::fs::create_dir_all(&closed).map_err(refused)?;
        files::close_to_others(&closed)?;
        Ok(Self { folder: closed.join("shards"), store: Some(out.into()) })
    }

    /// Where the run writes.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Copies the finished output to its store, and removes it from here.
    ///
    /// # Errors
    /// When the copy breaks off; the output then stays here.
    pub fn deliver(self) -> Result<(), IngestError> {
        let Some(store) = self.store else { return Ok(()) };
        match place::copy(&self.folder, &store, &LAST) {
            Ok(_) => {
                let closed = self.folder.parent().unwrap_or(&self.folder);
                let refused = |source| IngestError::Folder { path: closed.into(), source };
                std::fs::remove_dir_all(closed).map_err(refused)
            }
            Err(source) => Err(IngestError::NotDelivered { folder: self.folder, store, source }),
        }
    }
}

/// Copies finished output, shards or a part, between folders and stores. Returns
/// the number of files.
///
/// # Errors
/// When `from` is not finished, `to` already is, or a file cannot be copied.
pub fn copy(from: &Path, to: &Path) -> Result<usize, IngestError> {
    if !is_finished(from)? {
        return Err(IngestError::Empty { what: "manifest.json or part.json", path: from.into() });
    }
    refuse_finished(to)?;
    Ok(place::copy(from, to, &LAST)?)
}

fn refuse_finished(out: &Path) -> Result<(), DataError> {
    if is_finished(out)? { Err(DataError::OutputExists { path: out.into() }) } else { Ok(()) }
}

fn is_finished(out: &Path) -> Result<bool, DataError> {
    Ok(place::exists(&out.join("manifest.json"))? || place::exists(&out.join(PART_FILE))?)
}
