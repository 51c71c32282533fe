//! Products of bf16 numbers with f32 sums: tiles of AMX where the processor has
//! them, otherwise the dot products of AVX512-BF16. Both take the same operands: a
//! tile is 16 rows of 32 bf16, or 16 rows of 16 pairs.
#![expect(unsafe_code, reason = "processor intrinsics and tile instructions on raw pointers")]
#![expect(clippy::needless_range_loop, reason = "indices name rows and blocks of one tile at once")]

mod convert;
mod session;
pub(crate) mod winograd;

use std::arch::{
    asm,
    x86_64::{
        __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32,
        _mm512_setzero_ps, _mm512_storeu_ps,
    },
};

pub(crate) use convert::{channel_major, pack_taps, pairs, unpack_taps};
#[cfg(test)]
pub(crate) use session::engines;
pub(crate) use session::{Engine, Session, engine};

use half::bf16;

use super::direct::next_wide_tile;
use crate::activation::BLOCK;
use session::{load_tile, store_tile};

/// bf16 numbers under one step of a product: the channels of a pixel, or the pixels
/// of a channel.
pub(crate) const DEPTH: usize = 32;

/// bf16 numbers of a tile.
pub(crate) const TILE_LEN: usize = 16 * DEPTH;

/// Rows of a target written together.
pub(crate) const ROWS: usize = 32;

/// Pixels of a row that AVX512-BF16 takes at once: whole tiles in the usual widths of 7,
/// 14, 28 and 56.
pub(crate) const DOT_PIXELS: usize = 28;

/// Channels whose sums of two blocks stay in registers.
const DOT_ROWS: usize = 8;

/// One pixel of a kernel: how far its input and its weight tile lie from the first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tap {
    pub source: usize,
    pub weight: usize,
}

/// A correlation of neighbouring pixels with one or two blocks of 16 targets; all
/// strides count bf16 numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Correlate<'a> {
    pub taps: &'a [Tap],
    /// Blocks of 32 source channels.
    pub n_blocks: usize,
    pub source_block: usize,
    pub weight_block: usize,
    /// From the weights of one target block to those of the next.
    pub weight_target: usize,
    /// 1 or 2.
    pub n_targets: usize,
    /// Pixels wanted, at most [`ROWS`].
    pub n_pixels: usize,
}

/// The sums of up to two target blocks, `[target][pixel][16]`.
pub(crate) type Sums = [[[f32; BLOCK]; ROWS]; 2];

