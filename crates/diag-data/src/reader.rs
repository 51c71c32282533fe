//! How a study becomes slices: the settings that two sources must share before a network
//! that was trained on one may be used on the other.
//!
//! `ct-ingest` fills a [`ReaderSettings`]; the shards and `model.json` carry it as it is;
//! `diag-predict` and external validation take it back whole. A key or value that this
//! version does not know is an error that names it, never a default.

use serde::{Deserialize, Serialize};

use crate::units::HuWindow;

/// Everything that decides which pixels the network sees of a study.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReaderSettings {
    /// What was read.
    pub source: Source,
    /// How a slice lies in the picture.
    pub orientation: Orientation,
    /// Which of several axial series of a case is used.
    pub series: SeriesRule,
    /// Whether a series with gaps between its slices is refused.
    pub refuse_gaps: bool,
    /// Fewest slices of a series that is used.
    pub min_slices: u32,
    /// Which slices are kept.
    pub select: Select,
    /// Which part of a slice is kept.
    pub crop: Crop,
    /// HU range that becomes 0 to 255; absent when the source was already grey levels.
    pub window: Option<HuWindow>,
    /// Height and width of the picture in pixels.
    pub size: u32,
    /// How a slice is brought to that size.
    pub resize: Resize,
}

impl ReaderSettings {
    /// The settings of `ct-ingest dicom` without flags.
    pub const DEFAULT: Self = Self {
        source: Source::Volumes,
        orientation: Orientation::Usual,
        series: SeriesRule::MostSlices,
        refuse_gaps: false,
        min_slices: 2,
        select: Select::Lung,
        crop: Crop::None,
        window: Some(HuWindow::LUNG),
        size: 224,
        resize: Resize::Bilinear,
    };

    /// The settings of `ct-ingest images` without flags.
    pub const IMAGES: Self = Self {
        source: Source::Images,
        orientation: Orientation::Stored,
        min_slices: 1,
        select: Select::All,
        window: None,
        resize: Resize::BilinearStretched,
        ..Self::DEFAULT
    };

    /// Bytes of one picture: one byte a pixel.
    pub fn n_pixels(&self) -> usize {
        self.size as usize * self.size as usize
    }

    /// The settings in which `other` differs, in the order of the fields.
    ///
    /// ```
    /// use diag_data::reader::ReaderSettings;
    /// let other = ReaderSettings { size: 64, ..ReaderSettings::DEFAULT };
    /// let differences = ReaderSettings::DEFAULT.differences(&other);
    /// assert_eq!(differences[0].to_string(), "size: 224 here, 64 there");
    /// assert_eq!(differences.len(), 1);
    /// ```
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let values = |settings: &Self| match serde_json::to_value(settings) {
            Ok(serde_json::Value::Object(values)) => values,
            _ => serde_json::Map::new(),
        };
        let there = values(other);
        let differs = |(setting, here): (String, serde_json::Value)| {
            let there = there.get(&setting).cloned().unwrap_or_default();
            (here != there).then(|| Difference { setting, here: plain(&here), there: plain(&there) })
        };
        values(self).into_iter().filter_map(differs).collect()
    }
}

/// A value without the quotes of JSON.
fn plain(value: &serde_json::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// One setting in which two readers differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Name of the field of [`ReaderSettings`].
    pub setting: String,
    /// Value of the one.
    pub here: String,
    /// Value of the other.
    pub there: String,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} here, {} there", self.setting, self.here, self.there)
    }
}

/// What is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// CT volumes with HU: DICOM, NIfTI and other volume formats.
    Volumes,
    /// Pictures of slices: PNG, JPEG and other image formats.
    Images,
}

/// How a slice lies in the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Orientation {
    /// Columns run to the patient's left, rows to posterior; slices from feet to head.
    Usual,
    /// As the file stores it.
    Stored,
}

/// Which slices of a case are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Select {
    /// Slices that show lung, 2 to 54 a case.
    Lung,
    /// All slices.
    All,
}

/// Which part of a slice is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Crop {
    /// The whole image.
    None,
    /// The box around the body in all kept slices.
    Body,
    /// The box around the lungs in all kept slices.
    Lung,
}

/// Which of several axial series of a case is used. Ties are broken by the number of
/// slices, then the lowest series number, then the series UID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum SeriesRule {
    /// The one with most slices.
    MostSlices,
    /// The one with the thickest slices.
    Thickest,
    /// There may be but one; a case with several is set aside.
    Only,
}

impl SeriesRule {
    /// The rule in words, with its tie breaks.
    pub fn describe(self) -> &'static str {
        match self {
            Self::MostSlices => "most slices, then lowest series number, then series UID",
            Self::Thickest => "thickest slices, then most slices, then lowest series number, then series UID",
            Self::Only => "a case with several is set aside",
        }
    }
}

/// How a slice is brought to the stored size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// Bilinear, antialiased (convolution), over square millimetres: proportions are kept.
    Bilinear,
    /// Bilinear, antialiased (convolution), to a square: proportions are not kept.
    BilinearStretched,
}

impl Resize {
    /// In words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Bilinear => "bilinear, antialiased",
            Self::BilinearStretched => "bilinear, antialiased, proportions not kept",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_json_and_unknown_ones_are_named() {
        for settings in [ReaderSettings::DEFAULT, ReaderSettings::IMAGES] {
            let json = serde_json::to_value(&settings).unwrap();
            assert_eq!(serde_json::from_value::<ReaderSettings>(json).unwrap(), settings);
        }
        let mut json = serde_json::to_value(ReaderSettings::DEFAULT).unwrap();
        json["resize"] = "nonsense".into();
        let refused = serde_json::from_value::<ReaderSettings>(json.clone()).unwrap_err().to_string();
        assert!(refused.contains("nonsense"), "{refused}");
        json["resize"] = "bilinear".into();
        json["kernel"] = "sharp".into();
        let refused = serde_json::from_value::<ReaderSettings>(json).unwrap_err().to_string();
        assert!(refused.contains("kernel"), "{refused}");
    }

    #[test]
    fn a_missing_setting_is_no_default() {
        let mut json = serde_json::to_value(ReaderSettings::DEFAULT).unwrap();
        json.as_object_mut().unwrap().remove("crop");
        assert!(serde_json::from_value::<ReaderSettings>(json).unwrap_err().to_string().contains("crop"));
    }
}
