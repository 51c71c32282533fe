//! Geometry and rescale of each image of an object.
//!
//! A classic CT object has one image and says everything at its top. An enhanced
//! one has many frames; what they say lies in the shared or the per-frame
//! functional groups (PS3.3 C.7.6.16), and reading only the top gives every frame
//! one position and no rescale.

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use diag_data::units::{Mm, Spacing};

use super::elements::{DataSet, TagNumber};
use super::rescale::{ModalityLut, Rescale};
use super::tags;
use crate::fault::Fault;

/// Where one image lies and what its numbers mean.
#[derive(Clone, Debug)]
pub struct Frame {
    /// ImagePositionPatient in mm.
    pub position: Result<[f64; 3], Fault>,
    /// ImageOrientationPatient: direction of a row, then of a column; unit vectors, perpendicular.
    pub orientation: Result<[f64; 6], Fault>,
    /// PixelSpacing.
    pub spacing: Result<Spacing, Fault>,
    /// Stored value to HU.
    pub rescale: Result<Rescale, Fault>,
    /// ImageType or FrameType, its first three values.
    pub image_type: String,
    /// Whether the image was made of several slices: a maximum, minimum or average projection.
    pub is_projection: bool,
    /// What tells reconstructions under one series UID apart.
    pub reconstruction: Reconstruction,
    /// AcquisitionNumber or FrameAcquisitionNumber.
    pub acquisition_number: Option<i64>,
    /// Start of the acquisition in seconds; only differences mean something.
    pub acquisition_seconds: Option<f64>,
}

impl Frame {
    /// Whether ImageType says that the pixels are the scanner's own.
    pub fn is_original(&self) -> bool {
        self.image_type.starts_with("ORIGINAL")
    }
}

/// Attributes that are equal in all images of one reconstruction. They are compared, and
/// never shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconstruction {
    /// ConvolutionKernel, all its values.
    pub kernel: Option<String>,
    /// SliceThickness in micrometres.
    pub thickness_um: Option<i64>,
    /// KVP in volts.
    pub voltage: Option<i64>,
    /// SeriesNumber.
    pub series_number: Option<i64>,
    /// TemporalPositionIdentifier or TemporalPositionIndex.
    pub temporal_position: Option<i64>,
    /// ReconstructionDiameter in micrometres.
    pub diameter_um: Option<i64>,
    /// Hash of ImageType or FrameType, all its values.
    pub kind: u64,
    /// Hash of SeriesDescription, ProtocolName, ContrastBolusAgent and FilterType.
    pub description: u64,
}

/// The data sets in which a frame's attributes are looked for.
#[derive(Clone, Copy)]
pub(super) enum Places<'s, 'a> {
    /// All at the top of a classic object.
    Top(&'s DataSet<'a>),
    /// In the functional groups of an enhanced object: the frame's own, then the shared ones.
    Groups { own: &'s DataSet<'a>, shared: &'s [DataSet<'a>] },
}

impl<'s, 'a> Places<'s, 'a> {
    /// The data set that stands for a functional group.
    pub(super) fn group(self, sequence: TagNumber) -> Result<Option<Cow<'s, DataSet<'a>>>, Fault> {
        match self {
            Self::Top(set) => Ok(Some(Cow::Borrowed(set))),
            Self::Groups { own, shared } => {
                for groups in std::iter::once(own).chain(shared) {
                    if let Some(group) = groups.items(sequence)?.into_iter().next() {
                        return Ok(Some(Cow::Owned(group)));
                    }
                }
                Ok(None)
            }
        }
    }
}

/// The functional groups of an object: one item a frame, and what frames share.
pub(super) struct FunctionalGroups<'a> {
    per_frame: Vec<DataSet<'a>>,
    shared: Vec<DataSet<'a>>,
}

impl<'a> FunctionalGroups<'a> {
    /// Reads both sequences, and holds them against NumberOfFrames.
    pub(super) fn read(set: &DataSet<'a>, n_frames: usize) -> Result<Self, Fault> {
        let shared = set.items(tags::SHARED_FUNCTIONAL_GROUPS)?;
        let per_frame = set.items(tags::PER_FRAME_FUNCTIONAL_GROUPS)?;
        let is_classic = per_frame.is_empty() && shared.is_empty();
        let wrong = |why| Err(Fault::Attribute { name: "NumberOfFrames", why });
        if is_classic && n_frames > 1 {
            return wrong(format!("is {n_frames}, but there are no functional groups"));
        }
        if !is_classic && per_frame.len() != n_frames {
            return wrong(format!("is {n_frames}, but {} frames are described", per_frame.len()));
        }
        Ok(Self { per_frame, shared })
    }

