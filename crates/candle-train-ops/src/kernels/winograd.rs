//! The three transforms of Winograd's F(4x4, 3x3), sixteen channels at a time
//! (Lavin and Gray 2016, with their matrices B, G and A).

use crate::{
    activation::BLOCK,
    element::Element,
    kernels::{
        lanes::{Bounds, Lanes},
        multiversion,
    },
};

/// Pixels of a transformed tile along one axis.
pub(crate) const TILE: usize = 6;

/// Output pixels of a tile along one axis; tiles overlap by the other two.
pub(crate) const STEP: usize = 4;

/// Products per tile.
pub(crate) const N_PRODUCTS: usize = TILE * TILE;

/// A row of tiles in one channel block.
#[derive(Clone, Copy)]
pub(crate) struct TileRow {
    pub n_tiles: usize,
    /// Numbers from one image row to the next.
    pub image_row: usize,
    /// Numbers from one product to the next of the same tile.
    pub product_stride: usize,
}

/// One column or row of `B^T d B`.
#[inline(always)]
fn input_axis<T: Element>(d: [Lanes<T>; TILE]) -> [Lanes<T>; TILE] {
    let mut v = [[T::zero(); BLOCK]; TILE];
    let (two, four, five) = (T::from_f64(2.0), T::from_f64(4.0), T::from_f64(5.0));
    for lane in 0..BLOCK {
        let [d0, d1, d2, d3, d4, d5] = [0, 1, 2, 3, 4, 5].map(|i| d[i][lane]);
        v[0][lane] = four * d0 - five * d2 + d4;
        v[1][lane] = (d4 - four * d2) + (d3 - four * d1);
        v[2][lane] = (d4 - four * d2) - (d3 - four * d1);
        v[3][lane] = (d4 - d2) + two * (d3 - d1);
        v[4][lane] = (d4 - d2) - two * (d3 - d1);
        v[5][lane] = four * d1 - five * d3 + d5;
    }
    v
}

/// One column or row of `G g G^T`.
#[inline(always)]
fn weight_axis<T: Element>(g: [Lanes<T>; 3]) -> [Lanes<T>; TILE] {
    let mut u = [[T::zero(); BLOCK]; TILE];
    let fraction = |denominator: f64| T::from_f64(1.0 / denominator);
    let (quarter, sixth) = (fraction(4.0), fraction(6.0));
    let (twelfth, twenty_fourth) = (fraction(12.0), fraction(24.0));
    for lane in 0..BLOCK {
        let [g0, g1, g2] = [0, 1, 2].map(|i| g[i][lane]);
        u[0][lane] = quarter * g0;
        u[1][lane] = T::zero() - sixth * (g0 + g2) - sixth * g1;
        u[2][lane] = sixth * g1 - sixth * (g0 + g2);
        u[3][lane] = (twenty_fourth * g0 + sixth * g2) + twelfth * g1;
        u[4][lane] = (twenty_fourth * g0 + sixth * g2) - twelfth * g1;
        u[5][lane] = g2;
    }
    u
}

/// One column or row of `A^T m A`.
#[inline(always)]
fn output_axis<T: Element>(m: [Lanes<T>; TILE]) -> [Lanes<T>; STEP] {
    let mut y = [[T::zero(); BLOCK]; STEP];
    let (two, four, eight) = (T::from_f64(2.0), T::from_f64(4.0), T::from_f64(8.0));
    for lane in 0..BLOCK {
        let [m0, m1, m2, m3, m4, m5] = [0, 1, 2, 3, 4, 5].map(|i| m[i][lane]);
        let (sum12, difference12) = (m1 + m2, m1 - m2);
        let (sum34, difference34) = (m3 + m4, m3 - m4);
        y[0][lane] = m0 + sum12 + sum34;
        y[1][lane] = difference12 + two * difference34;
        y[2][lane] = sum12 + four * sum34;
        y[3][lane] = difference12 + eight * difference34 + m5;
    }
    y
}

#[inline(always)]
fn lanes_at<T: Element>(values: &[T], at: usize) -> Lanes<T> {
    std::array::from_fn(|lane| values[at..at + BLOCK][lane])
}

