//! What the header of a volume says, whatever its format.

use crate::fault::Fault;

/// Longest side in voxels.
const MAX_SIDE: i64 = 8192;
/// Most bytes of a volume: what the largest whole-body CT takes, doubled.
const MAX_VOLUME_LEN: u64 = 4 << 30;

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

/// Where the voxels of a volume lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Behind the header.
    Here,
    /// In the file of this name, in the folder of the header.
    Beside(String),
    /// In the file that is named as the header, but ends in `.img`, or in `.img.gz`.
    Twin,
}

/// What lies before the voxels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// So many bytes, counted behind the header or from the start of the file beside it.
    Bytes(u64),
    /// Whatever is there: the voxels end with the file.
    ToEnd,
}

/// How the voxels are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// By gzip.
    Gzip,
    /// As a zlib stream.
    Zlib,
}

/// A checked header. Invariants: sides of 1 to 8192 voxels, at most 4 GiB of
/// them, an affine of finite numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// "NIfTI-1", "NIfTI-2", "MetaImage" or "NRRD".
    pub format: &'static str,
    /// Voxels along the file's three axes, the fastest first.
    pub sides: [usize; 3],
    /// How they are stored.
    pub voxel_type: VoxelType,
    /// Whether numbers start with their high byte.
    pub big_endian: bool,
    /// Where the voxels lie.
    pub place: Place,
    /// What lies before them.
    pub skip: Skip,
    /// How they are packed.
    pub packing: Packing,
    /// HU = slope * stored + intercept; absent where the file says to take values as stored.
    pub rescale: Option<(f64, f64)>,
    /// Voxel index to millimetres: rows for right, anterior, superior; the last column is the origin.
    pub affine: [[f64; 4]; 3],
    /// Whether the file bears the mark of synthetic images.
    pub synthetic: bool,
    /// What is odd, in words.
    pub warnings: Vec<String>,
}

impl Header {
    /// Bytes of all voxels.
    pub fn volume_len(&self) -> u64 {
        self.sides.iter().map(|side| *side as u64).product::<u64>() * self.voxel_type.n_bytes() as u64
    }

    /// Checks what no format checks by itself.
    ///
    /// # Errors
    /// [`Fault::Volume`] and [`Fault::TooLarge`].
    pub(super) fn checked(self) -> Result<Self, Fault> {
        if self.affine.as_flattened().iter().any(|number| !number.is_finite() || number.abs() > 1e6) {
            return Err(wrong("its affine is not made of usable numbers"));
        }
        if self.volume_len() > MAX_VOLUME_LEN {
            return Err(Fault::TooLarge { limit: MAX_VOLUME_LEN });
        }
        Ok(self)
    }
}

/// Three sides as they are stated.
///
/// # Errors
/// [`Fault::Volume`].
pub(super) fn checked_sides(stated: [i64; 3]) -> Result<[usize; 3], Fault> {
    match stated.iter().find(|side| !(1..=MAX_SIDE).contains(*side)) {
        Some(side) => Err(Fault::Volume { why: format!("a side is {side}, not 1 to {MAX_SIDE} voxels") }),
        None => Ok(stated.map(|side| side as usize)),
    }
}

/// The affine of a format whose world axes run to left, posterior and superior.
pub(super) fn affine_of_lps(columns: [[f64; 3]; 3], origin: [f64; 3]) -> [[f64; 4]; 3] {
    std::array::from_fn(|row| {
        let sign = if row < 2 { -1.0 } else { 1.0 };
        [columns[0][row], columns[1][row], columns[2][row], origin[row]].map(|part| sign * part)
    })
}

pub(super) fn wrong(why: &str) -> Fault {
    Fault::Volume { why: why.into() }
}

pub(super) fn broken(err: &std::io::Error) -> Fault {
    match err.kind() {
        std::io::ErrorKind::UnexpectedEof => Fault::Truncated,
        std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData => wrong("it does not inflate"),
        kind => Fault::Unreadable { why: kind.to_string() },
    }
}
