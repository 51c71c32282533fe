//! Every reader checks what it reads: the chain from `SHA256SUMS` to the rows.
//!
//! A run records the hash of `SHA256SUMS`. That file must name the manifest, the tables
//! and every Parquet file of slices, and agree with the manifest where both state a hash.
//! A file is hashed when it is first read. Rows are checked one by one: a class outside the
//! label set, another class name, another split, or the same slice twice is an error that
//! names the file and the row.
//!
//! Objects of a store are not read twice: their bytes are those that the store's own
//! checksums cover, and `ct-ingest verify` hashes them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::DataError;
use crate::case::{CaseId, Label, LabelSet, Split};
use crate::files;
use crate::manifest::Manifest;
use crate::place;

/// Small files that every shard folder has beside its slices.
const TABLES: [&str; 3] = ["cases.parquet", "manifest.json", "quarantine.jsonl"];

/// `SHA256SUMS` of a shard folder, and which of its files were hashed already.
#[derive(Clone, Debug)]
pub(super) struct Sums {
    root: PathBuf,
    sums: BTreeMap<String, String>,
    checked: Arc<Mutex<BTreeSet<String>>>,
}

impl Sums {
    /// Reads `SHA256SUMS`.
    ///
    /// # Errors
    /// When it cannot be read, a line is not `HASH  NAME`, or a name leaves the folder.
    pub fn read(root: &Path) -> Result<Self, DataError> {
        let path = root.join("SHA256SUMS");
        let text = String::from_utf8(files::read(&path)?).map_err(|err| DataError::malformed(&path, err))?;
        let mut sums = BTreeMap::new();
        for (i, line) in text.lines().enumerate() {
            let entry = line.split_once("  ").filter(|(hash, name)| is_sha256(hash) && is_below(name));
            let Some((hash, name)) = entry else {
                return Err(DataError::malformed(&path, format!("line {} is not HASH  NAME", i + 1)));
            };
            sums.insert(name.to_owned(), hash.to_owned());
        }
        Ok(Self { root: root.into(), sums, checked: Arc::default() })
    }

    /// Whether it names every file of the manifest, with the manifest's hash, and the tables.
    ///
    /// # Errors
    /// [`DataError::Malformed`] that names the first file which it lacks or contradicts.
    pub fn check_complete(&self, manifest: &Manifest) -> Result<(), DataError> {
        let path = || self.root.join("SHA256SUMS");
        if let Some(name) = TABLES.iter().find(|name| !self.sums.contains_key(**name)) {
            return Err(DataError::malformed(path(), format!("it lacks {name}")));
        }
        for file in &manifest.files {
            match self.sums.get(&file.path) {
                None => return Err(DataError::malformed(path(), format!("it lacks {}", file.path))),
                Some(sum) if *sum != file.sha256 => {
                    let why = format!("its hash of {} is not that of manifest.json", file.path);
                    return Err(DataError::malformed(path(), why));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Hashes a file when it is first read.
    ///
    /// # Errors
    /// [`DataError::HashMismatch`] when its hash is another one, and when it cannot be read.
    pub fn check_file(&self, name: &str) -> Result<(), DataError> {
        let path = self.root.join(name);
        if place::is_store(&path) {
            return Ok(());
        }
        // Nothing can break off while it is held.
        let checked = || self.checked.lock().unwrap_or_else(PoisonError::into_inner);
        if checked().contains(name) {
            return Ok(());
        }
        self.hash_file(name)?;
        checked().insert(name.to_owned());
        Ok(())
    }

    /// Hashes every file, whatever was hashed before; their number.
    ///
    /// # Errors
    /// As [`check_file`](Self::check_file), at the first file.
    pub fn check_all(&self) -> Result<usize, DataError> {
        self.sums.keys().try_for_each(|name| self.hash_file(name))?;
        Ok(self.sums.len())
    }

    fn hash_file(&self, name: &str) -> Result<(), DataError> {
        let path = self.root.join(name);
        let found = files::sha256_file(&path)?;
        if self.sums.get(name) == Some(&found) { Ok(()) } else { Err(DataError::HashMismatch { path }) }
    }
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a name stays below its folder.
fn is_below(name: &str) -> bool {
    !name.is_empty() && name.split('/').all(|part| !part.is_empty() && part != ".." && part != ".")
}

/// What a row says of itself, to be held against its file.
#[derive(Clone, Copy)]
pub(super) struct RowKey<'a> {
    pub case_id: &'a CaseId,
    pub slice_index: i32,
    pub label: Label,
    pub label_name: &'a str,
    pub split: &'a str,
}

/// Checks the rows of a split as they come.
#[derive(Debug, Default)]
pub(super) struct Rows {
    seen: BTreeSet<(CaseId, i32)>,
    n_rows: usize,
}

impl Rows {
    /// Checks the next row.
    ///
    /// # Errors
    /// [`DataError::Malformed`] that names the file and the row.
    pub fn check(
        &mut self,
        row: &RowKey<'_>,
        labels: &LabelSet,
        split: Split,
        path: &Path,
    ) -> Result<(), DataError> {
        let bad =
            |why: String| DataError::malformed(path, format!("row {} of its split: {why}", self.n_rows));
        let Some(name) = labels.name(row.label) else {
            return Err(bad(format!("label {} is outside the label set", row.label.0)));
        };
        if row.label_name != name {
            return Err(bad(format!("label {} is {name}, and `label_name` says otherwise", row.label.0)));
        }
        if row.split != split.as_str() {
            return Err(bad(format!("it lies in a file of the {split} split and says otherwise")));
        }
        if !self.seen.insert((row.case_id.clone(), row.slice_index)) {
            return Err(bad(format!("slice {} of {} is there twice", row.slice_index, row.case_id)));
        }
        self.n_rows += 1;
        Ok(())
    }
}
