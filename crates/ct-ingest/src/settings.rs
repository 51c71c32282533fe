//! What a run is asked to do, beyond where it reads and writes.

use std::path::PathBuf;

use diag_data::manifest::Layout;
use diag_data::reader::ReaderSettings;
use diag_data::split::Ratio;
use diag_data::units::HuWindow;
use serde::Serialize;
use serde_json::json;

use crate::IngestError;
use crate::part::Part;

/// What the files of a run over volumes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// DICOM files, one or more a series.
    Dicom,
    /// NIfTI-1 files, one a series.
    Nifti,
}

/// What a `case_id` of the label table names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Match {
    /// A folder below the root, by its path or its unique name; or a NIfTI file.
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
    /// Shares of training and test, where no split is given.
    pub ratio: Ratio,
    /// Seed of the split, and of the default key.
    pub seed: u64,
    /// Table `case_id,split` that overrides the ratio.
    pub split_file: Option<PathBuf>,
    /// Label-set file that fixes the classes and their order.
    pub label_set: Option<PathBuf>,
    /// How pixels are stored.
    pub layout: Layout,
    /// Whether HU are stored beside the grey levels.
    pub with_hu: bool,
    /// Secret key of the pseudonyms.
    pub key_file: Option<PathBuf>,
    /// Whether the label table's case ids are kept instead of pseudonyms.
    pub keep_case_ids: bool,
    /// Whether `quarantine.jsonl` shows paths below the root.
    pub keep_paths: bool,
    /// Folder for contact sheets of the cases; the shards do not depend on it.
    pub preview: Option<PathBuf>,
    /// Worker threads; `None` is one a core.
    pub jobs: Option<usize>,
    /// Which part of the cases is read; `None` is all.
    pub part: Option<Part>,
}

impl Settings {
    /// The settings that the result depends on, for the manifest. Paths are left
    /// out, since they can name somebody; so are the number of threads and the part.
    pub fn to_json(&self, command: &str, split_given: bool) -> serde_json::Value {
        json!({
            "command": command,
            "split": if split_given { "given".into() } else { self.ratio.to_string() },
            "seed": self.seed,
            "layout": self.layout,
            "with_hu": self.with_hu,
            "keep_case_ids": self.keep_case_ids,
        })
    }

    /// Whether this version reads volumes by these settings: what it always does the same
    /// way must be asked for in that way.
    ///
    /// # Errors
    /// [`IngestError::Settings`] that names the first setting that it cannot follow.
    pub fn check_volumes(reader: &ReaderSettings) -> Result<HuWindow, IngestError> {
        let wanted = ReaderSettings {
            series: reader.series,
            refuse_gaps: reader.refuse_gaps,
            select: reader.select,
            crop: reader.crop,
            window: reader.window,
            size: reader.size,
            ..ReaderSettings::DEFAULT
        };
        if let Some(difference) = wanted.differences(reader).first() {
            return Err(IngestError::Settings {
                why: format!(
                    "this program reads volumes with {} {} only, not {}",
                    difference.setting, difference.here, difference.there
                ),
                fix: "use the version that made the shards or the model".into(),
            });
        }
        reader.window.ok_or_else(|| IngestError::Settings {
            why: "volumes need a HU window".into(),
            fix: "use shards or a model made from volumes".into(),
        })
    }
}
