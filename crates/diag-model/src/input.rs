//! From grey levels to the network's input: the only place that knows how.

use candle_core::{Device, Result, Tensor};

/// The value the network sees for a grey level of 0 to 255: linear, black -1, white 1.
///
/// ```
/// assert_eq!(diag_model::input::scale(0.0), -1.0);
/// assert_eq!(diag_model::input::scale(255.0), 1.0);
/// ```
pub fn scale(grey: f32) -> f32 {
    grey / 127.5 - 1.0
}

/// Stacks images into a batch.
///
/// # Shapes
/// - `images`: each `height * width` grey levels, row-major
/// - result: `[N, 1, height, width]`, f32 in [-1, 1]
///
/// # Errors
/// An image of another size; no image at all.
pub fn from_grey<'a>(
    images: impl IntoIterator<Item = &'a [u8]>,
    height: usize,
    width: usize,
) -> Result<Tensor> {
    let mut values = Vec::new();
    for image in images {
        values.extend(image.iter().map(|&grey| scale(f32::from(grey))));
    }
    from_scaled(values, height, width)
}

/// As [`from_grey`], for values that were scaled before (and perhaps augmented).
///
/// # Shapes
/// - `values`: N images of `height * width`, in [-1, 1]
/// - result: `[N, 1, height, width]`, f32
///
/// # Errors
/// A number of values that is not a whole number of images; no image at all.
pub fn from_scaled(values: Vec<f32>, height: usize, width: usize) -> Result<Tensor> {
    let n_images = values.len().checked_div(height * width).unwrap_or_default();
    if n_images == 0 {
        candle_core::bail!("a batch needs at least one image of {height}x{width}");
    }
    Tensor::from_vec(values, (n_images, 1, height, width), &Device::Cpu)
}
