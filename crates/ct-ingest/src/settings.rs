//! What a run is asked to do, beyond where it reads and writes.

use std::path::PathBuf;

use diag_data::manifest::Layout;
use diag_data::split::Ratio;
use diag_data::units::HuWindow;
use serde_json::json;

use crate::part::Part;

/// Which slices of a case are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Select {
    /// Those that show lung, 2 to 54 of them; see [`crate::select`].
    Lung,
    /// All.
    All,
}

/// Which part of a slice is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crop {
    /// The whole image.
    None,
    /// The box around the body in all kept slices.
    Body,
    /// The box around the lungs in all kept slices.
    Lung,
}

/// Which of several axial stacks of a case is used. Ties are broken by the
/// number of slices, then the lowest series number, then the series UID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeriesRule {
    /// The one with most slices.
    MostSlices,
    /// The one with the thickest slices.
    Thickest,
    /// There may be but one; a case with several is set aside as ambiguous.
    Only,
}

/// What the files of a run over volumes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// DICOM files, one or more a series.
    Dicom,
    /// NIfTI-1 files, one a series.
    Nifti,
}

/// What a `case_id` of the label table names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Which slices are kept.
    pub select: Select,
    /// Which stack of a case is used.
    pub series: SeriesRule,
    /// Which part of a slice is kept.
    pub crop: Crop,
    /// HU range that becomes 0..255.
    pub window: HuWindow,
    /// Side of the stored picture in pixels.
    pub size: u32,
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
    /// Whether gaps in a series set its case aside.
    pub strict: bool,
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
            "select": match self.select { Select::Lung => "lung", Select::All => "all" },
            "crop": match self.crop { Crop::None => "none", Crop::Body => "body", Crop::Lung => "lung" },
            "window_hu": [self.window.lo().0, self.window.hi().0],
            "size": self.size,
            "split": if split_given { "given".into() } else { self.ratio.to_string() },
            "seed": self.seed,
            "layout": match self.layout { Layout::Raw => "raw", Layout::Hf => "hf" },
            "with_hu": self.with_hu,
            "strict": self.strict,
            "key": if self.key_file.is_some() { "file" } else { "seed" },
            "keep_case_ids": self.keep_case_ids,
            "series": match self.series {
                SeriesRule::MostSlices => "most-slices",
                SeriesRule::Thickest => "thickest",
                SeriesRule::Only => "only",
            },
            "series_rule": match self.series {
                SeriesRule::MostSlices => "most slices, then lowest series number, then series UID",
                SeriesRule::Thickest => {
                    "thickest slices, then most slices, then lowest series number, then series UID"
                }
                SeriesRule::Only => "a case with several is set aside",
            },
        })
    }
}
