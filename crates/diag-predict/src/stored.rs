//! Results of finished studies, one small file each: what a stopped run need not do again.
//!
//! A file is named by a hash of all that its content follows from: the bytes of the study, its
//! name, and the model with its rule and reader settings. Another model or a changed study has
//! another hash, so that nothing outdated is taken over.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use diag_data::DataError;
use diag_data::files::{self, FolderLock};
use serde::{Deserialize, Serialize};

/// Folder of the files in the output folder.
const FOLDER: &str = ".studies";

/// What was found in one study. It does not name it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Finished {
    /// Whether every image bears the mark of synthetic ones.
    pub synthetic: bool,
    pub outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// Class probabilities of its slices, lowest first, and what was odd about it.
    Predicted { slice_nk: Vec<Vec<f32>>, warnings: Vec<String> },
    /// Why it was not predicted, as `quarantine.jsonl` says it.
    SetAside { reason: String, detail: String, remedy: String },
}

impl Finished {
    /// Whether the same study gives the same again: what the system refused may be readable
    /// the next time.
    pub fn is_final(&self) -> bool {
        !matches!(&self.outcome, Outcome::SetAside { reason, .. } if reason == UNREADABLE)
    }
}

/// Code of [`ct_read::Fault::Unreadable`].
const UNREADABLE: &str = "unreadable";

/// The stored results of an output folder, whose only writer this is.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    _lock: FolderLock,
}

impl Store {
    /// Opens the store of an output folder, and makes both where they are not there.
    ///
    /// # Errors
    /// A folder with content that no such store lies beside; another process that is at it.
    pub fn open(out: &Path) -> Result<Self, DataError> {
        let folder = out.join(FOLDER);
        if !folder.is_dir() {
            files::refuse_occupied(out)?;
        }
        let refused = |source| DataError::Io { action: "create", path: folder.clone(), source };
        std::fs::create_dir_all(&folder).map_err(refused)?;
        files::close_to_others(&folder)?;
        let lock = FolderLock::take(&folder)?;
        Ok(Self { folder, _lock: lock })
    }

    /// A stored result; a damaged one counts as none.
    pub fn find(&self, key: &str) -> Option<Finished> {
        files::read_json(&self.path(key)).ok()
    }

    /// Stores a result, whole or not at all.
    pub fn put(&self, key: &str, finished: &Finished) -> Result<(), DataError> {
        files::write_json(&self.path(key), finished)
    }

    /// Reads a result that is there.
    pub fn get(&self, key: &str) -> Result<Finished, DataError> {
        files::read_json(&self.path(key))
    }

    /// Removes what is stored under other keys: of studies that are gone or were changed, and
    /// of other models.
    pub fn keep_only(&self, keys: &BTreeSet<&str>) -> Result<(), DataError> {
        let io = |action, path: &Path| {
            let path = path.to_path_buf();
            move |source| DataError::Io { action, path, source }
        };
        for entry in std::fs::read_dir(&self.folder).map_err(io("read", &self.folder))? {
            let path = entry.map_err(io("read", &self.folder))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_wanted = name.strip_suffix(".json").is_some_and(|key| keys.contains(key));
            if name != FolderLock::NAME && !is_wanted {
                std::fs::remove_file(&path).map_err(io("remove", &path))?;
            }
        }
        Ok(())
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished() -> Finished {
        let slice_nk = vec![vec![0.1_f32, 0.7, 0.2], vec![f32::MIN_POSITIVE, 1.0 / 3.0, 2.0 / 3.0]];
        Finished { synthetic: true, outcome: Outcome::Predicted { slice_nk, warnings: vec!["odd".into()] } }
    }

    #[test]
    fn a_result_comes_back_to_the_last_bit_and_others_go() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        let store = Store::open(&out).unwrap();
        store.put("a", &finished()).unwrap();
        store.put("b", &finished()).unwrap();
        assert_eq!(store.get("a").unwrap(), finished());
        assert_eq!(store.find("c"), None);
        store.keep_only(&BTreeSet::from(["a"])).unwrap();
        assert_eq!((store.find("a"), store.find("b")), (Some(finished()), None));
        std::fs::write(store.path("a"), "{").unwrap();
        assert_eq!(store.find("a"), None);
    }

    #[test]
    fn what_the_system_refused_is_tried_again() {
        let aside = |fault: ct_read::Fault| Finished {
            synthetic: false,
            outcome: Outcome::SetAside {
                reason: fault.code().into(),
                detail: fault.to_string(),
                remedy: fault.remedy(),
            },
        };
        assert!(!aside(ct_read::Fault::Unreadable { why: "timed out".into() }).is_final());
        assert!(aside(ct_read::Fault::Truncated).is_final() && finished().is_final());
    }

    #[test]
    fn a_folder_has_one_writer_and_what_is_not_ours_is_not_touched() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        let first = Store::open(&out).unwrap();
        assert!(matches!(Store::open(&out), Err(DataError::InUse { .. })));
        drop(first);
        std::fs::write(out.join("predictions.csv"), "x").unwrap();
        assert!(Store::open(&out).is_ok());
        std::fs::write(root.path().join("precious"), "x").unwrap();
        assert!(matches!(Store::open(root.path()), Err(DataError::OutputExists { .. })));
    }
}
