//! Direct convolution on channel-blocked planes: tiles of output pixels times 16
//! or 32 output channels stay in registers while all taps and input channels pass.
#![expect(unsafe_code, reason = "register tiles over raw pointers; the extents are checked at the door")]
#![expect(clippy::needless_range_loop, reason = "indices name rows, pixels and blocks of one tile at once")]

use crate::{
    activation::BLOCK,
    kernels::{
        VectorWidth,
        vector::{One512, Two256, Vector},
    },
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
    fn pixel(self) -> usize {
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

impl Plane<'_> {
    /// Output blocks that one tile can hold on this processor.
    pub(crate) fn max_output_blocks(width: VectorWidth) -> usize {
        match width {
            VectorWidth::Bits512 => 2,
            VectorWidth::Bits256 => 1,
        }
    }

    /// Runs the convolution.
    pub(crate) fn run(&self, width: VectorWidth, input: &[f32], weight: &[f32], output: &mut [f32]) {
        if self.rows == 0 || self.cols == 0 {
            return;
        }
        self.check(width, input.len(), weight.len(), output.len());
        let (input, weight) = (input.as_ptr(), weight.as_ptr());
        let output = output.as_mut_ptr();
        // SAFETY: `check` bounds every access of the planes by the three slices, and
        // `width` was found on this processor.
        unsafe {
            match (width, self.n_output_blocks) {
                (VectorWidth::Bits512, 2) => run_512::<2>(self, input, weight, output),
                (VectorWidth::Bits512, _) => run_512::<1>(self, input, weight, output),
                (VectorWidth::Bits256, _) => run_256(self, input, weight, output),
            }
        }
    }

    fn check(&self, width: VectorWidth, input: usize, weight: usize, output: usize) {
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
    }
}

/// Splits a row into tiles of the given widths, cheapest first: a tile costs its
/// multiply-adds, but never less than the latency of one.
fn split_row(cols: usize, widths: &[usize]) -> Vec<usize> {
    const LATENCY: usize = 5;
    const OVERHEAD: usize = 1;
    let mut best = vec![(0, 0)];
    for length in 1..=cols {
        let option = widths
            .iter()
            .filter(|width| **width <= length)
            .map(|width| {
                let rest: (usize, usize) = best[length - width];
                (rest.0 + (*width).max(LATENCY) + OVERHEAD, *width)
            })
            .min();
        best.push(option.unwrap_or((usize::MAX, length)));
    }
    let mut tiles = Vec::new();
    let mut rest = cols;
    while rest > 0 {
        let width = best[rest].1;
        tiles.push(width);
        rest -= width;
    }
    tiles
}

/// Calls `$tile` with the constants of the plane's steps.
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
        $run::<$blocks, $ps, $os, $cb>($($arg),*)
    };
}

