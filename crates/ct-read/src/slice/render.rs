//! HU to the stored picture: window, crop to a square in millimetres, resize.

use std::cell::Cell;
use std::rc::Rc;

use diag_data::units::{HuWindow, Spacing};
use pulp::{Arch, NullaryFnOnce};

use crate::slice::lung::Region;

/// Margin around the body or the lungs, so that the edge is seen.
const MARGIN_MM: f64 = 10.0;
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
    // Grey levels are not negative: cutting after adding a half rounds to nearest. Through i32,
    // since many of those are cut at once.
    resized(&image, region, size, |grey| (grey + 0.5) as i32 as u8)
}

/// Resizes HU to `size` x `size`, rounded to whole units.
///
/// # Errors
/// When the image is empty or the region has no area.
pub fn resize_hu(image: &Image<f32>, region: Region, size: u32) -> Result<Vec<i16>, ResizeError> {
    let (image, region) = within(image, region, -1024.0);
    resized(&image, region, size, |hu| hu.round() as i16)
}

/// The grey level of each HU that a window makes.
pub fn grey_level(window: HuWindow) -> impl Fn(f32) -> u8 {
    move |hu| window.grey(diag_data::units::Hu(hu))
}

fn resized<T: Copy + Into<f32>, U>(
    image: &Image<T>,
    region: Region,
    size: u32,
    finish: impl Fn(f32) -> U,
) -> Result<Vec<U>, ResizeError> {
    let Image { rows, cols, ref values } = *image;
    let (height, width) = (region.bottom - region.top, region.right - region.left);
    let is_sound = height > 0.0 && width > 0.0 && rows * cols > 0 && values.len() == rows * cols && size > 0;
    if !is_sound {
        return Err(ResizeError { rows, cols });
    }
    let filter = Filter::of(Extent { region, rows, cols, size: size as usize });
    Ok(Arch::new().dispatch(Resize { values, cols, filter: &filter, finish }))
}

/// What a filter follows from.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Extent {
    region: Region,
    rows: usize,
    cols: usize,
    size: usize,
}

/// How source pixels make up the pixels of a picture. The slices of a stack share one.
#[derive(Debug)]
struct Filter {
    extent: Extent,
    downwards: Vec<Taps>,
    across: Vec<Stripe>,
}

impl Filter {
    /// The latest of this thread, where that is the wanted one.
    fn of(extent: Extent) -> Rc<Self> {
        thread_local! {
            /// To make one anew costs half as much as to apply it.
            static LATEST: Cell<Option<Rc<Filter>>> = const { Cell::new(None) };
        }
        let filter = LATEST.take().filter(|latest| latest.extent == extent).unwrap_or_else(|| {
            let Extent { region, rows, cols, size } = extent;
            let downwards = taps(region.top, region.bottom - region.top, rows, size);
            let across = Stripe::across(&taps(region.left, region.right - region.left, cols, size));
            Rc::new(Self { extent, downwards, across })
        });
        LATEST.set(Some(Rc::clone(&filter)));
        filter
    }
}

/// The source pixels of one line that make one pixel: the first one, and the weight of each.
#[derive(Debug)]
struct Taps {
    first: usize,
    weights: Vec<f32>,
}

/// Taps of `size` pixels over `length` source pixels from `start` on, of a line of `limit`:
/// a triangle, as wide as two source pixels, or as two pixels where those are larger.
fn taps(start: f64, length: f64, limit: usize, size: usize) -> Vec<Taps> {
    let step = length / size as f64;
    let reach = step.max(1.0);
    let one = |i: usize| {
        let centre = start + (i as f64 + 0.5) * step;
        let first = ((centre - reach).floor().max(0.0) as usize).min(limit - 1);
        let end = ((centre + reach).ceil() as usize).clamp(first + 1, limit);
        let weight = |at: usize| (1.0 - ((at as f64 + 0.5 - centre) / reach).abs()).max(0.0);
        let sum: f64 = (first..end).map(weight).sum();
        let weights = (first..end).map(|at| (weight(at) / sum.max(f64::MIN_POSITIVE)) as f32);
        Taps { first, weights: weights.collect() }
    };
    (0..size).map(one).collect()
}

/// Pixels of a row that are made side by side.
const STRIPE: usize = 8;
/// Rows that are made side by side.
const AT_ONCE: usize = 4;

