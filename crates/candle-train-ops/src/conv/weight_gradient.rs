//! The gradient of the weight: for every tap the products of input and output
//! gradient, summed over all pixels of all images.

use rayon::prelude::*;

use crate::{
    activation::BLOCK,
    buffer::Buffer,
    conv::{Geometry, packing},
    kernels::{
        VectorWidth,
        direct::{InputStep, Plane},
        outer::Outer,
    },
};

/// Numbers of input and output gradient that all taps go over before the next rows
/// are loaded: two thirds of the L1 cache.
const ROWS_LEN: usize = 8 * 1024;

/// The gradient of the weight in OIHW. Each piece of it belongs to one task, which
/// adds the images up in order.
pub(super) fn weight_gradient(width: VectorWidth, x: &[f32], dy: &[f32], geometry: &Geometry) -> Vec<f32> {
    let block = packing::input_block(geometry);
    // Of one group.
    let n_in_blocks = geometry.input.c / geometry.groups / block;
    let n_out_blocks = geometry.output.c / geometry.groups / BLOCK;
    let step = if n_out_blocks.is_multiple_of(2) { Plane::max_output_blocks(width) } else { 1 };
    let piece_len = geometry.taps() * block * BLOCK;
    // [output block / step][input block][output block % step][tap][lane][16]
    let mut pieces = Buffer::unspecified(geometry.weight_count());
    let padded;
    let (x, padding) = if block == 1 && geometry.window.padding > 0 {
        padded = pad_plain(x, geometry);
        (&padded[..], 0)
    } else {
        (x, geometry.window.padding)
    };
    let task = Task { width, geometry, x, dy, padding, step };
    pieces.par_chunks_mut(step * piece_len).enumerate().for_each(|(index, sums)| {
        let out_block = index / n_in_blocks * step;
        let in_block = out_block / n_out_blocks * n_in_blocks + index % n_in_blocks;
        sums.fill(0.0);
        match block {
            1 => task.plain(sums, out_block, in_block),
            _ => task.blocked(sums, out_block, in_block),
        }
    });
    packing::unpack_gradient(&pieces, step, geometry)
}

/// What all tasks share.
struct Task<'a> {
    width: VectorWidth,
    geometry: &'a Geometry,
    x: &'a [f32],
    dy: &'a [f32],
    /// Padding that `x` does not contain yet.
    padding: usize,
    /// Output blocks per task.
    step: usize,
}

impl Task<'_> {
    /// Rows of the output handled per pass over the taps.
    fn rows_per_pass(&self) -> usize {
        let output = self.geometry.output;
        (ROWS_LEN / ((self.step + 1) * output.w * BLOCK)).clamp(1, output.h)
    }

    fn dy_from(&self, image: usize, out_block: usize) -> &[f32] {
        let output = self.geometry.output;
        &self.dy[(image * output.c + out_block * BLOCK) * output.h * output.w..]
    }

    /// Sixteen input channels side by side, two halves of eight per tap.
    fn blocked(&self, sums: &mut [f32], out_block: usize, in_block: usize) {
        let (input, output, window) = (self.geometry.input, self.geometry.output, self.geometry.window);
        let taps = self.geometry.taps();
        for image in 0..input.n {
            let x = &self.x[(image * input.c + in_block * BLOCK) * input.h * input.w..];
            let dy = self.dy_from(image, out_block);
            for first_row in (0..output.h).step_by(self.rows_per_pass()) {
                let end_row = (first_row + self.rows_per_pass()).min(output.h);
                for tap in 0..taps {
                    let (tap_y, tap_x) = (tap / window.kernel_w, tap % window.kernel_w);
                    let rows = window.valid(tap_y, input.h, output.h);
                    let rows = rows.start.max(first_row)..rows.end.min(end_row);
                    let cols = window.valid(tap_x, input.w, output.w);
                    if rows.is_empty() || cols.is_empty() {
                        continue;
                    }
                    let from = (window.source(rows.start, tap_y) * input.w
                        + window.source(cols.start, tap_x))
                        * BLOCK;
                    let outer = Outer {
                        input_step: match window.stride {
                            1 => InputStep::Blocked1,
                            _ => InputStep::Blocked2,
                        },
                        input_row: window.stride * input.w * BLOCK,
                        gradient_row: output.w * BLOCK,
                        gradient_block: output.h * output.w * BLOCK,
                        rows: rows.len(),
                        cols: cols.len(),
                        n_inputs: BLOCK,
                        sum_block: taps * BLOCK * BLOCK,
                        n_output_blocks: self.step,
                    };
                    outer.run(
                        self.width,
                        &x[from..],
                        &dy[(rows.start * output.w + cols.start) * BLOCK..],
                        &mut sums[tap * BLOCK * BLOCK..],
                    );
                }
            }
        }
    }

    /// One input channel, padded: the taps of a kernel row side by side.
    fn plain(&self, sums: &mut [f32], out_block: usize, channel: usize) {
        let (input, output, window) = (self.geometry.input, self.geometry.output, self.geometry.window);
        let padding = window.padding - self.padding;
        let (h, w) = (input.h + 2 * padding, input.w + 2 * padding);
        for image in 0..input.n {
            let x = &self.x[(image * input.c + channel) * h * w..];
            let dy = self.dy_from(image, out_block);
            for first_row in (0..output.h).step_by(self.rows_per_pass()) {
                let rows = self.rows_per_pass().min(output.h - first_row);
                for tap_y in 0..window.kernel_h {
                    let outer = Outer {
                        input_step: match window.stride {
                            1 => InputStep::Plain1,
                            _ => InputStep::Plain2,
                        },
                        input_row: window.stride * w,
                        gradient_row: output.w * BLOCK,
                        gradient_block: output.h * output.w * BLOCK,
                        rows,
                        cols: output.w,
                        n_inputs: window.kernel_w,
                        sum_block: self.geometry.taps() * BLOCK,
                        n_output_blocks: self.step,
                    };
                    outer.run(
                        self.width,
                        &x[(first_row * window.stride + tap_y) * w..],
                        &dy[first_row * output.w * BLOCK..],
                        &mut sums[tap_y * window.kernel_w * BLOCK..],
                    );
                }
            }
        }
    }
}

/// Plain planes with their zeros around them.
fn pad_plain(x: &[f32], geometry: &Geometry) -> Buffer<f32> {
    let (input, padding) = (geometry.input, geometry.window.padding);
    let (h, w) = (input.h + 2 * padding, input.w + 2 * padding);
    let mut padded = Buffer::zeroed(input.n * input.c * h * w);
    padded.par_chunks_mut(h * w).zip(x.par_chunks(input.h * input.w)).for_each(|(padded, plane)| {
        let rows = padded.chunks_exact_mut(w).skip(padding);
        for (padded, row) in rows.zip(plane.chunks_exact(input.w)) {
            padded[padding..padding + input.w].copy_from_slice(row);
        }
    });
    padded
}
