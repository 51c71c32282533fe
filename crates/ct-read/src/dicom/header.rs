//! From the elements of a CT object to checked values.

use diag_data::case::SYNTHETIC_MARK;
use diag_data::units::Mm;

use super::elements::{DataSet, PixelElement, TagNumber};
use super::frames::{self, Frame, FunctionalGroups, Places};
use super::rescale::Rescale;
use super::syntax::{self, Compression, Syntax};
use super::tags;
use crate::fault::Fault;
use crate::words::{HeaderText, PartsOfNames};

/// Largest side of an image; scanners make 512 to 2048.
const MAX_SIDE: i64 = 8192;
/// Most frames of one object.
const MAX_FRAMES: i64 = 10_000;

/// What a file turned out to be.
#[derive(Clone, Debug)]
pub enum Scanned {
    /// A CT image object.
    Ct(Box<Header>),
    /// A sound DICOM object that has no place in a stack of slices.
    Other {
        /// Short fixed reason, for counts.
        reason: &'static str,
    },
}

/// Header of a CT object. Free text that could name somebody is not kept,
/// except the identifiers, which only [`crate::pseudonyms`] may read.
#[derive(Clone, Debug)]
pub struct Header {
    /// Transfer syntax UID.
    pub transfer_syntax: String,
    /// How the file is written.
    pub syntax: Syntax,
    /// Where the pixel data lies in the (inflated) file.
    pub pixels: PixelElement,
    /// Size and number form of the stored pixels.
    pub format: PixelFormat,
    /// One entry an image; a classic CT object has one.
    pub frames: Vec<Frame>,
    /// Who and what, by identifiers.
    pub identity: Identity,
    /// How it was acquired.
    pub scanner: Scanner,
    /// Whether BurnedInAnnotation is neither YES (such a file is refused) nor NO.
    pub burned_in_unknown: bool,
    /// What is odd about the file, in words.
    pub warnings: Vec<String>,
}

/// Size and number form of stored pixels. Invariants: sides of 1 to 8192,
/// 8 or 16 bits allocated, `1 <= bits_stored <= bits_allocated`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelFormat {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Bits that a pixel takes in the file.
    pub bits_allocated: u16,
    /// Low bits that hold the value.
    pub bits_stored: u16,
    /// Whether the value is in two's complement.
    pub signed: bool,
    /// Padding value as its 16 bits.
    pub padding: Option<u16>,
    /// Other end of the padding range as its 16 bits.
    pub padding_limit: Option<u16>,
}

impl PixelFormat {
    /// Bytes of one uncompressed frame.
    pub fn frame_len(&self) -> usize {
        self.rows * self.cols * usize::from(self.bits_allocated / 8)
    }
}

/// Identifiers of the object. They leave this crate only as keyed hashes.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// PatientID.
    pub patient_id: Option<String>,
    /// StudyInstanceUID.
    pub study_uid: Option<String>,
    /// SeriesInstanceUID.
    pub series_uid: Option<String>,
    /// SOPInstanceUID.
    pub sop_uid: Option<String>,
    /// FrameOfReferenceUID.
    pub frame_of_reference_uid: Option<String>,
    /// Whether the object bears [`SYNTHETIC_MARK`].
    pub synthetic: bool,
    /// Hash of PatientName without case and punctuation: only compared.
    pub name: Option<u64>,
    /// Hash of PatientBirthDate: only compared.
    pub birth_date: Option<u64>,
    /// PatientSex, if M, F or O.
    pub patient_sex: Option<String>,
    /// PatientAge in whole years; 90 stands for 90 and over.
    pub patient_age_years: Option<i32>,
}

/// How the object was acquired.
#[derive(Clone, Debug, Default)]
pub struct Scanner {
    /// Manufacturer.
    pub manufacturer: Option<HeaderText>,
    /// ManufacturerModelName.
    pub model: Option<HeaderText>,
    /// ConvolutionKernel.
    pub kernel: Option<HeaderText>,
    /// KVP in kV.
    pub kvp: Option<f32>,
    /// SliceThickness.
    pub slice_thickness: Option<Mm>,
    /// SeriesNumber.
    pub series_number: Option<i64>,
    /// Whether the pixels went through lossy compression at any time.
    pub lossy: bool,
}

