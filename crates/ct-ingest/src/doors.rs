//! The doors at which bytes from outside enter, one function each: what the fuzz
//! targets and the mutation tests knock at. A door answers nothing; it must come
//! back, whatever the bytes, in time and memory that their number justifies.

use std::io::Cursor;

use crate::archive;
use crate::decode::{self, HuTable, Scanned};
use crate::labels::LabelTable;
use crate::nifti;

/// The header of a DICOM file.
pub fn dicom_header(bytes: &[u8]) {
    let _ = decode::scan(bytes, bytes.len() as u64);
}

/// Header, every decoder, and the way to HU.
pub fn dicom_pixels(bytes: &[u8]) {
    let Ok(Scanned::Ct(header)) = decode::scan(bytes, bytes.len() as u64) else { return };
    let Ok(inflated) = decode::inflate(bytes) else { return };
    // A few frames show what all do.
    for (index, frame) in header.frames.iter().enumerate().take(4) {
        let words = decode::stored_words(&inflated, &header, index);
        if let (Ok(words), Ok(rescale)) = (words, &frame.rescale) {
            let _ = HuTable::new(header.format, rescale).hu(&words);
        }
    }
}

/// A NIfTI file.
pub fn nifti(bytes: &[u8]) {
    if let Ok(volume) = nifti::read(Cursor::new(bytes.to_vec()), bytes.len() as u64) {
        for index in 0..volume.axial().n_slices.min(4) {
            let _ = volume.slice(index);
        }
    }
}

/// A label table.
pub fn label_table(bytes: &[u8]) {
    let _ = LabelTable::parse(bytes, std::path::Path::new("labels.csv"), None);
}

/// The directory of a zip archive.
pub fn archive(bytes: &[u8]) {
    let _ = archive::read_directory(Cursor::new(bytes), bytes.len() as u64);
}
