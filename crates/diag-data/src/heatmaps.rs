//! `heatmaps.parquet` and `explanations.json` of a run: where the network looked,
//! and how well that agrees with lesions whose place is known.
//!
//! A map is small (one byte a cell) and covers the whole picture. Reference maps
//! ([`Method::is_reference`]) come from no network: they are what a map has to beat.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, Float32Array, Int8Array, Int32Array, RecordBatch, StringArray,
};
use arrow::datatypes::{Float32Type, Int8Type, Int32Type};
use serde::{Deserialize, Serialize};

use crate::DataError;
use crate::case::{CaseId, Label, LabelSet, Split};

/// How a map was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Gradient-weighted activations (Selvaraju et al., ICCV 2017).
    GradCam,
    /// The same with pixel-wise weights (Chattopadhay et al., WACV 2018).
    GradCamPlusPlus,
    /// Loss of probability when a window is replaced (Zeiler and Fergus, ECCV 2014).
    Occlusion,
    /// Reference: every point of the lungs alike.
    LungField,
    /// Reference: the mean lesion mask of cases outside the part explained.
    LesionPrior,
}

impl Method {
    /// All of them, maps of networks first.
    pub const ALL: [Self; 5] =
        [Self::GradCam, Self::GradCamPlusPlus, Self::Occlusion, Self::LungField, Self::LesionPrior];

    /// Name in files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GradCam => "grad-cam",
            Self::GradCamPlusPlus => "grad-cam-plus-plus",
            Self::Occlusion => "occlusion",
            Self::LungField => "lung-field",
            Self::LesionPrior => "lesion-prior",
        }
    }

    /// Name for readers.
    pub fn title(self) -> &'static str {
        match self {
            Self::GradCam => "Grad-CAM",
            Self::GradCamPlusPlus => "Grad-CAM++",
            Self::Occlusion => "Occlusion",
            Self::LungField => "Anywhere in the lungs",
            Self::LesionPrior => "Usual place of lesions",
        }
    }

    /// Whether it looks at no network.
    pub fn is_reference(self) -> bool {
        matches!(self, Self::LungField | Self::LesionPrior)
    }
}

impl std::str::FromStr for Method {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        let known = Self::ALL.into_iter().find(|method| method.as_str() == text);
        known.ok_or_else(|| DataError::invalid("method", format!("`{text}` is not a way to make a map")))
    }
}

/// One map of one slice.
#[derive(Clone, Debug, PartialEq)]
pub struct Heatmap {
    /// Case of the slice.
    pub case_id: CaseId,
    /// Position among the kept slices of its case.
    pub slice_index: i32,
    /// Part of the data that it belongs to.
    pub split: Split,
    /// Class of its case.
    pub label: Label,
    /// Class whose evidence is shown.
    pub class: Label,
    /// Head that is explained; "none" for a reference.
    pub head: String,
    /// How it was made.
    pub method: Method,
    /// Rows of the map; 0 for a reference, which is not stored.
    pub height: i32,
    /// Columns of the map.
    pub width: i32,
    /// Row-major, 0: no evidence for the class, 255: the map's own highest.
    pub values: Vec<u8>,
    /// What 255 stands for: logits (Grad-CAM, per unit of area) or probability
    /// (occlusion); 0 when nothing spoke for the class, or, under occlusion, no single place.
    pub peak: f32,
    /// Probability of the class by this head; absent for a reference.
    pub probability: Option<f32>,
    /// Rank correlation with the same map of a network with random weights.
    pub randomised_correlation: Option<f32>,
    /// Agreement with the true lesion; absent where none is known, where the
    /// lesion is too small, or where the class is not the true one.
    pub agreement: Option<Agreement>,
}

/// How a map agrees with the true lesion of its slice. All are shares, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Agreement {
    /// Share of the picture that is lesion: what a map without any knowledge gets in each of the others.
    pub lesion_share: f32,
    /// Whether the highest point is in the lesion (pointing game, Zhang et al.,
    /// ECCV 2016); between 0 and 1 when several points are equally high.
    pub pointing: f32,
    /// Share of the map's sum within the lesion.
    pub mass: f32,
    /// Dice overlap of the lesion with the map's highest part of equal area.
    pub overlap: f32,
}

