//! The kernel of the weight gradient: outer products of input numbers and output
//! gradients, summed over pixels in registers.
#![expect(unsafe_code, reason = "register tiles over raw pointers; the extents are checked at the door")]
#![expect(clippy::needless_range_loop, reason = "indices name inputs and blocks of one tile at once")]

#[cfg(target_arch = "aarch64")]
use crate::kernels::vector::Four128;
#[cfg(target_arch = "x86_64")]
use crate::kernels::vector::{One512, Two256};
use crate::{
    activation::BLOCK,
    kernels::{
        VectorWidth,
        direct::{InputStep, Plane},
        vector::Vector,
    },
};

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
                #[cfg(target_arch = "x86_64")]
                (VectorWidth::Bits512, 2) => outer_512::<2>(self, input, gradient, sums),
                #[cfg(target_arch = "x86_64")]
                (VectorWidth::Bits512, _) => outer_512::<1>(self, input, gradient, sums),
                #[cfg(target_arch = "x86_64")]
                (VectorWidth::Bits256, _) => outer_256(self, input, gradient, sums),
                #[cfg(target_arch = "aarch64")]
                (VectorWidth::Bits128, _) => few_at_once::<Four128>(self, input, gradient, sums),
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

#[cfg(target_arch = "x86_64")]
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

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn outer_256(outer: &Outer, input: *const f32, gradient: *const f32, sums: *mut f32) {
    // SAFETY: passed on from the caller.
    unsafe { few_at_once::<Two256>(outer, input, gradient, sums) }
}

/// Four input numbers at a time, where a vector is a good part of the registers.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
unsafe fn few_at_once<V: Vector>(
    outer: &Outer,
    mut input: *const f32,
    gradient: *const f32,
    mut sums: *mut f32,
) {
    let mut rest = outer.n_inputs;
    // SAFETY: `input` and `sums` advance by the inputs done, `n_inputs` in all.
    unsafe {
        while rest > 0 {
            let done = if rest >= 4 {
                outer_with_step!(outer, V, 4, 1, (outer, input, gradient, sums));
                4
            } else {
                outer_with_step!(outer, V, 1, 1, (outer, input, gradient, sums));
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
