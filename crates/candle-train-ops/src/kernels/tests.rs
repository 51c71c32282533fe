//! The register tiles of every vector width against plain loops, in slices of exactly the
//! length that they need: a read or write beyond it is caught by Miri and AddressSanitizer.
//! All numbers are small and whole, so that sums are exact in any order.

use super::direct::{Finish, InputStep, OutputStep, Plane, Tap};
use super::outer::Outer;
use super::{VectorWidth, vector_width};
use crate::activation::BLOCK;

/// All vector widths of this processor.
fn widths() -> Vec<VectorWidth> {
    let widest = vector_width();
    #[cfg(target_arch = "x86_64")]
    if widest == Some(VectorWidth::Bits512)
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
    {
        return vec![VectorWidth::Bits256, VectorWidth::Bits512];
    }
    widest.into_iter().collect()
}

fn numbers(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7 + i / 16 + seed) % 5) as f32 - 2.0).collect()
}

/// Columns that are one tile each where a vector is one register, and most of them where it is
/// several; two rows of 7 are one more.
const COLS: [usize; 8] = [1, 2, 4, 6, 7, 8, 10, 14];

/// Columns of the kernel, which has two rows. Miri is some ten thousand times as slow.
const KERNEL: usize = if cfg!(miri) { 1 } else { 2 };

const STEPS: [(InputStep, OutputStep); 5] = [
    (InputStep::Plain1, OutputStep::Every),
    (InputStep::Plain2, OutputStep::Every),
    (InputStep::Blocked1, OutputStep::Every),
    (InputStep::Blocked2, OutputStep::Every),
    (InputStep::Blocked1, OutputStep::EveryOther),
];

/// What a plane is besides its steps.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    cols: usize,
    n_output_blocks: usize,
    accumulate: bool,
    finished: bool,
}

/// Two input blocks under a kernel of two rows.
fn check_plane(width: VectorWidth, steps: (InputStep, OutputStep), shape: Shape) {
    let Shape { rows, cols, n_output_blocks, accumulate, finished } = shape;
    let (channels, stride) = match steps.0 {
        InputStep::Plain1 => (1, 1),
        InputStep::Plain2 => (1, 2),
        InputStep::Blocked1 => (BLOCK, 1),
        InputStep::Blocked2 => (BLOCK, 2),
    };
    let output_pixel = match steps.1 {
        OutputStep::Every => BLOCK,
        OutputStep::EveryOther => 2 * BLOCK,
    };
    let input_row = ((cols - 1) * stride + KERNEL) * channels;
    let tap = |y: usize, x: usize| Tap {
        input: y * input_row + x * channels,
        weight: (KERNEL * y + x) * channels * BLOCK,
    };
    let taps: Vec<Tap> = (0..2).flat_map(|y| (0..KERNEL).map(move |x| tap(y, x))).collect();
    let weight_input_block = taps.len() * channels * BLOCK;
    let plane = Plane {
        taps: &taps,
        input_step: steps.0,
        input_row,
        input_block: (rows + 1) * input_row,
        n_input_blocks: 2,
        weight_input_block,
        weight_output_block: 2 * weight_input_block,
        output_step: steps.1,
        output_row: cols * output_pixel,
        output_block: rows * cols * output_pixel,
        n_output_blocks,
        rows,
        cols,
        accumulate,
    };
    let input = numbers(2 * plane.input_block, 1);
    let weight = numbers(n_output_blocks * plane.weight_output_block, 2);
    // Nothing lies behind the last written pixel.
    let output_len = n_output_blocks * plane.output_block - (output_pixel - BLOCK);
    let before = numbers(output_len, 3);
    let (bias, residual) = (numbers(n_output_blocks * BLOCK, 4), numbers(output_len, 5));
    let bounds = (-9.0, 40.0);
    let mut got = before.clone();
    let finish = Finish { bias: &bias, residual: Some(&residual), bounds };
    plane.run(width, &input, &weight, &mut got, finished.then_some(finish));
    if cfg!(miri) {
        // It watches the accesses; plain loops over all of them would take it minutes.
        return;
    }
    let mut want = before;
    for o in 0..n_output_blocks {
        for (row, col) in (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))) {
            for lane in 0..BLOCK {
                let at = o * plane.output_block + row * plane.output_row + col * output_pixel + lane;
                let mut sum = if accumulate { want[at] } else { 0.0 };
                for block in 0..2 {
                    for (tap, channel) in taps.iter().flat_map(|tap| (0..channels).map(move |c| (tap, c))) {
                        let from = block * plane.input_block + row * input_row + col * stride * channels;
                        let of = o * plane.weight_output_block + block * weight_input_block;
                        sum += input[from + tap.input + channel]
                            * weight[of + tap.weight + channel * BLOCK + lane];
                    }
                }
                if finished {
                    sum = (sum + bias[o * BLOCK + lane] + residual[at]).clamp(bounds.0, bounds.1);
                }
                want[at] = sum;
            }
        }
    }
    assert_eq!(got, want, "{width:?} {plane:?} {finished}");
}

