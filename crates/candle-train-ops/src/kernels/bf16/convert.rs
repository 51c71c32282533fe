//! Rounds f32 blocks of 16 channels to bf16 (to nearest, ties to even) in the orders
//! that the products want.

use std::arch::x86_64::{
    __m256bh, __m256i, __m512bh, __m512i, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_cvtneps_pbh,
    _mm512_loadu_ps, _mm512_or_si512, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_i32x4,
    _mm512_slli_epi32, _mm512_storeu_si512, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
};

use super::{DEPTH, Session};
use crate::activation::BLOCK;

/// Two blocks side by side: `[pixel][32]` from every `step`th pixel of `[pixel][16]`
/// each; an empty second block stands for zeros. The session proves that the processor
/// can.
pub(crate) fn pixel_major(_: &Session, to: &mut [u16], low: &[f32], high: &[f32], step: usize) {
    let n_pixels = to.len() / DEPTH;
    let end = (n_pixels.max(1) - 1) * step * BLOCK + BLOCK;
    assert!(end <= low.len() && (high.is_empty() || end <= high.len()), "blocks end before the pixels");
    // SAFETY: the assert bounds the blocks, and a session exists only with AVX512-BF16.
    unsafe { pixel_major_512(to, low, high, step) }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pixel_major_512(to: &mut [u16], low: &[f32], high: &[f32], step: usize) {
    for (pixel, to) in to.chunks_exact_mut(DEPTH).enumerate() {
        let at = pixel * step * BLOCK;
        // SAFETY: `pixel_major` bounded the blocks; `to` holds 32 numbers.
        unsafe {
            let first = _mm512_loadu_ps(low.as_ptr().add(at));
            let second =
                if high.is_empty() { _mm512_setzero_ps() } else { _mm512_loadu_ps(high.as_ptr().add(at)) };
            let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
            _mm512_storeu_si512(to.as_mut_ptr().cast(), both);
        }
    }
}

/// Pairs of pixels: `[pixel / 2][16][2]` from `[pixel][16]`, an even number of pixels.
pub(crate) fn pairs(_: &Session, to: &mut [u16], from: &[f32]) {
    assert!(to.len() == from.len() && from.len().is_multiple_of(2 * BLOCK), "half a pair");
    // SAFETY: the lengths agree, and a session exists only with AVX512-BF16.
    unsafe { pairs_512(to, from) }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pairs_512(to: &mut [u16], from: &[f32]) {
    for (to, from) in to.chunks_exact_mut(DEPTH).zip(from.chunks_exact(2 * BLOCK)) {
        // SAFETY: both chunks hold 32 numbers.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), pair(from.as_ptr())) };
    }
}

/// Sixteen channels of two pixels, each channel's two numbers side by side.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn pair(from: *const f32) -> __m512i {
    // SAFETY: the caller's 32 numbers are readable; the types are 256 bits each.
    unsafe {
        let widen =
            |values: __m256bh| _mm512_cvtepu16_epi32(std::mem::transmute::<__m256bh, __m256i>(values));
        let first = widen(_mm512_cvtneps_pbh(_mm512_loadu_ps(from)));
        let second = widen(_mm512_cvtneps_pbh(_mm512_loadu_ps(from.add(BLOCK))));
        _mm512_or_si512(first, _mm512_slli_epi32::<16>(second))
    }
}

/// Channels one after the other: `[16][pixel]` with rows `row` apart from
/// `[pixel][16]`, a multiple of 32 pixels.
pub(crate) fn channel_major(_: &Session, to: &mut [u16], row: usize, from: &[f32]) {
    let n_pixels = from.len() / BLOCK;
    assert!(
        from.len().is_multiple_of(DEPTH * BLOCK) && n_pixels <= row && 15 * row + n_pixels <= to.len(),
        "rows leave their slice"
    );
    // SAFETY: the assert bounds the rows, and a session exists only with AVX512-BF16.
    unsafe { channel_major_512(to, row, from) }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn channel_major_512(to: &mut [u16], row: usize, from: &[f32]) {
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