multiversion! {
    /// Transforms a row of overlapping 6x6 tiles of a padded image block.
    fn transform_input<T: Element>(row: TileRow, image: &[T], products: &mut [T]) {
        for tile in 0..row.n_tiles {
            let mut columns = [[[T::zero(); BLOCK]; TILE]; TILE];
            for x in 0..TILE {
                let column = (tile * STEP + x) * BLOCK;
                let pixels: [_; TILE] =
                    std::array::from_fn(|y| lanes_at(image, column + y * row.image_row));
                columns[x] = input_axis(pixels);
            }
            for y in 0..TILE {
                let line = input_axis(std::array::from_fn(|x| columns[x][y]));
                for x in 0..TILE {
                    let at = (y * TILE + x) * row.product_stride + tile * BLOCK;
                    products[at..at + BLOCK].copy_from_slice(&line[x]);
                }
            }
        }
    }
}

multiversion! {
    /// Transforms the 3x3 kernels of sixteen target channels, `[9][16]`.
    fn transform_weight<T: Element>(kernels: &[Lanes<T>; 9], stride: usize, products: &mut [T]) {
        let mut columns = [[[T::zero(); BLOCK]; TILE]; 3];
        for x in 0..3 {
            columns[x] = weight_axis([kernels[x], kernels[3 + x], kernels[6 + x]]);
        }
        for y in 0..TILE {
            let line = weight_axis([columns[0][y], columns[1][y], columns[2][y]]);
            for x in 0..TILE {
                let at = (y * TILE + x) * stride;
                products[at..at + BLOCK].copy_from_slice(&line[x]);
            }
        }
    }
}

/// Transforms a row of tiles back and hands every pixel inside `extent` (rows and
/// columns left) to `put`, with the place of its sixteen numbers in the image.
#[inline(always)]
fn each_output<T: Element>(
    row: TileRow,
    products: &[T],
    extent: (usize, usize),
    mut put: impl FnMut(usize, &Lanes<T>),
) {
    for tile in 0..row.n_tiles {
        let mut columns = [[[T::zero(); BLOCK]; STEP]; TILE];
        for x in 0..TILE {
            columns[x] = output_axis(std::array::from_fn(|y| {
                lanes_at(products, (y * TILE + x) * row.product_stride + tile * BLOCK)
            }));
        }
        for y in 0..extent.0.min(STEP) {
            let line = output_axis(std::array::from_fn(|x| columns[x][y]));
            for x in 0..(extent.1 - tile * STEP).min(STEP) {
                put(y * row.image_row + (tile * STEP + x) * BLOCK, &line[x]);
            }
        }
    }
}

multiversion! {
    /// Writes a row of tiles, transformed back, into an image block.
    fn write_output<T: Element>(row: TileRow, products: &[T], image: &mut [T], extent: (usize, usize)) {
        each_output(row, products, extent, |at, value| image[at..at + BLOCK].copy_from_slice(value));
    }
}

multiversion! {
    /// The same, added to the image.
    fn add_output<T: Element>(row: TileRow, products: &[T], image: &mut [T], extent: (usize, usize)) {
        each_output(row, products, extent, |at, value| {
            let pixel = &mut image[at..at + BLOCK];
            for lane in 0..BLOCK {
                pixel[lane] += value[lane];
            }
        });
    }
}

multiversion! {
    /// The same with the bias of sixteen channels, a residual unless empty, and bounds.
    fn finish_output<T: Element>(
        row: TileRow,
        products: &[T],
        image: &mut [T],
        extent: (usize, usize),
        residual: &[T],
        bias: &Lanes<T>,
        bounds: Bounds<T>,
    ) {
        let (lo, hi) = bounds;
        each_output(row, products, extent, |at, value| {
            let mut sums = *value;
            for lane in 0..BLOCK {
                sums[lane] += bias[lane];
            }
            if !residual.is_empty() {
                let residual = &residual[at..at + BLOCK];
                for lane in 0..BLOCK {
                    sums[lane] += residual[lane];
                }
            }
            for lane in 0..BLOCK {
                let value = if sums[lane] < lo { lo } else { sums[lane] };
                sums[lane] = if value > hi { hi } else { value };
            }
            image[at..at + BLOCK].copy_from_slice(&sums);
        });
    }
}
