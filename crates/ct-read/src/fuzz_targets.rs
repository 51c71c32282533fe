//! The functions through which bytes from outside enter, one each, for the fuzz targets and
//! the mutation tests. They return nothing: they must return at all, whatever the bytes, in
//! time and memory that the number of bytes justifies.

use std::io::Cursor;

use crate::dicom::{self, HuTable, Scanned};
use crate::source::{archive, tarball};
use crate::volume;

/// The header of a DICOM file.
pub fn dicom_header(bytes: &[u8]) {
    let _ = dicom::scan(bytes, bytes.len() as u64);
}

/// Header, every decoder, and the way to HU.
pub fn dicom_pixels(bytes: &[u8]) {
    let Ok(Scanned::Ct(header)) = dicom::scan(bytes, bytes.len() as u64) else { return };
    let Ok(inflated) = dicom::inflate(bytes) else { return };
    // A few frames show what all do.
    for (index, frame) in header.frames.iter().enumerate().take(4) {
        let words = dicom::stored_words(&inflated, &header, index);
        if let (Ok(words), Ok(rescale)) = (words, &frame.rescale) {
            let _ = HuTable::new(header.format, rescale).hu(&words);
        }
    }
}

/// A volume: NIfTI, MetaImage or NRRD.
pub fn volume(bytes: &[u8]) {
    if let Ok(volume) = volume::read(Cursor::new(bytes.to_vec()), bytes.len() as u64) {
        for index in 0..volume.axial().n_slices.min(4) {
            let _ = volume.slice(index);
        }
    }
}

/// The directory of a zip archive.
pub fn archive(bytes: &[u8]) {
    let _ = archive::read_directory(Cursor::new(bytes), bytes.len() as u64);
}

/// A tar archive.
pub fn tarball(bytes: &[u8]) {
    let _ = tarball::read_directory(bytes);
}