/// Reads a data set with its file meta group.
///
/// # Errors
/// A [`Fault`] when the object is of a kind that is used, but broken.
pub fn read(set: &DataSet<'_>, meta: &DataSet<'_>, transfer_syntax: &str) -> Result<Scanned, Fault> {
    let syntax = syntax::find(transfer_syntax)
        .ok_or_else(|| Fault::TransferSyntax { syntax: syntax::name(transfer_syntax) })?;
    let sop_class = sop_class(set, meta);
    // A file cut before these would else pass for an object of another kind.
    if sop_class.is_none() && set.get(tags::MODALITY).is_none() {
        return Err(missing("SOPClassUID"));
    }
    if let Some(reason) = not_ct(sop_class.as_deref(), set.text(tags::MODALITY).as_deref()) {
        return Ok(Scanned::Other { reason });
    }
    let image_type = set.text(tags::IMAGE_TYPE).unwrap_or_default();
    if image_type.split('\\').any(|part| part.trim() == "LOCALIZER") {
        return Ok(Scanned::Other { reason: "localizer" });
    }
    let unit = set.text(tags::RESCALE_TYPE).as_deref().map_or(Unit::Hu, Unit::of);
    if unit == Unit::Other {
        return Ok(Scanned::Other { reason: "values other than HU" });
    }
    let burned_in = set.text(tags::BURNED_IN_ANNOTATION).map(|text| text.to_ascii_uppercase());
    if burned_in.as_deref() == Some("YES") {
        return Err(Fault::BurnedIn);
    }
    let pixels = set.pixels.ok_or_else(|| missing("PixelData"))?;
    let mut warnings = Vec::new();
    if unit == Unit::Unknown {
        warnings.push("RescaleType does not say HU: judged by the values".into());
    }
    let format = pixel_format(set, &mut warnings)?;
    let n_frames = match set.text(tags::NUMBER_OF_FRAMES) {
        // Without a value, too.
        None => (set.items(tags::PER_FRAME_FUNCTIONAL_GROUPS)?.len() as i64).clamp(1, MAX_FRAMES),
        Some(_) => in_range(set, tags::NUMBER_OF_FRAMES, "NumberOfFrames", 1, MAX_FRAMES)?,
    };
    let n_wanted = format.frame_len() as u64 * n_frames as u64;
    let is_native = matches!(syntax.compression, Compression::None | Compression::Deflate);
    if let Some(length) = pixels.length.map(u64::from).filter(|length| is_native && *length > n_wanted + 1) {
        warnings.push(format!("{} bytes behind the pixels were ignored", length - n_wanted));
    }
    let groups = FunctionalGroups::read(set, n_frames as usize)?;
    let places = groups.places(set);
    let frames = frames::read(set, &places, format.signed)?;
    if frames.iter().any(|frame| matches!(frame.rescale, Ok(Rescale::Table(_)))) {
        warnings.push("CT numbers by a modality table".into());
    }
    let lossy = syntax.lossy || set.text(tags::LOSSY_IMAGE_COMPRESSION).as_deref() == Some("01");
    if lossy {
        warnings.push("lossy compression".into());
    }
    Ok(Scanned::Ct(Box::new(Header {
        transfer_syntax: transfer_syntax.into(),
        syntax,
        pixels,
        format,
        frames,
        identity: identity(set),
        scanner: scanner(set, &places, lossy)?,
        burned_in_unknown: burned_in.as_deref() != Some("NO"),
        warnings,
    })))
}

/// What RescaleType says of the values. It is free text: GE writes "Houndsfield Unit" into every
/// reformatted series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Hu,
    /// Maps of iodine, electron density or effective atomic number look like CT and are none.
    Other,
    /// The values must tell.
    Unknown,
}

