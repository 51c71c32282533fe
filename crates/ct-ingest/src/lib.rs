//! CT files to training shards.
//!
//! In: a folder of DICOM or NIfTI files, or of PNG and JPEG images, and a table of labels.
//! Out: a shard folder (`diag_data::shard`) of rendered slices, in which nothing
//! names a patient, with an account of everything that was left out.
//!
//! The way of a case: [`listing`] (into zip archives, too) and [`intake`] find its files, [`series`] stacks
//! them by position, [`decode`] (or [`nifti`]) turns them into CT numbers, [`select`] keeps the
//! slices that show lung, [`render`] makes pictures of them, [`deidentify`] hashes
//! what must stay comparable. [`dicom_run`] and [`images_run`] conduct, [`books`]
//! stores finished cases and keeps the account, [`part`] divides the work among
//! processes, [`leakage`] watches the border between the parts of the split.
//!
//! This crate refuses to know tensors, models and reports; and it refuses to
//! guess: a file whose CT numbers or position are not certain is set aside
//! with its [`fault`], and the rest goes on.

pub mod archive;
pub mod books;
pub mod cards;
pub mod decode;
pub mod deidentify;
pub mod delivery;
pub mod dicom_run;
pub mod doors;
mod error;
pub mod fault;
mod guard;
pub mod images_run;
pub mod inspect;
pub mod intake;
pub mod labels;
pub mod leakage;
pub mod listing;
pub mod look;
pub mod nifti;
pub mod part;
pub mod picture;
pub mod preview;
pub mod render;
pub mod run;
pub mod select;
pub mod series;
pub mod settings;
pub mod slices;
pub mod split_lists;
pub mod splitting;
pub mod study;
pub mod survey;
pub mod table;
pub mod verify;
pub mod volume_case;

pub use error::IngestError;
