//! NIfTI-1 files (`.nii`, `.nii.gz`) to axial slices in HU.
//!
//! A reader of our own: the header is 348 bytes, ten number types cover every CT,
//! and the crate `nifti` allocates what a header asks for, computes in single
//! precision where nibabel uses double, and needs nalgebra for the affine. Here
//! memory is bounded by what the file can hold, and HU are nibabel's, bit for bit.

mod header;
mod orientation;

use std::io::{BufReader, Read};

use flate2::read::MultiGzDecoder;

pub use self::header::{Header, VoxelType};
pub use self::orientation::Axial;
use crate::fault::Fault;
use crate::source::listing::{ListedFile, Opened};

/// Deflate cannot make more of a byte than this.
const MAX_DEFLATE_RATIO: u64 = 1032;

/// Whether a file name has an extension of the format.
pub fn is_named_as_nifti(relative: &str) -> bool {
    let name = relative.to_ascii_lowercase();
    name.ends_with(".nii") || name.ends_with(".nii.gz")
}

/// A volume in memory: its voxels as stored, and the way to axial slices.
#[derive(Clone, Debug)]
pub struct Volume {
    header: Header,
    axial: Axial,
    voxels: Vec<u8>,
}

/// Reads the header of a file.
///
/// # Errors
/// A [`Fault`] when it is unreadable, of another kind, or broken.
pub fn scan_file(file: &ListedFile) -> Result<Header, Fault> {
    let mut start = Vec::new();
    let Opened { reader, n_bytes } = file.open()?;
    inflated(reader, n_bytes)?
        .0
        .take(header::HEADER_LEN as u64)
        .read_to_end(&mut start)
        .map_err(|err| broken(&err))?;
    let header = Header::read(&start)?;
    Axial::of(&header)?;
    Ok(header)
}

/// Reads a whole file. It takes no more memory than its voxels, and those no
/// more than the file can hold.
///
/// # Errors
/// As [`scan_file`], and [`Fault::Truncated`] when voxels are missing.
pub fn read_file(file: &ListedFile) -> Result<Volume, Fault> {
    let Opened { reader, n_bytes } = file.open()?;
    read(reader, n_bytes)
}

/// Reads a file of `n_bytes` from its bytes.
///
/// # Errors
/// As [`read_file`].
pub fn read(reader: impl Read + 'static, n_bytes: u64) -> Result<Volume, Fault> {
    let (mut reader, most) = inflated(reader, n_bytes)?;
    let mut start = Vec::new();
    reader.by_ref().take(header::HEADER_LEN as u64).read_to_end(&mut start).map_err(|err| broken(&err))?;
    let header = Header::read(&start)?;
    let axial = Axial::of(&header)?;
    let wanted = header.volume_len();
    if header.voxel_offset.saturating_add(wanted) > most {
        return Err(Fault::Truncated);
    }
    let n_between = header.voxel_offset - start.len() as u64;
    std::io::copy(&mut reader.by_ref().take(n_between), &mut std::io::sink()).map_err(|err| broken(&err))?;
    let mut voxels = Vec::new();
    reader.take(wanted).read_to_end(&mut voxels).map_err(|err| broken(&err))?;
    if voxels.len() as u64 != wanted {
        return Err(Fault::Truncated);
    }
    Ok(Volume { header, axial, voxels })
}

/// A reader of the (inflated) bytes, and the most that it can give.
fn inflated(reader: impl Read + 'static, n_bytes: u64) -> Result<(Box<dyn Read>, u64), Fault> {
    let mut reader = BufReader::new(reader);
    let start = std::io::BufRead::fill_buf(&mut reader);
    let start = start.map_err(|err| Fault::Unreadable { why: err.kind().to_string() })?;
    if start.starts_with(&[0x1F, 0x8B]) {
        let most = n_bytes.saturating_mul(MAX_DEFLATE_RATIO);
        return Ok((Box::new(MultiGzDecoder::new(reader)), most));
    }
    Ok((Box::new(reader), n_bytes))
}

fn broken(err: &std::io::Error) -> Fault {
    match err.kind() {
        std::io::ErrorKind::UnexpectedEof => Fault::Truncated,
        std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData => {
            Fault::Volume { why: "it does not inflate".into() }
        }
        kind => Fault::Unreadable { why: kind.to_string() },
    }
}

impl Volume {
    /// What the header says.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// How its axial slices lie.
    pub fn axial(&self) -> &Axial {
        &self.axial
    }

    /// HU of an axial slice as the file states them: row-major, the first row
    /// anterior, the first column to the patient's right; slice 0 is the lowest.
    pub fn slice(&self, index: usize) -> Vec<f32> {
        let big = self.header.big_endian;
        macro_rules! gather {
            ($number:ty) => {
                self.gather(index, |bytes| {
                    if big {
                        <$number>::from_be_bytes(bytes) as f64
                    } else {
                        <$number>::from_le_bytes(bytes) as f64
                    }
                })
            };
        }
        match self.header.voxel_type {
            VoxelType::U8 => gather!(u8),
            VoxelType::I8 => gather!(i8),
            VoxelType::U16 => gather!(u16),
            VoxelType::I16 => gather!(i16),
            VoxelType::U32 => gather!(u32),
            VoxelType::I32 => gather!(i32),
            VoxelType::U64 => gather!(u64),
            VoxelType::I64 => gather!(i64),
            VoxelType::F32 => gather!(f32),
            VoxelType::F64 => gather!(f64),
        }
    }

    fn gather<const N: usize>(&self, index: usize, number: impl Fn([u8; N]) -> f64) -> Vec<f32> {
        let (rows, cols) = (self.axial.rows, self.axial.cols);
        let mut hu = Vec::with_capacity(rows * cols);
        for row in 0..rows {
            for col in 0..cols {
                let at = N * self.axial.voxel(index, row, col);
                let mut bytes = [0; N];
                bytes.copy_from_slice(&self.voxels[at..at + N]);
                let stored = number(bytes);
                let value = match self.header.rescale {
                    Some((slope, intercept)) => stored * slope + intercept,
                    None => stored,
                };
                hu.push(value as f32);
            }
        }
        hu
    }
}
