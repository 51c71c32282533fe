//! What the header of a listed file says.

use std::sync::Arc;

use rayon::prelude::*;

use crate::dicom::{self, BrokenObject, Header, Scanned};
use crate::fault::Fault;
use crate::source::guard::guarded;
use crate::source::listing::{self, ListedFile, Listing};
use crate::volume;

/// What the files of a case of volumes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// DICOM files, one or more a series.
    Dicom,
    /// Volumes (NIfTI, MetaImage, NRRD), one a series.
    Nifti,
}

/// What the header of a listed file said.
#[derive(Clone, Debug)]
pub enum Scan {
    /// A CT object.
    Ct(Arc<Header>),
    /// A volume.
    Volume(Arc<volume::Header>),
    /// A file that is no CT image, and why.
    Other(&'static str),
    /// A file that should have been one.
    Broken {
        /// What is wrong with it.
        fault: Fault,
        /// SeriesInstanceUID, where it could be read.
        series_uid: Option<String>,
    },
}

impl Scan {
    /// Whether the file is no CT image, and was not meant to be one.
    pub fn is_other(&self) -> bool {
        matches!(self, Self::Other(_))
    }
}

/// Reads the headers of all listed files of a format, in parallel.
pub fn scan(listing: &Listing, format: Format) -> Vec<Scan> {
    listing.files.par_iter().map(|file| scan_file(file, format)).collect()
}

/// Reads the headers of a case's files, in parallel.
pub fn scan_case(listing: &Listing, files: &[usize], format: Format) -> Vec<(usize, Scan)> {
    files.par_iter().map(|&file| (file, scan_file(&listing.files[file], format))).collect()
}

/// Reads the header of one file.
pub fn scan_file(file: &ListedFile, format: Format) -> Scan {
    let broken = Fault::Malformed { why: "reading it broke off".into() };
    match format {
        Format::Dicom if listing::is_companion(&file.relative) => Scan::Other("not an image"),
        Format::Nifti if !volume::is_named_as_volume(&file.relative) => Scan::Other("not a volume"),
        Format::Dicom => match guarded(broken, || Ok(dicom::scan_object(file))) {
            Ok(Ok(Scanned::Ct(header))) => Scan::Ct(Arc::from(header)),
            Ok(Ok(Scanned::Other { reason })) => Scan::Other(reason),
            Ok(Err(BrokenObject { fault: Fault::NotDicom { .. } | Fault::Archive { .. }, .. }))
                if listing::is_foreign(file) =>
            {
                Scan::Other("not an image")
            }
            Ok(Err(BrokenObject { fault, series_uid })) => Scan::Broken { fault, series_uid },
            Err(fault) => Scan::Broken { fault, series_uid: None },
        },
        Format::Nifti => match guarded(broken, || volume::scan_file(file)) {
            Ok(header) => Scan::Volume(Arc::new(header)),
            Err(fault) => Scan::Broken { fault, series_uid: None },
        },
    }
}
