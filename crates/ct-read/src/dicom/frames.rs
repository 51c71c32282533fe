//! Geometry and rescale of each image of an object.
//!
//! A classic CT object has one image and says everything at its top. An enhanced
//! one has many frames; what they say lies in the shared or the per-frame
//! functional groups (PS3.3 C.7.6.16), and reading only the top gives every frame
//! one position and no rescale.

use std::borrow::Cow;
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
    /// ImageOrientationPatient: direction of a row, then of a column.
    pub orientation: Result<[f64; 6], Fault>,
    /// PixelSpacing.
    pub spacing: Result<Spacing, Fault>,
    /// Stored value to HU.
    pub rescale: Result<Rescale, Fault>,
    /// ImageType or FrameType, its first three values.
    pub image_type: String,
    /// AcquisitionNumber or FrameAcquisitionNumber.
    pub acquisition_number: Option<i64>,
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
    let (own_type, own_number) = match place {
        Places::Top(_) => (None, None),
        Places::Groups { .. } => (
            place.group(tags::CT_IMAGE_FRAME_TYPE)?.and_then(|set| set.text(tags::FRAME_TYPE)),
            place.group(tags::FRAME_CONTENT)?.and_then(|set| set.int(tags::FRAME_ACQUISITION_NUMBER)),
        ),
    };
    let image_type = own_type.as_deref().unwrap_or(image_type);
    Ok(Frame {
        position,
        orientation: orientation.and_then(orthogonal),
        spacing: spacing.and_then(checked_spacing),
        rescale,
        image_type: image_type.split('\\').take(3).collect::<Vec<_>>().join("\\"),
        acquisition_number: own_number.or_else(|| top.int(tags::ACQUISITION_NUMBER)),
    })
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

fn orthogonal(cosines: [f64; 6]) -> Result<[f64; 6], Fault> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let (row, col) = cosines.split_at(3);
    let sound = (dot(row, row) - 1.0).abs() < 0.01
        && (dot(col, col) - 1.0).abs() < 0.01
        && dot(row, col).abs() < 0.01;
    if sound {
        Ok(cosines)
    } else {
        Err(Fault::Attribute {
            name: "ImageOrientationPatient",
            why: "is not two perpendicular unit vectors".into(),
        })
    }
}
