//! Brings bf16 blocks of 16 channels, and f32 weights, into the orders that the products
//! want. A session proves that the processor has AVX512-BF16.

use std::arch::x86_64::{
    __m256bh, __m256i, __m512i, __mmask16, _mm256_loadu_si256, _mm512_castsi512_ps, _mm512_cvtepu16_epi32,
    _mm512_cvtneps_pbh, _mm512_loadu_si512, _mm512_mask_storeu_epi32, _mm512_maskz_loadu_epi32,
    _mm512_or_si512, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_slli_epi32, _mm512_storeu_si512,
    _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use half::bf16;

use super::{DEPTH, Session, TILE_LEN};
use crate::activation::BLOCK;

/// Pairs of pixels: `[pixel / 2][16][2]` from `[pixel][16]`, an even number of pixels.
pub(crate) fn pairs(_: &Session, to: &mut [bf16], from: &[bf16]) {
    assert!(to.len() == from.len() && from.len().is_multiple_of(2 * BLOCK), "half a pair");
    // SAFETY: the lengths agree, and a session exists only with AVX512-BF16.
    unsafe { pairs_512(to, from) }
}

#[target_feature(enable = "avx512f")]
unsafe fn pairs_512(to: &mut [bf16], from: &[bf16]) {
    for (to, from) in to.chunks_exact_mut(DEPTH).zip(from.chunks_exact(2 * BLOCK)) {
        // SAFETY: both chunks hold 32 numbers.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), pair(from.as_ptr())) };
    }
}

/// Sixteen channels of two pixels, each channel's two numbers side by side.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn pair(from: *const bf16) -> __m512i {
    // SAFETY: the caller's 32 numbers are readable.
    unsafe {
        let first = _mm256_loadu_si256(from.cast());
        let second = _mm256_loadu_si256(from.add(BLOCK).cast());
        interleave(first, second)
    }
}

/// The numbers of two registers in turns.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn interleave(first: __m256i, second: __m256i) -> __m512i {
    let (first, second) = (_mm512_cvtepu16_epi32(first), _mm512_cvtepu16_epi32(second));
    _mm512_or_si512(first, _mm512_slli_epi32::<16>(second))
}

/// Channels one after the other: `[16][pixel]` with rows `row` apart from
/// `[pixel][16]`, a multiple of 32 pixels.
pub(crate) fn channel_major(_: &Session, to: &mut [bf16], row: usize, from: &[bf16]) {
    let n_pixels = from.len() / BLOCK;
    assert!(
        from.len().is_multiple_of(DEPTH * BLOCK) && n_pixels <= row && 15 * row + n_pixels <= to.len(),
        "rows leave their slice"
    );
    // SAFETY: the assert bounds the rows, and a session exists only with AVX512-BF16.
    unsafe { channel_major_512(to, row, from) }
}

#[target_feature(enable = "avx512f")]
unsafe fn channel_major_512(to: &mut [bf16], row: usize, from: &[bf16]) {
    for (group, from) in from.chunks_exact(DEPTH * BLOCK).enumerate() {
        // SAFETY: `from` holds 16 pairs of pixels, and `channel_major` bounded the rows.
        unsafe {
            let mut lines = [_mm512_setzero_si512(); 16];
            for (index, line) in lines.iter_mut().enumerate() {
                *line = pair(from.as_ptr().add(index * 2 * BLOCK));
            }
            for (channel, line) in transpose(lines).into_iter().enumerate() {
                _mm512_storeu_si512(to.as_mut_ptr().add(channel * row + group * DEPTH).cast(), line);
            }
        }
    }
}

/// Numbers of a kernel that a register holds.
const TAPS: usize = 16;

/// The register lanes of `n` numbers.
fn first_lanes(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}

/// Rounds the kernels of sixteen targets, `taps` numbers each and `row` apart, of two
/// sources: every tap's sixteen pairs go to one row of its tile, tiles one after the other.
pub(crate) fn pack_taps(_: &Session, to: &mut [bf16], sources: [&[f32]; 2], row: usize, taps: usize) {
    let kernels = (BLOCK - 1) * row + taps;
    assert!(
        taps > 0
            && sources.iter().all(|source| kernels <= source.len())
            && (taps - 1) * TILE_LEN + DEPTH <= to.len(),
        "kernels leave their slices"
    );
    // SAFETY: the assert bounds the kernels and the tiles, and a session exists only with
    // AVX512-BF16.
    unsafe { pack_taps_512(to, sources, row, taps) }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pack_taps_512(to: &mut [bf16], sources: [&[f32]; 2], row: usize, taps: usize) {
    for start in (0..taps).step_by(TAPS) {
        let n = TAPS.min(taps - start);
        // SAFETY: `n` numbers from here on belong to each target's kernel.
        let columns = sources.map(|source| unsafe { kernels_by_tap(source.as_ptr().add(start), row, n) });
        for tap in 0..n {
            let [first, second] = [0, 1].map(|source| _mm512_castsi512_ps(columns[source][tap]));
            // SAFETY: both types are 256 bits, and `pack_taps` bounded the rows of all tiles.
            unsafe {
                let first = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(first));
                let second = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(second));
                let to = to.as_mut_ptr().add((start + tap) * TILE_LEN);
                _mm512_storeu_si512(to.cast(), interleave(first, second));
            }
        }
    }
}

