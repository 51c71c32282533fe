//! Tests of whole runs: one program, so that it is built once.
#![expect(clippy::unwrap_used, reason = "a helper of a test may fail the test")]

mod bad_dicom;
mod cases;
mod codecs;
mod common;
mod deidentification;
mod gate;
mod grouping;
mod hostile;
mod hu;
mod images;
mod inspect;
mod keys;
mod multiframe;
mod nifti;
mod orientation;
mod planted;
mod preview;
mod rescale;
mod resume;
mod tested;
mod traps;
mod volumes;
mod zip;
