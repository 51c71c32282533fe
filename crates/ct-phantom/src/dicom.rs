//! Writes one image as a CT Image Storage file.

use crate::{PhantomError, geometry::SLICE_MM, noise::SIZE, scanner::Scanner};
use diag_data::case::SYNTHETIC_MARK;
use dicom::{
    core::{DataElement, PrimitiveValue, VR, dicom_value, smallvec::SmallVec},
    dictionary_std::{tags, uids},
    object::{FileMetaTableBuilder, InMemDicomObject, meta::FileMetaTable},
};
use std::path::Path;

/// What all images of a series have in common.
pub(crate) struct SeriesHeader<'a> {
    pub scanner: &'a Scanner,
    pub implicit_vr: bool,
    pub patient_id: String,
    pub patient_name: String,
    pub study_uid: String,
    pub series_uid: String,
    pub frame_uid: String,
    pub series_description: String,
    pub spacing_mm: f32,
}

/// What differs from image to image.
pub(crate) struct ImageHeader {
    pub sop_uid: String,
    pub instance_number: u32,
    /// Third value of ImageType: AXIAL or LOCALIZER.
    pub kind: &'static str,
    /// Centre of the first pixel, patient millimetres.
    pub position: [f32; 3],
    pub orientation: [i32; 6],
}

