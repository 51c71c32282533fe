//! Slices and batches.

pub(crate) mod augment;
pub(crate) mod batch;
pub(crate) mod dataset;
pub(crate) mod experiment;
pub(crate) mod loader;
pub(crate) mod mixing;
pub(crate) mod sampling;
