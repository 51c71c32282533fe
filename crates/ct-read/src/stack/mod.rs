//! Single images to ordered stacks.

mod order;

pub use self::order::{Group, ImageRef, PlacedImage, Stack, TILT_WARNING_DEG, group, stack};