/// Miri knows no minimum of AVX-512.
fn can_clamp(width: VectorWidth) -> bool {
    !cfg!(miri) || Plane::max_output_blocks(width) == 1
}

#[test]
fn planes_are_those_of_plain_loops_and_stay_inside_their_slices() {
    for width in widths() {
        for steps in STEPS {
            for (i, cols) in COLS.into_iter().enumerate() {
                for n_output_blocks in 1..=Plane::max_output_blocks(width) {
                    let (rows, accumulate) = (if cols == 7 { 2 } else { 1 }, i % 2 == 1);
                    let finished = (i + n_output_blocks) % 3 == 0 && can_clamp(width);
                    let shape = Shape { rows, cols, n_output_blocks, accumulate, finished };
                    check_plane(width, steps, shape);
                }
            }
        }
    }
}

fn check_outer(width: VectorWidth, step: InputStep, n_inputs: usize, n_output_blocks: usize) {
    let (rows, cols) = (2, 3);
    let outer = Outer {
        input_step: step,
        input_row: cols * step.pixel() + n_inputs,
        gradient_row: cols * BLOCK,
        gradient_block: rows * cols * BLOCK,
        rows,
        cols,
        n_inputs,
        sum_block: n_inputs * BLOCK,
        n_output_blocks,
    };
    let input = numbers((rows - 1) * outer.input_row + (cols - 1) * step.pixel() + n_inputs, 1);
    let gradient = numbers(n_output_blocks * outer.gradient_block, 2);
    let mut got = numbers(n_output_blocks * outer.sum_block, 3);
    let mut want = got.clone();
    for (o, n) in (0..n_output_blocks).flat_map(|o| (0..n_inputs).map(move |n| (o, n))) {
        for (row, col) in (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))) {
            let value = input[row * outer.input_row + col * step.pixel() + n];
            for lane in 0..BLOCK {
                let at = o * outer.gradient_block + row * outer.gradient_row + col * BLOCK + lane;
                want[o * outer.sum_block + n * BLOCK + lane] += value * gradient[at];
            }
        }
    }
    outer.run(width, &input, &gradient, &mut got);
    assert_eq!(got, want, "{width:?} {outer:?}");
}

#[test]
fn outer_products_are_those_of_plain_loops_and_stay_inside_their_slices() {
    for width in widths() {
        for step in [InputStep::Plain1, InputStep::Plain2, InputStep::Blocked1, InputStep::Blocked2] {
            for n_inputs in [1, 2, 3, 7, 8, 12, 16] {
                for n_output_blocks in 1..=Plane::max_output_blocks(width) {
                    check_outer(width, step, n_inputs, n_output_blocks);
                }
            }
        }
    }
}
