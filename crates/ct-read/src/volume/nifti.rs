//! The headers of NIfTI-1 (nifti1.h, 348 bytes) and NIfTI-2 (nifti2.h, 540 bytes), checked.

use diag_data::case::SYNTHETIC_MARK;

use super::header::{Header, Packing, Place, Skip, VoxelType, checked_sides, wrong};
use crate::fault::Fault;

/// Bytes of the longer header.
pub(super) const MAX_HEADER_LEN: usize = 540;
/// Extensions between header and voxels are skipped up to here.
const MAX_VOXEL_OFFSET: f64 = (64 << 20) as f64;

/// What both versions state, as 64-bit numbers.
struct Stated {
    version: Version,
    big_endian: bool,
    is_pair: bool,
    dim: [i64; 8],
    code: i16,
    bits: i16,
    voxel_offset: f64,
    slope: f64,
    intercept: f64,
    description: Vec<u8>,
    unit: u8,
    /// qfac, then the voxel size.
    pixdim: [f64; 4],
    has_qform: bool,
    has_sform: bool,
    quaternion: [f64; 3],
    q_offset: [f64; 3],
    sform: [[f64; 4]; 3],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Version {
    fn header_len(self) -> usize {
        match self {
            Self::One => 348,
            Self::Two => MAX_HEADER_LEN,
        }
    }
}

/// Length of the header that begins with these bytes; `None` where it is not of this format.
pub(super) fn header_len(start: &[u8]) -> Option<usize> {
    version(start).map(|(version, _)| version.header_len())
}

fn version(start: &[u8]) -> Option<(Version, bool)> {
    let size: [u8; 4] = start.get(..4)?.try_into().ok()?;
    match (i32::from_le_bytes(size), i32::from_be_bytes(size)) {
        (348, _) => Some((Version::One, false)),
        (_, 348) => Some((Version::One, true)),
        (540, _) => Some((Version::Two, false)),
        (_, 540) => Some((Version::Two, true)),
        _ => None,
    }
}

/// Checks the first bytes of an (inflated) file.
///
/// # Errors
/// [`Fault::Volume`], [`Fault::Truncated`], [`Fault::Rescale`] and [`Fault::TooLarge`].
pub(super) fn header(start: &[u8]) -> Result<Header, Fault> {
    let (version, big_endian) = version(start).ok_or_else(|| wrong("it does not start as a NIfTI header"))?;
    let bytes = start.get(..version.header_len()).ok_or(Fault::Truncated)?;
    let fields = Fields { bytes, big_endian };
    let stated = match version {
        Version::One => Stated::of_version_1(&fields)?,
        Version::Two => Stated::of_version_2(&fields)?,
    };
    let sides = stated.sides()?;
    let voxel_type = voxel_type(stated.code).ok_or_else(|| Fault::Volume {
        why: format!("its data type {} is not one of plain numbers", stated.code),
    })?;
    if usize::from(stated.bits.unsigned_abs()) != 8 * voxel_type.n_bytes() {
        return Err(wrong("its data type and its bits a voxel contradict each other"));
    }
    let first = if stated.is_pair { 0 } else { bytes.len() };
    if !(first as f64..=MAX_VOXEL_OFFSET).contains(&stated.voxel_offset) {
        return Err(wrong("its voxels start at an impossible place"));
    }
    let mut warnings = Vec::new();
    let affine = stated.affine(&mut warnings)?;
    Header {
        format: if version == Version::One { "NIfTI-1" } else { "NIfTI-2" },
        sides,
        voxel_type,
        big_endian: stated.big_endian,
        place: if stated.is_pair { Place::Twin } else { Place::Here },
        skip: Skip::Bytes(stated.voxel_offset as u64 - first as u64),
        packing: Packing::Plain,
        rescale: stated.rescale()?,
        affine,
        synthetic: stated.description == SYNTHETIC_MARK.as_bytes(),
        warnings,
    }
    .checked()
}

fn voxel_type(code: i16) -> Option<VoxelType> {
    Some(match code {
        2 => VoxelType::U8,
        4 => VoxelType::I16,
        8 => VoxelType::I32,
        16 => VoxelType::F32,
        64 => VoxelType::F64,
        256 => VoxelType::I8,
        512 => VoxelType::U16,
        768 => VoxelType::U32,
        1024 => VoxelType::I64,
        1280 => VoxelType::U64,
        _ => return None,
    })
}

/// A header's bytes, all of them.
struct Fields<'a> {
    bytes: &'a [u8],
    big_endian: bool,
}

impl Fields<'_> {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(&self.bytes[at..at + N]);
        if self.big_endian {
            array.reverse();
        }
        array
    }

    fn i16(&self, at: usize) -> i16 {
        i16::from_le_bytes(self.array(at))
    }

    fn i32(&self, at: usize) -> i32 {
        i32::from_le_bytes(self.array(at))
    }

    fn i64(&self, at: usize) -> i64 {
        i64::from_le_bytes(self.array(at))
    }

    fn singles<const N: usize>(&self, at: usize) -> [f64; N] {
        std::array::from_fn(|i| f64::from(f32::from_le_bytes(self.array(at + 4 * i))))
    }

    fn doubles<const N: usize>(&self, at: usize) -> [f64; N] {
        std::array::from_fn(|i| f64::from_le_bytes(self.array(at + 8 * i)))
    }

    /// A text up to its first NUL.
    fn text(&self, at: usize, length: usize) -> Vec<u8> {
        self.bytes[at..at + length].split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
    }
}

