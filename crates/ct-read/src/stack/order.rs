//! Single images to stacks: group, split by reconstruction, order along the normal, check.
//!
//! A group is what shares series UID, orientation, size, spacing and image type. Within a
//! group, reconstructions and acquisitions are separated where they cover the same part of
//! the body (other kernel, thickness, contrast phase, in- and expiration); step-and-shoot
//! scanners number every rotation, and those belong together. A stack's order is the
//! projection of ImagePositionPatient on the normal; file names and instance numbers play no
//! part. Axial stacks run from feet to head.

use std::collections::BTreeMap;
use std::sync::Arc;

use diag_data::units::{Mm, Spacing};

use super::view::View;
use crate::dicom::{Frame, Header};
use crate::fault::Fault;

/// A tilt above this, in degrees, is worth a warning.
pub const TILT_WARNING_DEG: f64 = 1.0;
/// Positions closer than this are one position.
const SAME_POSITION_MM: f64 = 0.01;
/// A distance above this many times the usual one is a gap.
const GAP_FACTOR: f64 = 1.5;
/// An axial stack has a normal this near to the body's axis.
const MIN_AXIAL: f64 = 0.9;
/// Orientations and spacings that differ by less are equal.
const ORIENTATION_TOLERANCE: f64 = 1e-3;
/// Acquisitions that share more of their length than this are no parts of one stack.
const MAX_SHARED_LENGTH: f64 = 0.25;

/// One image of one file.
#[derive(Clone, Debug)]
pub struct ImageRef {
    /// Index of the file in the listing.
    pub file: usize,
    /// Index of the frame in the file.
    pub frame: usize,
    /// The file's header.
    pub header: Arc<Header>,
}

impl ImageRef {
    /// What the header says of this image.
    pub fn frame(&self) -> &Frame {
        &self.header.frames[self.frame]
    }
}

/// A slice in its place.
#[derive(Clone, Debug)]
pub struct PlacedImage {
    /// The image.
    pub image: ImageRef,
    /// Projection of its position on the normal.
    pub z: Mm,
    /// Distance to the slice below.
    pub gap_before: Option<Mm>,
    /// Whether that distance is a gap.
    pub is_after_gap: bool,
}

/// An ordered stack of slices.
#[derive(Clone, Debug)]
pub struct Stack {
    /// The slices, lowest first.
    pub slices: Vec<PlacedImage>,
    /// How their pixels are turned to the usual view.
    pub view: View,
    /// Pixel spacing of all of them, in that view.
    pub spacing: Spacing,
    /// Angle between stacking direction and normal, in degrees.
    pub tilt_deg: f64,
    /// The usual distance between slices.
    pub step: Option<Mm>,
    /// Files left out because they repeat another one.
    pub repeated: Vec<usize>,
    /// What is odd about the stack, in words.
    pub warnings: Vec<String>,
}

impl Stack {
    /// Number of gaps and the largest distance.
    pub fn gaps(&self) -> Option<(usize, Mm)> {
        let gaps = self.slices.iter().filter(|slice| slice.is_after_gap);
        let distances: Vec<f64> = gaps.filter_map(|slice| slice.gap_before).map(|gap| gap.0).collect();
        let largest = distances.iter().copied().reduce(f64::max)?;
        Some((distances.len(), Mm(largest)))
    }
}

/// A group of images before they are ordered.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its images, in order of files.
    pub images: Vec<ImageRef>,
    key: Key,
}

/// What images of one series share.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SeriesKey {
    /// SeriesInstanceUID.
    Uid(Option<String>),
    /// For images that each have a series UID of their own, as some anonymisers leave them:
    /// StudyInstanceUID, FrameOfReferenceUID and SeriesNumber.
    Apart(Option<String>, Option<String>, Option<i64>),
}

#[derive(Clone, Debug)]
struct Key {
    series: SeriesKey,
    image_type: String,
    size: (usize, usize),
    orientation: [f64; 6],
    spacing: Spacing,
}

impl Key {
    fn of(image: &ImageRef, is_alone: bool) -> Result<Self, Fault> {
        let frame = image.frame();
        let identity = &image.header.identity;
        let series = if is_alone {
            let number = image.header.scanner.series_number;
            SeriesKey::Apart(identity.study_uid.clone(), identity.frame_of_reference_uid.clone(), number)
        } else {
            SeriesKey::Uid(identity.series_uid.clone())
        };
        frame.position.clone()?;
        Ok(Self {
            series,
            image_type: frame.image_type.clone(),
            size: (image.header.format.rows, image.header.format.cols),
            orientation: frame.orientation.clone()?,
            spacing: frame.spacing.clone()?,
        })
    }

