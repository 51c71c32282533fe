//! Convolution with 3x3 kernels at stride 1 by Winograd's F(4x4, 3x3): a quarter of
//! the multiplications, at the cost of a rounding error about ten times that of the
//! direct kernels (still below 1e-5 of the largest value).

use rayon::prelude::*;

use crate::{
    activation::BLOCK,
    arithmetic,
    buffer::Buffer,
    conv::{
        Geometry,
        blocks::{Blocks, Padding},
        write::Write,
    },
    kernels::{
        VectorWidth,
        direct::{InputStep, OutputStep, Plane, Tap},
        winograd::{self, N_PRODUCTS, STEP, TILE, TileRow},
    },
};

/// Products of a weight beyond which loading them costs more than they save.
const MAX_WEIGHT_COUNT: usize = 256 * 256 * 9;

/// Images narrower than this leave too much of their tiles unused.
const MIN_EXTENT: usize = 10;

/// Tiles multiplied together: enough to use each loaded weight several times.
const N_TILES: usize = 32;

/// Whether a convolution is better done this way; the direct kernels take it too.
pub(super) fn takes(geometry: &Geometry) -> bool {
    let window = geometry.window;
    arithmetic::winograd()
        && (window.kernel_h, window.kernel_w, window.stride) == (3, 3, 1)
        && geometry.groups == 1
        && window.padding <= 2
        && geometry.input.c.is_multiple_of(BLOCK)
        && geometry.weight_count() <= MAX_WEIGHT_COUNT
        && geometry.output.h.min(geometry.output.w) >= MIN_EXTENT
}

/// A 3x3 window sliding over a padded source, one pixel at a time.
pub(super) struct Winograd {
    source: Blocks,
    target: Blocks,
    padding: Padding,
    n_images: usize,
    tiles_y: usize,
    tiles_x: usize,
    backwards: bool,
}

impl Winograd {
    /// `y` from `x`.
    pub(super) fn forward(geometry: &Geometry) -> Self {
        let source = Blocks::new(geometry.input, BLOCK);
        let target = Blocks::new(geometry.output, BLOCK);
        Self::new(source, target, geometry, geometry.window.padding, false)
    }

    /// `dx` from `dy`: the same with mirrored kernels.
    pub(super) fn input_gradient(geometry: &Geometry) -> Self {
        let source = Blocks::new(geometry.output, BLOCK);
        let target = Blocks::new(geometry.input, BLOCK);
        Self::new(source, target, geometry, 2 - geometry.window.padding, true)
    }

    fn new(source: Blocks, target: Blocks, geometry: &Geometry, padding: usize, backwards: bool) -> Self {
        let (padding, tiles_y, tiles_x) = Padding::of_tiles((STEP, TILE), source, target, padding);
        Self { source, target, padding, n_images: geometry.input.n, tiles_y, tiles_x, backwards }
    }

    /// Writes `target`; `weight` comes from [`Self::transform_weight`].
    pub(super) fn run(
        &self,
        width: VectorWidth,
        source: &[f32],
        weight: &[f32],
        target: &mut [f32],
        write: Write<'_>,
    ) {
        let tiles_per_image = self.tiles_y * self.tiles_x;
        let per_task = (N_TILES / tiles_per_image).clamp(1, self.n_images.div_ceil(8));
        target
            .par_chunks_mut(per_task * self.target.len())
            .zip(source.par_chunks(per_task * self.source.len()))
            .enumerate()
            .for_each(|(task, (target, source))| {
                let write = write.part(task * per_task * self.target.len(), target.len());
                let outer = self.padding.around(self.source);
                let n_images = target.len() / self.target.len();
                let mut padded = Buffer::unspecified(n_images * outer.len());
                for (padded, image) in
                    padded.chunks_exact_mut(outer.len()).zip(source.chunks_exact(self.source.len()))
                {
                    self.padding.pad(self.source, image, padded);
                }
                let rows: Vec<(usize, usize)> =
                    (0..n_images).flat_map(|image| (0..self.tiles_y).map(move |row| (image, row))).collect();
                for rows in rows.chunks(N_TILES.div_ceil(self.tiles_x)) {
                    self.tile_rows(width, rows, &padded, weight, target, write);
                }
            });
    }

