//! The forward pass and the gradient of the input in mixed precision. Pixels are
//! taken 32 at a time over the padded rows; what falls beyond the end of a row is
//! thrown away.

use half::bf16;
use rayon::prelude::*;

use super::planes::Planes;
use crate::{
    activation::BLOCK,
    buffer::Buffer,
    conv::{
        Geometry,
        blocks::Blocks,
        correlation::{AxisPhase, phase_taps},
        write::Write,
    },
    kernels::mixed::{self, Correlate, DEPTH, DOT_PIXELS, Engine, ROWS, Session, Sums, TILE_LEN, Tap},
};

/// The target pixels `(y + i * step, x + j * step)`.
struct Phase {
    y: usize,
    x: usize,
    rows: usize,
    cols: usize,
    taps: Vec<Tap>,
}

/// A window sliding over a source, writing a target, in mixed precision.
pub(super) struct Correlation {
    planes: Planes,
    target: Blocks,
    target_step: usize,
    n_images: usize,
    taps: usize,
    phases: Vec<Phase>,
}

impl Correlation {
    /// `y` from `x`.
    pub(super) fn forward(geometry: &Geometry) -> Self {
        let (window, output) = (geometry.window, geometry.output);
        let planes = Planes::of_input(geometry, Blocks::new(geometry.input, BLOCK));
        let taps = (0..geometry.taps()).map(|tap| Tap {
            source: planes.tap(tap / window.kernel_w, tap % window.kernel_w) * DEPTH,
            weight: tap * TILE_LEN,
        });
        let phases = vec![Phase { y: 0, x: 0, rows: output.h, cols: output.w, taps: taps.collect() }];
        Self {
            planes,
            target: Blocks::new(output, BLOCK),
            target_step: 1,
            n_images: geometry.input.n,
            taps: geometry.taps(),
            phases,
        }
    }

    /// `dx` from `dy`, one phase of `dx` after the other.
    pub(super) fn input_gradient(geometry: &Geometry) -> Self {
        let window = geometry.window;
        let (source, target) = (Blocks::new(geometry.output, BLOCK), Blocks::new(geometry.input, BLOCK));
        let axis = |kernel: usize, extent: usize| -> Vec<_> {
            (0..window.stride.min(extent))
                .map(|phase| {
                    let taps = phase_taps(phase, kernel, window.stride, window.padding);
                    (phase, (extent - phase).div_ceil(window.stride), taps)
                })
                .collect()
        };
        let (axis_y, axis_x) = (axis(window.kernel_h, target.h), axis(window.kernel_w, target.w));
        // Zeros before the source, and the extent with the zeros behind it.
        let extent = |phases: &[AxisPhase], extent: usize| {
            let offsets =
                || phases.iter().flat_map(|(_, count, taps)| taps.iter().map(move |tap| (*count, tap.1)));
            let before = offsets().map(|(_, offset)| -offset).max().unwrap_or(0).max(0);
            let end = offsets().map(|(count, offset)| count as isize + offset).max().unwrap_or(0);
            (before as usize, (before + end.max(extent as isize)) as usize)
        };
        let ((top, rows), (left, cols)) = (extent(&axis_y, source.h), extent(&axis_x, source.w));
        let planes = Planes::new(source, 1, (top, left), (rows, cols));
        let mut phases = Vec::new();
        for (y, n_rows, taps_y) in &axis_y {
            for (x, n_cols, taps_x) in &axis_x {
                let mut taps = Vec::new();
                for (tap_y, offset_y) in taps_y {
                    for (tap_x, offset_x) in taps_x {
                        let row = (offset_y + top as isize) as usize;
                        let col = (offset_x + left as isize) as usize;
                        taps.push(Tap {
                            source: (row * cols + col) * DEPTH,
                            weight: (tap_y * window.kernel_w + tap_x) * TILE_LEN,
                        });
                    }
                }
                phases.push(Phase { y: *y, x: *x, rows: *n_rows, cols: *n_cols, taps });
            }
        }
        Self {
            planes,
            target,
            target_step: window.stride,
            n_images: geometry.input.n,
            taps: geometry.taps(),
            phases,
        }
    }

    /// Writes `target`; `weight` comes from [`pack_weight`].
    pub(super) fn run(
        &self,
        engine: Engine,
        source: &[bf16],
        weight: &[bf16],
        target: &mut [bf16],
        write: Write<'_, bf16>,
    ) {
        let (source_len, target_len) = (self.planes.source.len(), self.target.len());
        target.par_chunks_mut(target_len).zip(source.par_chunks(source_len)).enumerate().for_each(
            |(image, (target, source))| {
                debug_assert!(image < self.n_images);
                let session = Session::start(engine);
                let padded = self.pad(source);
                let write = write.part(image * target_len, target_len);
                self.correlate(engine, &session, &padded, weight, target, write);
            },
        );
    }

