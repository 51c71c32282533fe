//! Convolution of any shape as matrix products over unfolded windows (im2col),
//! on plain NCHW.

use rayon::prelude::*;

use crate::{
    buffer::Buffer,
    conv::Geometry,
    element::Element,
    kernels::{
        gemm::{Extents, Matrix, multiply},
        lanes,
    },
};

/// Numbers of an unfolded tile: half a megabyte of f32 stays in the L2 cache.
const TILE_LEN: usize = 128 * 1024;

/// Partial sums of the weight gradient over the batch. Fixed, so that the bits do
/// not depend on the number of threads.
const MAX_PARTS: usize = 4;

/// One group of one image, as matrices.
struct Group {
    in_channels: usize,
    out_channels: usize,
    in_pixels: usize,
    out_pixels: usize,
    /// Numbers under one window.
    depth: usize,
    rows_per_tile: usize,
}

impl Group {
    fn new(geometry: &Geometry) -> Self {
        let in_channels = geometry.input.c / geometry.groups;
        let depth = in_channels * geometry.taps();
        let tile_pixels = (TILE_LEN / depth).max(64);
        Self {
            in_channels,
            out_channels: geometry.output.c / geometry.groups,
            in_pixels: geometry.input.h * geometry.input.w,
            out_pixels: geometry.output.h * geometry.output.w,
            depth,
            rows_per_tile: (tile_pixels / geometry.output.w).clamp(1, geometry.output.h),
        }
    }

    fn weight_len(&self) -> usize {
        self.out_channels * self.depth
    }

    fn input_len(&self) -> usize {
        self.in_channels * self.in_pixels
    }

    fn output_len(&self) -> usize {
        self.out_channels * self.out_pixels
    }

    /// Tiles of output rows: first row, number of rows.
    fn tiles(&self, geometry: &Geometry) -> impl Iterator<Item = (usize, usize)> {
        let (height, step) = (geometry.output.h, self.rows_per_tile);
        (0..height).step_by(step).map(move |row| (row, step.min(height - row)))
    }
}

/// The result `[N, O, OH, OW]`.
pub(super) fn forward<T: Element>(x: &[T], weight: &[T], geometry: &Geometry) -> Buffer<T> {
    let group = Group::new(geometry);
    let mut y = Buffer::unspecified(geometry.output.count());
    y.par_chunks_mut(group.output_len()).enumerate().for_each(|(index, y)| {
        let x = &x[index * group.input_len()..][..group.input_len()];
        let weight = &weight[index % geometry.groups * group.weight_len()..];
        let mut columns = Buffer::unspecified(group.depth * group.rows_per_tile * geometry.output.w);
        for (row, rows) in group.tiles(geometry) {
            let cols = rows * geometry.output.w;
            unfold(&mut columns, x, row, rows, &group, geometry);
            let extents = Extents { rows: group.out_channels, cols, depth: group.depth };
            multiply(
                &mut y[row * geometry.output.w..],
                group.out_pixels,
                Matrix::rows(weight, group.depth),
                Matrix::rows(&columns, cols),
                extents,
                false,
            );
        }
    });
    y
}

/// Adds the gradient of the input to `sum` and returns it.
pub(super) fn input_gradient<T: Element>(
    mut sum: Buffer<T>,
    weight: &[T],
    dy: &[T],
    geometry: &Geometry,
) -> Buffer<T> {
    let group = Group::new(geometry);
    sum.par_chunks_mut(group.input_len()).enumerate().for_each(|(index, dx)| {
        let dy = &dy[index * group.output_len()..][..group.output_len()];
        let weight = &weight[index % geometry.groups * group.weight_len()..];
        let mut columns = Buffer::unspecified(group.depth * group.rows_per_tile * geometry.output.w);
        for (row, rows) in group.tiles(geometry) {
            let cols = rows * geometry.output.w;
            let extents = Extents { rows: group.depth, cols, depth: group.out_channels };
            multiply(
                &mut columns,
                cols,
                Matrix::transposed(weight, group.depth),
                Matrix::rows(&dy[row * geometry.output.w..], group.out_pixels),
                extents,
                false,
            );
            fold(dx, &columns, row, rows, &group, geometry);
        }
    });
    sum
}

