//! Direct convolution on channel-blocked planes: tiles of output pixels times 16
//! or 32 output channels stay in registers while all taps and input channels pass.
#![expect(unsafe_code, reason = "register tiles over raw pointers; the extents are checked at the door")]
#![expect(clippy::needless_range_loop, reason = "indices name rows, pixels and blocks of one tile at once")]

use std::sync::LazyLock;

#[cfg(target_arch = "aarch64")]
use crate::kernels::vector::Four128;
#[cfg(target_arch = "x86_64")]
use crate::kernels::vector::{One512, Two256};
use crate::{
    activation::BLOCK,
    kernels::{VectorWidth, lanes::Bounds, vector::Vector},
};

/// One pixel of the kernel: how far its input and its weights lie from the first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tap {
    pub input: usize,
    pub weight: usize,
}

/// Input channels side by side, and pixels from one window to the next: fixed at
/// compile time, so that a tile addresses all its pixels from one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InputStep {
    /// Plain planes, stride 1.
    Plain1,
    /// Plain planes, stride 2.
    Plain2,
    /// Blocks of 16 channels, stride 1.
    Blocked1,
    /// Blocks of 16 channels, stride 2.
    Blocked2,
}

impl InputStep {
    fn channels(self) -> usize {
        match self {
            Self::Plain1 | Self::Plain2 => 1,
            Self::Blocked1 | Self::Blocked2 => BLOCK,
        }
    }

    /// Numbers between the windows of two neighbouring output pixels.
    pub(super) fn pixel(self) -> usize {
        match self {
            Self::Plain1 => 1,
            Self::Plain2 => 2,
            Self::Blocked1 => BLOCK,
            Self::Blocked2 => 2 * BLOCK,
        }
    }
}

/// Pixels from one written output pixel to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputStep {
    /// Every pixel.
    Every,
    /// Every other pixel: one phase of the gradient of a stride-2 convolution.
    EveryOther,
}

impl OutputStep {
    fn pixel(self) -> usize {
        match self {
            Self::Every => BLOCK,
            Self::EveryOther => 2 * BLOCK,
        }
    }
}

/// One convolution of some input blocks into one or two output blocks. All strides
/// count numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plane<'a> {
    pub taps: &'a [Tap],
    pub input_step: InputStep,
    pub input_row: usize,
    pub input_block: usize,
    pub n_input_blocks: usize,
    pub weight_input_block: usize,
    pub weight_output_block: usize,
    pub output_step: OutputStep,
    pub output_row: usize,
    pub output_block: usize,
    /// 1 or 2.
    pub n_output_blocks: usize,
    /// Output pixels.
    pub rows: usize,
    pub cols: usize,
    /// Adds to the output instead of overwriting it.
    pub accumulate: bool,
}

/// The end of a convolution in inference: bias, residual and activation function.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a, T = f32> {
    /// One number per channel of the written blocks.
    pub bias: &'a [f32],
    /// Added as well; lies like the output.
    pub residual: Option<&'a [T]>,
    /// The result is kept inside these bounds.
    pub bounds: Bounds<f32>,
}

