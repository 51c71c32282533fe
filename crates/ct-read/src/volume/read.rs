//! From a file to its voxels: no more memory than they take, and no more than the file can hold.

use std::io::{BufRead, BufReader, Cursor, Read};

use flate2::read::{MultiGzDecoder, ZlibDecoder};

use super::axial::Axial;
use super::header::{Header, Packing, Place, Skip, VoxelType, broken, wrong};
use super::name::stem;
use super::{metaimage, nifti, nrrd};
use crate::fault::Fault;
use crate::source::guard::guarded;
use crate::source::listing::{ListedFile, Listing, Opened};

/// Deflate cannot make more of a byte than this.
const MAX_DEFLATE_RATIO: u64 = 1032;

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
    let Opened { reader, n_bytes } = file.open_as_stored()?;
    let header = Source::of(reader, n_bytes)?.header()?;
    Axial::of(&header)?;
    Ok(header)
}

/// Reads a whole file, and the one of its voxels where that is another, which it returns too.
///
/// # Errors
/// As [`scan_file`], and [`Fault::Truncated`] when voxels are missing.
pub fn read_file(file: &ListedFile, listing: &Listing) -> Result<(Volume, Option<ListedFile>), Fault> {
    let Opened { reader, n_bytes } = file.open_as_stored()?;
    let mut source = Source::of(reader, n_bytes)?;
    let header = source.header()?;
    let axial = Axial::of(&header)?;
    if header.place == Place::Here {
        let voxels = source.voxels(&header, header.packing)?;
        return Ok((Volume { header, axial, voxels }, None));
    }
    let (beside, packing) = beside(&header, file, listing)?;
    let Opened { reader, n_bytes } = beside.open_as_stored()?;
    let voxels = Source::as_it_is(reader, n_bytes).voxels(&header, packing)?;
    Ok((Volume { header, axial, voxels }, Some(beside)))
}

/// Reads a file of `n_bytes` that holds its voxels from its bytes.
///
/// # Errors
/// As [`read_file`].
pub fn read(reader: impl Read + 'static, n_bytes: u64) -> Result<Volume, Fault> {
    let mut source = Source::of(reader, n_bytes)?;
    let header = source.header()?;
    let axial = Axial::of(&header)?;
    if header.place != Place::Here {
        return Err(not_beside());
    }
    let voxels = source.voxels(&header, header.packing)?;
    Ok(Volume { header, axial, voxels })
}

/// The file with the voxels of a volume, where that is another one.
pub fn voxel_file(file: &ListedFile, listing: &Listing) -> Option<ListedFile> {
    guarded(not_beside(), || beside(&scan_file(file)?, file, listing)).ok().map(|(found, _)| found)
}

fn not_beside() -> Fault {
    wrong("the file of its voxels is not beside it")
}

/// The file of the voxels, and how they are packed in it.
fn beside(header: &Header, file: &ListedFile, listing: &Listing) -> Result<(ListedFile, Packing), Fault> {
    let own_name = file.name();
    let found = match &header.place {
        Place::Here => None,
        Place::Beside(name) => listing.beside(file, name).map(|found| (found, header.packing)),
        Place::Twin => {
            let own_stem = stem(&own_name).unwrap_or(&own_name);
            let names = [(".img", Packing::Plain), (".img.gz", Packing::Gzip), (".IMG", Packing::Plain)];
            names.into_iter().find_map(|(extension, packing)| {
                let found = listing.beside(file, &format!("{own_stem}{extension}"))?;
                Some((found, packing))
            })
        }
    };
    found.ok_or_else(not_beside)
}

/// The (inflated) bytes of a file.
struct Source {
    reader: Box<dyn BufRead>,
    /// The most that is still to come.
    n_left: u64,
    /// Whether that is exact.
    is_exact: bool,
}

impl Source {
    /// A file that may be packed as a whole.
    fn of(reader: impl Read + 'static, n_bytes: u64) -> Result<Self, Fault> {
        let mut plain = Self::as_it_is(reader, n_bytes);
        let start = plain.reader.fill_buf();
        let start = start.map_err(|err| Fault::Unreadable { why: err.kind().to_string() })?;
        if !start.starts_with(&[0x1F, 0x8B]) {
            return Ok(plain);
        }
        let n_left = n_bytes.saturating_mul(MAX_DEFLATE_RATIO);
        let reader = Box::new(BufReader::new(MultiGzDecoder::new(plain.reader)));
        Ok(Self { reader, n_left, is_exact: false })
    }

    fn as_it_is(reader: impl Read + 'static, n_bytes: u64) -> Self {
        Self { reader: Box::new(BufReader::new(reader)), n_left: n_bytes, is_exact: true }
    }

    /// Reads the header, of whichever format.
    fn header(&mut self) -> Result<Header, Fault> {
        let mut start = Vec::new();
        let taken = self.reader.by_ref().take(nifti::MAX_HEADER_LEN as u64).read_to_end(&mut start);
        taken.map_err(|err| broken(&err))?;
        let reader = std::mem::replace(&mut self.reader, Box::new(std::io::empty()));
        let mut reader = Cursor::new(start.clone()).chain(reader);
        let (header, n_read) = if let Some(length) = nifti::header_len(&start) {
            let header = nifti::header(&start)?;
            std::io::copy(&mut reader.by_ref().take(length as u64), &mut std::io::sink())
                .map_err(|err| broken(&err))?;
            (header, length as u64)
        } else if start.starts_with(b"NRRD") {
            nrrd::header(&mut reader)?
        } else if metaimage::is_start(&start) {
            metaimage::header(&mut reader)?
        } else if start.len() < 4 {
            return Err(Fault::Truncated);
        } else {
            return Err(wrong("it does not start as a NIfTI, MetaImage or NRRD file"));
        };
        self.reader = Box::new(reader);
        self.n_left = self.n_left.saturating_sub(n_read);
        Ok(header)
    }

    /// Reads the voxels.
    fn voxels(self, header: &Header, packing: Packing) -> Result<Vec<u8>, Fault> {
        let wanted = header.volume_len();
        let inflated = self.n_left.saturating_mul(MAX_DEFLATE_RATIO);
        let (mut reader, most): (Box<dyn Read>, u64) = match packing {
            Packing::Plain => (self.reader, self.n_left),
            Packing::Gzip => (Box::new(MultiGzDecoder::new(self.reader)), inflated),
            Packing::Zlib => (Box::new(ZlibDecoder::new(self.reader)), inflated),
        };
        let n_before = match header.skip {
            Skip::Bytes(n_before) => n_before,
            Skip::ToEnd if packing == Packing::Plain && self.is_exact => {
                most.checked_sub(wanted).ok_or(Fault::Truncated)?
            }
            Skip::ToEnd => return Err(wrong("its voxels are counted from the end of what is packed")),
        };
        if n_before.saturating_add(wanted) > most {
            return Err(Fault::Truncated);
        }
        std::io::copy(&mut reader.by_ref().take(n_before), &mut std::io::sink())
            .map_err(|err| broken(&err))?;
        let mut voxels = Vec::new();
        reader.take(wanted).read_to_end(&mut voxels).map_err(|err| broken(&err))?;
        if voxels.len() as u64 != wanted {
            return Err(Fault::Truncated);
        }
        Ok(voxels)
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
