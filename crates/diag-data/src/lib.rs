//! What one stage writes and the next one reads.
//!
//! In: nothing but values. Out: the checked types ([`units`], [`case`],
//! [`slice`]) and the files ([`shard`], [`run`]) that pass between
//! `ct-ingest`, `diag-train`, `diag-predict` and `diag-report`, how a study is read
//! ([`reader`]), the model in one file ([`model_file`]), plus the one
//! algorithm that all of them must agree on: the [`split`] by case.
//!
//! This crate refuses to know DICOM, tensors and HTML. Nothing in it can name
//! a patient: a [`case::CaseId`] is a pseudonym by the time it gets here.

pub mod calls;
pub mod case;
pub mod case_predictions;
pub mod difference_hash;
mod error;
pub mod external;
pub mod files;
pub mod heatmaps;
pub mod lesions;
pub mod manifest;
pub mod model_file;
pub mod place;
pub mod predictions;
pub mod reader;
pub mod results;
pub mod run;
pub mod seen;
pub mod shard;
pub mod slice;
pub mod split;
pub mod trivial;
pub mod units;

pub use error::DataError;
