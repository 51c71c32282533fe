//! The gradient of the weight in mixed precision: x channel by channel, dy in pairs
//! of pixels, both over the same padded planes, so that zeros of dy take care of
//! what lies between the rows.

use half::bf16;
use rayon::prelude::*;

use super::planes::Planes;
use crate::{
    activation::BLOCK,
    buffer::Buffer,
    conv::{Geometry, blocks::Blocks},
    kernels::mixed::{self, DEPTH, Engine, Outer, SUMS_LEN, Session},
};

/// Pixels that all taps go over before the next are loaded: both sides of two blocks
/// fit into the L1 cache.
const CHUNK_PIXELS: usize = 256;

/// The gradient of the weight in OIHW. Each piece of it belongs to one task, which
/// adds the images up in order.
pub(super) fn weight_gradient(engine: Engine, x: &[bf16], dy: &[bf16], geometry: &Geometry) -> Vec<f32> {
    let input = Input::arrange(engine, x, geometry);
    let gradient = Gradient::arrange(engine, dy, &input, geometry);
    let (n_inputs, n_outputs) = (geometry.input.c / BLOCK, geometry.output.c / BLOCK);
    let taps = geometry.taps();
    let window = geometry.window;
    let input_pairs = n_inputs.div_ceil(2);
    // [output pair][input pair][tap][input % 2][output % 2][16 input][16 output]
    let piece_len = taps * 4 * SUMS_LEN;
    let mut pieces = Buffer::unspecified(n_outputs.div_ceil(2) * input_pairs * piece_len);
    pieces.par_chunks_mut(piece_len).enumerate().for_each(|(index, sums)| {
        let session = Session::start(engine);
        sums.fill(0.0);
        let (out_block, in_block) = (index / input_pairs * 2, index % input_pairs * 2);
        let n_pixels = gradient.n_pixels;
        for image in 0..geometry.input.n {
            let x = &input.values[(image * n_inputs + in_block) * BLOCK * input.row..];
            let dy = &gradient.values[(image * n_outputs + out_block) * n_pixels * BLOCK..];
            for first in (0..n_pixels).step_by(CHUNK_PIXELS) {
                let outer = Outer {
                    input_row: input.row,
                    gradient_block: n_pixels * BLOCK,
                    n_inputs: (n_inputs - in_block).min(2),
                    n_gradients: (n_outputs - out_block).min(2),
                    n_steps: CHUNK_PIXELS.min(n_pixels - first) / DEPTH,
                };
                for tap in 0..taps {
                    let distance = input.planes.tap(tap / window.kernel_w, tap % window.kernel_w);
                    let sums = &mut sums[tap * 4 * SUMS_LEN..][..4 * SUMS_LEN];
                    outer.run(&session, &x[distance + first..], &dy[first * BLOCK..], sums);
                }
            }
        }
    });
    unpack(engine, &pieces, geometry)
}

/// The input, channel-major.
struct Input {
    planes: Planes,
    /// `[N][C][row]`, a row being all phases and a few numbers behind them.
    values: Buffer<bf16>,
    row: usize,
}

impl Input {
    fn arrange(engine: Engine, x: &[bf16], geometry: &Geometry) -> Self {
        let planes = Planes::of_input(geometry, Blocks::new(geometry.input, BLOCK));
        // An odd number of cache lines keeps channels out of the same cache set.
        let row = (planes.n_phases() * planes.len).next_multiple_of(2 * DEPTH) + DEPTH;
        let block_len = planes.source.block_len();
        let mut values = Buffer::unspecified(x.len() / block_len * BLOCK * row);
        values.par_chunks_mut(BLOCK * row).zip(x.par_chunks(block_len)).for_each(|(to, block)| {
            let session = Session::start(engine);
            let mut padded = Buffer::unspecified(planes.len * BLOCK);
            for phase in 0..planes.n_phases() {
                planes.fill(phase, block, &mut padded);
                mixed::channel_major(&session, &mut to[phase * planes.len..], row, &padded);
            }
            for line in to.chunks_exact_mut(row) {
                line[planes.n_phases() * planes.len..].fill(bf16::ZERO);
            }
        });
        Self { planes, values, row }
    }
}

/// The output gradient, in pairs of pixels, its rows as long as the input planes'.
struct Gradient {
    values: Buffer<bf16>,
    n_pixels: usize,
}

impl Gradient {
    fn arrange(engine: Engine, dy: &[bf16], input: &Input, geometry: &Geometry) -> Self {
        let source = Blocks::new(geometry.output, BLOCK);
        let cols = input.planes.cols;
        let n_pixels = ((source.h - 1) * cols + source.w).next_multiple_of(DEPTH);
        let mut values = Buffer::unspecified(dy.len() / source.block_len() * n_pixels * BLOCK);
        values.par_chunks_mut(n_pixels * BLOCK).zip(dy.par_chunks(source.block_len())).for_each(
            |(to, block)| {
                let session = Session::start(engine);
                let mut padded = Buffer::unspecified(n_pixels * BLOCK);
                let mut rows = block.chunks_exact(source.w * BLOCK);
                for line in padded.chunks_mut(cols * BLOCK) {
                    let row = rows.next().unwrap_or_default();
                    line[..row.len()].copy_from_slice(row);
                    line[row.len()..].fill(bf16::ZERO);
                }
                mixed::pairs(&session, to, &padded);
            },
        );
        Self { values, n_pixels }
    }
}

/// Sums of the pieces back to OIHW.
fn unpack(engine: Engine, pieces: &[f32], geometry: &Geometry) -> Vec<f32> {
    let (inputs, taps) = (geometry.input.c, geometry.taps());
    let (n_inputs, n_outputs) = (inputs / BLOCK, geometry.output.c / BLOCK);
    let input_pairs = n_inputs.div_ceil(2);
    let mut weight = vec![0.0; geometry.weight_count()];
    weight.par_chunks_mut(BLOCK * inputs * taps).enumerate().for_each(|(out_block, weight)| {
        let session = Session::start(engine);
        let n_gradients = (n_outputs - out_block / 2 * 2).min(2);
        for channel in 0..inputs {
            let in_block = channel / BLOCK;
            let piece = out_block / 2 * input_pairs + in_block / 2;
            let sums = &pieces[piece * taps * 4 * SUMS_LEN..][..taps * 4 * SUMS_LEN];
            let place = (in_block % 2 * n_gradients + out_block % 2) * SUMS_LEN + channel % BLOCK * BLOCK;
            let weight = &mut weight[channel * taps..];
            mixed::unpack_taps(&session, weight, inputs * taps, &sums[place..], 4 * SUMS_LEN, taps);
        }
    });
    weight
}
