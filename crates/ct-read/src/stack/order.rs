//! Single images to stacks: group, order along the normal, check.
//!
//! A stack is what shares series UID, orientation, size, spacing and image type.
//! Acquisitions of one series are told apart where they cover the same part of
//! the body (with and without contrast, in- and expiration); step-and-shoot
//! scanners number every rotation, and those belong together. A stack's order is the projection of ImagePositionPatient on the normal; file names
//! and instance numbers play no part.

use std::collections::BTreeMap;
use std::sync::Arc;

use diag_data::units::{Mm, Spacing};

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
    /// Pixel spacing of all of them.
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

#[derive(Clone, Debug)]
struct Key {
    series_uid: Option<String>,
    image_type: String,
    size: (usize, usize),
    orientation: [f64; 6],
    spacing: Spacing,
}

impl Key {
    fn of(image: &ImageRef) -> Result<Self, Fault> {
        let frame = image.frame();
        Ok(Self {
            series_uid: image.header.identity.series_uid.clone(),
            image_type: frame.image_type.clone(),
            size: (image.header.format.rows, image.header.format.cols),
            orientation: frame.orientation.clone()?,
            spacing: frame.spacing.clone()?,
        })
    }

    fn matches(&self, other: &Self) -> bool {
        let near = |a: f64, b: f64| (a - b).abs() < ORIENTATION_TOLERANCE;
        self.series_uid == other.series_uid
            && self.image_type == other.image_type
            && self.size == other.size
            && near(self.spacing.row.0, other.spacing.row.0)
            && near(self.spacing.col.0, other.spacing.col.0)
            && self.orientation.iter().zip(&other.orientation).all(|(a, b)| near(*a, *b))
    }
}

impl Group {
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

/// Divides images into groups that may be stacked.
///
/// # Errors
/// The file and its [`Fault`] when an image has no orientation, position or spacing.
pub fn group(images: Vec<ImageRef>) -> Result<Vec<Group>, (usize, Fault)> {
    let mut groups: Vec<Group> = Vec::new();
    for image in images {
        let file = image.file;
        let frame = image.frame();
        frame.position.as_ref().map_err(|fault| (file, fault.clone()))?;
        let key = Key::of(&image).map_err(|fault| (file, fault))?;
        match groups.iter_mut().find(|group| group.key.matches(&key)) {
            Some(group) => group.images.push(image),
            None => groups.push(Group { images: vec![image], key }),
        }
    }
    Ok(groups)
}

/// Orders a group. `same_bytes` tells whether two files hold the same bytes.
///
/// # Errors
/// [`Fault::SamePosition`] when different slices lie at one position and the
/// acquisition number does not tell them apart.
pub fn stack(group: Group, same_bytes: &dyn Fn(usize, usize) -> bool) -> Result<Vec<Stack>, Fault> {
    let whole = order(&group, &group.images, same_bytes);
    let mut acquisitions: BTreeMap<Option<i64>, Vec<ImageRef>> = BTreeMap::new();
    for image in &group.images {
        acquisitions.entry(image.frame().acquisition_number).or_default().push(image.clone());
    }
    if acquisitions.len() < 2 || whole.is_ok() && !overlap(&group, &acquisitions) {
        return Ok(vec![whole?]);
    }
    acquisitions.into_values().map(|images| order(&group, &images, same_bytes)).collect()
}

/// Whether two acquisitions cover the same part of the body.
fn overlap(group: &Group, acquisitions: &BTreeMap<Option<i64>, Vec<ImageRef>>) -> bool {
    let normal = normal(group.key.orientation);
    let extent = |images: &Vec<ImageRef>| {
        let heights = images.iter().filter_map(|image| image.frame().position.as_ref().ok());
        let heights = heights.map(|position| dot(normal, *position));
        heights.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), z| (lo.min(z), hi.max(z)))
    };
    let extents: Vec<(f64, f64)> = acquisitions.values().map(extent).collect();
    let shares = |a: &(f64, f64), b: &(f64, f64)| {
        let shorter = (a.1 - a.0).min(b.1 - b.0);
        a.1.min(b.1) - a.0.max(b.0) > MAX_SHARED_LENGTH * shorter
    };
    extents.iter().enumerate().any(|(i, a)| extents[..i].iter().any(|b| shares(a, b)))
}

fn order(
    group: &Group,
    images: &[ImageRef],
    same_bytes: &dyn Fn(usize, usize) -> bool,
) -> Result<Stack, Fault> {
    let normal = normal(group.key.orientation);
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
                let uid = |image: &ImageRef| image.header.identity.sop_uid.clone();
                let same_object = uid(last.2).is_some() && uid(last.2) == uid(entry.2);
                if last.2.file != entry.2.file && (same_object || same_bytes(last.2.file, entry.2.file)) {
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
    let mut stack =
        Stack { slices, spacing: group.key.spacing, tilt_deg, step, repeated, warnings: Vec::new() };
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