#[target_feature(enable = "avx512f")]
unsafe fn run_512<const O: usize>(
    plane: &Plane<'_>,
    input: *const f32,
    weight: *const f32,
    output: *mut f32,
) {
    // SAFETY: passed on from the caller.
    unsafe {
        with_steps!(plane, rows_512, One512, O, (plane, input, weight, output));
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn run_256(plane: &Plane<'_>, input: *const f32, weight: *const f32, output: *mut f32) {
    // SAFETY: passed on from the caller.
    unsafe {
        with_steps!(plane, rows_256, Two256, 1, (plane, input, weight, output));
    }
}

/// All tiles of a plane with AVX-512: up to 28 accumulators of 32 registers.
#[target_feature(enable = "avx512f")]
unsafe fn rows_512<const O: usize, const PS: usize, const OS: usize, const CB: usize>(
    plane: &Plane<'_>,
    input: *const f32,
    weight: *const f32,
    output: *mut f32,
) {
    let tiles = split_row(plane.cols, &[14, 10, 8, 7, 4, 2, 1]);
    let mut y = 0;
    // SAFETY: rows and columns stay below those `Plane::check` went by.
    unsafe {
        if plane.cols == 7 {
            while y + 2 <= plane.rows {
                let (input, output) = plane.at::<PS, OS>(input, output, y, 0);
                tile::<One512, 2, 7, O, PS, OS, CB>(plane, input, weight, output);
                y += 2;
            }
        }
        while y < plane.rows {
            let mut x = 0;
            for width in &tiles {
                let (input, output) = plane.at::<PS, OS>(input, output, y, x);
                match width {
                    14 => tile::<One512, 1, 14, O, PS, OS, CB>(plane, input, weight, output),
                    10 => tile::<One512, 1, 10, O, PS, OS, CB>(plane, input, weight, output),
                    8 => tile::<One512, 1, 8, O, PS, OS, CB>(plane, input, weight, output),
                    7 => tile::<One512, 1, 7, O, PS, OS, CB>(plane, input, weight, output),
                    4 => tile::<One512, 1, 4, O, PS, OS, CB>(plane, input, weight, output),
                    2 => tile::<One512, 1, 2, O, PS, OS, CB>(plane, input, weight, output),
                    _ => tile::<One512, 1, 1, O, PS, OS, CB>(plane, input, weight, output),
                }
                x += width;
            }
            y += 1;
        }
    }
}

/// All tiles of a plane with AVX2: 12 accumulators of 16 registers.
#[target_feature(enable = "avx2,fma")]
unsafe fn rows_256<const O: usize, const PS: usize, const OS: usize, const CB: usize>(
    plane: &Plane<'_>,
    input: *const f32,
    weight: *const f32,
    output: *mut f32,
) {
    let tiles = split_row(plane.cols, &[6, 4, 2, 1]);
    // SAFETY: rows and columns stay below those `Plane::check` went by.
    unsafe {
        for y in 0..plane.rows {
            let mut x = 0;
            for width in &tiles {
                let (input, output) = plane.at::<PS, OS>(input, output, y, x);
                match width {
                    6 => tile::<Two256, 1, 6, O, PS, OS, CB>(plane, input, weight, output),
                    4 => tile::<Two256, 1, 4, O, PS, OS, CB>(plane, input, weight, output),
                    2 => tile::<Two256, 1, 2, O, PS, OS, CB>(plane, input, weight, output),
                    _ => tile::<Two256, 1, 1, O, PS, OS, CB>(plane, input, weight, output),
                }
                x += width;
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
                    sums[o][r][j].store(at(o, r, j));
                }
            }
        }
    }
}

/// One piece of a weight gradient: the products of input numbers and output
/// gradients summed over a rectangle of output pixels, for `n_inputs` neighbouring
/// input numbers times one or two output blocks. All strides count numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outer {
    pub input_step: InputStep,
    pub input_row: usize,
    pub gradient_row: usize,
    pub gradient_block: usize,
    /// Output pixels.
    pub rows: usize,
    pub cols: usize,
    /// Input numbers, each with its own 16 sums per output block.
    pub n_inputs: usize,
    pub sum_block: usize,
    /// 1 or 2.
    pub n_output_blocks: usize,
}

impl Outer {
    /// Adds the products to `sums`, `[output block][input][16]`.
    pub(crate) fn run(&self, width: VectorWidth, input: &[f32], gradient: &[f32], sums: &mut [f32]) {
        if self.rows == 0 || self.cols == 0 || self.n_inputs == 0 {
            return;
        }
        let last_input =
            (self.rows - 1) * self.input_row + (self.cols - 1) * self.input_step.pixel() + self.n_inputs;
        let last_gradient = (self.rows - 1) * self.gradient_row
            + self.cols * BLOCK
            + (self.n_output_blocks - 1) * self.gradient_block;
        let last_sum = (self.n_output_blocks - 1) * self.sum_block + self.n_inputs * BLOCK;
        assert!(
            last_input <= input.len() && last_gradient <= gradient.len() && last_sum <= sums.len(),
            "outer product leaves its slices: {self:?}"
        );
        assert!(
            (1..=Plane::max_output_blocks(width)).contains(&self.n_output_blocks),
            "no tile for {self:?}"
        );
        let (input, gradient, sums) = (input.as_ptr(), gradient.as_ptr(), sums.as_mut_ptr());
        // SAFETY: the asserts bound every access, and `width` was found on this
        // processor.
        unsafe {
            match (width, self.n_output_blocks) {
                (VectorWidth::Bits512, 2) => outer_512::<2>(self, input, gradient, sums),
                (VectorWidth::Bits512, _) => outer_512::<1>(self, input, gradient, sums),
                (VectorWidth::Bits256, _) => outer_256(self, input, gradient, sums),
            }
        }
    }
}