impl Plane<'_> {
    /// Output blocks that one tile can hold on this processor.
    pub(crate) fn max_output_blocks(width: VectorWidth) -> usize {
        match width {
            #[cfg(target_arch = "x86_64")]
            VectorWidth::Bits512 => 2,
            #[cfg(target_arch = "x86_64")]
            VectorWidth::Bits256 => 1,
            #[cfg(target_arch = "aarch64")]
            VectorWidth::Bits128 => 1,
        }
    }

    /// Runs the convolution.
    pub(crate) fn run(
        &self,
        width: VectorWidth,
        input: &[f32],
        weight: &[f32],
        output: &mut [f32],
        finish: Option<Finish<'_>>,
    ) {
        if self.rows == 0 || self.cols == 0 {
            return;
        }
        let last_output = self.check(width, input.len(), weight.len(), output.len());
        let (input, weight) = (input.as_ptr(), weight.as_ptr());
        let output = output.as_mut_ptr();
        let ending = finish.map(|finish| {
            let residual = finish.residual.map_or(last_output, <[f32]>::len);
            assert!(
                self.n_output_blocks * BLOCK <= finish.bias.len() && last_output <= residual,
                "the end of a plane leaves its slices: {self:?}"
            );
            Ending { finish, output }
        });
        let ending = ending.as_ref();
        // SAFETY: `check` and the assert bound every access of the planes by the
        // slices, and `width` was found on this processor.
        unsafe {
            match (width, self.n_output_blocks) {
                #[cfg(target_arch = "x86_64")]
                (VectorWidth::Bits512, 2) => run_512::<2>(self, input, weight, output, ending),
                #[cfg(target_arch = "x86_64")]
                (VectorWidth::Bits512, _) => run_512::<1>(self, input, weight, output, ending),
                #[cfg(target_arch = "x86_64")]
                (VectorWidth::Bits256, _) => run_256(self, input, weight, output, ending),
                #[cfg(target_arch = "aarch64")]
                (VectorWidth::Bits128, _) => run_128(self, input, weight, output, ending),
            }
        }
    }

    /// Panics unless all accesses fall into the slices; the end of the output's.
    fn check(&self, width: VectorWidth, input: usize, weight: usize, output: usize) -> usize {
        assert!(
            (1..=Self::max_output_blocks(width)).contains(&self.n_output_blocks) && self.n_input_blocks > 0,
            "no tile for {self:?}"
        );
        let channels = self.input_step.channels();
        let farthest = |part: fn(&Tap) -> usize| self.taps.iter().map(part).max().unwrap_or(0);
        let last_input = (self.rows - 1) * self.input_row
            + (self.cols - 1) * self.input_step.pixel()
            + (self.n_input_blocks - 1) * self.input_block
            + farthest(|tap| tap.input)
            + channels;
        let last_weight = (self.n_output_blocks - 1) * self.weight_output_block
            + (self.n_input_blocks - 1) * self.weight_input_block
            + farthest(|tap| tap.weight)
            + channels * BLOCK;
        let last_output = (self.rows - 1) * self.output_row
            + (self.cols - 1) * self.output_step.pixel()
            + (self.n_output_blocks - 1) * self.output_block
            + BLOCK;
        assert!(
            last_input <= input && last_weight <= weight && last_output <= output,
            "plane leaves its slices: {self:?}"
        );
        last_output
    }
}

/// A finish as the tiles see it.
struct Ending<'a> {
    finish: Finish<'a>,
    /// The first number of the output.
    output: *const f32,
}

impl Ending<'_> {
    /// Adds bias and residual of the sixteen sums of output block `o` that will be
    /// written to `to`, and applies the bounds.
    #[inline(always)]
    unsafe fn apply<V: Vector>(&self, sums: V, o: usize, to: *const f32) -> V {
        // SAFETY: `Plane::run` bounded the bias by the blocks, and the residual, which
        // lies like the output, by the end of the output.
        unsafe {
            let mut sums = sums.add(V::load(self.finish.bias.as_ptr().add(o * BLOCK)));
            if let Some(residual) = self.finish.residual {
                let at = to.offset_from(self.output) as usize;
                sums = sums.add(V::load(residual.as_ptr().add(at)));
            }
            let (lo, hi) = self.finish.bounds;
            sums.clamp(&lo, &hi)
        }
    }
}

/// Rows up to this many pixels are split the cheapest way; longer ones start with
/// the widest tiles.
const MAX_PLANNED: usize = 256;

/// Width of the first tile of a row, by the pixels left.
type FirstTiles = [u8; MAX_PLANNED + 1];

/// The cheapest way to cover rows with tiles of the given widths, the widest first:
/// a tile costs its multiply-adds, but never less than the latency of one.
fn plan_tiles(widths: &[u8]) -> FirstTiles {
    const LATENCY: usize = 5;
    const OVERHEAD: usize = 1;
    let mut first = [1; MAX_PLANNED + 1];
    let mut cost = [0; MAX_PLANNED + 1];
    for length in 1..=MAX_PLANNED {
        let options = widths.iter().filter(|width| usize::from(**width) <= length).map(|width| {
            let pixels = usize::from(*width);
            (cost[length - pixels] + pixels.max(LATENCY) + OVERHEAD, *width)
        });
        (cost[length], first[length]) = options.min().unwrap_or((usize::MAX, 1));
    }
    first
}