/// The taps of [`STRIPE`] neighbouring pixels: for each source pixel from the first on, its
/// weight in each of them. Most are 0, and all of them at once still cost less than one by one.
#[derive(Debug)]
struct Stripe {
    first: usize,
    weights: Vec<[f32; STRIPE]>,
}

impl Stripe {
    fn across(taps: &[Taps]) -> Vec<Self> {
        let stripe = |taps: &[Taps]| {
            let first = taps.iter().map(|one| one.first).min().unwrap_or(0);
            let end = taps.iter().map(|one| one.first + one.weights.len()).max().unwrap_or(first);
            let mut weights = vec![[0.0; STRIPE]; end - first];
            for (lane, one) in taps.iter().enumerate() {
                for (k, weight) in one.weights.iter().enumerate() {
                    weights[one.first - first + k][lane] = *weight;
                }
            }
            Self { first, weights }
        };
        taps.chunks(STRIPE).map(stripe).collect()
    }
}

/// Downwards first, then across: so the second, dearer way sees fewer rows. Compiled for
/// the vector instructions of several processors, which all give the same bits: products
/// are rounded before they are added, in one order.
struct Resize<'a, T, F> {
    values: &'a [T],
    cols: usize,
    filter: &'a Filter,
    finish: F,
}

impl<T: Copy + Into<f32>, U, F: Fn(f32) -> U> NullaryFnOnce for Resize<'_, T, F> {
    type Output = Vec<U>;

    #[inline(always)]
    fn call(self) -> Vec<U> {
        let Self { values, cols, filter, finish } = self;
        let Filter { downwards, across, .. } = filter;
        let size = filter.extent.size;
        let mut picture = Vec::with_capacity(size * size);
        let mut rows = vec![0.0f32; AT_ONCE * cols];
        let mut lines = vec![[0.0f32; STRIPE]; AT_ONCE * across.len()];
        for some in downwards.chunks(AT_ONCE) {
            for (taps, row) in some.iter().zip(rows.chunks_exact_mut(cols)) {
                reduce_rows(&values[taps.first * cols..], &taps.weights, row);
            }
            reduce_columns(&rows, cols, across, &mut lines);
            for line in lines.chunks_exact(across.len()).take(some.len()) {
                picture.extend(line.as_flattened()[..size].iter().map(|sum| finish(*sum)));
            }
        }
        picture
    }
}

/// Sums the first rows of `values`, each with its weight, into `row`.
#[inline(always)]
fn reduce_rows<T: Copy + Into<f32>>(values: &[T], weights: &[f32], row: &mut [f32]) {
    const TILE: usize = 32;
    let cols = row.len();
    let sources = || values.chunks_exact(cols).zip(weights);
    let (tiles, rest) = row.as_chunks_mut::<TILE>();
    for (i, tile) in tiles.iter_mut().enumerate() {
        // In registers: added up in place, every sum would pass through memory.
        let mut sums = [0.0; TILE];
        for (source, weight) in sources() {
            let source = &source.as_chunks::<TILE>().0[i];
            for lane in 0..TILE {
                sums[lane] += weight * source[lane].into();
            }
        }
        *tile = sums;
    }
    let from = cols - rest.len();
    for (i, sum) in rest.iter_mut().enumerate() {
        *sum = sources().fold(0.0, |sum, (source, weight)| sum + weight * source[from + i].into());
    }
}

/// Makes the pixels of [`AT_ONCE`] lines from as many rows of `cols` values.
#[inline(always)]
fn reduce_columns(rows: &[f32], cols: usize, across: &[Stripe], lines: &mut [[f32; STRIPE]]) {
    for (i, stripe) in across.iter().enumerate() {
        let values: [&[f32]; AT_ONCE] =
            std::array::from_fn(|line| &rows[line * cols + stripe.first..][..stripe.weights.len()]);
        // Several rows side by side, since each addition waits for the one before.
        let mut sums = [[0.0; STRIPE]; AT_ONCE];
        for (k, weights) in stripe.weights.iter().enumerate() {
            for line in 0..AT_ONCE {
                for lane in 0..STRIPE {
                    sums[line][lane] += values[line][k] * weights[lane];
                }
            }
        }
        for line in 0..AT_ONCE {
            lines[line * across.len() + i] = sums[line];
        }
    }
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
