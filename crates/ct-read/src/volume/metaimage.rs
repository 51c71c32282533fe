//! The header of a MetaImage file (`.mha`, `.mhd`), as ITK writes and reads it.

use std::collections::BTreeMap;
use std::io::BufRead;

use super::header::{Header, Packing, Place, Skip, VoxelType, affine_of_lps, checked_sides, wrong};
use super::text;
use crate::fault::Fault;

/// The key that ends the header.
const LAST_KEY: &str = "ElementDataFile";

/// Whether a file begins as a header of this format: with a line `Key = value`.
pub(super) fn is_start(start: &[u8]) -> bool {
    let line = start.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let is_text = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~');
    line.first().is_some_and(u8::is_ascii_alphabetic) && line.iter().all(is_text) && line.contains(&b'=')
}

/// Reads the header; returns it with its length in bytes.
///
/// # Errors
/// [`Fault::Volume`], [`Fault::Truncated`] and [`Fault::TooLarge`].
pub(super) fn header(reader: &mut dyn BufRead) -> Result<(Header, u64), Fault> {
    let mut fields = Fields(BTreeMap::new());
    let (n_read, is_whole) = text::lines(reader, |line| {
        let Some((key, value)) = line.split_once('=') else { return Ok(false) };
        let (key, value) = (key.trim(), value.trim());
        fields.0.insert(key.into(), value.into());
        Ok(key == LAST_KEY)
    })?;
    if !is_whole {
        return Err(Fault::Truncated);
    }
    Ok((fields.header()?, n_read))
}

struct Fields(BTreeMap<String, String>);

impl Fields {
    /// The value of the first of these keys that is there: the format has two names for some.
    fn value(&self, keys: &[&str]) -> Option<&str> {
        keys.iter().find_map(|key| self.0.get(*key)).map(String::as_str)
    }

    fn is_true(&self, keys: &[&str]) -> bool {
        self.value(keys).is_some_and(|value| value.eq_ignore_ascii_case("true") || value == "1")
    }

    fn numbers<const N: usize>(&self, keys: &[&str]) -> Result<Option<[f64; N]>, Fault> {
        let Some(value) = self.value(keys) else { return Ok(None) };
        let numbers = text::numbers(value);
        numbers.map(Some).ok_or_else(|| Fault::Volume { why: format!("{} is not {N} numbers", keys[0]) })
    }

    fn header(&self) -> Result<Header, Fault> {
        if self.value(&["ObjectType"]).is_some_and(|value| value != "Image") {
            return Err(wrong("it is a MetaIO object other than an image"));
        }
        if let Some(n_axes) = self.value(&["NDims"]).filter(|value| *value != "3") {
            let n_axes = n_axes.parse::<i64>().map_or("?".into(), |n_axes| n_axes.to_string());
            return Err(Fault::Volume { why: format!("it has {n_axes} axes, not 3") });
        }
        if self.value(&["ElementNumberOfChannels"]).is_some_and(|value| value != "1") {
            return Err(wrong("its voxels are vectors"));
        }
        if self.value(&["BinaryData"]).is_some() && !self.is_true(&["BinaryData"]) {
            return Err(wrong("its voxels are text"));
        }
        let has_line = |key: &str, plain: f64| {
            self.value(&[key]).is_some_and(|value| value.parse::<f64>().ok() != Some(plain))
        };
        if has_line("ElementToIntensityFunctionSlope", 1.0)
            || has_line("ElementToIntensityFunctionOffset", 0.0)
        {
            return Err(wrong("it has an intensity function, which other programs ignore"));
        }
        let sides = self.value(&["DimSize"]).and_then(text::counts::<3>);
        let sides = checked_sides(sides.ok_or_else(|| wrong("DimSize is not 3 numbers"))?)?;
        let voxel_type = self.value(&["ElementType"]).and_then(voxel_type);
        let voxel_type = voxel_type.ok_or_else(|| wrong("its ElementType is not one of plain numbers"))?;
        let is_compressed = self.is_true(&["CompressedData"]);
        let place = match self.value(&[LAST_KEY]).unwrap_or_default() {
            "LOCAL" | "Local" | "local" => Place::Here,
            name if name.starts_with("LIST") || name.contains('%') => {
                return Err(wrong("its voxels are in several files"));
            }
            name => Place::Beside(text::beside(name)?),
        };
        let skip = match self.value(&["HeaderSize"]).map(str::parse::<i64>) {
            None | Some(Ok(0)) => Skip::Bytes(0),
            Some(Ok(-1)) => Skip::ToEnd,
            Some(Ok(n_bytes @ 1..)) => Skip::Bytes(n_bytes.unsigned_abs()),
            Some(_) => return Err(wrong("HeaderSize is no number of bytes")),
        };
        let mut warnings = Vec::new();
        Header {
            format: "MetaImage",
            sides,
            voxel_type,
            big_endian: self.is_true(&["BinaryDataByteOrderMSB", "ElementByteOrderMSB"]),
            place,
            skip,
            packing: if is_compressed { Packing::Zlib } else { Packing::Plain },
            rescale: None,
            affine: self.affine(&mut warnings)?,
            synthetic: false,
            warnings,
        }
        .checked()
    }

