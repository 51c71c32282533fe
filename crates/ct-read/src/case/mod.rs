//! One case: from its files to rendered slices.

mod dicom;
mod picture;
mod task;
mod volume;

use crate::scan::Format;

pub use self::dicom::same_pixels;
pub use self::picture::read as read_pictures;
pub use self::task::{CaseFault, CaseFiles, ReadCase, Reader, SeriesFacts, check_volume_settings};
pub use crate::slice::pictures::CaseSlice;

/// Reads a case of volumes: finds its series, decodes it in parallel, keeps and renders slices.
///
/// # Errors
/// The [`Fault`](crate::Fault) that sets the whole case aside, and the file at fault where it is one.
pub fn read_volume(case: &CaseFiles, format: Format, reader: &Reader<'_>) -> Result<ReadCase, CaseFault> {
    match format {
        Format::Dicom => dicom::read(case, reader),
        Format::Nifti => volume::read(case, reader),
    }
}