impl Correlate<'_> {
    /// Reads [`ROWS`] pixels of 32 numbers from every tap on, even where fewer are wanted.
    pub(crate) fn run(&self, session: &Session, source: &[bf16], weight: &[bf16], sums: &mut Sums) {
        let (last_source, last_weight) = self.ends(ROWS);
        assert!(
            last_source <= source.len()
                && last_weight <= weight.len()
                && (1..=2).contains(&self.n_targets)
                && self.n_pixels <= ROWS,
            "correlation leaves its slices: {self:?}"
        );
        let (source, weight) = (source.as_ptr().cast(), weight.as_ptr().cast());
        // SAFETY: the assert bounds every access; the session's engine exists.
        unsafe {
            match (session.engine, self.n_pixels <= ROWS / 2, self.n_targets) {
                (Engine::Tiles, false, 2) => self.tiles::<true, true>(source, weight, sums),
                (Engine::Tiles, false, _) => self.tiles::<true, false>(source, weight, sums),
                (Engine::Tiles, true, 2) => self.tiles::<false, true>(source, weight, sums),
                (Engine::Tiles, true, _) => self.tiles::<false, false>(source, weight, sums),
                (Engine::Dots, _, 2) => {
                    self.dots::<2>(source, weight, sums.as_mut_ptr().cast(), ROWS * BLOCK)
                }
                (Engine::Dots, ..) => self.dots::<1>(source, weight, sums.as_mut_ptr().cast(), ROWS * BLOCK),
            }
        }
    }

    /// As [`run`](Self::run) for any number of pixels, which alone are read; the sums of the
    /// targets are `sums_target` apart, `[pixel][16]` each. Without tiles of AMX.
    pub(crate) fn run_long(
        &self,
        session: &Session,
        source: &[bf16],
        weight: &[bf16],
        sums: &mut [f32],
        sums_target: usize,
    ) {
        let (last_source, last_weight) = self.ends(self.n_pixels);
        let last_sum = (self.n_targets - 1) * sums_target + self.n_pixels * BLOCK;
        assert!(
            session.engine == Engine::Dots
                && last_source <= source.len()
                && last_weight <= weight.len()
                && last_sum <= sums.len()
                && (1..=2).contains(&self.n_targets),
            "correlation leaves its slices: {self:?}"
        );
        let (source, weight) = (source.as_ptr().cast(), weight.as_ptr().cast());
        // SAFETY: the assert bounds every access; the session's engine exists.
        unsafe {
            match self.n_targets {
                2 => self.dots::<2>(source, weight, sums.as_mut_ptr(), sums_target),
                _ => self.dots::<1>(source, weight, sums.as_mut_ptr(), sums_target),
            }
        }
    }

    /// Where reading ends in source and weight.
    fn ends(&self, n_pixels: usize) -> (usize, usize) {
        let farthest = |part: fn(&Tap) -> usize| self.taps.iter().map(part).max().unwrap_or(0);
        let source = farthest(|tap| tap.source) + (self.n_blocks - 1) * self.source_block + n_pixels * DEPTH;
        let weight = farthest(|tap| tap.weight)
            + (self.n_blocks - 1) * self.weight_block
            + (self.n_targets - 1) * self.weight_target
            + TILE_LEN;
        (source, weight)
    }

    /// `P`: both halves of the pixels; `T`: both target blocks.
    #[inline(always)]
    unsafe fn tiles<const P: bool, const T: bool>(
        &self,
        source: *const u16,
        weight: *const u16,
        sums: &mut Sums,
    ) {
        // SAFETY: tiles 0 to 3 are sums, 4 and 5 pixels, 6 and 7 weights; every
        // address is one that `run` bounded.
        unsafe {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
            for block in 0..self.n_blocks {
                let (source, weight) =
                    (source.add(block * self.source_block), weight.add(block * self.weight_block));
                for tap in self.taps {
                    let (a, b) = (source.add(tap.source), weight.add(tap.weight));
                    load_tile::<4>(a, 64);
                    load_tile::<6>(b, 64);
                    asm!("tdpbf16ps tmm0, tmm4, tmm6", options(nostack, nomem));
                    if T {
                        load_tile::<7>(b.add(self.weight_target), 64);
                        asm!("tdpbf16ps tmm1, tmm4, tmm7", options(nostack, nomem));
                    }
                    if P {
                        load_tile::<5>(a.add(TILE_LEN), 64);
                        asm!("tdpbf16ps tmm2, tmm5, tmm6", options(nostack, nomem));
                        if T {
                            asm!("tdpbf16ps tmm3, tmm5, tmm7", options(nostack, nomem));
                        }
                    }
                }
            }
            let [first, second] = sums;
            store_tile::<0>(first[0].as_mut_ptr());
            if T {
                store_tile::<1>(second[0].as_mut_ptr());
            }
            if P {
                store_tile::<2>(first[16].as_mut_ptr());
                if T {
                    store_tile::<3>(second[16].as_mut_ptr());
                }
            }
        }
    }

    /// `N` target blocks at once: each pixel that is spread serves all of them.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn dots<const N: usize>(
        &self,
        source: *const u16,
        weight: *const u16,
        sums: *mut f32,
        sums_target: usize,
    ) {
        let mut first = 0;
        while first < self.n_pixels {
            let width = next_wide_tile(self.n_pixels - first);
            // SAFETY: passed on; `first` stays below the pixels wanted.
            unsafe {
                let (source, sums) = (source.add(first * DEPTH), sums.add(first * BLOCK));
                match width {
                    14 => self.dots_of::<N, 14>(source, weight, sums, sums_target),
                    10 => self.dots_of::<N, 10>(source, weight, sums, sums_target),
                    8 => self.dots_of::<N, 8>(source, weight, sums, sums_target),
                    7 => self.dots_of::<N, 7>(source, weight, sums, sums_target),
                    4 => self.dots_of::<N, 4>(source, weight, sums, sums_target),
                    2 => self.dots_of::<N, 2>(source, weight, sums, sums_target),
                    _ => self.dots_of::<N, 1>(source, weight, sums, sums_target),
                }
            }
            first += usize::from(width);
        }
    }

    /// The sums of `P` pixels, in registers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn dots_of<const N: usize, const P: usize>(
        &self,
        source: *const u16,
        weight: *const u16,
        sums: *mut f32,
        sums_target: usize,
    ) {
        // SAFETY: every address is one that `run` bounded.
        unsafe {
            let mut totals = [[_mm512_setzero_ps(); N]; P];
            for block in 0..self.n_blocks {
                for tap in self.taps {
                    let a = source.add(block * self.source_block + tap.source);
                    let b = weight.add(block * self.weight_block + tap.weight);
                    for pair in 0..16 {
                        let weights: [_; N] = std::array::from_fn(|target| {
                            load_pairs(b.add(target * self.weight_target + pair * DEPTH))
                        });
                        for pixel in 0..P {
                            let values = splat_pair(a.add(pixel * DEPTH + 2 * pair));
                            for target in 0..N {
                                totals[pixel][target] =
                                    _mm512_dpbf16_ps(totals[pixel][target], values, weights[target]);
                            }
                        }
                    }
                }
            }
            for pixel in 0..P {
                for target in 0..N {
                    _mm512_storeu_ps(sums.add(target * sums_target + pixel * BLOCK), totals[pixel][target]);
                }
            }
        }
    }
}