    fn matches(&self, other: &Self) -> bool {
        let near = |a: f64, b: f64| (a - b).abs() < ORIENTATION_TOLERANCE;
        self.series == other.series
            && self.image_type == other.image_type
            && self.size == other.size
            && near(self.spacing.row.0, other.spacing.row.0)
            && near(self.spacing.col.0, other.spacing.col.0)
            && self.orientation.iter().zip(&other.orientation).all(|(a, b)| near(*a, *b))
    }
}

impl Group {
    /// Whether the images were made of several slices each.
    pub fn is_projection(&self) -> bool {
        self.images.iter().any(|image| image.frame().is_projection)
    }

    /// Whether the slices lie across the body's axis.
    pub fn is_axial(&self) -> bool {
        self.plane() == "axial"
    }

    /// How the slices lie in the body: "axial", "coronal", "sagittal" or "oblique".
    pub fn plane(&self) -> &'static str {
        match normal(self.key.orientation).map(|part| part.abs() > MIN_AXIAL) {
            [_, _, true] => "axial",
            [_, true, _] => "coronal",
            [true, _, _] => "sagittal",
            _ => "oblique",
        }
    }
}

/// Divides images into groups that may be stacked. Beside them, the images that have no
/// orientation, position or spacing, each with its fault.
pub fn group(images: Vec<ImageRef>) -> (Vec<Group>, Vec<(ImageRef, Fault)>) {
    let mut n_images: BTreeMap<Option<String>, usize> = BTreeMap::new();
    for image in &images {
        *n_images.entry(image.header.identity.series_uid.clone()).or_default() += 1;
    }
    let mut groups: Vec<Group> = Vec::new();
    let mut unplaced = Vec::new();
    for image in images {
        let series_uid = &image.header.identity.series_uid;
        let is_alone = series_uid.is_some() && n_images.get(series_uid) == Some(&1);
        let key = match Key::of(&image, is_alone) {
            Ok(key) => key,
            Err(fault) => {
                unplaced.push((image, fault));
                continue;
            }
        };
        match groups.iter_mut().find(|group| group.key.matches(&key)) {
            Some(group) => group.images.push(image),
            None => groups.push(Group { images: vec![image], key }),
        }
    }
    (groups, unplaced)
}

/// Orders a group. `same_pixels` tells whether two images show the same CT numbers.
///
/// # Errors
/// [`Fault::SamePosition`] when different slices lie at one position and nothing in their
/// headers tells them apart.
pub fn stack(group: Group, same_pixels: &dyn Fn(&ImageRef, &ImageRef) -> bool) -> Result<Vec<Stack>, Fault> {
    split(&group, &group.images, same_pixels)
}

fn split(
    group: &Group,
    images: &[ImageRef],
    same_pixels: &dyn Fn(&ImageRef, &ImageRef) -> bool,
) -> Result<Vec<Stack>, Fault> {
    let whole = order(group, images, same_pixels);
    let ways = DISCRIMINATORS.iter().map(|value| parts_by(images, *value)).filter(|parts| parts.len() > 1);
    let ways: Vec<Vec<Vec<ImageRef>>> = ways.collect();
    let all = |parts: &[Vec<ImageRef>]| -> Result<Vec<Stack>, Fault> {
        let stacks = parts.iter().map(|part| split(group, part, same_pixels));
        Ok(stacks.collect::<Result<Vec<_>, Fault>>()?.into_iter().flatten().collect())
    };
    if let Some(parts) = ways.iter().find(|parts| overlap(group, parts)) {
        return all(parts);
    }
    if let Some(parts) = phases(group, images, same_pixels) {
        return all(&parts);
    }
    // Images at one position that share no length: single slices of several reconstructions.
    let apart = || ways.iter().find_map(|parts| all(parts).ok());
    whole.map(|stack| vec![stack]).or_else(|fault| apart().ok_or(fault))
}

/// An attribute that is equal in all images of a reconstruction.
type Discriminator = fn(&Frame) -> Option<String>;

