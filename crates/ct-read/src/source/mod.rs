//! Where bytes come from: folders, zip and tar archives, and the bounded opening of files.

pub mod archive;
pub(crate) mod guard;
pub mod listing;
mod plain;
pub mod tarball;

pub use self::listing::{ListedFile, Listing};
