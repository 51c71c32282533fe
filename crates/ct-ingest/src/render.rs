//! HU to the stored picture: window, crop to a square in millimetres, resize.

use diag_data::units::{HuWindow, Spacing};
use fast_image_resize as fir;

use crate::select::Region;

/// Margin around the body or the lungs, so that the edge is seen.
const MARGIN_MM: f64 = 10.0;

/// Name of the filter, as the manifest states it.
pub const RESIZE_FILTER: &str = "bilinear, antialiased (convolution)";

/// A row-major image of one channel.
#[derive(Clone, Debug, PartialEq)]
pub struct Image<T> {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// `rows * cols` values.
    pub values: Vec<T>,
}

/// The part of a source image that becomes the picture: a square in mm around
/// a region, which may reach beyond the image.
///
/// The whole image is not widened when it is square already.
pub fn square(region: Region, spacing: Spacing, margin: bool) -> Region {
    let margin_mm = if margin { MARGIN_MM } else { 0.0 };
    let height_mm = (region.bottom - region.top) * spacing.row.0 + 2.0 * margin_mm;
    let width_mm = (region.right - region.left) * spacing.col.0 + 2.0 * margin_mm;
    let side_mm = height_mm.max(width_mm);
    let (half_rows, half_cols) = (side_mm / spacing.row.0 / 2.0, side_mm / spacing.col.0 / 2.0);
    let (row, col) = ((region.top + region.bottom) / 2.0, (region.left + region.right) / 2.0);
    Region { top: row - half_rows, left: col - half_cols, bottom: row + half_rows, right: col + half_cols }
}

/// Why a picture could not be made: sizes that contradict each other.
#[derive(Debug, thiserror::Error)]
#[error("an image of {rows} x {cols} pixels cannot be resized")]
pub struct ResizeError {
    rows: usize,
    cols: usize,
}

/// Resizes grey levels to `size` x `size`.
///
/// # Errors
/// When the image is empty or the region has no area.
pub fn resize_grey(image: &Image<u8>, region: Region, size: u32) -> Result<Vec<u8>, ResizeError> {
    let (image, region) = within(image, region, 0);
    resized::<fir::pixels::U8>(&image.values, image.rows, image.cols, region, size)
}

/// Resizes HU to `size` x `size`, rounded to whole units.
///
/// # Errors
/// When the image is empty or the region has no area.
pub fn resize_hu(image: &Image<f32>, region: Region, size: u32) -> Result<Vec<i16>, ResizeError> {
    let (image, region) = within(image, region, -1024.0);
    let bytes: Vec<u8> = image.values.iter().flat_map(|hu| hu.to_ne_bytes()).collect();
    let bytes = resized::<fir::pixels::F32>(&bytes, image.rows, image.cols, region, size)?;
    let whole = |chunk: &[u8]| f32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]).round() as i16;
    Ok(bytes.chunks_exact(4).map(whole).collect())
}

/// The grey level of each HU that a window makes.
pub fn grey_level(window: HuWindow) -> impl Fn(f32) -> u8 {
    move |hu| window.grey(diag_data::units::Hu(hu))
}

/// Generic over the one pixel type that is wanted: the library's untyped call
/// would compile every pixel type into this crate, which took minutes.
fn resized<P: fir::PixelTrait>(
    bytes: &[u8],
    rows: usize,
    cols: usize,
    region: Region,
    size: u32,
) -> Result<Vec<u8>, ResizeError> {
    let wrong = || ResizeError { rows, cols };
    let source =
        fir::images::ImageRef::new(cols as u32, rows as u32, bytes, P::pixel_type()).map_err(|_| wrong())?;
    let mut picture = fir::images::Image::new(size, size, P::pixel_type());
    let options = fir::ResizeOptions::new()
        .resize_alg(fir::ResizeAlg::Convolution(fir::FilterType::Bilinear))
        .crop(region.left, region.top, region.right - region.left, region.bottom - region.top);
    let source = source.typed_image::<P>().ok_or_else(wrong)?;
    let mut target = picture.typed_image_mut::<P>().ok_or_else(wrong)?;
    fir::Resizer::new().resize_typed(&source, &mut target, &options).map_err(|_| wrong())?;
    Ok(picture.into_vec())
}

/// Widens an image with `fill` so that the region lies within it.
fn within<T: Copy>(image: &Image<T>, region: Region, fill: T) -> (std::borrow::Cow<'_, Image<T>>, Region) {
    let outside = |beyond: f64| beyond.max(0.0).ceil() as usize;
    let (above, before) = (outside(-region.top), outside(-region.left));
    let (below, behind) =
        (outside(region.bottom - image.rows as f64 - 1e-6), outside(region.right - image.cols as f64 - 1e-6));
    if above + before + below + behind == 0 {
        // Rounding may put a whole-image region a hair outside.
        let region = Region {
            top: region.top.max(0.0),
            left: region.left.max(0.0),
            bottom: region.bottom.min(image.rows as f64),
            right: region.right.min(image.cols as f64),
        };
        return (std::borrow::Cow::Borrowed(image), region);
    }
    let (rows, cols) = (image.rows + above + below, image.cols + before + behind);
    let mut values = vec![fill; rows * cols];
    for (y, row) in image.values.chunks_exact(image.cols).enumerate() {
        values[(y + above) * cols + before..][..image.cols].copy_from_slice(row);
    }
    let (down, right) = (above as f64, before as f64);
    let region = Region {
        top: region.top + down,
        left: region.left + right,
        bottom: (region.bottom + down).min(rows as f64),
        right: (region.right + right).min(cols as f64),
    };
    (std::borrow::Cow::Owned(Image { rows, cols, values }), region)
}

#[cfg(test)]
mod tests {
    use super::*;
    use diag_data::units::Mm;

    fn spacing(row: f64, col: f64) -> Spacing {
        Spacing { row: Mm(row), col: Mm(col) }
    }

    #[test]
    fn a_square_image_is_taken_whole() {
        let whole = Region::whole(512, 512);
        assert_eq!(square(whole, spacing(0.7, 0.7), false), whole);
    }

    #[test]
    fn long_pixels_make_a_square_in_millimetres() {
        let region = square(Region::whole(100, 100), spacing(2.0, 1.0), false);
        assert_eq!((region.top, region.bottom), (0.0, 100.0));
        assert_eq!((region.left, region.right), (-50.0, 150.0));
    }

    #[test]
    fn what_lies_beyond_the_image_is_filled() {
        let image = Image { rows: 4, cols: 2, values: vec![200u8; 8] };
        let picture = resize_grey(&image, square(Region::whole(4, 2), spacing(1.0, 1.0), false), 4).unwrap();
        assert_eq!(picture, [0, 200, 200, 0].repeat(4));
    }

    #[test]
    fn a_fine_pattern_becomes_its_mean_not_a_sample() {
        let values = (0..64 * 64).map(|i| if (i / 64 + i) % 2 == 0 { 0 } else { 255u8 }).collect();
        let image = Image { rows: 64, cols: 64, values };
        let picture = resize_grey(&image, Region::whole(64, 64), 8).unwrap();
        assert!(picture.iter().all(|grey| (126..=129).contains(grey)), "{picture:?}");
    }
}