/// Width of the next of the wide tiles, with `rest` pixels of the row left.
#[cfg(target_arch = "x86_64")]
pub(super) fn next_wide_tile(rest: usize) -> u8 {
    static PLAN: LazyLock<FirstTiles> = LazyLock::new(|| plan_tiles(&[14, 10, 8, 7, 4, 2, 1]));
    PLAN.get(rest).copied().unwrap_or(14)
}

/// The same of the narrow tiles.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn next_narrow_tile(rest: usize) -> u8 {
    static PLAN: LazyLock<FirstTiles> = LazyLock::new(|| plan_tiles(&[6, 4, 2, 1]));
    PLAN.get(rest).copied().unwrap_or(6)
}

/// Calls `$run` with the constants of the plane's steps.
macro_rules! with_steps {
    ($plane:expr, $run:ident, $vector:ty, $blocks:expr, $args:tt) => {
        match ($plane.input_step, $plane.output_step) {
            (InputStep::Blocked1, OutputStep::Every) => {
                with_steps!(@call $run, $vector, $blocks, 16, 16, 16, $args)
            }
            (InputStep::Blocked2, OutputStep::Every) => {
                with_steps!(@call $run, $vector, $blocks, 32, 16, 16, $args)
            }
            (InputStep::Blocked1, OutputStep::EveryOther) => {
                with_steps!(@call $run, $vector, $blocks, 16, 32, 16, $args)
            }
            (InputStep::Plain1, OutputStep::Every) => {
                with_steps!(@call $run, $vector, $blocks, 1, 16, 1, $args)
            }
            (InputStep::Plain2, OutputStep::Every) => {
                with_steps!(@call $run, $vector, $blocks, 2, 16, 1, $args)
            }
            _ => unreachable!("no such pair of steps is planned"),
        }
    };
    (@call $run:ident, $vector:ty, $blocks:expr, $ps:literal, $os:literal, $cb:literal,
     ($($arg:expr),*)) => {
        $run::<$vector, $blocks, $ps, $os, $cb>($($arg),*)
    };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn run_512<const O: usize>(
    plane: &Plane<'_>,
    input: *const f32,
    weight: *const f32,
    output: *mut f32,
    ending: Option<&Ending<'_>>,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        with_steps!(plane, wide_rows, One512, O, (plane, input, weight, output, ending));
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_256(
    plane: &Plane<'_>,
    input: *const f32,
    weight: *const f32,
    output: *mut f32,
    ending: Option<&Ending<'_>>,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        with_steps!(plane, narrow_rows, Two256, 1, (plane, input, weight, output, ending));
    }
}

#[cfg(target_arch = "aarch64")]
unsafe fn run_128(
    plane: &Plane<'_>,
    input: *const f32,
    weight: *const f32,
    output: *mut f32,
    ending: Option<&Ending<'_>>,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        with_steps!(plane, narrow_rows, Four128, 1, (plane, input, weight, output, ending));
    }
}

/// All tiles of a plane where a vector is one register: up to 28 accumulators of 32.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn wide_rows<V: Vector, const O: usize, const PS: usize, const OS: usize, const CB: usize>(
    plane: &Plane<'_>,
    input: *const f32,
    weight: *const f32,
    output: *mut f32,
    ending: Option<&Ending<'_>>,
) {
    let mut y = 0;
    // SAFETY: rows and columns stay below those `Plane::check` went by.
    unsafe {
        if plane.cols == 7 {
            while y + 2 <= plane.rows {
                let (input, output) = plane.at::<PS, OS>(input, output, y, 0);
                tile::<V, 2, 7, O, PS, OS, CB>(plane, input, weight, output, ending);
                y += 2;
            }
        }
        while y < plane.rows {
            let mut x = 0;
            while x < plane.cols {
                let (input, output) = plane.at::<PS, OS>(input, output, y, x);
                let width = next_wide_tile(plane.cols - x);
                match width {
                    14 => tile::<V, 1, 14, O, PS, OS, CB>(plane, input, weight, output, ending),
                    10 => tile::<V, 1, 10, O, PS, OS, CB>(plane, input, weight, output, ending),
                    8 => tile::<V, 1, 8, O, PS, OS, CB>(plane, input, weight, output, ending),
                    7 => tile::<V, 1, 7, O, PS, OS, CB>(plane, input, weight, output, ending),
                    4 => tile::<V, 1, 4, O, PS, OS, CB>(plane, input, weight, output, ending),
                    2 => tile::<V, 1, 2, O, PS, OS, CB>(plane, input, weight, output, ending),
                    _ => tile::<V, 1, 1, O, PS, OS, CB>(plane, input, weight, output, ending),
                }
                x += usize::from(width);
            }
            y += 1;
        }
    }
}

