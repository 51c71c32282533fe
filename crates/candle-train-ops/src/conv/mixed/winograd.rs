//! Convolution with 3x3 kernels at stride 1 by Winograd's F(2x2, 3x3): four ninths of the
//! multiplications, at the cost of a rounding error about twice that of the direct
//! products. (F(4x4, 3x3) would save more, but its factors need more digits than bf16 has.)

use half::bf16;
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
    kernels::mixed::{
        Correlate, DEPTH, Engine, Session, TILE_LEN, Tap,
        winograd::{N_PRODUCTS, STEP, TILE, TileRow, pack_kernels},
    },
};

/// Images narrower than this leave too much of their tiles unused.
const MIN_EXTENT: usize = 10;

/// Products of a weight beyond which loading them costs more than they save.
const MAX_WEIGHT_COUNT: usize = 256 * 256 * 9;

/// Tiles multiplied together: enough to use each loaded weight several times.
const N_TILES: usize = 56;

/// Whether a convolution is better done this way. The tiles of AMX multiply so fast that
/// the transforms would cost more than they save.
pub(super) fn takes(engine: Engine, geometry: &Geometry) -> bool {
    let window = geometry.window;
    arithmetic::winograd()
        && engine == Engine::Dots
        && (window.kernel_h, window.kernel_w, window.stride) == (3, 3, 1)
        && window.padding <= 2
        && geometry.weight_count() <= MAX_WEIGHT_COUNT
        && geometry.output.h.min(geometry.output.w) >= MIN_EXTENT
}

/// A 3x3 window sliding over a padded source, one pixel at a time.
pub(super) struct Winograd {
    source: Blocks,
    target: Blocks,
    padding: Padding,
    tiles_y: usize,
    tiles_x: usize,
    backwards: bool,
}

impl Winograd {
    /// `y` from `x`.
    pub(super) fn forward(geometry: &Geometry) -> Self {
        let source = Blocks::new(geometry.input, BLOCK);
        let target = Blocks::new(geometry.output, BLOCK);
        Self::new(source, target, geometry.window.padding, false)
    }

    /// `dx` from `dy`: the same with mirrored kernels.
    pub(super) fn input_gradient(geometry: &Geometry) -> Self {
        let source = Blocks::new(geometry.output, BLOCK);
        let target = Blocks::new(geometry.input, BLOCK);
        Self::new(source, target, 2 - geometry.window.padding, true)
    }

    fn new(source: Blocks, target: Blocks, padding: usize, backwards: bool) -> Self {
        let (padding, tiles_y, tiles_x) = Padding::of_tiles((STEP, TILE), source, target, padding);
        Self { source, target, padding, tiles_y, tiles_x, backwards }
    }

    /// Writes `target`; `weight` comes from [`Self::pack`].
    pub(super) fn run(
        &self,
        engine: Engine,
        source: &[bf16],
        weight: &[bf16],
        target: &mut [bf16],
        write: Write<'_, bf16>,
    ) {
        let (source_len, target_len) = (self.source.len(), self.target.len());
        let images = target.par_chunks_mut(target_len).zip(source.par_chunks(source_len));
        images.enumerate().for_each(|(image, (target, source))| {
            let session = Session::start(engine);
            let mut padded = Buffer::unspecified(self.padding.around(self.source).len());
            self.padding.pad(self.source, source, &mut padded);
            let write = write.part(image * target_len, target_len);
            let step = (N_TILES / self.tiles_x).max(1);
            for first in (0..self.tiles_y).step_by(step) {
                let rows = first..(first + step).min(self.tiles_y);
                self.tile_rows(&session, rows, &padded, weight, target, write);
            }
        });
    }

