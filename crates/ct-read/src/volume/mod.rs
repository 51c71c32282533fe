//! Files of whole volumes to axial slices in HU: NIfTI-1 and -2 (`.nii`, `.nii.gz`, `.hdr` with
//! `.img`), MetaImage (`.mha`, `.mhd` with its data file) and NRRD (`.nrrd`, `.nhdr` with its data
//! file), the latter two plain or packed.
//!
//! Readers of our own: the headers are short, ten number types cover every CT, and the crate `nifti`
//! allocates what a header asks for, computes in single precision where nibabel uses double, and
//! needs nalgebra for the affine. Here memory is bounded by what the file can hold, and HU are those of
//! nibabel and SimpleITK, bit for bit.

mod axial;
mod header;
mod metaimage;
mod nifti;
mod nrrd;
mod read;
mod text;

pub use self::axial::Axial;
pub use self::header::{Header, Packing, Place, Skip, VoxelType};
pub use self::read::{Volume, read, read_file, scan_file};

/// Names of files that hold a volume, or the header of one.
const EXTENSIONS: [&str; 8] = [".nii", ".nii.gz", ".hdr", ".hdr.gz", ".mha", ".mhd", ".nrrd", ".nhdr"];

/// The name of a volume without its extension; `None` where it has none of a volume.
pub fn stem(relative: &str) -> Option<&str> {
    let name = relative.to_ascii_lowercase();
    let extension = EXTENSIONS.into_iter().find(|extension| name.ends_with(extension))?;
    Some(&relative[..relative.len() - extension.len()])
}

/// Whether a file name has an extension of a volume.
pub fn is_named_as_volume(relative: &str) -> bool {
    stem(relative).is_some()
}