impl Unit {
    fn of(text: &str) -> Self {
        let letters: String = text.chars().filter(char::is_ascii_alphanumeric).collect();
        let letters = letters.to_ascii_uppercase();
        match letters.as_str() {
            "HU" | "HUMOD" | "US" => Self::Hu,
            _ if letters.starts_with("HOUN") => Self::Hu,
            "OD" | "MGML" | "ZEFF" | "ED" | "EDW" | "PCT" | "MONOE" | "IODINE" | "KEV" | "MM2S" | "MLG"
            | "SUV" => Self::Other,
            _ => Self::Unknown,
        }
    }
}

fn sop_class(set: &DataSet<'_>, meta: &DataSet<'_>) -> Option<String> {
    set.text(tags::SOP_CLASS_UID).or_else(|| meta.text(tags::MEDIA_STORAGE_SOP_CLASS_UID))
}

/// Why an object is no CT image, where its class says so.
pub(super) fn other_kind(set: &DataSet<'_>, meta: &DataSet<'_>) -> Option<&'static str> {
    sop_class(set, meta).and_then(|class| not_ct(Some(&class), None))
}

/// Why an object is no CT image; `None` when it is one.
fn not_ct(sop_class: Option<&str>, modality: Option<&str>) -> Option<&'static str> {
    let Some(uid) = sop_class else {
        return (modality != Some("CT")).then_some("no SOP class");
    };
    match uid.strip_prefix("1.2.840.10008.5.1.4.1.1.") {
        Some("2" | "2.1" | "2.2") => None,
        Some("7" | "7.1" | "7.2" | "7.3" | "7.4") => Some("secondary capture"),
        Some("88.67") => Some("dose report"),
        Some(rest) if rest.starts_with("88.") => Some("structured report"),
        Some(rest) if rest.starts_with("11.") => Some("presentation state"),
        Some("66.4") => Some("segmentation"),
        Some(_) => Some("another kind of image"),
        None if uid == "1.2.840.10008.1.3.10" => Some("DICOMDIR"),
        None => Some("another kind of object"),
    }
}

fn missing(name: &'static str) -> Fault {
    Fault::Attribute { name, why: "is missing".into() }
}

fn in_range(set: &DataSet<'_>, tag: TagNumber, name: &'static str, lo: i64, hi: i64) -> Result<i64, Fault> {
    if set.get(tag).is_none() {
        return Err(missing(name));
    }
    match set.int(tag) {
        Some(value) if (lo..=hi).contains(&value) => Ok(value),
        Some(value) => Err(Fault::Attribute { name, why: format!("is {}, not {lo} to {hi}", shown(value)) }),
        None => Err(Fault::Attribute { name, why: "is not a whole number".into() }),
    }
}

/// A number for a message. A long one may be the number of somebody.
fn shown(value: i64) -> String {
    if value.abs() < 100_000 { value.to_string() } else { "a number of six digits or more".into() }
}

