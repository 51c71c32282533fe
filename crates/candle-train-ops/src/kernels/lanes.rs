//! Elementwise and reducing loops over planes. A plane holds either 16 channels
//! side by side (lane = channel) or one channel (lane = pixel modulo 16); the
//! caller spreads its coefficients over the lanes accordingly.

use candle_core::WithDType;

use crate::{activation::BLOCK, element::Element, kernels::multiversion};

/// One coefficient or partial sum per lane.
pub(crate) type Lanes<T> = [T; BLOCK];

/// The smallest and the largest result of an activation function.
pub(crate) type Bounds<T> = (T, T);

multiversion! {
    /// `sum += other`.
    fn add_assign<T: Element>(sum: &mut [T], other: &[T]) {
        for (sum, other) in sum.iter_mut().zip(other) {
            *sum = T::narrow(sum.widen() + other.widen());
        }
    }
}

multiversion! {
    /// The numbers in the wide type.
    fn widen<T: Element>(to: &mut [T::Wide], from: &[T]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = from.widen();
        }
    }
}

multiversion! {
    /// The nearest numbers of the narrow type.
    fn narrow<T: Element>(to: &mut [T], from: &[T::Wide]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = T::narrow(*from);
        }
    }
}

multiversion! {
    /// `result = max(x, 0)`; a NaN stays one.
    fn relu<T: Element>(result: &mut [T], x: &[T]) {
        for (result, x) in result.iter_mut().zip(x) {
            *result = if x.widen() < T::Wide::ZERO { T::ZERO } else { *x };
        }
    }
}

multiversion! {
    /// Zeroes the gradient wherever `y`, the result of an activation function, is not
    /// strictly between its bounds.
    fn clamp_backward<T: Element>(gradient: &mut [T], y: &[T], bounds: Bounds<T::Wide>) {
        let (lo, hi) = bounds;
        for (gradient, y) in gradient.iter_mut().zip(y) {
            let inside = (y.widen() > lo) & (y.widen() < hi);
            *gradient = if inside { *gradient } else { T::ZERO };
        }
    }
}

/// Numbers between two flushes of f32 partial sums into f64: short enough that
/// rounding stays at a few units in the last place.
const FLUSH: usize = 512 * BLOCK;

multiversion! {
    /// Adds `sum(x - shift)` and `sum((x - shift)^2)` per lane.
    fn moments<T: Element>(
        x: &[T],
        shift: &Lanes<T::Wide>,
        sum: &mut Lanes<f64>,
        sum_of_squares: &mut Lanes<f64>,
    ) {
        for x in x.chunks(FLUSH) {
            let mut partial = [[T::Wide::ZERO; BLOCK]; 4];
            let mut partial_squares = [[T::Wide::ZERO; BLOCK]; 4];
            let (quads, rest) = x.as_chunks::<{ 4 * BLOCK }>();
            for quad in quads {
                for part in 0..4 {
                    for lane in 0..BLOCK {
                        let value = quad[part * BLOCK + lane].widen() - shift[lane];
                        partial[part][lane] += value;
                        partial_squares[part][lane] += value * value;
                    }
                }
            }
            for (index, value) in rest.iter().enumerate() {
                let lane = index % BLOCK;
                let value = value.widen() - shift[lane];
                partial[0][lane] += value;
                partial_squares[0][lane] += value * value;
            }
            for part in 0..4 {
                for lane in 0..BLOCK {
                    sum[lane] += partial[part][lane].to_f64();
                    sum_of_squares[lane] += partial_squares[part][lane].to_f64();
                }
            }
        }
    }
}

multiversion! {
    /// `y = x * scale + offset`, plus `residual` unless empty, kept inside the bounds; a
    /// NaN stays one.
    fn normalise<T: Element>(
        y: &mut [T],
        x: &[T],
        residual: &[T],
        scale: &Lanes<T::Wide>,
        offset: &Lanes<T::Wide>,
        bounds: Bounds<T::Wide>,
    ) {
        let (lo, hi) = bounds;
        let (scale, offset) = (*scale, *offset);
        let rest = y.len() / BLOCK * BLOCK;
        let (y_blocks, y_rest) = y.as_chunks_mut::<BLOCK>();
        let (x_blocks, x_rest) = x.as_chunks::<BLOCK>();
        let clamp = |value: T::Wide| {
            let value = if value < lo { lo } else { value };
            T::narrow(if value > hi { hi } else { value })
        };
        if residual.is_empty() {
            for (y, x) in y_blocks.iter_mut().zip(x_blocks) {
                for lane in 0..BLOCK {
                    y[lane] = clamp(x[lane].widen() * scale[lane] + offset[lane]);
                }
            }
            for (lane, (y, x)) in y_rest.iter_mut().zip(x_rest).enumerate() {
                *y = clamp(x.widen() * scale[lane] + offset[lane]);
            }
        } else {
            let (residual_blocks, _) = residual.as_chunks::<BLOCK>();
            for ((y, x), residual) in y_blocks.iter_mut().zip(x_blocks).zip(residual_blocks) {
                for lane in 0..BLOCK {
                    y[lane] = clamp(x[lane].widen() * scale[lane] + offset[lane] + residual[lane].widen());
                }
            }
            let residual_rest = &residual[rest..];
            for (lane, (y, x)) in y_rest.iter_mut().zip(x_rest).enumerate() {
                *y = clamp(x.widen() * scale[lane] + offset[lane] + residual_rest[lane].widen());
            }
        }
    }
}