    /// Where each frame's attributes are; one entry for a classic object.
    pub(super) fn places<'s>(&'s self, top: &'s DataSet<'a>) -> Vec<Places<'s, 'a>> {
        if self.per_frame.is_empty() {
            return vec![Places::Top(top)];
        }
        self.per_frame.iter().map(|own| Places::Groups { own, shared: &self.shared }).collect()
    }
}

/// Reads every frame.
pub(super) fn read(top: &DataSet<'_>, places: &[Places<'_, '_>], signed: bool) -> Result<Vec<Frame>, Fault> {
    // A table of CT numbers can only stand at the top, for all frames.
    let table = ModalityLut::read(top, signed).map(|lut| lut.map(|lut| Rescale::Table(Arc::new(lut))));
    let image_type = top.text(tags::IMAGE_TYPE).unwrap_or_default();
    places.iter().map(|place| frame(top, *place, &table, &image_type)).collect()
}

fn frame(
    top: &DataSet<'_>,
    place: Places<'_, '_>,
    table: &Result<Option<Rescale>, Fault>,
    image_type: &str,
) -> Result<Frame, Fault> {
    let numbers = |sequence, tag| -> Result<Option<Option<Vec<f64>>>, Fault> {
        let group = place.group(sequence)?;
        Ok(group.filter(|set| set.get(tag).is_some()).map(|set| set.numbers(tag)))
    };
    let position = exactly("ImagePositionPatient", numbers(tags::PLANE_POSITION, tags::IMAGE_POSITION)?);
    let orientation =
        exactly("ImageOrientationPatient", numbers(tags::PLANE_ORIENTATION, tags::IMAGE_ORIENTATION)?);
    let spacing = exactly("PixelSpacing", numbers(tags::PIXEL_MEASURES, tags::PIXEL_SPACING)?);
    let rescale = match table.clone() {
        Err(fault) => Err(fault),
        Ok(Some(table)) => Ok(table),
        Ok(None) => Rescale::read(place.group(tags::PIXEL_VALUE_TRANSFORMATION)?.as_deref()),
    };
    let (frame_type, content) = match place {
        Places::Top(_) => (None, None),
        Places::Groups { .. } => (place.group(tags::CT_IMAGE_FRAME_TYPE)?, place.group(tags::FRAME_CONTENT)?),
    };
    let own_type = frame_type.as_ref().and_then(|set| set.text(tags::FRAME_TYPE));
    let image_type = own_type.as_deref().unwrap_or(image_type);
    let own_technique =
        frame_type.as_ref().and_then(|set| set.text(tags::VOLUME_BASED_CALCULATION_TECHNIQUE));
    let technique = own_technique.or_else(|| top.text(tags::VOLUME_BASED_CALCULATION_TECHNIQUE));
    let content = content.as_deref();
    Ok(Frame {
        position,
        orientation: orientation.and_then(orthogonal),
        spacing: spacing.and_then(checked_spacing),
        rescale,
        image_type: image_type.split('\\').take(3).collect::<Vec<_>>().join("\\"),
        is_projection: is_projection(image_type) || technique.is_some_and(|text| is_projection(&text)),
        reconstruction: reconstruction(top, place, (image_type, content))?,
        acquisition_number: content
            .and_then(|set| set.int(tags::FRAME_ACQUISITION_NUMBER))
            .or_else(|| top.int(tags::ACQUISITION_NUMBER)),
        acquisition_seconds: acquisition_seconds(top, content),
    })
}