/// The gradient of the weight, `[O, I / groups, KH, KW]`.
pub(super) fn weight_gradient<T: Element>(x: &[T], dy: &[T], geometry: &Geometry) -> Vec<T> {
    let group = Group::new(geometry);
    let n_images = geometry.input.n;
    let n_parts = n_images.min(MAX_PARTS);
    let mut parts = Buffer::unspecified(n_parts * geometry.weight_count());
    parts.par_chunks_mut(group.weight_len()).enumerate().for_each(|(index, dw)| {
        let (part, group_idx) = (index / geometry.groups, index % geometry.groups);
        let mut columns = Buffer::unspecified(group.depth * group.rows_per_tile * geometry.output.w);
        let mut accumulate = false;
        for image in part * n_images / n_parts..(part + 1) * n_images / n_parts {
            let plane = image * geometry.groups + group_idx;
            let x = &x[plane * group.input_len()..][..group.input_len()];
            let dy = &dy[plane * group.output_len()..][..group.output_len()];
            for (row, rows) in group.tiles(geometry) {
                let cols = rows * geometry.output.w;
                unfold(&mut columns, x, row, rows, &group, geometry);
                let extents = Extents { rows: group.out_channels, cols: group.depth, depth: cols };
                multiply(
                    dw,
                    group.depth,
                    Matrix::rows(&dy[row * geometry.output.w..], group.out_pixels),
                    Matrix::transposed(&columns, cols),
                    extents,
                    accumulate,
                );
                accumulate = true;
            }
        }
    });
    let (first, rest) = parts.split_at(geometry.weight_count());
    let mut sum = first.to_vec();
    for part in rest.chunks_exact(geometry.weight_count()) {
        lanes::add_assign(&mut sum, part);
    }
    sum
}

/// Copies the windows of some output rows into a matrix: one row per number under
/// the window, one column per output pixel, zeros for padding.
fn unfold<T: Element>(
    columns: &mut [T],
    x: &[T],
    first_row: usize,
    n_rows: usize,
    group: &Group,
    geometry: &Geometry,
) {
    let (window, input, width) = (geometry.window, geometry.input, geometry.output.w);
    let lines = columns.chunks_exact_mut(n_rows * width);
    for (index, line) in lines.take(group.depth).enumerate() {
        let (channel, tap) = (index / geometry.taps(), index % geometry.taps());
        let (tap_y, tap_x) = (tap / window.kernel_w, tap % window.kernel_w);
        let valid_rows = window.valid(tap_y, input.h, geometry.output.h);
        let valid_cols = window.valid(tap_x, input.w, width);
        for (row, target) in line.chunks_exact_mut(width).enumerate() {
            let row = first_row + row;
            if !valid_rows.contains(&row) || valid_cols.is_empty() {
                target.fill(T::zero());
                continue;
            }
            target[..valid_cols.start].fill(T::zero());
            target[valid_cols.end..].fill(T::zero());
            let source = (channel * input.h + window.source(row, tap_y)) * input.w
                + window.source(valid_cols.start, tap_x);
            let target = &mut target[valid_cols.clone()];
            if window.stride == 1 {
                target.copy_from_slice(&x[source..][..target.len()]);
            } else {
                let source = x[source..].iter().step_by(window.stride);
                for (target, source) in target.iter_mut().zip(source) {
                    *target = *source;
                }
            }
        }
    }
}

/// The reverse of [`unfold`]: adds every number back to the pixel it came from.
fn fold<T: Element>(
    dx: &mut [T],
    columns: &[T],
    first_row: usize,
    n_rows: usize,
    group: &Group,
    geometry: &Geometry,
) {
    let (window, input, width) = (geometry.window, geometry.input, geometry.output.w);
    let lines = columns.chunks_exact(n_rows * width);
    for (index, line) in lines.take(group.depth).enumerate() {
        let (channel, tap) = (index / geometry.taps(), index % geometry.taps());
        let (tap_y, tap_x) = (tap / window.kernel_w, tap % window.kernel_w);
        let valid_rows = window.valid(tap_y, input.h, geometry.output.h);
        let valid_cols = window.valid(tap_x, input.w, width);
        if valid_cols.is_empty() {
            continue;
        }
        for (row, source) in line.chunks_exact(width).enumerate() {
            let row = first_row + row;
            if !valid_rows.contains(&row) {
                continue;
            }
            let target = (channel * input.h + window.source(row, tap_y)) * input.w
                + window.source(valid_cols.start, tap_x);
            let target = dx[target..].iter_mut().step_by(window.stride);
            for (target, source) in target.zip(&source[valid_cols.clone()]) {
                *target += *source;
            }
        }
    }
}