/// Sums over pixels of the products of input channels and output gradients, for one
/// or two blocks of 16 of each; all strides count bf16 numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outer {
    /// From one input channel to the next.
    pub input_row: usize,
    /// From the pairs of one gradient block to those of the next.
    pub gradient_block: usize,
    /// 1 or 2 each.
    pub n_inputs: usize,
    pub n_gradients: usize,
    /// Steps of 32 pixels.
    pub n_steps: usize,
}

/// Sums of one pair of blocks: `[input][gradient]`.
pub(crate) const SUMS_LEN: usize = BLOCK * BLOCK;

impl Outer {
    /// Adds to `sums`, `[n_inputs][n_gradients][16][16]`; `input` is channel-major,
    /// `gradient` pairs of pixels.
    pub(crate) fn run(&self, session: &Session, input: &[bf16], gradient: &[bf16], sums: &mut [f32]) {
        let last_input = (self.n_inputs * BLOCK - 1) * self.input_row + self.n_steps * DEPTH;
        let last_gradient = (self.n_gradients - 1) * self.gradient_block + self.n_steps * TILE_LEN;
        assert!(
            last_input <= input.len()
                && last_gradient <= gradient.len()
                && self.n_inputs * self.n_gradients * SUMS_LEN <= sums.len()
                && (1..=2).contains(&self.n_inputs)
                && (1..=2).contains(&self.n_gradients),
            "outer product leaves its slices: {self:?}"
        );
        let (input, gradient) = (input.as_ptr().cast(), gradient.as_ptr().cast());
        let sums = sums.as_mut_ptr();
        // SAFETY: the assert bounds every access; the session's engine exists.
        unsafe {
            match (session.engine, self.n_inputs, self.n_gradients) {
                (Engine::Tiles, 2, 2) => self.tiles::<true, true>(input, gradient, sums),
                (Engine::Tiles, 2, _) => self.tiles::<true, false>(input, gradient, sums),
                (Engine::Tiles, _, 2) => self.tiles::<false, true>(input, gradient, sums),
                (Engine::Tiles, ..) => self.tiles::<false, false>(input, gradient, sums),
                (Engine::Dots, _, 2) => self.dots::<2>(input, gradient, sums),
                (Engine::Dots, ..) => self.dots::<1>(input, gradient, sums),
            }
        }
    }

