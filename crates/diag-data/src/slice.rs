//! One axial slice on its way from the scanner to the network.

use serde::{Deserialize, Serialize};

use crate::case::{CaseId, Label, Split};
use crate::units::{Mm, Spacing};

/// A rendered slice with everything that a shard row keeps of it.
#[derive(Clone, Debug, PartialEq)]
pub struct CtSlice {
    /// Pseudonym of its case.
    pub case_id: CaseId,
    /// Position among the kept slices of the case, from 0 at the lowest `z`.
    pub slice_index: i32,
    /// Class of its case.
    pub label: Label,
    /// Part of the data that its case belongs to.
    pub split: Split,
    /// Grey levels after windowing, row-major, `channels * height * width` bytes.
    pub pixels: Vec<u8>,
    /// HU of the same pixels, when asked for.
    pub hu: Option<Vec<i16>>,
    /// Where it lies in the body; absent for plain images.
    pub geometry: Geometry,
    /// How it was acquired.
    pub acquisition: Acquisition,
    /// Why it was kept.
    pub selection: Selection,
    /// Where it came from, without naming anybody.
    pub provenance: Provenance,
}

impl CtSlice {
    /// Whether all grey levels are one. Such pictures are equal everywhere: their equality says
    /// nothing of where they come from.
    pub fn is_flat(&self) -> bool {
        self.pixels.iter().all(|grey| Some(grey) == self.pixels.first())
    }
}

/// Geometry of the source slice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Geometry {
    /// Projection of ImagePositionPatient on the slice normal.
    pub z: Option<Mm>,
    /// Distance to the next slice below in the source series.
    pub gap_before: Option<Mm>,
    /// Pixel spacing of the source image.
    pub spacing: Option<Spacing>,
    /// SliceThickness.
    pub slice_thickness: Option<Mm>,
    /// Gantry tilt in degrees: angle between the stacking direction and the normal.
    pub tilt_deg: Option<f32>,
    /// Rows of the source image.
    pub source_rows: i32,
    /// Columns of the source image.
    pub source_cols: i32,
}

/// Acquisition parameters, as the header states them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Acquisition {
    /// Manufacturer (0008,0070).
    pub manufacturer: Option<String>,
    /// ManufacturerModelName (0008,1090).
    pub model: Option<String>,
    /// ConvolutionKernel (0018,1210).
    pub kernel: Option<String>,
    /// KVP (0018,0060) in kV.
    pub kvp: Option<f32>,
    /// Transfer syntax UID, or the image format.
    pub transfer_syntax: String,
    /// Whether the pixels went through lossy compression.
    pub lossy: bool,
    /// RescaleSlope of this slice; absent for plain images.
    pub rescale_slope: Option<f64>,
    /// RescaleIntercept of this slice; absent for plain images.
    pub rescale_intercept: Option<f64>,
    /// Number of source pixels marked as padding.
    pub padding_px: i32,
}

/// What the slice selection measured, before windowing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Selection {
    /// Share of the body that is lung, 0 to 1; absent when not measured.
    pub lung_fraction: Option<f32>,
    /// Lowest HU of the source slice.
    pub hu_min: Option<f32>,
    /// Highest HU of the source slice.
    pub hu_max: Option<f32>,
    /// Mean HU of the source slice.
    pub hu_mean: Option<f32>,
}

/// Hashes that tie a row to its source without naming it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Provenance {
    /// Keyed BLAKE3 of the source file, 64 hex digits: comparable under one key only.
    pub source_blake3: String,
    /// SHA-256 of `pixels`, in hex: equal pixels in two cases are a leak.
    pub pixel_sha256: String,
    /// Keyed hash of SOPInstanceUID.
    pub sop_uid_hash: Option<String>,
    /// Keyed hash of SeriesInstanceUID.
    pub series_uid_hash: Option<String>,
    /// What was odd about the source, in words.
    pub warnings: Vec<String>,
}