/// Writes `[512 * 512]` stored values as one file.
pub(crate) fn write(
    path: &Path,
    series: &SeriesHeader<'_>,
    image: &ImageHeader,
    stored: &[i32],
) -> Result<(), PhantomError> {
    let fail = |why: String| PhantomError::Dicom { path: path.into(), why };
    let scanner = series.scanner;
    let mut data = InMemDicomObject::new_empty();
    let mut text = |tag, vr, value: &str| {
        data.put(DataElement::new(tag, vr, PrimitiveValue::from(value)));
    };
    text(tags::SPECIFIC_CHARACTER_SET, VR::CS, "ISO_IR 100");
    text(tags::IMAGE_TYPE, VR::CS, &format!("ORIGINAL\\PRIMARY\\{}", image.kind));
    text(tags::SOP_CLASS_UID, VR::UI, uids::CT_IMAGE_STORAGE);
    text(tags::SOP_INSTANCE_UID, VR::UI, &image.sop_uid);
    // A fixed date: the same seed must give the same bytes on any day.
    for tag in [tags::STUDY_DATE, tags::SERIES_DATE, tags::ACQUISITION_DATE, tags::CONTENT_DATE] {
        text(tag, VR::DA, "20200101");
    }
    for tag in [tags::STUDY_TIME, tags::SERIES_TIME, tags::CONTENT_TIME] {
        text(tag, VR::TM, "120000");
    }
    text(tags::ACCESSION_NUMBER, VR::SH, "SYNTHETIC");
    text(tags::MODALITY, VR::CS, "CT");
    text(tags::MANUFACTURER, VR::LO, scanner.vendor.manufacturer());
    text(tags::INSTITUTION_NAME, VR::LO, "SYNTHETIC");
    text(tags::REFERRING_PHYSICIAN_NAME, VR::PN, "");
    text(tags::STUDY_DESCRIPTION, VR::LO, "SYNTHETIC CHEST");
    text(tags::SERIES_DESCRIPTION, VR::LO, &series.series_description);
    text(tags::MANUFACTURER_MODEL_NAME, VR::LO, scanner.model);
    text(tags::PATIENT_NAME, VR::PN, &series.patient_name);
    text(tags::PATIENT_ID, VR::LO, &series.patient_id);
    text(tags::PATIENT_BIRTH_DATE, VR::DA, "");
    text(tags::PATIENT_SEX, VR::CS, "O");
    text(tags::BODY_PART_EXAMINED, VR::CS, "CHEST");
    text(tags::SLICE_THICKNESS, VR::DS, &format!("{SLICE_MM}"));
    text(tags::KVP, VR::DS, &scanner.kvp.to_string());
    text(tags::SOFTWARE_VERSIONS, VR::LO, concat!("ct-phantom ", env!("CARGO_PKG_VERSION")));
    text(tags::GANTRY_DETECTOR_TILT, VR::DS, "0");
    text(tags::X_RAY_TUBE_CURRENT, VR::IS, &scanner.tube_current_ma.to_string());
    text(tags::CONVOLUTION_KERNEL, VR::SH, scanner.kernel.name());
    text(tags::PATIENT_POSITION, VR::CS, "HFS");
    text(tags::STUDY_INSTANCE_UID, VR::UI, &series.study_uid);
    text(tags::SERIES_INSTANCE_UID, VR::UI, &series.series_uid);
    text(tags::STUDY_ID, VR::SH, "1");
    text(tags::SERIES_NUMBER, VR::IS, "2");
    text(tags::ACQUISITION_NUMBER, VR::IS, if image.kind == "AXIAL" { "1" } else { "0" });
    text(tags::INSTANCE_NUMBER, VR::IS, &image.instance_number.to_string());
    text(tags::IMAGE_POSITION_PATIENT, VR::DS, &decimals(&image.position));
    let orientation = image.orientation.map(|v| v.to_string()).join("\\");
    text(tags::IMAGE_ORIENTATION_PATIENT, VR::DS, &orientation);
    text(tags::FRAME_OF_REFERENCE_UID, VR::UI, &series.frame_uid);
    text(tags::POSITION_REFERENCE_INDICATOR, VR::LO, "SN");
    text(tags::SLICE_LOCATION, VR::DS, &decimals(&image.position[2..]));
    text(tags::IMAGE_COMMENTS, VR::LT, SYNTHETIC_MARK);
    text(tags::PHOTOMETRIC_INTERPRETATION, VR::CS, "MONOCHROME2");
    text(tags::PIXEL_SPACING, VR::DS, &decimals(&[series.spacing_mm; 2]));
    text(tags::BURNED_IN_ANNOTATION, VR::CS, "NO");
    text(tags::WINDOW_CENTER, VR::DS, "-600");
    text(tags::WINDOW_WIDTH, VR::DS, "1500");
    text(tags::RESCALE_INTERCEPT, VR::DS, &scanner.intercept.to_string());
    text(tags::RESCALE_SLOPE, VR::DS, "1");
    text(tags::RESCALE_TYPE, VR::LO, "HU");

    let numbers = [
        (tags::SAMPLES_PER_PIXEL, 1),
        (tags::ROWS, SIZE as u16),
        (tags::COLUMNS, SIZE as u16),
        (tags::BITS_ALLOCATED, 16),
        (tags::BITS_STORED, scanner.bits_stored),
        (tags::HIGH_BIT, scanner.bits_stored - 1),
        (tags::PIXEL_REPRESENTATION, u16::from(scanner.signed)),
    ];
    for (tag, value) in numbers {
        data.put(DataElement::new(tag, VR::US, dicom_value!(U16, value)));
    }
    if let Some(padding) = scanner.padding {
        let (vr, value) = match scanner.signed {
            true => (VR::SS, dicom_value!(I16, padding as i16)),
            false => (VR::US, dicom_value!(U16, padding as u16)),
        };
        data.put(DataElement::new(tags::PIXEL_PADDING_VALUE, vr, value));
    }
    // The low 16 bits are the two's complement, whichever the representation.
    let words: Vec<u16> = stored.iter().map(|&value| value as u16).collect();
    data.put(DataElement::new(tags::PIXEL_DATA, VR::OW, PrimitiveValue::U16(SmallVec::from_vec(words))));

    let meta = file_meta(series, image).map_err(|err| fail(err.to_string()))?;
    data.with_exact_meta(meta).write_to_file(path).map_err(|err| {
        let cause = std::error::Error::source(&err).map(|source| format!(": {source}")).unwrap_or_default();
        fail(format!("{err}{cause}"))
    })
}

fn file_meta(
    series: &SeriesHeader<'_>,
    image: &ImageHeader,
) -> Result<FileMetaTable, dicom::object::meta::Error> {
    let syntax = match series.implicit_vr {
        true => uids::IMPLICIT_VR_LITTLE_ENDIAN,
        false => uids::EXPLICIT_VR_LITTLE_ENDIAN,
    };
    FileMetaTableBuilder::new()
        .media_storage_sop_class_uid(uids::CT_IMAGE_STORAGE)
        .media_storage_sop_instance_uid(&image.sop_uid)
        .transfer_syntax(syntax)
        .build()
}

/// Numbers as a DS value: at most 16 characters each, a backslash between.
fn decimals(values: &[f32]) -> String {
    values.iter().map(|v| format!("{v:.7}")).collect::<Vec<_>>().join("\\")
}
