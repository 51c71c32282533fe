//! The three transforms of Winograd's F(2x2, 3x3), sixteen channels at a time (Lavin and
//! Gray 2016, with their matrices B, G and A), in f32 between bf16 factors.

use std::arch::x86_64::{
    __m256bh, __m256i, __m512, _mm256_loadu_si256, _mm256_storeu_si256, _mm512_add_ps, _mm512_castsi512_ps,
    _mm512_cvtepu16_epi32, _mm512_cvtneps_pbh, _mm512_loadu_ps, _mm512_mul_ps, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_slli_epi32, _mm512_storeu_ps, _mm512_storeu_si512, _mm512_sub_ps,
};

use half::bf16;

use super::{
    DEPTH, Session,
    convert::{interleave, kernels_by_tap},
};
use crate::activation::BLOCK;

/// Pixels of a transformed tile along one axis.
pub(crate) const TILE: usize = 4;

/// Output pixels of a tile along one axis; tiles overlap by the other two.
pub(crate) const STEP: usize = 2;

/// Products per tile.
pub(crate) const N_PRODUCTS: usize = TILE * TILE;

/// Numbers of a 3x3 kernel.
const TAPS: usize = 9;

/// A row of tiles; strides count numbers.
#[derive(Clone, Copy)]
pub(crate) struct TileRow {
    pub n_tiles: usize,
    /// From one product to the next of the same tile.
    pub product_stride: usize,
}