/// `explanations.json`: how the maps were made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanations {
    /// Version of this form.
    pub format_version: u32,
    /// Name and version of the program.
    pub tool: String,
    /// Command line, without paths.
    pub command: String,
    /// Part of the data explained.
    pub split: Split,
    /// Most slices of a case with Grad-CAM maps, evenly spread over its height.
    pub slices_per_case: usize,
    /// Most slices of a case with an occlusion map.
    pub occlusion_slices_per_case: usize,
    /// Side of the replaced window in pixels.
    pub occlusion_window_px: usize,
    /// Distance between windows in pixels.
    pub occlusion_stride_px: usize,
    /// Seed of the random weights of the sanity check.
    pub randomised_seed: u64,
    /// Hash of the weights that were explained.
    pub model_sha256: String,
    /// Hash of the shards.
    pub shards_sha256: String,
    /// Hash of the file with true lesions; absent without one.
    pub truth_sha256: Option<String>,
    /// Hash of `heatmaps.parquet`.
    pub heatmaps_sha256: String,
    /// Share of the lungs that is lesion, by case of the part explained; empty without known lesions.
    pub lesion_share: BTreeMap<CaseId, f64>,
}

/// Version of `explanations.json`.
pub const FORMAT_VERSION: u32 = 1;

/// Writes `heatmaps.parquet`.
///
/// # Errors
/// When a map has not `height * width` values, a label is not of the set, or the disk refuses.
pub fn write(path: &Path, labels: &LabelSet, rows: &[Heatmap]) -> Result<(), DataError> {
    for row in rows {
        let n_cells = i64::from(row.height) * i64::from(row.width);
        if row.values.len() as i64 != n_cells || labels.name(row.class).is_none() {
            let why = format!("{} values for {} x {} cells", row.values.len(), row.height, row.width);
            return Err(DataError::invalid("heat map", why));
        }
    }
    let text = |value: fn(&Heatmap) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(value)))
    };
    let whole = |value: fn(&Heatmap) -> i32| -> ArrayRef {
        Arc::new(Int32Array::from_iter_values(rows.iter().map(value)))
    };
    let class = |value: fn(&Heatmap) -> i8| -> ArrayRef {
        Arc::new(Int8Array::from_iter_values(rows.iter().map(value)))
    };
    let float = |value: fn(&Heatmap) -> Option<f32>| -> ArrayRef {
        Arc::new(Float32Array::from_iter(rows.iter().map(value)))
    };
    let class_names = rows.iter().map(|row| labels.name(row.class));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("case_id", text(|row| row.case_id.as_str())),
        ("slice_index", whole(|row| row.slice_index)),
        ("split", text(|row| row.split.as_str())),
        ("label", class(|row| row.label.0 as i8)),
        ("class", class(|row| row.class.0 as i8)),
        ("class_name", Arc::new(StringArray::from_iter(class_names))),
        ("head", text(|row| &row.head)),
        ("method", text(|row| row.method.as_str())),
        ("height", whole(|row| row.height)),
        ("width", whole(|row| row.width)),
        ("map", Arc::new(BinaryArray::from_iter_values(rows.iter().map(|row| &row.values)))),
        ("peak", float(|row| Some(row.peak))),
        ("probability", float(|row| row.probability)),
        ("randomised_correlation", float(|row| row.randomised_correlation)),
        ("lesion_share", float(|row| row.agreement.map(|a| a.lesion_share))),
        ("pointing", float(|row| row.agreement.map(|a| a.pointing))),
        ("mass", float(|row| row.agreement.map(|a| a.mass))),
        ("overlap", float(|row| row.agreement.map(|a| a.overlap))),
    ];
    let batch = RecordBatch::try_from_iter(columns).map_err(|err| DataError::malformed(path, err))?;
    crate::shard::write_table(path, &batch)
}

