//! The plan shared by the forward pass and the gradient of the input: both slide
//! a window over a padded image of blocks. The gradient of a stride-2 convolution
//! falls into four phases, one per parity of row and column.

use rayon::prelude::*;

use crate::{
    activation::BLOCK,
    buffer::Buffer,
    conv::{
        Geometry,
        blocks::{Blocks, Padding},
        packing::input_block,
        write::Write,
    },
    kernels::{
        VectorWidth,
        direct::{InputStep, OutputStep, Plane, Tap},
    },
};

/// Packed weights of one pass over the input channels: they stay in the L2 cache
/// while all tiles of a plane go by.
const WEIGHT_CHUNK_LEN: usize = 64 * 1024;

/// Padded images treated together, so that one load of the weights serves several
/// small images: they share the L2 cache with the weights.
const IMAGE_GROUP_LEN: usize = 160 * 1024;

/// Pieces of work below which images are split by output channels too.
const MIN_TASKS: usize = 8;

/// A window sliding over a padded source, writing a target.
pub(super) struct Correlation {
    source: Blocks,
    padding: Padding,
    target: Blocks,
    n_images: usize,
    taps: usize,
    input_step: InputStep,
    /// Rows of the source from one window to the next.
    row_step: usize,
    output_step: OutputStep,
    phases: Vec<Phase>,
}

/// The target pixels `(y + i * step, x + j * step)`.
struct Phase {
    y: usize,
    x: usize,
    rows: usize,
    cols: usize,
    taps: Vec<Tap>,
}

/// One phase along one axis: first pixel, number of pixels, taps.
pub(super) type AxisPhase = (usize, usize, Vec<(usize, isize)>);

/// The taps of one phase along one axis: kernel position and source offset, which
/// may lie before the image.
pub(super) fn phase_taps(phase: usize, kernel: usize, stride: usize, padding: usize) -> Vec<(usize, isize)> {
    (0..kernel)
        .filter(|tap| (phase + padding + stride * kernel - tap).is_multiple_of(stride))
        .map(|tap| {
            let distance = (phase + padding) as isize - tap as isize;
            (tap, distance / stride as isize)
        })
        .collect()
}

impl Correlation {
    /// `y` from `x`.
    pub(super) fn forward(geometry: &Geometry) -> Self {
        let (window, channels) = (geometry.window, input_block(geometry));
        let source = Blocks::new(geometry.input, channels);
        let padding = Padding {
            top: window.padding,
            left: window.padding,
            bottom: window.padding,
            right: window.padding,
        };
        let row_len = (source.w + 2 * window.padding) * channels;
        let taps = (0..geometry.taps())
            .map(|tap| Tap {
                input: tap / window.kernel_w * row_len + tap % window.kernel_w * channels,
                weight: tap * channels * BLOCK,
            })
            .collect();
        let input_step = match (channels, window.stride) {
            (1, 1) => InputStep::Plain1,
            (1, _) => InputStep::Plain2,
            (_, 1) => InputStep::Blocked1,
            _ => InputStep::Blocked2,
        };
        Self {
            source,
            padding,
            target: Blocks::new(geometry.output, BLOCK),
            n_images: geometry.input.n,
            taps: geometry.taps(),
            input_step,
            row_step: window.stride,
            output_step: OutputStep::Every,
            phases: vec![Phase { y: 0, x: 0, rows: geometry.output.h, cols: geometry.output.w, taps }],
        }
    }

    /// `dx` from `dy`: `dx[s i + a] = sum over taps t with (a + p - t) divisible by
    /// s of dy[i + (a + p - t) / s] w[t]`.
    pub(super) fn input_gradient(geometry: &Geometry) -> Self {
        let window = geometry.window;
        let (stride, padding) = (window.stride, window.padding);
        let source = Blocks::new(geometry.output, BLOCK);
        let target = Blocks::new(geometry.input, BLOCK);
        let axis = |kernel: usize, extent: usize| -> Vec<_> {
            (0..stride.min(extent))
                .map(|phase| {
                    let taps = phase_taps(phase, kernel, stride, padding);
                    (phase, (extent - phase).div_ceil(stride), taps)
                })
                .collect()
        };
        let (axis_y, axis_x) = (axis(window.kernel_h, target.h), axis(window.kernel_w, target.w));
        // Zeros needed before and behind the source along one axis.
        let margins = |phases: &[AxisPhase], extent: usize| {
            let (mut before, mut behind) = (0, 0);
            for (_, count, taps) in phases {
                for (_, offset) in taps {
                    before = before.max(-offset);
                    behind = behind.max(*count as isize - 1 + offset - (extent as isize - 1));
                }
            }
            (before as usize, behind as usize)
        };
        let (top, bottom) = margins(&axis_y, source.h);
        let (left, right) = margins(&axis_x, source.w);
        let row_len = (left + source.w + right) * BLOCK;
        let mut phases = Vec::new();
        for (y, rows, taps_y) in &axis_y {
            for (x, cols, taps_x) in &axis_x {
                let mut taps = Vec::new();
                for (tap_y, offset_y) in taps_y {
                    for (tap_x, offset_x) in taps_x {
                        let row = (offset_y + top as isize) as usize;
                        let col = (offset_x + left as isize) as usize;
                        taps.push(Tap {
                            input: row * row_len + col * BLOCK,
                            weight: (tap_y * window.kernel_w + tap_x) * BLOCK * BLOCK,
                        });
                    }
                }
                phases.push(Phase { y: *y, x: *x, rows: *rows, cols: *cols, taps });
            }
        }
        Self {
            source,
            padding: Padding { top, left, bottom, right },
            target,
            n_images: geometry.input.n,
            taps: geometry.taps(),
            input_step: InputStep::Blocked1,
            row_step: 1,
            output_step: match stride {
                1 => OutputStep::Every,
                _ => OutputStep::EveryOther,
            },
            phases,
        }
    }