/// All tiles of a plane where a vector is a good part of the registers: 12 accumulators of 16
/// with AVX2, 24 of 32 with NEON.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
unsafe fn narrow_rows<V: Vector, const O: usize, const PS: usize, const OS: usize, const CB: usize>(
    plane: &Plane<'_>,
    input: *const f32,
    weight: *const f32,
    output: *mut f32,
    ending: Option<&Ending<'_>>,
) {
    // SAFETY: rows and columns stay below those `Plane::check` went by.
    unsafe {
        for y in 0..plane.rows {
            let mut x = 0;
            while x < plane.cols {
                let (input, output) = plane.at::<PS, OS>(input, output, y, x);
                let width = next_narrow_tile(plane.cols - x);
                match width {
                    6 => tile::<V, 1, 6, O, PS, OS, CB>(plane, input, weight, output, ending),
                    4 => tile::<V, 1, 4, O, PS, OS, CB>(plane, input, weight, output, ending),
                    2 => tile::<V, 1, 2, O, PS, OS, CB>(plane, input, weight, output, ending),
                    _ => tile::<V, 1, 1, O, PS, OS, CB>(plane, input, weight, output, ending),
                }
                x += usize::from(width);
            }
        }
    }
}

impl Plane<'_> {
    /// Where the tile at row `y`, column `x` starts.
    #[inline(always)]
    unsafe fn at<const PS: usize, const OS: usize>(
        &self,
        input: *const f32,
        output: *mut f32,
        y: usize,
        x: usize,
    ) -> (*const f32, *mut f32) {
        // SAFETY: the caller stays inside the rows and columns of the plane.
        unsafe { (input.add(y * self.input_row + x * PS), output.add(y * self.output_row + x * OS)) }
    }
}

/// One tile: `R` rows of `J` pixels of `O` output blocks. `PS` and `OS` are the
/// numbers between neighbouring pixels, `CB` the input channels in a block.
#[inline(always)]
unsafe fn tile<
    V: Vector,
    const R: usize,
    const J: usize,
    const O: usize,
    const PS: usize,
    const OS: usize,
    const CB: usize,
>(
    plane: &Plane<'_>,
    input: *const f32,
    weight: *const f32,
    output: *mut f32,
    ending: Option<&Ending<'_>>,
) {
    // SAFETY: every offset is one that `Plane::check` bounded.
    unsafe {
        let at =
            |o: usize, r: usize, j: usize| output.add(o * plane.output_block + r * plane.output_row + j * OS);
        let mut sums = [[[V::zero(); J]; R]; O];
        if plane.accumulate {
            for o in 0..O {
                for r in 0..R {
                    for j in 0..J {
                        sums[o][r][j] = V::load(at(o, r, j));
                    }
                }
            }
        }
        for block in 0..plane.n_input_blocks {
            let input = input.add(block * plane.input_block);
            let weight = weight.add(block * plane.weight_input_block);
            for tap in plane.taps {
                let (input, weight) = (input.add(tap.input), weight.add(tap.weight));
                for channel in 0..CB {
                    let mut weights = [V::zero(); O];
                    for o in 0..O {
                        weights[o] = V::load(weight.add(o * plane.weight_output_block + channel * BLOCK));
                    }
                    for r in 0..R {
                        for j in 0..J {
                            let value = V::splat(input.add(r * plane.input_row + j * PS + channel));
                            for o in 0..O {
                                sums[o][r][j] = sums[o][r][j].add_product(value, weights[o]);
                            }
                        }
                    }
                }
            }
        }
        for o in 0..O {
            for r in 0..R {
                for j in 0..J {
                    let sum = match ending {
                        Some(ending) => ending.apply(sums[o][r][j], o, at(o, r, j)),
                        None => sums[o][r][j],
                    };
                    sum.store(at(o, r, j));
                }
            }
        }
    }
}