/// Reads `heatmaps.parquet`.
///
/// # Errors
/// When the file cannot be read, lacks a column, or a map has another size than it states.
pub fn read(path: &Path, labels: &LabelSet) -> Result<Vec<Heatmap>, DataError> {
    let bad = |name: &str| DataError::malformed(path, format!("column `{name}` is missing or malformed"));
    let mut rows = Vec::new();
    for batch in crate::shard::read_table(path)? {
        let batch = batch?;
        let column = |name: &str| batch.column_by_name(name).ok_or_else(|| bad(name));
        let text = |name| column(name)?.as_string_opt::<i32>().ok_or_else(|| bad(name));
        let whole = |name| column(name)?.as_primitive_opt::<Int32Type>().ok_or_else(|| bad(name));
        let small = |name| column(name)?.as_primitive_opt::<Int8Type>().ok_or_else(|| bad(name));
        let float = |name| column(name)?.as_primitive_opt::<Float32Type>().ok_or_else(|| bad(name));
        let (cases, splits, heads, methods) =
            (text("case_id")?, text("split")?, text("head")?, text("method")?);
        let (indices, heights, widths) = (whole("slice_index")?, whole("height")?, whole("width")?);
        let (of_case, explained) = (small("label")?, small("class")?);
        let maps = column("map")?.as_binary_opt::<i32>().ok_or_else(|| bad("map"))?;
        let floats =
            ["peak", "probability", "randomised_correlation", "lesion_share", "pointing", "mass", "overlap"];
        let floats = floats.map(float);
        for i in 0..batch.num_rows() {
            let label = |column: &Int8Array, name: &str| {
                let label = u8::try_from(column.value(i)).ok().map(Label);
                label.filter(|label| labels.name(*label).is_some()).ok_or_else(|| bad(name))
            };
            let mut values = [None; 7];
            for (value, column) in values.iter_mut().zip(&floats) {
                let column = column.as_ref().map_err(|_| bad("peak"))?;
                *value = column.is_valid(i).then(|| column.value(i));
            }
            let [peak, probability, randomised_correlation, lesion_share, pointing, mass, overlap] = values;
            let agreement = match (lesion_share, pointing, mass, overlap) {
                (Some(lesion_share), Some(pointing), Some(mass), Some(overlap)) => {
                    Some(Agreement { lesion_share, pointing, mass, overlap })
                }
                _ => None,
            };
            let row = Heatmap {
                case_id: CaseId::new(cases.value(i))?,
                slice_index: indices.value(i),
                split: splits.value(i).parse()?,
                label: label(of_case, "label")?,
                class: label(explained, "class")?,
                head: heads.value(i).to_owned(),
                method: methods.value(i).parse()?,
                height: heights.value(i),
                width: widths.value(i),
                values: maps.value(i).to_vec(),
                peak: peak.ok_or_else(|| bad("peak"))?,
                probability,
                randomised_correlation,
                agreement,
            };
            if row.height < 0 || row.values.len() as i64 != i64::from(row.height) * i64::from(row.width) {
                return Err(bad("map"));
            }
            rows.push(row);
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(method: Method, values: Vec<u8>) -> Heatmap {
        let (height, width) = if values.is_empty() { (0, 0) } else { (2, 3) };
        Heatmap {
            case_id: CaseId::new("a").unwrap(),
            slice_index: 4,
            split: Split::Test,
            label: Label(0),
            class: Label(2),
            head: "final".into(),
            method,
            height,
            width,
            values,
            peak: 0.5,
            probability: (!method.is_reference()).then_some(0.25),
            randomised_correlation: None,
            agreement: method.is_reference().then_some(Agreement {
                lesion_share: 0.1,
                pointing: 1.0,
                mass: 0.3,
                overlap: 0.2,
            }),
        }
    }

    #[test]
    fn maps_survive_the_file() {
        let rows = [row(Method::GradCam, vec![0, 1, 2, 3, 4, 255]), row(Method::LungField, vec![])];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("heatmaps.parquet");
        write(&path, &LabelSet::paper(), &rows).unwrap();
        assert_eq!(read(&path, &LabelSet::paper()).unwrap(), rows);
    }

    #[test]
    fn a_map_of_another_size_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("heatmaps.parquet");
        assert!(write(&path, &LabelSet::paper(), &[row(Method::GradCam, vec![1; 5])]).is_err());
        assert!(!path.exists());
    }

    #[test]
    fn a_method_is_read_by_its_name() {
        for method in Method::ALL {
            assert_eq!(method.as_str().parse::<Method>().unwrap(), method);
        }
        assert!("saliency".parse::<Method>().is_err());
    }
}
