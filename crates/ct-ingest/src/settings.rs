//! What a run is asked to do, beyond where it reads and writes.

use std::path::PathBuf;

use ct_read::key::{self, KeySource};
use ct_read::pseudonyms::{Kind, Pseudonyms};
use diag_data::case::CaseId;
use diag_data::files;
use diag_data::manifest::Layout;
use diag_data::reader::ReaderSettings;
use diag_data::split::Ratio;
use serde::Serialize;
use serde_json::json;

use crate::IngestError;
use crate::control::{Control, Event};
use crate::partition::Partition;

/// What a `case_id` of the label table names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Match {
    /// A folder below the root, by its path or its unique name; or a file that is a volume.
    Folder,
    /// PatientID.
    PatientId,
    /// SeriesInstanceUID.
    SeriesUid,
}

/// The settings that `dicom` and `images` share.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How a study becomes slices.
    pub reader: ReaderSettings,
    /// Shares of the parts, where no split is given.
    pub ratio: Ratio,
    /// Seed of the split.
    pub seed: u64,
    /// Table `case_id,split` that overrides the ratio.
    pub split_file: Option<PathBuf>,
    /// Label-set file that fixes the classes and their order.
    pub label_set: Option<PathBuf>,
    /// How pixels are stored.
    pub layout: Layout,
    /// Whether HU are stored beside the grey levels.
    pub with_hu: bool,
    /// Key of the pseudonyms.
    pub key: KeySource,
    /// Name of the cohort, with which the pseudonyms of its cases are salted.
    pub cohort: Option<String>,
    /// File of makers, models and kernels that are stored as they stand, one a line.
    pub allow_values: Option<PathBuf>,
    /// Whether the label table's case ids are kept instead of pseudonyms.
    pub keep_case_ids: bool,
    /// Whether `quarantine.jsonl` shows paths below the root.
    pub keep_paths: bool,
    /// Folder for contact sheets of the cases; the shards do not depend on it.
    pub preview: Option<PathBuf>,
    /// Worker threads; `None` is one a core.
    pub jobs: Option<usize>,
    /// Which partition of the cases is read; `None` is all.
    pub partition: Option<Partition>,
}

impl Settings {
    /// The settings that the result depends on, for the manifest. Paths are left
    /// out, since they can name somebody; so are the number of threads and the partition.
    ///
    /// # Errors
    /// When the list of allowed values cannot be read.
    pub fn to_json(
        &self,
        command: &str,
        split_given: bool,
        pseudonyms: &Pseudonyms,
    ) -> Result<serde_json::Value, IngestError> {
        let hash = |path: &PathBuf| Ok::<_, IngestError>(pseudonyms.hash_file(&files::read(path)?));
        Ok(json!({
            "command": command,
            "split": if split_given { "given".into() } else { self.ratio.to_string() },
            "seed": self.seed,
            "layout": self.layout,
            "with_hu": self.with_hu,
            "keep_case_ids": self.keep_case_ids,
            "case_ids_salted": self.cohort.is_some(),
            "allow_values_blake3": self.allow_values.as_ref().map(hash).transpose()?,
        }))
    }

    /// The hashes by the key that is asked for; `synthetic` says whether the cohort is.
    ///
    /// # Errors
    /// When the key or the list of allowed values cannot be used.
    pub fn pseudonyms(&self, synthetic: bool, control: &Control<'_>) -> Result<Pseudonyms, IngestError> {
        let on_new = |text: &str| (control.on_event)(Event::Note(text));
        let pseudonyms = key::pseudonyms(&self.key, synthetic, &on_new)?;
        Ok(match &self.allow_values {
            Some(path) => pseudonyms.allowing(path)?,
            None => pseudonyms,
        })
    }

    /// Name of a case in the shards: `case-` and 10 hex digits, salted with the name of the
    /// cohort where there is one; or its own name where that is asked for.
    ///
    /// # Errors
    /// When its own name shall be kept and is no valid case id.
    pub fn shown_id(&self, name: &str, pseudonyms: &Pseudonyms) -> Result<CaseId, IngestError> {
        if !self.keep_case_ids {
            // No name has a NUL: two cohorts never salt two names to one text.
            let salted = self.cohort.as_ref().map(|cohort| format!("{cohort}\0{name}"));
            let hash = pseudonyms.hash(Kind::Case, salted.as_deref().unwrap_or(name));
            return Ok(CaseId::new(format!("case-{}", &hash[..10]))?);
        }
        CaseId::new(name).map_err(|_| IngestError::Settings {
            why: "--keep-case-ids needs case ids of 1 to 64 characters of A-Z a-z 0-9 . _ -".into(),
            fix: "rename the cases, or leave the flag out to get pseudonyms".into(),
        })
    }
}