/// Attributes of which each tells reconstructions apart, the surest first.
const DISCRIMINATORS: [Discriminator; 9] = [
    |frame| frame.reconstruction.kernel.clone(),
    |frame| frame.reconstruction.thickness_um.map(|value| value.to_string()),
    |frame| frame.reconstruction.voltage.map(|value| value.to_string()),
    |frame| frame.acquisition_number.map(|value| value.to_string()),
    |frame| frame.reconstruction.temporal_position.map(|value| value.to_string()),
    |frame| frame.reconstruction.series_number.map(|value| value.to_string()),
    |frame| frame.reconstruction.diameter_um.map(|value| value.to_string()),
    |frame| Some(frame.reconstruction.description.to_string()),
    |frame| Some(frame.reconstruction.kind.to_string()),
];

fn parts_by(images: &[ImageRef], value: Discriminator) -> Vec<Vec<ImageRef>> {
    let mut parts: BTreeMap<Option<String>, Vec<ImageRef>> = BTreeMap::new();
    for image in images {
        parts.entry(value(image.frame())).or_default().push(image.clone());
    }
    parts.into_values().collect()
}

/// Two phases of one examination, separated at the longest pause between acquisition times:
/// both must cover the same part of the body, each with even distances, so that times which
/// mean nothing divide nothing.
fn phases(
    group: &Group,
    images: &[ImageRef],
    same_pixels: &dyn Fn(&ImageRef, &ImageRef) -> bool,
) -> Option<[Vec<ImageRef>; 2]> {
    let time = |image: &ImageRef| image.frame().acquisition_seconds;
    let mut timed: Vec<(f64, &ImageRef)> =
        images.iter().map(|image| Some((time(image)?, image))).collect::<Option<_>>()?;
    timed.sort_by(|a, b| a.0.total_cmp(&b.0));
    let pause = |pair: &[(f64, &ImageRef)]| pair[1].0 - pair[0].0;
    let longest =
        (1..timed.len()).max_by(|a, b| pause(&timed[a - 1..=*a]).total_cmp(&pause(&timed[b - 1..=*b])))?;
    if pause(&timed[longest - 1..=longest]) <= 0.0 {
        return None;
    }
    let (early, late) = timed.split_at(longest);
    let parts = [early, late].map(|part| part.iter().map(|(_, image)| (*image).clone()).collect::<Vec<_>>());
    let is_even = |part: &Vec<ImageRef>| {
        part.len() > 1 && order(group, part, same_pixels).is_ok_and(|stack| stack.gaps().is_none())
    };
    (overlap(group, &parts) && parts.iter().all(is_even)).then_some(parts)
}

/// Whether two parts of a group cover the same part of the body.
fn overlap(group: &Group, parts: &[Vec<ImageRef>]) -> bool {
    let normal = normal(group.key.orientation);
    let extent = |images: &Vec<ImageRef>| {
        let heights = images.iter().filter_map(|image| image.frame().position.as_ref().ok());
        let heights = heights.map(|position| dot(normal, *position));
        heights.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), z| (lo.min(z), hi.max(z)))
    };
    let extents: Vec<(f64, f64)> = parts.iter().map(extent).collect();
    let shares = |a: &(f64, f64), b: &(f64, f64)| {
        let shorter = (a.1 - a.0).min(b.1 - b.0);
        a.1.min(b.1) - a.0.max(b.0) > MAX_SHARED_LENGTH * shorter
    };
    extents.iter().enumerate().any(|(i, a)| extents[..i].iter().any(|b| shares(a, b)))
}