multiversion! {
    /// Adds `sum(dy)` and `sum(dy * (x - mean))` per lane.
    fn normalise_sums<T: Element>(
        dy: &[T],
        x: &[T],
        mean: &Lanes<T::Wide>,
        sum: &mut Lanes<f64>,
        sum_times_x: &mut Lanes<f64>,
    ) {
        for (dy, x) in dy.chunks(FLUSH).zip(x.chunks(FLUSH)) {
            let mut partial = [[T::Wide::ZERO; BLOCK]; 2];
            let mut partial_times_x = [[T::Wide::ZERO; BLOCK]; 2];
            let (dy_pairs, dy_rest) = dy.as_chunks::<{ 2 * BLOCK }>();
            let (x_pairs, x_rest) = x.as_chunks::<{ 2 * BLOCK }>();
            for (dy, x) in dy_pairs.iter().zip(x_pairs) {
                for part in 0..2 {
                    for lane in 0..BLOCK {
                        let gradient = dy[part * BLOCK + lane].widen();
                        let x = x[part * BLOCK + lane].widen() - mean[lane];
                        partial[part][lane] += gradient;
                        partial_times_x[part][lane] += gradient * x;
                    }
                }
            }
            for (index, (dy, x)) in dy_rest.iter().zip(x_rest).enumerate() {
                let lane = index % BLOCK;
                partial[0][lane] += dy.widen();
                partial_times_x[0][lane] += dy.widen() * (x.widen() - mean[lane]);
            }
            for part in 0..2 {
                for lane in 0..BLOCK {
                    sum[lane] += partial[part][lane].to_f64();
                    sum_times_x[lane] += partial_times_x[part][lane].to_f64();
                }
            }
        }
    }
}

multiversion! {
    /// `dx = dy * scale + offset + (x - mean) * slope`; `dx` may not be `dy`.
    fn normalise_backward<T: Element>(
        dx: &mut [T],
        dy: &[T],
        x: &[T],
        mean: &Lanes<T::Wide>,
        scale: &Lanes<T::Wide>,
        offset: &Lanes<T::Wide>,
        slope: &Lanes<T::Wide>,
    ) {
        let (mean, scale, offset, slope) = (*mean, *scale, *offset, *slope);
        let (dx_blocks, dx_rest) = dx.as_chunks_mut::<BLOCK>();
        let (dy_blocks, dy_rest) = dy.as_chunks::<BLOCK>();
        let (x_blocks, x_rest) = x.as_chunks::<BLOCK>();
        for ((dx, dy), x) in dx_blocks.iter_mut().zip(dy_blocks).zip(x_blocks) {
            for lane in 0..BLOCK {
                let x = x[lane].widen() - mean[lane];
                dx[lane] = T::narrow(dy[lane].widen() * scale[lane] + offset[lane] + x * slope[lane]);
            }
        }
        for (lane, ((dx, dy), x)) in dx_rest.iter_mut().zip(dy_rest).zip(x_rest).enumerate() {
            let x = x.widen() - mean[lane];
            *dx = T::narrow(dy.widen() * scale[lane] + offset[lane] + x * slope[lane]);
        }
    }
}

multiversion! {
    /// As [`normalise_backward`], overwriting the gradient.
    fn normalise_backward_in_place<T: Element>(
        gradient: &mut [T],
        x: &[T],
        mean: &Lanes<T::Wide>,
        scale: &Lanes<T::Wide>,
        offset: &Lanes<T::Wide>,
        slope: &Lanes<T::Wide>,
    ) {
        let (mean, scale, offset, slope) = (*mean, *scale, *offset, *slope);
        let (blocks, rest) = gradient.as_chunks_mut::<BLOCK>();
        let (x_blocks, x_rest) = x.as_chunks::<BLOCK>();
        for (gradient, x) in blocks.iter_mut().zip(x_blocks) {
            for lane in 0..BLOCK {
                let x = x[lane].widen() - mean[lane];
                let dx = gradient[lane].widen() * scale[lane] + offset[lane] + x * slope[lane];
                gradient[lane] = T::narrow(dx);
            }
        }
        for (lane, (gradient, x)) in rest.iter_mut().zip(x_rest).enumerate() {
            let x = x.widen() - mean[lane];
            *gradient = T::narrow(gradient.widen() * scale[lane] + offset[lane] + x * slope[lane]);
        }
    }
}