    /// `I`: two input blocks; `G`: two gradient blocks.
    #[inline(always)]
    unsafe fn tiles<const I: bool, const G: bool>(
        &self,
        input: *const u16,
        gradient: *const u16,
        sums: *mut f32,
    ) {
        let second_row = if G { 2 * SUMS_LEN } else { SUMS_LEN };
        // SAFETY: tiles as in `Correlate::tiles`; every address is one that `run` bounded.
        unsafe {
            load_tile::<0>(sums.cast(), 64);
            if G {
                load_tile::<1>(sums.add(SUMS_LEN).cast(), 64);
            }
            if I {
                load_tile::<2>(sums.add(second_row).cast(), 64);
                if G {
                    load_tile::<3>(sums.add(second_row + SUMS_LEN).cast(), 64);
                }
            }
            let row_bytes = 2 * self.input_row;
            for step in 0..self.n_steps {
                let (a, b) = (input.add(step * DEPTH), gradient.add(step * TILE_LEN));
                load_tile::<4>(a, row_bytes);
                load_tile::<6>(b, 64);
                asm!("tdpbf16ps tmm0, tmm4, tmm6", options(nostack, nomem));
                if G {
                    load_tile::<7>(b.add(self.gradient_block), 64);
                    asm!("tdpbf16ps tmm1, tmm4, tmm7", options(nostack, nomem));
                }
                if I {
                    load_tile::<5>(a.add(BLOCK * self.input_row), row_bytes);
                    asm!("tdpbf16ps tmm2, tmm5, tmm6", options(nostack, nomem));
                    if G {
                        asm!("tdpbf16ps tmm3, tmm5, tmm7", options(nostack, nomem));
                    }
                }
            }
            store_tile::<0>(sums);
            if G {
                store_tile::<1>(sums.add(SUMS_LEN));
            }
            if I {
                store_tile::<2>(sums.add(second_row));
                if G {
                    store_tile::<3>(sums.add(second_row + SUMS_LEN));
                }
            }
        }
    }

    /// `N` gradient blocks at once: each input that is spread serves all of them.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn dots<const N: usize>(&self, input: *const u16, gradient: *const u16, sums: *mut f32) {
        // SAFETY: every address is one that `run` bounded.
        unsafe {
            for first in (0..self.n_inputs * BLOCK).step_by(DOT_ROWS) {
                let sums = sums.add(first / BLOCK * N * SUMS_LEN + first % BLOCK * BLOCK);
                let input = input.add(first * self.input_row);
                let mut totals = [[_mm512_setzero_ps(); N]; DOT_ROWS];
                for channel in 0..DOT_ROWS {
                    for block in 0..N {
                        totals[channel][block] =
                            _mm512_loadu_ps(sums.add(block * SUMS_LEN + channel * BLOCK));
                    }
                }
                for pair in 0..self.n_steps * DEPTH / 2 {
                    let gradients: [_; N] = std::array::from_fn(|block| {
                        load_pairs(gradient.add(block * self.gradient_block + pair * DEPTH))
                    });
                    for channel in 0..DOT_ROWS {
                        let values = splat_pair(input.add(channel * self.input_row + 2 * pair));
                        for block in 0..N {
                            totals[channel][block] =
                                _mm512_dpbf16_ps(totals[channel][block], values, gradients[block]);
                        }
                    }
                }
                for channel in 0..DOT_ROWS {
                    for block in 0..N {
                        _mm512_storeu_ps(
                            sums.add(block * SUMS_LEN + channel * BLOCK),
                            totals[channel][block],
                        );
                    }
                }
            }
        }
    }
}

/// Sixteen pairs.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_pairs(from: *const u16) -> __m512bh {
    // SAFETY: the caller's 32 numbers are readable; both types are 512 bits.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(from.cast())) }
}

/// One pair in all sixteen places.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn splat_pair(from: *const u16) -> __m512bh {
    // SAFETY: the caller's two numbers are readable; both types are 512 bits.
    unsafe {
        let pair = from.cast::<i32>().read_unaligned();
        std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(pair))
    }
}