fn order(
    group: &Group,
    images: &[ImageRef],
    same_pixels: &dyn Fn(&ImageRef, &ImageRef) -> bool,
) -> Result<Stack, Fault> {
    let normal = upward(group);
    let mut placed = Vec::with_capacity(images.len());
    for image in images {
        let position = image.frame().position.clone()?;
        placed.push((dot(normal, position), position, image));
    }
    placed.sort_by(|a, b| {
        let uid = |image: &ImageRef| image.header.identity.sop_uid.clone();
        a.0.total_cmp(&b.0).then_with(|| uid(a.2).cmp(&uid(b.2))).then(a.2.file.cmp(&b.2.file))
    });
    let mut kept: Vec<(f64, [f64; 3], &ImageRef)> = Vec::with_capacity(placed.len());
    let (mut repeated, mut n_clashes) = (Vec::new(), 0);
    for entry in placed {
        match kept.last() {
            Some(last) if (entry.0 - last.0).abs() < SAME_POSITION_MM => {
                // Whatever their UIDs say: what is the same picture at the same place is a repeat.
                if last.2.file != entry.2.file && same_pixels(last.2, entry.2) {
                    repeated.push(entry.2.file);
                } else {
                    n_clashes += 1;
                }
            }
            _ => kept.push(entry),
        }
    }
    if n_clashes > 0 {
        return Err(Fault::SamePosition { count: n_clashes });
    }
    let mut distances: Vec<f64> = kept.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    let slices = place(&kept, &distances, median(&mut distances.clone()));
    let step = median(&mut distances).map(Mm);
    let tilt_deg = tilt(normal, kept.first().map(|k| k.1), kept.last().map(|k| k.1));
    let view = if group.is_axial() { View::of_axial(group.key.orientation) } else { View::default() };
    let spacing = view.spacing(group.key.spacing);
    let mut stack = Stack { slices, view, spacing, tilt_deg, step, repeated, warnings: Vec::new() };
    stack.warnings.extend(view.describe());
    if let (SeriesKey::Apart(..), 2..) = (&group.key.series, kept.len()) {
        stack.warnings.push(format!(
            "{} series of one image each, taken as one: study, frame of reference, series number and \
             geometry agree",
            kept.len()
        ));
    }
    if let Some((a, b)) = alternating(&kept.windows(2).map(|pair| pair[1].0 - pair[0].0).collect::<Vec<_>>())
    {
        stack.warnings.push(format!(
            "distances between slices alternate between {a:.1} and {b:.1} mm: two reconstructions may be mixed"
        ));
    }
    if let Some((count, largest)) = stack.gaps() {
        stack.warnings.push(format!("{count} gaps between slices, the largest {:.1} mm", largest.0));
    }
    if tilt_deg > TILT_WARNING_DEG {
        stack.warnings.push(format!("gantry tilt of {tilt_deg:.1} degrees, not corrected"));
    }
    if !stack.repeated.is_empty() {
        stack.warnings.push(format!("{} repeated files left out", stack.repeated.len()));
    }
    Ok(stack)
}

fn place(kept: &[(f64, [f64; 3], &ImageRef)], distances: &[f64], usual: Option<f64>) -> Vec<PlacedImage> {
    let before = |i: usize| i.checked_sub(1).map(|below| distances[below]);
    let slice = |(i, entry): (usize, &(f64, [f64; 3], &ImageRef))| PlacedImage {
        image: entry.2.clone(),
        z: Mm(entry.0),
        gap_before: before(i).map(Mm),
        is_after_gap: before(i).zip(usual).is_some_and(|(gap, usual)| gap > GAP_FACTOR * usual),
    };
    kept.iter().enumerate().map(slice).collect()
}

fn normal(cosines: [f64; 6]) -> [f64; 3] {
    let [a, b, c, d, e, f] = cosines;
    [b * f - c * e, c * d - a * f, a * e - b * d]
}

/// The normal of a group; of an axial one, the end that points to the head.
fn upward(group: &Group) -> [f64; 3] {
    let normal = normal(group.key.orientation);
    if group.is_axial() && normal[2] < 0.0 { normal.map(|part| -part) } else { normal }
}

/// Two distances that take turns, where they do.
fn alternating(distances: &[f64]) -> Option<(f64, f64)> {
    let (a, b) = (*distances.first()?, *distances.get(1)?);
    let is_near = |x: f64, y: f64| (x - y).abs() < 0.05 * x.max(y);
    let is_pair = |pair: &[f64]| is_near(pair[0], a) && pair.get(1).is_none_or(|next| is_near(*next, b));
    (distances.len() >= 5 && !is_near(a, b) && distances.chunks(2).all(is_pair)).then_some((a, b))
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

fn tilt(normal: [f64; 3], first: Option<[f64; 3]>, last: Option<[f64; 3]>) -> f64 {
    let (Some(first), Some(last)) = (first, last) else { return 0.0 };
    let along = [last[0] - first[0], last[1] - first[1], last[2] - first[2]];
    let length = dot(along, along).sqrt();
    if length < SAME_POSITION_MM {
        return 0.0;
    }
    (dot(along, normal).abs() / length).min(1.0).acos().to_degrees()
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