/// The first `n` numbers, at most 16, of sixteen kernels, `row` apart: those of all kernels
/// at one tap in one register.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn kernels_by_tap(kernels: *const f32, row: usize, n: usize) -> [__m512i; 16] {
    let mut lines = [_mm512_setzero_si512(); 16];
    for (target, line) in lines.iter_mut().enumerate() {
        // SAFETY: the caller's `n` numbers of each kernel are readable.
        *line = unsafe { _mm512_maskz_loadu_epi32(first_lanes(n), kernels.add(target * row).cast()) };
    }
    transpose(lines)
}

/// The kernels of sixteen targets, `row` apart, from sixteen numbers per tap, `step` apart.
pub(crate) fn unpack_taps(_: &Session, to: &mut [f32], row: usize, from: &[f32], step: usize, taps: usize) {
    assert!(
        (1..=row).contains(&taps)
            && (BLOCK - 1) * row + taps <= to.len()
            && (taps - 1) * step + BLOCK <= from.len(),
        "kernels leave their slices"
    );
    // SAFETY: the assert bounds both, and a session exists only with AVX512-BF16.
    unsafe { unpack_taps_512(to, row, from, step, taps) }
}

#[target_feature(enable = "avx512f")]
unsafe fn unpack_taps_512(to: &mut [f32], row: usize, from: &[f32], step: usize, taps: usize) {
    for start in (0..taps).step_by(TAPS) {
        let n = TAPS.min(taps - start);
        // SAFETY: `unpack_taps` bounded the taps and the kernels.
        unsafe {
            let mut lines = [_mm512_setzero_si512(); 16];
            for (tap, line) in lines[..n].iter_mut().enumerate() {
                *line = _mm512_loadu_si512(from.as_ptr().add((start + tap) * step).cast());
            }
            for (target, line) in transpose(lines).into_iter().enumerate() {
                let kernel = to.as_mut_ptr().add(target * row + start);
                _mm512_mask_storeu_epi32(kernel.cast(), first_lanes(n), line);
            }
        }
    }
}

/// Transposes 16 x 16 numbers of 32 bits.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(lines: [__m512i; 16]) -> [__m512i; 16] {
    let mut a = lines;
    let mut b = lines;
    for pair in 0..8 {
        let (first, second) = (lines[2 * pair], lines[2 * pair + 1]);
        a[2 * pair] = _mm512_unpacklo_epi32(first, second);
        a[2 * pair + 1] = _mm512_unpackhi_epi32(first, second);
    }
    for quad in 0..4 {
        let [r0, r1, r2, r3] = [0, 1, 2, 3].map(|i| a[4 * quad + i]);
        b[4 * quad] = _mm512_unpacklo_epi64(r0, r2);
        b[4 * quad + 1] = _mm512_unpackhi_epi64(r0, r2);
        b[4 * quad + 2] = _mm512_unpacklo_epi64(r1, r3);
        b[4 * quad + 3] = _mm512_unpackhi_epi64(r1, r3);
    }
    // Now register 4 q + c holds columns c, c + 4, c + 8, c + 12 of rows 4 q to 4 q + 3,
    // 128 bits each.
    for column in 0..4 {
        let [q0, q1, q2, q3] = [0, 1, 2, 3].map(|quad| b[4 * quad + column]);
        let even_01 = _mm512_shuffle_i32x4::<0b10_00_10_00>(q0, q1);
        let odd_01 = _mm512_shuffle_i32x4::<0b11_01_11_01>(q0, q1);
        let even_23 = _mm512_shuffle_i32x4::<0b10_00_10_00>(q2, q3);
        let odd_23 = _mm512_shuffle_i32x4::<0b11_01_11_01>(q2, q3);
        a[column] = _mm512_shuffle_i32x4::<0b10_00_10_00>(even_01, even_23);
        a[column + 8] = _mm512_shuffle_i32x4::<0b11_01_11_01>(even_01, even_23);
        a[column + 4] = _mm512_shuffle_i32x4::<0b10_00_10_00>(odd_01, odd_23);
        a[column + 12] = _mm512_shuffle_i32x4::<0b11_01_11_01>(odd_01, odd_23);
    }
    a
}
