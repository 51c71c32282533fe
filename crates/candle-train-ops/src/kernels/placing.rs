//! Writes sums of sixteen channels to pixels that lie `step` apart.

use crate::{
    activation::BLOCK,
    element::Element,
    kernels::{
        lanes::{Bounds, Lanes},
        multiversion,
    },
};

multiversion! {
    /// Overwrites the pixels.
    fn replace<T: Element>(target: &mut [T], sums: &[Lanes<T::Wide>], step: usize) {
        let (target, _) = target.as_chunks_mut::<BLOCK>();
        for (target, sums) in target.iter_mut().step_by(step).zip(sums) {
            for lane in 0..BLOCK {
                target[lane] = T::narrow(sums[lane]);
            }
        }
    }
}

multiversion! {
    /// Adds to the pixels.
    fn add<T: Element>(target: &mut [T], sums: &[Lanes<T::Wide>], step: usize) {
        let (target, _) = target.as_chunks_mut::<BLOCK>();
        for (target, sums) in target.iter_mut().step_by(step).zip(sums) {
            for lane in 0..BLOCK {
                target[lane] = T::narrow(target[lane].widen() + sums[lane]);
            }
        }
    }
}

multiversion! {
    /// Overwrites the pixels by the sums with their bias, a residual unless empty, which
    /// lies like the target, and bounds; a NaN stays one.
    fn finish<T: Element>(
        target: &mut [T],
        sums: &[Lanes<T::Wide>],
        step: usize,
        residual: &[T],
        bias: &Lanes<T::Wide>,
        bounds: Bounds<T::Wide>,
    ) {
        let ((lo, hi), bias) = (bounds, *bias);
        let clamp = |value: T::Wide| {
            let value = if value < lo { lo } else { value };
            T::narrow(if value > hi { hi } else { value })
        };
        let (target, _) = target.as_chunks_mut::<BLOCK>();
        let targets = target.iter_mut().step_by(step).zip(sums);
        if residual.is_empty() {
            for (target, sums) in targets {
                for lane in 0..BLOCK {
                    target[lane] = clamp(sums[lane] + bias[lane]);
                }
            }
        } else {
            let (residual, _) = residual.as_chunks::<BLOCK>();
            for ((target, sums), residual) in targets.zip(residual.iter().step_by(step)) {
                for lane in 0..BLOCK {
                    target[lane] = clamp(sums[lane] + bias[lane] + residual[lane].widen());
                }
            }
        }
    }
}