impl Stated {
    fn of_version_1(fields: &Fields<'_>) -> Result<Self, Fault> {
        let is_pair = match &fields.bytes[344..348] {
            b"n+1\0" => false,
            b"ni1\0" => true,
            _ => return Err(wrong("it has no NIfTI mark (Analyze 7.5 says nothing of left and right)")),
        };
        let [voxel_offset, slope, intercept] = fields.singles(108);
        Ok(Self {
            version: Version::One,
            big_endian: fields.big_endian,
            is_pair,
            dim: std::array::from_fn(|i| i64::from(fields.i16(40 + 2 * i))),
            code: fields.i16(70),
            bits: fields.i16(72),
            voxel_offset,
            slope,
            intercept,
            description: fields.text(148, 80),
            unit: fields.bytes[123] & 7,
            pixdim: fields.singles(76),
            has_qform: fields.i16(252) > 0,
            has_sform: fields.i16(254) > 0,
            quaternion: fields.singles(256),
            q_offset: fields.singles(268),
            sform: [280, 296, 312].map(|at| fields.singles(at)),
        })
    }

    fn of_version_2(fields: &Fields<'_>) -> Result<Self, Fault> {
        let is_pair = match &fields.bytes[4..12] {
            b"n+2\0\r\n\x1A\n" => false,
            b"ni2\0\r\n\x1A\n" => true,
            _ => return Err(wrong("it has no NIfTI mark, or was copied as text")),
        };
        let [slope, intercept] = fields.doubles(176);
        Ok(Self {
            version: Version::Two,
            big_endian: fields.big_endian,
            is_pair,
            dim: std::array::from_fn(|i| fields.i64(16 + 8 * i)),
            code: fields.i16(12),
            bits: fields.i16(14),
            voxel_offset: fields.i64(168) as f64,
            slope,
            intercept,
            description: fields.text(240, 80),
            unit: (fields.i32(500) & 7) as u8,
            pixdim: fields.doubles(104),
            has_qform: fields.i32(344) > 0,
            has_sform: fields.i32(348) > 0,
            quaternion: fields.doubles(352),
            q_offset: fields.doubles(376),
            sform: [400, 432, 464].map(|at| fields.doubles(at)),
        })
    }

    fn sides(&self) -> Result<[usize; 3], Fault> {
        let n_axes = self.dim[0];
        if !(3..=7).contains(&n_axes) {
            return Err(Fault::Volume { why: format!("it has {n_axes} axes, not 3") });
        }
        if let Some(longer) = self.dim[4..=n_axes as usize].iter().find(|side| **side > 1) {
            return Err(Fault::Volume { why: format!("it holds a series of {longer} volumes, not one") });
        }
        checked_sides([self.dim[1], self.dim[2], self.dim[3]])
    }

    /// A slope of 0 or none at all means "as stored" (nifti1.h).
    fn rescale(&self) -> Result<Option<(f64, f64)>, Fault> {
        if self.slope == 0.0 || !self.slope.is_finite() {
            return Ok(None);
        }
        if !self.intercept.is_finite() {
            return Err(Fault::Rescale { name: "scl_inter", why: "is not a number" });
        }
        Ok(Some((self.slope, self.intercept)))
    }

    /// The sform where it is given, else the qform; a file without either says
    /// nothing about left and right, and that is not guessed.
    fn affine(&self, warnings: &mut Vec<String>) -> Result<[[f64; 4]; 3], Fault> {
        let mut affine = match (self.has_sform, self.has_qform) {
            (true, _) => self.sform,
            (false, true) => self.qform()?,
            (false, false) => {
                return Err(wrong("it says nothing about its orientation (no sform, no qform)"));
            }
        };
        if self.has_sform && self.has_qform && self.qform().map_or(true, |qform| differ(&affine, &qform)) {
            warnings.push("sform and qform differ; the sform was used".into());
        }
        let unit = match self.unit {
            1 => 1e3,
            3 => 1e-3,
            _ => 1.0,
        };
        affine.as_flattened_mut().iter_mut().for_each(|number| *number *= unit);
        Ok(affine)
    }

    /// Rotation from a unit quaternion, scaled by the voxel size (nifti1.h, method 2).
    fn qform(&self) -> Result<[[f64; 4]; 3], Fault> {
        let [b, c, d] = self.quaternion;
        let [handedness, dx, dy, dz] = self.pixdim;
        let square = 1.0 - (b * b + c * c + d * d);
        if square < -SINGLE_TOLERANCE {
            return Err(wrong("its quaternion is no rotation"));
        }
        // Below the step of its numbers, as in nibabel: half a turn.
        let tolerance = if self.version == Version::One { SINGLE_TOLERANCE } else { 3.0 * f64::EPSILON };
        let a = if square < tolerance { 0.0 } else { square.sqrt() };
        // Single precision leaves the sum of squares a little off 1.
        let norm = (a * a + b * b + c * c + d * d).sqrt();
        let [a, b, c, d] = [a, b, c, d].map(|part| part / norm);
        let dz = if handedness < 0.0 { -dz } else { dz };
        let rotation = [
            [a * a + b * b - c * c - d * d, 2.0 * (b * c - a * d), 2.0 * (b * d + a * c)],
            [2.0 * (b * c + a * d), a * a + c * c - b * b - d * d, 2.0 * (c * d - a * b)],
            [2.0 * (b * d - a * c), 2.0 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ];
        Ok(std::array::from_fn(|i| {
            let [x, y, z] = rotation[i];
            [x * dx, y * dy, z * dz, self.q_offset[i]]
        }))
    }
}

/// Three times the step of single precision.
const SINGLE_TOLERANCE: f64 = 3.0 * f32::EPSILON as f64;

fn differ(a: &[[f64; 4]; 3], b: &[[f64; 4]; 3]) -> bool {
    a.as_flattened().iter().zip(b.as_flattened()).any(|(x, y)| (x - y).abs() > 1e-2)
}