impl TileRow {
    /// Transforms overlapping 4x4 tiles of a padded image block, whose rows are `image_row`
    /// apart, into one half of `[product][tile][32]`.
    pub(crate) fn input(self, _: &Session, image: &[bf16], image_row: usize, to: &mut [bf16]) {
        let width = (self.n_tiles * STEP + TILE - STEP) * BLOCK;
        assert!(
            self.n_tiles > 0
                && (TILE - 1) * image_row + width <= image.len()
                && (N_PRODUCTS - 1) * self.product_stride + (self.n_tiles - 1) * DEPTH + BLOCK <= to.len(),
            "a row of tiles leaves its slices"
        );
        // SAFETY: the assert bounds every access, and a session exists only with AVX512-BF16.
        unsafe { self.input_512(image.as_ptr(), image_row, to.as_mut_ptr()) }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn input_512(self, image: *const bf16, image_row: usize, to: *mut bf16) {
        // SAFETY: `input` bounded the tiles and their products.
        unsafe {
            let column = |x: usize| {
                let pixel = image.add(x * BLOCK);
                input_axis([0, 1, 2, 3].map(|y| widen(pixel.add(y * image_row))))
            };
            let mut columns =
                [column(0), column(1), [_mm512_setzero_ps(); TILE], [_mm512_setzero_ps(); TILE]];
            for tile in 0..self.n_tiles {
                columns[2] = column(tile * STEP + 2);
                columns[3] = column(tile * STEP + 3);
                for y in 0..TILE {
                    let line = input_axis([0, 1, 2, 3].map(|x| columns[x][y]));
                    for (x, value) in line.into_iter().enumerate() {
                        let at = (y * TILE + x) * self.product_stride + tile * DEPTH;
                        _mm256_storeu_si256(to.add(at).cast(), narrow(value));
                    }
                }
                (columns[0], columns[1]) = (columns[2], columns[3]);
            }
        }
    }

    /// Transforms the products of one target block, `[product][tile][16]`, back into two
    /// rows of pixels, `[2][tile][2][16]`.
    pub(crate) fn output(self, _: &Session, products: &[f32], rows: &mut [f32]) {
        let row_len = self.n_tiles * STEP * BLOCK;
        assert!(
            (N_PRODUCTS - 1) * self.product_stride + self.n_tiles * BLOCK <= products.len()
                && STEP * row_len <= rows.len(),
            "a row of tiles leaves its slices"
        );
        // SAFETY: the assert bounds every access, and a session exists only with AVX512-BF16.
        unsafe { self.output_512(products.as_ptr(), rows.as_mut_ptr()) }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn output_512(self, products: *const f32, rows: *mut f32) {
        // SAFETY: `output` bounded the products and the pixels.
        unsafe {
            for tile in 0..self.n_tiles {
                let product = |y: usize, x: usize| {
                    _mm512_loadu_ps(products.add((y * TILE + x) * self.product_stride + tile * BLOCK))
                };
                let columns = [0, 1, 2, 3].map(|x| output_axis([0, 1, 2, 3].map(|y| product(y, x))));
                for y in 0..STEP {
                    let line = output_axis([0, 1, 2, 3].map(|x| columns[x][y]));
                    for (x, value) in line.into_iter().enumerate() {
                        let pixel = (y * self.n_tiles + tile) * STEP + x;
                        _mm512_storeu_ps(rows.add(pixel * BLOCK), value);
                    }
                }
            }
        }
    }
}

/// Transforms the 3x3 kernels of sixteen targets, `row` apart, of two sources: every
/// product's sixteen pairs go to one row of its tile, tiles `product_stride` apart.
/// `mirrored` turns the kernels round.
pub(crate) fn pack_kernels(
    _: &Session,
    to: &mut [bf16],
    sources: [&[f32]; 2],
    row: usize,
    product_stride: usize,
    mirrored: bool,
) {
    assert!(
        sources.iter().all(|source| (BLOCK - 1) * row + TAPS <= source.len())
            && (N_PRODUCTS - 1) * product_stride + DEPTH <= to.len(),
        "kernels leave their slices"
    );
    // SAFETY: the assert bounds every access, and a session exists only with AVX512-BF16.
    unsafe { pack_kernels_512(to.as_mut_ptr(), sources, row, product_stride, mirrored) }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pack_kernels_512(
    to: *mut bf16,
    sources: [&[f32]; 2],
    row: usize,
    product_stride: usize,
    mirrored: bool,
) {
    // SAFETY: `pack_kernels` bounded the kernels and the tiles.
    unsafe {
        let mut products = [[_mm512_setzero_ps(); N_PRODUCTS]; 2];
        for (source, products) in sources.iter().zip(&mut products) {
            let lines = kernels_by_tap(source.as_ptr(), row, TAPS);
            let tap = |y: usize, x: usize| {
                let tap = 3 * y + x;
                _mm512_castsi512_ps(lines[if mirrored { TAPS - 1 - tap } else { tap }])
            };
            let columns = [0, 1, 2].map(|x| kernel_axis([tap(0, x), tap(1, x), tap(2, x)]));
            for y in 0..TILE {
                let line = kernel_axis([0, 1, 2].map(|x| columns[x][y]));
                products[y * TILE..][..TILE].copy_from_slice(&line);
            }
        }
        for product in 0..N_PRODUCTS {
            let [first, second] = [0, 1].map(|source| narrow(products[source][product]));
            _mm512_storeu_si512(to.add(product * product_stride).cast(), interleave(first, second));
        }
    }
}

/// One column or row of `B^T d B`.
#[inline]
#[target_feature(enable = "avx512f")]
fn input_axis(d: [__m512; TILE]) -> [__m512; TILE] {
    let [d0, d1, d2, d3] = d;
    [_mm512_sub_ps(d0, d2), _mm512_add_ps(d1, d2), _mm512_sub_ps(d2, d1), _mm512_sub_ps(d1, d3)]
}

/// One column or row of `G g G^T`.
#[inline]
#[target_feature(enable = "avx512f")]
fn kernel_axis(g: [__m512; 3]) -> [__m512; TILE] {
    let [g0, g1, g2] = g;
    let (half, ends) = (_mm512_set1_ps(0.5), _mm512_add_ps(g0, g2));
    let sum = _mm512_mul_ps(half, _mm512_add_ps(ends, g1));
    let difference = _mm512_mul_ps(half, _mm512_sub_ps(ends, g1));
    [g0, sum, difference, g2]
}

/// One column or row of `A^T m A`.
#[inline]
#[target_feature(enable = "avx512f")]
fn output_axis(m: [__m512; TILE]) -> [__m512; STEP] {
    let [m0, m1, m2, m3] = m;
    let (sum, difference) = (_mm512_add_ps(m1, m2), _mm512_sub_ps(m1, m2));
    [_mm512_add_ps(m0, sum), _mm512_sub_ps(difference, m3)]
}

/// Sixteen numbers in f32.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn widen(from: *const bf16) -> __m512 {
    // SAFETY: the caller's 16 numbers are readable.
    let bits = unsafe { _mm256_loadu_si256(from.cast()) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
}

/// Sixteen numbers rounded.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn narrow(values: __m512) -> __m256i {
    // SAFETY: both types are 256 bits.
    unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values)) }
}
