//! Where bytes come from: folders, zip archives, and the bounded opening of files.

pub mod archive;
pub(crate) mod guard;
pub mod listing;

pub use self::listing::{ListedFile, Listing};