fn reconstruction(
    top: &DataSet<'_>,
    place: Places<'_, '_>,
    (image_type, content): (&str, Option<&DataSet<'_>>),
) -> Result<Reconstruction, Fault> {
    let thousandths = |sequence, tag| -> Result<Option<i64>, Fault> {
        let values = place.group(sequence)?.and_then(|set| set.numbers(tag));
        let first = values.and_then(|values| values.first().copied());
        Ok(first.map(|value| (value * 1e3).round() as i64))
    };
    let mut description = DefaultHasher::new();
    for tag in [tags::SERIES_DESCRIPTION, tags::PROTOCOL_NAME, tags::CONTRAST_BOLUS_AGENT, tags::FILTER_TYPE]
    {
        top.text(tag).hash(&mut description);
    }
    Ok(Reconstruction {
        kernel: place.group(tags::CT_RECONSTRUCTION)?.and_then(|set| set.text(tags::CONVOLUTION_KERNEL)),
        // To a hundredth of a millimetre: what differs by less is rounding.
        thickness_um: thousandths(tags::PIXEL_MEASURES, tags::SLICE_THICKNESS)?.map(|um| (um + 5) / 10 * 10),
        voltage: thousandths(tags::CT_XRAY_DETAILS, tags::KVP)?,
        series_number: top.int(tags::SERIES_NUMBER),
        temporal_position: content
            .and_then(|set| set.int(tags::TEMPORAL_POSITION_INDEX))
            .or_else(|| top.int(tags::TEMPORAL_POSITION_IDENTIFIER)),
        diameter_um: thousandths(tags::CT_RECONSTRUCTION, tags::RECONSTRUCTION_DIAMETER)?,
        kind: hashed(image_type),
        description: description.finish(),
    })
}

/// A hash of a text that is compared and never shown.
pub(super) fn hashed(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Whether an ImageType, or the technique of a volume calculation, names a projection: an image
/// whose pixels are the highest, lowest or mean of several slices, or a rendering of a surface.
/// GE writes AVERAGE into every reformatted series; those are slices, only thicker.
fn is_projection(image_type: &str) -> bool {
    let upper = image_type.to_ascii_uppercase();
    let words: Vec<&str> = upper.split(|c: char| !c.is_ascii_alphanumeric()).collect();
    let names = |word: &&str| {
        matches!(
            *word,
            "MIP"
                | "MINIP"
                | "MAXIP"
                | "MPVR"
                | "MAXIMUM"
                | "MINIMUM"
                | "PROJECTION"
                | "VRT"
                | "RENDER"
                | "SSD"
        )
    };
    let is_average = words.iter().any(|word| matches!(*word, "AVERAGE" | "AVG" | "MEAN" | "AIP"))
        && words.contains(&"DERIVED")
        && !words.iter().any(|word| matches!(*word, "REFORMATTED" | "MPR"));
    let pair = |pair: &[&str]| matches!(pair[0], "MIN" | "MAX" | "AVG" | "MEAN") && pair[1] == "IP";
    is_average || words.iter().any(names) || words.windows(2).any(pair)
}

/// Date and time of the acquisition as seconds, where they are there.
fn acquisition_seconds(top: &DataSet<'_>, content: Option<&DataSet<'_>>) -> Option<f64> {
    let both = content
        .and_then(|set| set.text(tags::FRAME_ACQUISITION_DATE_TIME))
        .or_else(|| top.text(tags::ACQUISITION_DATE_TIME));
    let (date, time) = match both.filter(|text| text.len() >= 14 && text.is_ascii()) {
        Some(text) => (Some(text[..8].to_string()), text[8..].to_string()),
        None => (top.text(tags::ACQUISITION_DATE), top.text(tags::ACQUISITION_TIME)?),
    };
    let digits = |text: &str, range: std::ops::Range<usize>| text.get(range)?.parse::<f64>().ok();
    let seconds: f64 = time.get(4..)?.split(['+', '-']).next()?.parse().ok()?;
    let of_day = digits(&time, 0..2)? * 3600.0 + digits(&time, 2..4)? * 60.0 + seconds;
    // Days of unequal months are never compared over more than a few: 31 a month keeps their order.
    let day = date.as_deref().filter(|date| date.len() == 8).and_then(|date| {
        Some((digits(date, 0..4)? * 12.0 + digits(date, 4..6)?) * 31.0 + digits(date, 6..8)?)
    });
    Some(day.unwrap_or(0.0) * 86_400.0 + of_day)
}

fn exactly<const N: usize>(name: &'static str, found: Option<Option<Vec<f64>>>) -> Result<[f64; N], Fault> {
    match found {
        None => Err(Fault::Attribute { name, why: "is missing".into() }),
        Some(None) => Err(Fault::Attribute { name, why: "is not made of numbers".into() }),
        Some(Some(values)) => {
            let n_values = values.len();
            let why = move |_| Fault::Attribute { name, why: format!("has {n_values} values, not {N}") };
            values.try_into().map_err(why)
        }
    }
}

fn checked_spacing([row, col]: [f64; 2]) -> Result<Spacing, Fault> {
    if (0.01..=50.0).contains(&row) && (0.01..=50.0).contains(&col) {
        Ok(Spacing { row: Mm(row), col: Mm(col) })
    } else {
        Err(Fault::Attribute { name: "PixelSpacing", why: format!("is {row} x {col} mm") })
    }
}

/// Brings both directions to length 1 and at right angles: they are often written with few
/// decimals, which else shows as a tilt and as short steps.
fn orthogonal(cosines: [f64; 6]) -> Result<[f64; 6], Fault> {
    let dot = |a: [f64; 3], b: [f64; 3]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let unit = |a: [f64; 3]| {
        let length = dot(a, a).sqrt();
        (0.9..=1.1).contains(&length).then(|| a.map(|part| part / length))
    };
    let [a, b, c, d, e, f] = cosines;
    let turned = |row: [f64; 3], col: [f64; 3]| {
        let along = dot(row, col);
        // An exact pair stays as it is, bit for bit.
        if along == 0.0 {
            return Some([row, col]);
        }
        let col = std::array::from_fn(|i| col[i] - along * row[i]);
        (along.abs() < 0.05).then(|| unit(col).map(|col| [row, col]))?
    };
    let both = unit([a, b, c]).zip(unit([d, e, f])).and_then(|(row, col)| turned(row, col));
    let Some([[a, b, c], [d, e, f]]) = both else {
        return Err(Fault::Attribute {
            name: "ImageOrientationPatient",
            why: "is not two perpendicular unit vectors".into(),
        });
    };
    Ok([a, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(image_type: &str, want: bool) {
        assert_eq!(is_projection(image_type), want, "{image_type}");
    }

    #[test]
    fn projections_are_told_from_slices() {
        for projection in [
            "DERIVED\\SECONDARY\\AXIAL\\MIP",
            "DERIVED\\SECONDARY\\MIN_IP",
            "DERIVED\\SECONDARY\\MINIP",
            "DERIVED\\SECONDARY\\REFORMATTED\\MAXIMUM",
            "DERIVED\\SECONDARY\\REFORMATTED\\MINIMUM",
            "DERIVED\\SECONDARY\\AXIAL\\CT_SOM5 MIP",
            "DERIVED\\SECONDARY\\PROJECTION IMAGE",
            "DERIVED\\PRIMARY\\AXIAL\\AVERAGE",
            "MAX_IP",
            "VOLUME_RENDER",
        ] {
            check(projection, true);
        }
        for slice in [
            "ORIGINAL\\PRIMARY\\AXIAL",
            "ORIGINAL\\PRIMARY\\AXIAL\\CT_SOM5 SPI",
            "ORIGINAL\\PRIMARY\\AXIAL\\AVERAGE",
            "DERIVED\\SECONDARY\\REFORMATTED\\AVERAGE",
            "DERIVED\\PRIMARY\\AXIAL\\CT_SOM7 MPR",
            "",
        ] {
            check(slice, false);
        }
    }

    #[test]
    fn rounded_directions_become_unit_vectors() {
        let turned = orthogonal([0.998, 0.052, 0.0, -0.052, 0.998, 0.001]).unwrap();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        let (row, col) = turned.split_at(3);
        assert!((dot(row, row) - 1.0).abs() < 1e-12 && (dot(col, col) - 1.0).abs() < 1e-12);
        assert!(dot(row, col).abs() < 1e-12);
        assert_eq!(orthogonal([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]), Ok([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]));
        for wrong in [[1.0, 1.0, 0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.2, 1.0, 0.0], [0.0; 6]] {
            assert!(orthogonal(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn times_are_read_with_and_without_fractions() {
        let seconds = |time: &str| {
            let mut bytes = vec![0x08, 0, 0x32, 0, b'T', b'M', time.len() as u8, 0];
            bytes.extend(time.as_bytes());
            let set = DataSet::walk(&bytes, 0, super::super::elements::Encoding::EXPLICIT_LITTLE).unwrap();
            acquisition_seconds(&set, None)
        };
        assert_eq!(seconds("010203.5"), Some(3723.5));
        assert_eq!(seconds("010203"), Some(3723.0));
        assert_eq!(seconds("x"), None);
    }
}
