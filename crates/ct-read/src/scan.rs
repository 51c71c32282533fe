//! What the header of a listed file says.

use std::sync::Arc;

use rayon::prelude::*;

use crate::dicom::{self, Header, Scanned};
use crate::fault::Fault;
use crate::source::guard::guarded;
use crate::source::listing::{self, ListedFile, Listing};
use crate::volume::nifti;

/// What the files of a case of volumes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// DICOM files, one or more a series.
    Dicom,
    /// NIfTI-1 files, one a series.
    Nifti,
}

/// What the header of a listed file said.
#[derive(Clone, Debug)]
pub enum Scan {
    /// A CT object.
    Ct(Arc<Header>),
    /// A NIfTI volume.
    Volume(Arc<nifti::Header>),
    /// A file that is no CT image, and why.
    Other(&'static str),
    /// A file that should have been one.
    Broken(Fault),
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
    let scanned = match format {
        Format::Dicom if listing::is_companion(&file.relative) => return Scan::Other("not an image"),
        Format::Nifti if !nifti::is_named_as_nifti(&file.relative) => {
            return Scan::Other("not a NIfTI volume");
        }
        Format::Dicom => guarded(broken, || dicom::scan_file(file)).map(|scanned| match scanned {
            Scanned::Ct(header) => Scan::Ct(Arc::from(header)),
            Scanned::Other { reason } => Scan::Other(reason),
        }),
        Format::Nifti => {
            guarded(broken, || nifti::scan_file(file)).map(|header| Scan::Volume(Arc::new(header)))
        }
    };
    scanned.unwrap_or_else(Scan::Broken)
}
