//! A cohort of CT cases to training shards.
//!
//! In: a folder of DICOM files, of volumes (NIfTI, MetaImage, NRRD) or of pictures, and a table of labels.
//! Out: a shard folder (`diag_data::shard`) of rendered slices, in which nothing
//! names a patient, with an account of everything that was left out.
//!
//! [`dicom_run`] and [`images_run`] run the stages in order: [`labels`] reads the table,
//! [`matching`] divides the files among its rows, [`splitting`] draws the split,
//! `ct_read` reads one case at a time, [`store`] stores finished cases, [`accounting`] counts
//! what was left out, [`leakage`] compares the sides of the split, [`assemble`] writes the
//! shards of one run or of all its [`partition`]s.
//!
//! This crate knows cohorts: which case is where, its label and its side of the split.
//! How the files of a case become slices is `ct_read`'s; tensors, models and reports are
//! not known here.

mod accounting;
pub mod assemble;
mod cards;
mod control;
mod delimited;
pub mod delivery;
pub mod dicom_run;
mod error;
pub mod fault;
pub mod fuzz_targets;
pub mod images_run;
pub mod inspect;
mod labels;
pub mod leakage;
mod matching;
pub mod partition;
pub mod run;
pub mod settings;
mod split_lists;
mod splitting;
mod store;
pub mod table;
pub mod verify;

pub use ct_read::key;
pub use error::IngestError;
