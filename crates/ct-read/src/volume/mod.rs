//! Formats that store a whole volume in one file.

pub mod nifti;
