//! The header of a NIfTI-1 file (nifti1.h, 348 bytes), checked.

use diag_data::case::SYNTHETIC_MARK;

use crate::fault::Fault;

/// Bytes of the header.
pub const HEADER_LEN: usize = 348;
/// Longest side in voxels.
const MAX_SIDE: i64 = 8192;
/// Most bytes of a volume: what the largest whole-body CT takes, doubled.
const MAX_VOLUME_LEN: u64 = 4 << 30;
/// Extensions between header and voxels are skipped up to here.
const MAX_VOXEL_OFFSET: f64 = (64 << 20) as f64;

/// How one voxel is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoxelType {
    /// Unsigned 8 bits.
    U8,
    /// Signed 8 bits.
    I8,
    /// Unsigned 16 bits.
    U16,
    /// Signed 16 bits.
    I16,
    /// Unsigned 32 bits.
    U32,
    /// Signed 32 bits.
    I32,
    /// Unsigned 64 bits.
    U64,
    /// Signed 64 bits.
    I64,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
}

impl VoxelType {
    fn of_code(code: i16) -> Option<Self> {
        Some(match code {
            2 => Self::U8,
            4 => Self::I16,
            8 => Self::I32,
            16 => Self::F32,
            64 => Self::F64,
            256 => Self::I8,
            512 => Self::U16,
            768 => Self::U32,
            1024 => Self::I64,
            1280 => Self::U64,
            _ => return None,
        })
    }

    /// Bytes of a voxel.
    pub fn n_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }
}

/// A checked header. Invariants: sides of 1 to 8192 voxels, at most 4 GiB of
/// them, an affine of finite numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// Voxels along the file's three axes, the fastest first.
    pub sides: [usize; 3],
    /// How they are stored.
    pub voxel_type: VoxelType,
    /// Whether numbers start with their high byte.
    pub big_endian: bool,
    /// First byte of the voxels.
    pub voxel_offset: u64,
    /// HU = slope * stored + intercept; absent where the file says to take values as stored.
    pub rescale: Option<(f64, f64)>,
    /// Voxel index to millimetres: rows for right, anterior, superior; the last column is the origin.
    pub affine: [[f64; 4]; 3],
    /// Whether the description is [`SYNTHETIC_MARK`].
    pub synthetic: bool,
    /// What is odd, in words.
    pub warnings: Vec<String>,
}

impl Header {
    /// Bytes of all voxels.
    pub fn volume_len(&self) -> u64 {
        self.sides.iter().map(|side| *side as u64).product::<u64>() * self.voxel_type.n_bytes() as u64
    }

    /// Checks the first bytes of an (inflated) file.
    ///
    /// # Errors
    /// [`Fault::Volume`], [`Fault::Truncated`] and [`Fault::TooLarge`].
    pub fn read(bytes: &[u8]) -> Result<Self, Fault> {
        let wrong = |why: &str| Fault::Volume { why: why.into() };
        let size: [u8; 4] = bytes.get(..4).and_then(|size| size.try_into().ok()).ok_or(Fault::Truncated)?;
        let big_endian = match (i32::from_le_bytes(size), i32::from_be_bytes(size)) {
            (348, _) => false,
            (_, 348) => true,
            (540, _) | (_, 540) => return Err(wrong("it is NIfTI-2; only NIfTI-1 is read")),
            _ => return Err(wrong("it does not start as a NIfTI header")),
        };
        let fields = Fields { bytes: bytes.get(..HEADER_LEN).ok_or(Fault::Truncated)?, big_endian };
        match &fields.bytes[344..348] {
            b"n+1\0" => {}
            b"ni1\0" => return Err(wrong("its voxels are in another file; join .hdr and .img to one .nii")),
            _ => return Err(wrong("it has no NIfTI mark")),
        }
        let sides = sides(&fields)?;
        let code = fields.i16(70);
        let voxel_type = VoxelType::of_code(code).ok_or_else(|| Fault::Volume {
            why: format!("its data type {code} is not one of plain numbers"),
        })?;
        if usize::from(fields.i16(72).unsigned_abs()) != 8 * voxel_type.n_bytes() {
            return Err(wrong("its data type and its bits a voxel contradict each other"));
        }
        let offset = f64::from(fields.f32(108));
        if !(HEADER_LEN as f64..=MAX_VOXEL_OFFSET).contains(&offset) {
            return Err(wrong("its voxels start at an impossible place"));
        }
        let mut warnings = Vec::new();
        let description = fields.bytes[148..228].split(|byte| *byte == 0).next();
        let header = Self {
            sides,
            voxel_type,
            big_endian,
            voxel_offset: offset as u64,
            rescale: rescale(&fields)?,
            affine: affine(&fields, &mut warnings)?,
            synthetic: description == Some(SYNTHETIC_MARK.as_bytes()),
            warnings,
        };
        if header.volume_len() > MAX_VOLUME_LEN {
            return Err(Fault::TooLarge { limit: MAX_VOLUME_LEN });
        }
        Ok(header)
    }
}

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

    fn f32(&self, at: usize) -> f32 {
        f32::from_le_bytes(self.array(at))
    }

    fn numbers<const N: usize>(&self, at: usize) -> [f64; N] {
        std::array::from_fn(|i| f64::from(self.f32(at + 4 * i)))
    }
}

