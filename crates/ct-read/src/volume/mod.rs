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
mod name;
mod nifti;
mod nrrd;
mod read;
mod text;

pub use self::axial::Axial;
pub use self::header::{Header, Packing, Place, Skip, VoxelType};
pub use self::name::{is_named_as_volume, stem};
pub use self::read::{Volume, read, read_file, scan_file, voxel_file};