fn pixel_format(set: &DataSet<'_>, warnings: &mut Vec<String>) -> Result<PixelFormat, Fault> {
    let rows = in_range(set, tags::ROWS, "Rows", 1, MAX_SIDE)? as usize;
    let cols = in_range(set, tags::COLUMNS, "Columns", 1, MAX_SIDE)? as usize;
    if let Some(samples @ (..=0 | 2..)) = set.int(tags::SAMPLES_PER_PIXEL) {
        return Err(Fault::Attribute {
            name: "SamplesPerPixel",
            why: format!("is {}, not 1", shown(samples)),
        });
    }
    let bits_allocated = in_range(set, tags::BITS_ALLOCATED, "BitsAllocated", 1, 64)? as u16;
    if !matches!(bits_allocated, 8 | 16) {
        let why = format!("is {bits_allocated}, not 8 or 16");
        return Err(Fault::Attribute { name: "BitsAllocated", why });
    }
    let bits_stored = in_range(set, tags::BITS_STORED, "BitsStored", 1, i64::from(bits_allocated))? as u16;
    let wanted = i64::from(bits_stored) - 1;
    if let Some(high_bit) = set.int(tags::HIGH_BIT).filter(|high_bit| *high_bit != wanted) {
        let why = format!("is {} where BitsStored {bits_stored} asks for {wanted}", shown(high_bit));
        return Err(Fault::Attribute { name: "HighBit", why });
    }
    let signed = in_range(set, tags::PIXEL_REPRESENTATION, "PixelRepresentation", 0, 1)? == 1;
    match set.text(tags::PHOTOMETRIC_INTERPRETATION).as_deref() {
        None | Some("MONOCHROME2") => {}
        // CT numbers are what they are: MONOCHROME1 only says how to display them.
        Some("MONOCHROME1") => warnings.push("MONOCHROME1: shown inverted, CT numbers unchanged".into()),
        Some(_) => {
            let why = "is not MONOCHROME2 or MONOCHROME1".into();
            return Err(Fault::Attribute { name: "PhotometricInterpretation", why });
        }
    }
    // The value's kind follows PixelRepresentation, whatever its VR says.
    let bits =
        |tag| set.int(tag).filter(|value| (-32_768..=65_535).contains(value)).map(|value| value as u16);
    Ok(PixelFormat {
        rows,
        cols,
        bits_allocated,
        bits_stored,
        signed,
        padding: bits(tags::PIXEL_PADDING_VALUE),
        padding_limit: bits(tags::PIXEL_PADDING_RANGE_LIMIT),
    })
}

fn identity(set: &DataSet<'_>) -> Identity {
    let hash = |tag| {
        let text: String = set.text(tag)?.chars().filter(|c| c.is_alphanumeric()).collect();
        (!text.is_empty()).then(|| frames::hashed(&text.to_lowercase()))
    };
    Identity {
        patient_id: set.text(tags::PATIENT_ID),
        study_uid: set.text(tags::STUDY_INSTANCE_UID),
        series_uid: set.text(tags::SERIES_INSTANCE_UID),
        sop_uid: set.text(tags::SOP_INSTANCE_UID),
        frame_of_reference_uid: set.text(tags::FRAME_OF_REFERENCE_UID),
        synthetic: set.text(tags::IMAGE_COMMENTS).as_deref() == Some(SYNTHETIC_MARK),
        name: hash(tags::PATIENT_NAME),
        birth_date: hash(tags::PATIENT_BIRTH_DATE),
        patient_sex: set.text(tags::PATIENT_SEX).filter(|sex| matches!(sex.as_str(), "M" | "F" | "O")),
        patient_age_years: set.text(tags::PATIENT_AGE).as_deref().and_then(age_years),
    }
}

/// Reads an age string (`055Y`, `018M`, `003W`, `012D`).
fn age_years(text: &str) -> Option<i32> {
    let (number, unit) = text.split_at_checked(3)?;
    let number: i32 = number.parse().ok()?;
    match unit {
        // What anonymisers leave of an age.
        "Y" if number == 0 => None,
        "Y" => Some(number.min(90)),
        "M" => Some(number / 12),
        "W" => Some(number / 52),
        "D" => Some(number / 365),
        _ => None,
    }
}

/// Highest tube voltage of a CT scanner, with room above it.
const MAX_KVP: f64 = 500.0;
/// Thickest slice.
const MAX_THICKNESS_MM: f64 = 1000.0;

/// What does not change inside an object is taken from its first frame. Numbers that no
/// scanner has are left out: a header may have any number of somebody in any of its fields.
fn scanner(set: &DataSet<'_>, places: &[Places<'_, '_>], lossy: bool) -> Result<Scanner, Fault> {
    let first = places.first().copied().unwrap_or(Places::Top(set));
    let people = people(set);
    let text = |text: Option<String>| text.map(|text| HeaderText::new(text, &people));
    let kernel = first.group(tags::CT_RECONSTRUCTION)?.and_then(|set| set.text(tags::CONVOLUTION_KERNEL));
    let number = |sequence, tag, limit| -> Result<Option<f64>, Fault> {
        let values = first.group(sequence)?.and_then(|set| set.numbers(tag));
        let value = values.and_then(|values| values.first().copied());
        Ok(value.filter(|value| *value > 0.0 && *value <= limit))
    };
    Ok(Scanner {
        manufacturer: text(set.text(tags::MANUFACTURER)),
        model: text(set.text(tags::MANUFACTURER_MODEL_NAME)),
        kernel: text(kernel),
        kvp: number(tags::CT_XRAY_DETAILS, tags::KVP, MAX_KVP)?.map(|kvp| kvp as f32),
        slice_thickness: number(tags::PIXEL_MEASURES, tags::SLICE_THICKNESS, MAX_THICKNESS_MM)?.map(Mm),
        series_number: set.int(tags::SERIES_NUMBER),
        lossy,
    })
}