    /// Some rows of tiles, each `(image, row)`, through all three stages.
    fn tile_rows(
        &self,
        width: VectorWidth,
        rows: &[(usize, usize)],
        padded: &[f32],
        weight: &[f32],
        target: &mut [f32],
        write: Write<'_>,
    ) {
        let outer = self.padding.around(self.source);
        let plane_len = rows.len() * self.tiles_x * BLOCK;
        let source_stride = product_stride(self.source.n_blocks * plane_len);
        let target_stride = product_stride(self.target.n_blocks * plane_len);
        let mut from = Buffer::unspecified(N_PRODUCTS * source_stride);
        let mut to = Buffer::unspecified(N_PRODUCTS * target_stride);
        let row_start = |block: usize, row: usize| block * plane_len + row * self.tiles_x * BLOCK;
        for block in 0..self.source.n_blocks {
            for (index, (image, row)) in rows.iter().enumerate() {
                let image_row = outer.w * BLOCK;
                let start = image * outer.len() + block * outer.block_len() + row * STEP * image_row;
                let tiles = TileRow { n_tiles: self.tiles_x, image_row, product_stride: source_stride };
                let from = &mut from[row_start(block, index)..];
                winograd::transform_input(tiles, &padded[start..], from);
            }
        }
        for product in 0..N_PRODUCTS {
            let from = &from[product * source_stride..][..source_stride];
            let to = &mut to[product * target_stride..][..target_stride];
            let weight = &weight[product * self.weight_product()..];
            self.multiply(width, plane_len, from, weight, to);
        }
        for block in 0..self.target.n_blocks {
            for (index, (image, row)) in rows.iter().enumerate() {
                let image_row = self.target.w * BLOCK;
                let start =
                    image * self.target.len() + block * self.target.block_len() + row * STEP * image_row;
                let tiles = TileRow { n_tiles: self.tiles_x, image_row, product_stride: target_stride };
                let extent = (self.target.h - row * STEP, self.target.w);
                let (to, target) = (&to[row_start(block, index)..], &mut target[start..]);
                match write {
                    Write::Replace => winograd::write_output(tiles, to, target, extent),
                    Write::Add => winograd::add_output(tiles, to, target, extent),
                    Write::Finish(finish) => {
                        let mut bias = [0.0; BLOCK];
                        bias.copy_from_slice(&finish.bias[block * BLOCK..][..BLOCK]);
                        let residual = finish.residual.map_or(&[][..], |residual| &residual[start..]);
                        winograd::finish_output(tiles, to, target, extent, residual, &bias, finish.bounds);
                    }
                }
            }
        }
    }

    /// One product of all tiles: a 1x1 convolution over tiles instead of pixels.
    fn multiply(&self, width: VectorWidth, plane_len: usize, from: &[f32], weight: &[f32], to: &mut [f32]) {
        let step = Plane::max_output_blocks(width);
        let weight_output_block = N_PRODUCTS * self.weight_product();
        for block in (0..self.target.n_blocks).step_by(step) {
            let plane = Plane {
                taps: &[Tap { input: 0, weight: 0 }],
                input_step: InputStep::Blocked1,
                input_row: plane_len,
                input_block: plane_len,
                n_input_blocks: self.source.n_blocks,
                weight_input_block: BLOCK * BLOCK,
                weight_output_block,
                output_step: OutputStep::Every,
                output_row: plane_len,
                output_block: plane_len,
                n_output_blocks: step.min(self.target.n_blocks - block),
                rows: 1,
                cols: plane_len / BLOCK,
                accumulate: false,
            };
            let weight = &weight[block * weight_output_block..];
            plane.run(width, from, weight, &mut to[block * plane_len..], None);
        }
    }

    /// Numbers from one product of a target block's weight to the next.
    fn weight_product(&self) -> usize {
        product_stride(self.source.n_blocks * BLOCK * BLOCK)
    }

    /// OIHW to `[target / 16][36][source / 16][16 source][16 target]`.
    pub(super) fn transform_weight(&self, weight: &[f32]) -> Buffer<f32> {
        const TAPS: usize = 9;
        let product = self.weight_product();
        let source_channels = self.source.n_blocks * BLOCK;
        let target_channels = self.target.n_blocks * BLOCK;
        let mut products = Buffer::unspecified(self.target.n_blocks * N_PRODUCTS * product);
        products.par_chunks_mut(N_PRODUCTS * product).enumerate().for_each(|(target_block, products)| {
            for source_channel in 0..source_channels {
                let mut kernels = [[0.0; BLOCK]; TAPS];
                for lane in 0..BLOCK {
                    let target_channel = target_block * BLOCK + lane;
                    let kernel = if self.backwards {
                        source_channel * target_channels + target_channel
                    } else {
                        target_channel * source_channels + source_channel
                    };
                    let kernel = &weight[kernel * TAPS..][..TAPS];
                    for (tap, value) in kernel.iter().enumerate() {
                        let tap = if self.backwards { TAPS - 1 - tap } else { tap };
                        kernels[tap][lane] = *value;
                    }
                }
                let products = &mut products[source_channel * BLOCK..];
                winograd::transform_weight(&kernels, product, products);
            }
        });
        products
    }
}

/// Keeps products of one tile out of the same cache set, where a power of two
/// would put them.
fn product_stride(len: usize) -> usize {
    len + BLOCK
}
