//! A padded image as planes, one per phase of the stride: over them every tap is a
//! constant distance, so that pixels are taken 32 at a time without regard to rows.

use half::bf16;

use crate::{
    activation::BLOCK,
    conv::{Geometry, blocks::Blocks},
    kernels::mixed::{DEPTH, ROWS},
};

/// How a padded source lies in planes, one per phase of rows and columns.
#[derive(Clone, Copy)]
pub(super) struct Planes {
    pub source: Blocks,
    /// Phases along each axis.
    pub step: usize,
    /// Zeros before the first row and column.
    pub top: usize,
    pub left: usize,
    pub rows: usize,
    pub cols: usize,
    /// Pixels of one plane, with zeros behind the last row for reading too far.
    pub len: usize,
}

impl Planes {
    pub(super) fn new(
        source: Blocks,
        step: usize,
        (top, left): (usize, usize),
        (rows, cols): (usize, usize),
    ) -> Self {
        let len = (rows * cols + ROWS).next_multiple_of(DEPTH);
        Self { source, step, top, left, rows, cols, len }
    }

    /// The input of a convolution, for windows and for the gradient of the weight.
    pub(super) fn of_input(geometry: &Geometry, source: Blocks) -> Self {
        let window = geometry.window;
        let rows = geometry.output.h + (window.kernel_h - 1) / window.stride;
        let cols = geometry.output.w + (window.kernel_w - 1) / window.stride;
        Self::new(source, window.stride, (window.padding, window.padding), (rows, cols))
    }

    pub(super) fn n_phases(self) -> usize {
        self.step * self.step
    }

    /// Pixel distance of a window's tap from its first pixel, over all phases.
    pub(super) fn tap(self, tap_y: usize, tap_x: usize) -> usize {
        let phase = tap_y % self.step * self.step + tap_x % self.step;
        phase * self.len + tap_y / self.step * self.cols + tap_x / self.step
    }

    /// The columns of a row whose pixels lie inside the image, in one phase, and the
    /// pixel of the first.
    fn inside(self, phase_x: usize) -> (std::ops::Range<usize>, usize) {
        let first = self.left.saturating_sub(phase_x).div_ceil(self.step).min(self.cols);
        let end = (self.source.w + self.left).saturating_sub(phase_x).div_ceil(self.step).min(self.cols);
        (first..end.max(first), (first * self.step + phase_x).saturating_sub(self.left))
    }

    /// One phase of one or two blocks of 16 channels side by side with its zeros,
    /// `[len][32]`.
    pub(super) fn fill_pair(self, phase: usize, blocks: [&[bf16]; 2], plane: &mut [bf16]) {
        let (phase_y, phase_x) = (phase / self.step, phase % self.step);
        let row_len = self.source.w * BLOCK;
        let (cols, x) = self.inside(phase_x);
        let (lines, behind) = plane.split_at_mut(self.rows * self.cols * DEPTH);
        behind.fill(bf16::ZERO);
        for (row, line) in lines.chunks_exact_mut(self.cols * DEPTH).enumerate() {
            let y = (row * self.step + phase_y).checked_sub(self.top).filter(|y| *y < self.source.h);
            let Some(start) = y.map(|y| y * row_len + x * BLOCK).filter(|_| !cols.is_empty()) else {
                line.fill(bf16::ZERO);
                continue;
            };
            line[..cols.start * DEPTH].fill(bf16::ZERO);
            line[cols.end * DEPTH..].fill(bf16::ZERO);
            let [low, high] =
                blocks.map(|block| block.get(start..).unwrap_or_default().as_chunks::<BLOCK>().0);
            let line = &mut line[cols.start * DEPTH..cols.end * DEPTH];
            let (halves, _) = line.as_chunks_mut::<BLOCK>();
            let pixels = halves.chunks_exact_mut(2).zip(low.iter().step_by(self.step));
            if high.is_empty() {
                for (pixel, low) in pixels {
                    (pixel[0], pixel[1]) = (*low, [bf16::ZERO; BLOCK]);
                }
            } else {
                for ((pixel, low), high) in pixels.zip(high.iter().step_by(self.step)) {
                    (pixel[0], pixel[1]) = (*low, *high);
                }
            }
        }
    }

    /// One phase of a block of 16 channels with its zeros, `[len][16]`.
    pub(super) fn fill(self, phase: usize, block: &[bf16], plane: &mut [bf16]) {
        let (phase_y, phase_x) = (phase / self.step, phase % self.step);
        let row_len = self.source.w * BLOCK;
        let (cols, x) = self.inside(phase_x);
        let (lines, behind) = plane.split_at_mut(self.rows * self.cols * BLOCK);
        behind.fill(bf16::ZERO);
        for (row, line) in lines.chunks_exact_mut(self.cols * BLOCK).enumerate() {
            let y = (row * self.step + phase_y).checked_sub(self.top).filter(|y| *y < self.source.h);
            let Some(source) = y.map(|y| &block[y * row_len..][..row_len]) else {
                line.fill(bf16::ZERO);
                continue;
            };
            line[..cols.start * BLOCK].fill(bf16::ZERO);
            line[cols.end * BLOCK..].fill(bf16::ZERO);
            if cols.is_empty() {
                continue;
            }
            let line = &mut line[cols.start * BLOCK..cols.end * BLOCK];
            if self.step == 1 {
                line.copy_from_slice(&source[x * BLOCK..][..line.len()]);
            } else {
                let pixels = source[x * BLOCK..].chunks_exact(BLOCK).step_by(self.step);
                for (pixel, source) in line.chunks_exact_mut(BLOCK).zip(pixels) {
                    pixel.copy_from_slice(source);
                }
            }
        }
    }
}