    /// Some rows of tiles through all three stages.
    fn tile_rows(
        &self,
        session: &Session,
        rows: std::ops::Range<usize>,
        padded: &[bf16],
        weight: &[bf16],
        target: &mut [bf16],
        write: Write<'_, bf16>,
    ) {
        let outer = self.padding.around(self.source);
        let n_tiles = rows.len() * self.tiles_x;
        let n_pairs = self.n_pairs();
        let source_stride = odd_lines(n_pairs * n_tiles * DEPTH);
        let mut from = Buffer::unspecified(N_PRODUCTS * source_stride);
        if !self.source.n_blocks.is_multiple_of(2) {
            from.fill(bf16::ZERO);
        }
        for block in 0..self.source.n_blocks {
            let lane = block % 2 * BLOCK;
            for (index, row) in rows.clone().enumerate() {
                let start = block * outer.block_len() + row * STEP * outer.w * BLOCK;
                let tiles = TileRow { n_tiles: self.tiles_x, product_stride: source_stride };
                let to = (block / 2 * n_tiles + index * self.tiles_x) * DEPTH + lane;
                tiles.input(session, &padded[start..], outer.w * BLOCK, &mut from[to..]);
            }
        }
        let target_stride = n_tiles * BLOCK;
        let products_len = N_PRODUCTS * target_stride;
        let mut products = Buffer::unspecified(2 * products_len);
        let mut lines = Buffer::unspecified(STEP * STEP * self.tiles_x * BLOCK);
        for block in (0..self.target.n_blocks).step_by(2) {
            let n_targets = (self.target.n_blocks - block).min(2);
            for product in 0..N_PRODUCTS {
                let correlate = Correlate {
                    taps: &[Tap { source: 0, weight: 0 }],
                    n_blocks: n_pairs,
                    source_block: n_tiles * DEPTH,
                    weight_block: TILE_LEN,
                    weight_target: self.weight_target(),
                    n_targets,
                    n_pixels: n_tiles,
                };
                let weight = &weight[block * self.weight_target() + product * self.weight_product()..];
                let to = &mut products[product * target_stride..];
                correlate.run_long(session, &from[product * source_stride..], weight, to, products_len);
            }
            for (index, products) in products.chunks_exact(products_len).take(n_targets).enumerate() {
                for (tile_row, row) in rows.clone().enumerate() {
                    let tiles = TileRow { n_tiles: self.tiles_x, product_stride: target_stride };
                    tiles.output(session, &products[tile_row * self.tiles_x * BLOCK..], &mut lines);
                    self.put(&lines, row, block + index, target, write);
                }
            }
        }
    }

    /// Writes the pixels of a row of tiles that lie inside the image.
    fn put(&self, lines: &[f32], row: usize, block: usize, target: &mut [bf16], write: Write<'_, bf16>) {
        let block_len = self.target.block_len();
        let write = write.part(block * block_len, block_len);
        let target = &mut target[block * block_len..][..block_len];
        let line_len = STEP * self.tiles_x * BLOCK;
        for (index, line) in lines.chunks_exact(line_len).take(self.target.h - row * STEP).enumerate() {
            let start = (row * STEP + index) * self.target.w * BLOCK;
            let (pixels, _) = line.as_chunks::<BLOCK>();
            let target = &mut target[start..start + self.target.w * BLOCK];
            write.pixels(target, start, &pixels[..self.target.w], 1, block);
        }
    }

    /// Pairs of source blocks.
    fn n_pairs(&self) -> usize {
        self.source.n_blocks.div_ceil(2)
    }

    /// Numbers from one product of a target block's weight to the next.
    fn weight_product(&self) -> usize {
        self.n_pairs() * TILE_LEN
    }

    fn weight_target(&self) -> usize {
        N_PRODUCTS * self.weight_product()
    }

    /// OIHW to `[target / 16][16][source / 32]` tiles of `[source pair][16 target][2]`.
    pub(super) fn pack(&self, engine: Engine, weight: &[f32]) -> Buffer<bf16> {
        const TAPS: usize = 9;
        let (sources, targets) = (self.source.n_blocks * BLOCK, self.target.n_blocks * BLOCK);
        let (source_step, target_step) =
            if self.backwards { (targets * TAPS, TAPS) } else { (TAPS, sources * TAPS) };
        let mut packed = Buffer::unspecified(self.target.n_blocks * self.weight_target());
        packed.par_chunks_mut(self.weight_target()).enumerate().for_each(|(block, packed)| {
            if !self.source.n_blocks.is_multiple_of(2) {
                packed.fill(bf16::ZERO);
            }
            let session = Session::start(engine);
            let weight = &weight[block * BLOCK * target_step..];
            for source in (0..sources).step_by(2) {
                let to = &mut packed[source / DEPTH * TILE_LEN + source % DEPTH / 2 * DEPTH..];
                let both = [source, source + 1].map(|source| &weight[source * source_step..]);
                pack_kernels(&session, to, both, target_step, self.weight_product(), self.backwards);
            }
        });
        packed
    }
}

/// Keeps products of one tile out of the same cache set, where a power of two would put
/// them.
fn odd_lines(len: usize) -> usize {
    len + DEPTH
}