    /// Writes `target`; `weight` is packed for this direction.
    pub(super) fn run(
        &self,
        width: VectorWidth,
        source: &[f32],
        weight: &[f32],
        target: &mut [f32],
        write: Write<'_>,
    ) {
        let padded_len = self.padding.around(self.source).len();
        let per_group = (IMAGE_GROUP_LEN / padded_len).clamp(1, self.n_images.div_ceil(MIN_TASKS));
        let splits = if per_group > 1 {
            1
        } else {
            [4, 2]
                .into_iter()
                .find(|n| self.target.n_blocks.is_multiple_of(2 * n) && self.n_images * n <= MIN_TASKS)
                .unwrap_or(1)
        };
        let task_blocks = self.target.n_blocks / splits;
        let task_len = per_group * task_blocks * self.target.block_len();
        target.par_chunks_mut(task_len).enumerate().for_each(|(task, target)| {
            let images = task / splits * per_group;
            let n_images = per_group.min(self.n_images - images);
            let source = &source[images * self.source.len()..][..n_images * self.source.len()];
            let blocks = task % splits * task_blocks..(task % splits + 1) * task_blocks;
            let write = write.part(task * task_len, target.len());
            if self.padding.any() {
                let mut padded = Buffer::unspecified(n_images * padded_len);
                for (padded, image) in
                    padded.chunks_exact_mut(padded_len).zip(source.chunks_exact(self.source.len()))
                {
                    self.padding.pad(self.source, image, padded);
                }
                self.run_group(width, &padded, weight, target, blocks, write);
            } else {
                self.run_group(width, source, weight, target, blocks, write);
            }
        });
    }

    /// Some output blocks of some images, weights outermost.
    fn run_group(
        &self,
        width: VectorWidth,
        padded: &[f32],
        weight: &[f32],
        target: &mut [f32],
        blocks: std::ops::Range<usize>,
        write: Write<'_>,
    ) {
        let (source, target_len) = (self.padding.around(self.source), self.target.block_len());
        let image_len = blocks.len() * target_len;
        let accumulate = matches!(write, Write::Add);
        if !accumulate && self.phases.iter().any(|phase| phase.taps.is_empty()) {
            target.fill(0.0);
        }
        let weight_input_block = self.taps * self.source.channels * BLOCK;
        let weight_output_block = self.source.n_blocks * weight_input_block;
        let step = Plane::max_output_blocks(width);
        let chunk = (WEIGHT_CHUNK_LEN / (weight_input_block * step)).max(1);
        for block in blocks.clone().step_by(step) {
            let n_output_blocks = step.min(blocks.end - block);
            for first in (0..source.n_blocks).step_by(chunk) {
                let n_input_blocks = chunk.min(source.n_blocks - first);
                let weight = &weight[block * weight_output_block + first * weight_input_block..];
                let last = first + n_input_blocks == source.n_blocks;
                for (image, target) in target.chunks_exact_mut(image_len).enumerate() {
                    let input = &padded[image * source.len() + first * source.block_len()..];
                    let target = &mut target[(block - blocks.start) * target_len..];
                    let start = image * image_len + (block - blocks.start) * target_len;
                    let finish = write.finish(block, start).filter(|_| last);
                    for phase in self.phases.iter().filter(|phase| !phase.taps.is_empty()) {
                        let plane = Plane {
                            taps: &phase.taps,
                            input_step: self.input_step,
                            input_row: self.row_step * source.w * source.channels,
                            input_block: source.block_len(),
                            n_input_blocks,
                            weight_input_block,
                            weight_output_block,
                            output_step: self.output_step,
                            output_row: self.output_row(),
                            output_block: target_len,
                            n_output_blocks,
                            rows: phase.rows,
                            cols: phase.cols,
                            accumulate: accumulate || first > 0,
                        };
                        let start = (phase.y * self.target.w + phase.x) * BLOCK;
                        plane.run(width, input, weight, &mut target[start..], finish);
                    }
                }
            }
        }
    }

    fn output_row(&self) -> usize {
        match self.output_step {
            OutputStep::Every => self.target.w * BLOCK,
            OutputStep::EveryOther => 2 * self.target.w * BLOCK,
        }
    }
}