fn sides(fields: &Fields<'_>) -> Result<[usize; 3], Fault> {
    let dim: [i64; 8] = std::array::from_fn(|i| i64::from(fields.i16(40 + 2 * i)));
    let n_axes = dim[0];
    if !(3..=7).contains(&n_axes) {
        return Err(Fault::Volume { why: format!("it has {n_axes} axes, not 3") });
    }
    if let Some(longer) = dim[4..=n_axes as usize].iter().find(|side| **side > 1) {
        return Err(Fault::Volume { why: format!("it holds a series of {longer} volumes, not one") });
    }
    let mut sides = [0; 3];
    for (side, stated) in sides.iter_mut().zip(&dim[1..4]) {
        if !(1..=MAX_SIDE).contains(stated) {
            return Err(Fault::Volume { why: format!("a side is {stated}, not 1 to {MAX_SIDE} voxels") });
        }
        *side = *stated as usize;
    }
    Ok(sides)
}

/// A slope of 0 or none at all means "as stored" (nifti1.h).
fn rescale(fields: &Fields<'_>) -> Result<Option<(f64, f64)>, Fault> {
    let [slope, intercept] = fields.numbers::<2>(112);
    if slope == 0.0 || !slope.is_finite() {
        return Ok(None);
    }
    if !intercept.is_finite() {
        return Err(Fault::Rescale { name: "scl_inter", why: "is not a number" });
    }
    Ok(Some((slope, intercept)))
}

/// The sform where it is given, else the qform; a file without either says
/// nothing about left and right, and that is not guessed.
fn affine(fields: &Fields<'_>, warnings: &mut Vec<String>) -> Result<[[f64; 4]; 3], Fault> {
    let wrong = |why: &str| Fault::Volume { why: why.into() };
    let (has_qform, has_sform) = (fields.i16(252) > 0, fields.i16(254) > 0);
    let sform = || [fields.numbers(280), fields.numbers(296), fields.numbers(312)];
    let mut affine = match (has_sform, has_qform) {
        (true, _) => sform(),
        (false, true) => qform(fields)?,
        (false, false) => return Err(wrong("it says nothing about its orientation (no sform, no qform)")),
    };
    if has_sform && has_qform && qform(fields).map_or(true, |qform| differ(&affine, &qform)) {
        warnings.push("sform and qform differ; the sform was used".into());
    }
    let unit = match fields.bytes[123] & 7 {
        1 => 1e3,
        3 => 1e-3,
        _ => 1.0,
    };
    affine.as_flattened_mut().iter_mut().for_each(|number| *number *= unit);
    if affine.as_flattened().iter().any(|number| !number.is_finite() || number.abs() > 1e6) {
        return Err(wrong("its affine is not made of usable numbers"));
    }
    Ok(affine)
}

fn differ(a: &[[f64; 4]; 3], b: &[[f64; 4]; 3]) -> bool {
    a.as_flattened().iter().zip(b.as_flattened()).any(|(x, y)| (x - y).abs() > 1e-2)
}

/// Three times the step of single precision, as in nibabel: below it, half a turn.
const QUATERNION_TOLERANCE: f64 = 3.0 * f32::EPSILON as f64;

/// Rotation from a unit quaternion, scaled by the voxel size (nifti1.h, method 2).
fn qform(fields: &Fields<'_>) -> Result<[[f64; 4]; 3], Fault> {
    let [b, c, d] = fields.numbers::<3>(256);
    let offset = fields.numbers::<3>(268);
    let [handedness, dx, dy, dz] = fields.numbers::<4>(76);
    let square = 1.0 - (b * b + c * c + d * d);
    if square < -QUATERNION_TOLERANCE {
        return Err(Fault::Volume { why: "its quaternion is no rotation".into() });
    }
    let a = if square < QUATERNION_TOLERANCE { 0.0 } else { square.sqrt() };
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
        [x * dx, y * dy, z * dz, offset[i]]
    }))
}
