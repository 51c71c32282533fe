//! Single images to ordered stacks, and how their pixels are turned to the usual view.

mod order;
mod view;

pub use self::order::{Group, ImageRef, PlacedImage, Stack, TILT_WARNING_DEG, group, stack};
pub use self::view::View;