/// Names and numbers of people in the header, top-level and in the sequences that describe
/// people and orders.
fn people(set: &DataSet<'_>) -> PartsOfNames {
    const TEXTS: [TagNumber; 29] = [
        tags::PATIENT_NAME,
        tags::PATIENT_ID,
        tags::ISSUER_OF_PATIENT_ID,
        tags::PATIENT_BIRTH_DATE,
        tags::OTHER_PATIENT_IDS,
        tags::OTHER_PATIENT_NAMES,
        tags::PATIENT_BIRTH_NAME,
        tags::PATIENT_MOTHER_BIRTH_NAME,
        tags::PATIENT_ADDRESS,
        tags::PATIENT_TELEPHONE_NUMBERS,
        tags::RESPONSIBLE_PERSON,
        tags::RESPONSIBLE_ORGANIZATION,
        tags::ACCESSION_NUMBER,
        tags::ADMISSION_ID,
        tags::INSTITUTION_NAME,
        tags::INSTITUTION_ADDRESS,
        tags::INSTITUTIONAL_DEPARTMENT_NAME,
        tags::REFERRING_PHYSICIAN_NAME,
        tags::REFERRING_PHYSICIAN_TELEPHONE_NUMBERS,
        tags::CONSULTING_PHYSICIAN_NAME,
        tags::SCHEDULED_PERFORMING_PHYSICIAN_NAME,
        tags::PERFORMING_PHYSICIAN_NAME,
        tags::PHYSICIANS_OF_RECORD,
        tags::NAME_OF_PHYSICIANS_READING_STUDY,
        tags::REQUESTING_PHYSICIAN,
        tags::OPERATORS_NAME,
        tags::PERSON_NAME,
        tags::PERSON_ADDRESS,
        tags::PERSON_TELEPHONE_NUMBERS,
    ];
    const SEQUENCES: [TagNumber; 6] = [
        tags::OTHER_PATIENT_IDS_SEQUENCE,
        tags::REFERRING_PHYSICIAN_IDENTIFICATION,
        tags::CONSULTING_PHYSICIAN_IDENTIFICATION,
        tags::PERFORMING_PHYSICIAN_IDENTIFICATION,
        tags::OPERATOR_IDENTIFICATION,
        tags::REQUEST_ATTRIBUTES,
    ];
    // A sequence that cannot be read is none that anything else is taken from.
    let nested = SEQUENCES.into_iter().flat_map(|tag| set.items(tag).unwrap_or_default());
    let sets: Vec<DataSet<'_>> = nested.collect();
    let all = std::iter::once(set).chain(&sets);
    let texts: Vec<String> = all.flat_map(|set| TEXTS.into_iter().filter_map(|tag| set.text(tag))).collect();
    PartsOfNames::of(texts.iter().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: Unit) {
        assert_eq!(Unit::of(text), want, "{text}");
    }

    #[test]
    fn a_unit_is_told_from_free_text() {
        for hu in ["HU", "hu", "Hounsfield", "Houndsfield Unit", "hounsfield units", "HU_MOD", "US", "H.U."] {
            check(hu, Unit::Hu);
        }
        for other in ["OD", "MGML", "mg/ml", "Z_EFF", "ED", "EDW", "PCT"] {
            check(other, Unit::Other);
        }
        for unknown in ["UNSPECIFIED", "normalized", "none"] {
            check(unknown, Unit::Unknown);
        }
    }
}
