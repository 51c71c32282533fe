//! The files of one CT case to checked, measured and rendered slices.
//!
//! In: a folder or archive with the files of a case, and the settings of the reader
//! ([`diag_data::reader::ReaderSettings`]). Out: a [`case::ReadCase`], the kept slices of one
//! series with what was measured on them, and an account of every file that was left out.
//!
//! The path of a case: [`source`] lists its files (also inside zip archives), [`scan`] reads
//! their headers, [`stack`] orders images by position, [`dicom`] (or [`volume`], or
//! [`picture`]) turns them into CT numbers, [`slice`](mod@slice) measures them, keeps those
//! that show lung and renders pictures, [`words`] says which texts of a header may leave,
//! [`pseudonyms`] hashes what must stay comparable, with a [`key`].
//! [`case`] runs these in order. Files import downwards, in the order of that sentence.
//!
//! This crate knows one case at a time: no cohort, label or split, no tensors and no
//! reports. It does not guess: a file whose CT numbers or position are not certain is set
//! aside with its [`Fault`].

pub mod case;
pub mod dicom;
mod error;
mod fault;
pub mod fuzz_targets;
pub mod key;
pub mod picture;
pub mod pseudonyms;
pub mod scan;
pub mod slice;
pub mod source;
pub mod stack;
pub mod volume;
pub mod words;

pub use error::ReadError;
pub use fault::Fault;