/// Calls the outer product of one vector type with the constant pixel step.
macro_rules! outer_with_step {
    ($outer:expr, $vector:ty, $n:literal, $o:expr, $args:tt) => {
        match $outer.input_step {
            InputStep::Blocked1 => outer_with_step!(@call $vector, $n, $o, 16, $args),
            InputStep::Blocked2 => outer_with_step!(@call $vector, $n, $o, 32, $args),
            InputStep::Plain1 => outer_with_step!(@call $vector, $n, $o, 1, $args),
            InputStep::Plain2 => outer_with_step!(@call $vector, $n, $o, 2, $args),
        }
    };
    (@call $vector:ty, $n:literal, $o:expr, $ps:literal, ($($arg:expr),*)) => {
        outer_tile::<$vector, $n, $o, $ps>($($arg),*)
    };
}

#[target_feature(enable = "avx512f")]
unsafe fn outer_512<const O: usize>(
    outer: &Outer,
    mut input: *const f32,
    gradient: *const f32,
    mut sums: *mut f32,
) {
    let mut rest = outer.n_inputs;
    // SAFETY: `input` and `sums` advance by the inputs done, `n_inputs` in all.
    unsafe {
        while rest > 0 {
            let done = match rest {
                8.. => {
                    outer_with_step!(outer, One512, 8, O, (outer, input, gradient, sums));
                    8
                }
                7 => {
                    outer_with_step!(outer, One512, 7, O, (outer, input, gradient, sums));
                    7
                }
                3.. => {
                    outer_with_step!(outer, One512, 3, O, (outer, input, gradient, sums));
                    3
                }
                _ => {
                    outer_with_step!(outer, One512, 1, O, (outer, input, gradient, sums));
                    1
                }
            };
            rest -= done;
            (input, sums) = (input.add(done), sums.add(done * BLOCK));
        }
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn outer_256(outer: &Outer, mut input: *const f32, gradient: *const f32, mut sums: *mut f32) {
    let mut rest = outer.n_inputs;
    // SAFETY: as in `outer_512`.
    unsafe {
        while rest > 0 {
            let done = if rest >= 4 {
                outer_with_step!(outer, Two256, 4, 1, (outer, input, gradient, sums));
                4
            } else {
                outer_with_step!(outer, Two256, 1, 1, (outer, input, gradient, sums));
                1
            };
            rest -= done;
            (input, sums) = (input.add(done), sums.add(done * BLOCK));
        }
    }
}

/// Outer products of `N` input numbers and `O` blocks of output gradients.
#[inline(always)]
unsafe fn outer_tile<V: Vector, const N: usize, const O: usize, const PS: usize>(
    outer: &Outer,
    input: *const f32,
    gradient: *const f32,
    sums: *mut f32,
) {
    // SAFETY: every offset is one that `Outer::run` bounded.
    unsafe {
        let at = |o: usize, n: usize| sums.add(o * outer.sum_block + n * BLOCK);
        let mut totals = [[V::zero(); N]; O];
        for o in 0..O {
            for n in 0..N {
                totals[o][n] = V::load(at(o, n));
            }
        }
        for row in 0..outer.rows {
            let input = input.add(row * outer.input_row);
            let gradient = gradient.add(row * outer.gradient_row);
            for col in 0..outer.cols {
                let mut gradients = [V::zero(); O];
                for o in 0..O {
                    gradients[o] = V::load(gradient.add(o * outer.gradient_block + col * BLOCK));
                }
                for n in 0..N {
                    let value = V::splat(input.add(col * PS + n));
                    for o in 0..O {
                        totals[o][n] = totals[o][n].add_product(value, gradients[o]);
                    }
                }
            }
        }
        for o in 0..O {
            for n in 0..N {
                totals[o][n].store(at(o, n));
            }
        }
    }
}