    /// World axes run to left, posterior and superior, as in DICOM and ITK.
    fn affine(&self, warnings: &mut Vec<String>) -> Result<[[f64; 4]; 3], Fault> {
        let spacing = self.numbers::<3>(&["ElementSpacing", "ElementSize"])?;
        let spacing = spacing.ok_or_else(|| wrong("it has no ElementSpacing"))?;
        let origin = self.numbers::<3>(&["Offset", "Position", "Origin"])?.unwrap_or_default();
        let stated = self.value(&["AnatomicalOrientation"]).filter(|value| value.len() == 3);
        let matrix = match self.numbers::<9>(&["TransformMatrix", "Rotation", "Orientation"])? {
            Some(matrix) => matrix,
            // ITK writes RAI where nothing is turned; without it nothing is known of left and right.
            None if stated == Some("RAI") => [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
            None => return Err(wrong("it says nothing about its orientation (no TransformMatrix)")),
        };
        let [a, b, c, d, e, f, g, h, i] = matrix;
        let directions = [[a, b, c], [d, e, f], [g, h, i]];
        if stated.is_some_and(|stated| !stated.contains('?') && stated != anatomical(directions)) {
            warnings.push("AnatomicalOrientation and TransformMatrix differ; the matrix was used".into());
        }
        let columns = std::array::from_fn(|axis| directions[axis].map(|part| part * spacing[axis]));
        Ok(affine_of_lps(columns, origin))
    }
}

/// ITK's name of the directions of three axes: for each the side of the body that it comes from.
fn anatomical(directions: [[f64; 3]; 3]) -> String {
    const FROM: [[char; 2]; 3] = [['R', 'L'], ['A', 'P'], ['I', 'S']];
    let letter = |direction: &[f64; 3]| {
        let world = (0..3).max_by(|a, b| direction[*a].abs().total_cmp(&direction[*b].abs())).unwrap_or(0);
        FROM[world][usize::from(direction[world] < 0.0)]
    };
    directions.iter().map(letter).collect()
}

fn voxel_type(name: &str) -> Option<VoxelType> {
    Some(match name {
        "MET_UCHAR" => VoxelType::U8,
        "MET_CHAR" => VoxelType::I8,
        "MET_USHORT" => VoxelType::U16,
        "MET_SHORT" => VoxelType::I16,
        "MET_UINT" | "MET_ULONG" => VoxelType::U32,
        "MET_INT" | "MET_LONG" => VoxelType::I32,
        "MET_ULONG_LONG" => VoxelType::U64,
        "MET_LONG_LONG" => VoxelType::I64,
        "MET_FLOAT" => VoxelType::F32,
        "MET_DOUBLE" => VoxelType::F64,
        _ => return None,
    })
}