    /// The planes of one image, `[channels / 32][phase][pixel][32]`.
    fn pad(&self, source: &[bf16]) -> Buffer<bf16> {
        let planes = self.planes;
        let n_blocks = planes.source.n_blocks;
        let mut padded = Buffer::unspecified(n_blocks.div_ceil(2) * planes.n_phases() * planes.len * DEPTH);
        let block_len = planes.source.block_len();
        let block = |index: usize| source.get(index * block_len..(index + 1) * block_len).unwrap_or_default();
        for (index, to) in padded.chunks_exact_mut(planes.len * DEPTH).enumerate() {
            let (pair, phase) = (index / planes.n_phases(), index % planes.n_phases());
            planes.fill_pair(phase, [block(2 * pair), block(2 * pair + 1)], to);
        }
        padded
    }

    /// One image.
    fn correlate(
        &self,
        engine: Engine,
        session: &Session,
        source: &[bf16],
        weight: &[bf16],
        target: &mut [bf16],
        write: Write<'_, bf16>,
    ) {
        let n_source_pairs = self.planes.source.n_blocks.div_ceil(2);
        let block_len = self.target.block_len();
        if matches!(write, Write::Replace) && self.phases.iter().any(|phase| phase.taps.is_empty()) {
            target.fill(bf16::ZERO);
        }
        let weight_target = n_source_pairs * self.taps * TILE_LEN;
        let mut sums: Sums = [[[0.0; BLOCK]; ROWS]; 2];
        for block in (0..self.target.n_blocks).step_by(2) {
            let n_targets = (self.target.n_blocks - block).min(2);
            for phase in self.phases.iter().filter(|phase| !phase.taps.is_empty()) {
                for (first, n_pixels) in self.steps(engine, phase) {
                    let correlate = Correlate {
                        taps: &phase.taps,
                        n_blocks: n_source_pairs,
                        source_block: self.planes.n_phases() * self.planes.len * DEPTH,
                        weight_block: self.taps * TILE_LEN,
                        weight_target,
                        n_targets,
                        n_pixels,
                    };
                    let weight = &weight[block * weight_target..];
                    correlate.run(session, &source[first * DEPTH..], weight, &mut sums);
                    for (index, sums) in sums[..n_targets].iter().enumerate() {
                        let start = (block + index) * block_len;
                        let target = &mut target[start..start + block_len];
                        let write = write.part(start, block_len);
                        self.put(phase, first, &sums[..n_pixels], target, write, block + index);
                    }
                }
            }
        }
    }

    /// The flattened pixels taken at once: first, and how many. Tiles of AMX go over the
    /// ends of rows, whose zeros cost them less than rows in pieces would.
    fn steps(&self, engine: Engine, phase: &Phase) -> impl Iterator<Item = (usize, usize)> {
        let cols = self.planes.cols;
        let (n_lines, line, step) = match engine {
            Engine::Tiles => (1, (phase.rows - 1) * cols + phase.cols, ROWS),
            Engine::Dots => (phase.rows, phase.cols, DOT_PIXELS),
        };
        (0..n_lines).flat_map(move |row| {
            (0..line).step_by(step).map(move |first| (row * cols + first, step.min(line - first)))
        })
    }

    /// Writes the pixels of one tile that lie inside their rows.
    fn put(
        &self,
        phase: &Phase,
        first: usize,
        sums: &[[f32; BLOCK]],
        target: &mut [bf16],
        write: Write<'_, bf16>,
        block: usize,
    ) {
        let cols = self.planes.cols;
        let mut from = first;
        while from < first + sums.len() {
            let (row, col) = (from / cols, from % cols);
            if row >= phase.rows {
                break;
            }
            let run = (cols - col).min(first + sums.len() - from);
            let wanted = phase.cols.saturating_sub(col).min(run);
            let (y, x) = (phase.y + row * self.target_step, phase.x + col * self.target_step);
            let start = (y * self.target.w + x) * BLOCK;
            if wanted > 0 {
                let sums = &sums[from - first..][..wanted];
                write.pixels(&mut target[start..], start, sums, self.target_step, block);
            }
            from += run;
        }
    }
}

/// OIHW to tiles `[target / 16][source / 32][tap][source pair][16 target][2]`;
/// `backwards` makes the input channels the target.
pub(super) fn pack_weight(
    engine: Engine,
    weight: &[f32],
    geometry: &Geometry,
    backwards: bool,
) -> Buffer<bf16> {
    let taps = geometry.taps();
    let (inputs, outputs) = (geometry.input.c, geometry.output.c);
    let (sources, targets) = if backwards { (outputs, inputs) } else { (inputs, outputs) };
    // From the kernel of one source or target to that of the next.
    let (source_step, target_step) = if backwards { (inputs * taps, taps) } else { (taps, inputs * taps) };
    let n_pairs = sources.div_ceil(DEPTH);
    let mut packed = Buffer::unspecified(targets * n_pairs * DEPTH * taps);
    packed.par_chunks_mut(n_pairs * taps * TILE_LEN).enumerate().for_each(|(block, packed)| {
        if !sources.is_multiple_of(DEPTH) {
            packed.fill(bf16::ZERO);
        }
        let session = Session::start(engine);
        let weight = &weight[block * BLOCK * target_step..];
        for source in (0..sources).step_by(2) {
            let first = source / DEPTH * taps * TILE_LEN + source % DEPTH / 2 * DEPTH;
            let both = [source, source + 1].map(|source| &weight[source * source_step..]);
            mixed::pack_taps(&session, &mut packed[first..], both, target_step, taps);
        }
    });
    packed
}
