//! The header of an NRRD file (`.nrrd`, `.nhdr`), by the definition of teem's NRRD0001 to 0005.

use std::collections::BTreeMap;
use std::io::BufRead;

use super::header::{Header, Packing, Place, Skip, VoxelType, affine_of_lps, checked_sides, wrong};
use super::text;
use crate::fault::Fault;

/// Reads the header; returns it with its length in bytes.
///
/// # Errors
/// [`Fault::Volume`], [`Fault::Truncated`] and [`Fault::TooLarge`].
pub(super) fn header(reader: &mut dyn BufRead) -> Result<(Header, u64), Fault> {
    let mut fields = Fields(BTreeMap::new());
    let mut is_first = true;
    let (n_read, is_whole) = text::lines(reader, |line| {
        if std::mem::take(&mut is_first) {
            let is_known = matches!(line, "NRRD0001" | "NRRD0002" | "NRRD0003" | "NRRD0004" | "NRRD0005");
            return if is_known { Ok(false) } else { Err(wrong("it is an NRRD of an unknown version")) };
        }
        if let Some((name, value)) = line.split_once(':').filter(|(name, _)| !name.starts_with('#'))
            // `key:=value` is for programs.
            && !value.starts_with('=')
        {
            let name: String = name.chars().filter(|c| *c != ' ').flat_map(char::to_lowercase).collect();
            fields.0.insert(name, value.trim().into());
        }
        Ok(line.is_empty())
    })?;
    // A header of its own may end without the empty line.
    if !is_whole && !fields.0.contains_key("datafile") {
        return Err(Fault::Truncated);
    }
    Ok((fields.header()?, n_read))
}

/// Values by field, whose names are without blanks and in lower case.
struct Fields(BTreeMap<String, String>);

impl Fields {
    fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn header(&self) -> Result<Header, Fault> {
        if let Some(n_axes) = self.value("dimension").filter(|value| *value != "3") {
            let n_axes = n_axes.parse::<i64>().map_or("?".into(), |n_axes| n_axes.to_string());
            return Err(Fault::Volume { why: format!("it has {n_axes} axes, not 3") });
        }
        let sides = self.value("sizes").and_then(text::counts::<3>);
        let sides = checked_sides(sides.ok_or_else(|| wrong("its sizes are not 3 numbers"))?)?;
        let voxel_type = self.value("type").and_then(voxel_type);
        let voxel_type = voxel_type.ok_or_else(|| wrong("its type is not one of plain numbers"))?;
        let big_endian = match self.value("endian") {
            Some("little") => false,
            Some("big") => true,
            None if voxel_type.n_bytes() == 1 => false,
            _ => return Err(wrong("it does not say which byte of a number comes first")),
        };
        let packing = match self.value("encoding") {
            Some("raw") => Packing::Plain,
            Some("gzip" | "gz") => Packing::Gzip,
            _ => return Err(wrong("its encoding is neither raw nor gzip")),
        };
        let place = match self.value("datafile") {
            None => Place::Here,
            Some(name) if name.starts_with("LIST") || name.contains('%') => {
                return Err(wrong("its voxels are in several files"));
            }
            Some(name) => Place::Beside(text::beside(name.strip_prefix("./").unwrap_or(name))?),
        };
        if self.value("lineskip").is_some_and(|value| value != "0") {
            return Err(wrong("it asks to skip lines before its voxels"));
        }
        let skip = match self.value("byteskip").map(str::parse::<i64>) {
            None | Some(Ok(0)) => Skip::Bytes(0),
            Some(Ok(-1)) => Skip::ToEnd,
            Some(Ok(n_bytes @ 1..)) => Skip::Bytes(n_bytes.unsigned_abs()),
            Some(_) => return Err(wrong("its byte skip is no number of bytes")),
        };
        Header {
            format: "NRRD",
            sides,
            voxel_type,
            big_endian,
            place,
            skip,
            packing,
            rescale: None,
            affine: self.affine()?,
            synthetic: false,
            warnings: Vec::new(),
        }
        .checked()
    }

    fn affine(&self) -> Result<[[f64; 4]; 3], Fault> {
        // Left and posterior, as in DICOM, or the other way.
        let (x, y) = match self.value("space").map(str::to_lowercase).as_deref() {
            Some("left-posterior-superior" | "lps") => (1.0, 1.0),
            Some("right-anterior-superior" | "ras") => (-1.0, -1.0),
            Some("left-anterior-superior" | "las") => (1.0, -1.0),
            _ => return Err(wrong("its space does not say where left and right are")),
        };
        let units = self.value("spaceunits").unwrap_or_default();
        if units.split_whitespace().any(|unit| !matches!(unit.trim_matches('"'), "mm" | "???" | "")) {
            return Err(wrong("its space units are not mm"));
        }
        let turned = |[a, b, c]: [f64; 3]| [x * a, y * b, c];
        let directions = self.value("spacedirections").and_then(vectors::<3>);
        let directions =
            directions.ok_or_else(|| wrong("its space directions are not 3 vectors of 3 numbers"))?;
        let origin = match self.value("spaceorigin") {
            Some(text) => vectors::<1>(text).map(|[origin]| origin),
            None => Some([0.0; 3]),
        };
        let origin = origin.ok_or_else(|| wrong("its space origin is not 3 numbers"))?;
        Ok(affine_of_lps(directions.map(turned), turned(origin)))
    }
}

/// Vectors like `(1,0,0) (0,1,0)`, exactly `N` of them.
fn vectors<const N: usize>(text: &str) -> Option<[[f64; 3]; N]> {
    let vector = |part: &str| text::numbers::<3>(&part.trim().strip_prefix('(')?.replace(',', " "));
    let parts = text.trim().strip_suffix(')')?.split(')');
    let vectors: Vec<[f64; 3]> = parts.map(vector).collect::<Option<_>>()?;
    vectors.try_into().ok()
}

fn voxel_type(name: &str) -> Option<VoxelType> {
    let name = name.to_lowercase();
    Some(match name.as_str() {
        "uchar" | "unsigned char" | "uint8" | "uint8_t" => VoxelType::U8,
        "signed char" | "int8" | "int8_t" => VoxelType::I8,
        "ushort" | "unsigned short" | "unsigned short int" | "uint16" | "uint16_t" => VoxelType::U16,
        "short" | "short int" | "signed short" | "signed short int" | "int16" | "int16_t" => VoxelType::I16,
        "uint" | "unsigned int" | "uint32" | "uint32_t" => VoxelType::U32,
        "int" | "signed int" | "int32" | "int32_t" => VoxelType::I32,
        "ulonglong" | "unsigned long long" | "unsigned long long int" | "uint64" | "uint64_t" => {
            VoxelType::U64
        }
        "longlong"
        | "long long"
        | "long long int"
        | "signed long long"
        | "signed long long int"
        | "int64"
        | "int64_t" => VoxelType::I64,
        "float" => VoxelType::F32,
        "double" => VoxelType::F64,
        _ => return None,
    })
}
