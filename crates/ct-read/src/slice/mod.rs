//! One slice of HU: measured, chosen or not, and rendered.

pub mod hu_check;
pub(crate) mod lung;
pub(crate) mod pictures;
pub(crate) mod preview;
pub(crate) mod render;
pub(crate) mod statistics;

pub use self::lung::MIN_SLICES;
