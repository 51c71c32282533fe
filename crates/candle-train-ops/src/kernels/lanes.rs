//! Elementwise and reducing loops over planes. A plane holds either 16 channels
//! side by side (lane = channel) or one channel (lane = pixel modulo 16); the
//! caller spreads its coefficients over the lanes accordingly.

use crate::{activation::BLOCK, element::Element, kernels::multiversion};

/// One coefficient or partial sum per lane.
pub(crate) type Lanes<T> = [T; BLOCK];

/// The smallest and the largest result of an activation function.
pub(crate) type Bounds<T> = (T, T);

multiversion! {
    /// `sum += other`.
    fn add_assign<T: Element>(sum: &mut [T], other: &[T]) {
        for (sum, other) in sum.iter_mut().zip(other) {
            *sum += *other;
        }
    }
}

multiversion! {
    /// `result = max(x, 0)`; a NaN stays one.
    fn relu<T: Element>(result: &mut [T], x: &[T]) {
        for (result, x) in result.iter_mut().zip(x) {
            *result = if *x < T::zero() { T::zero() } else { *x };
        }
    }
}

multiversion! {
    /// Zeroes the gradient wherever `y`, the result of an activation function, is not
    /// strictly between its bounds.
    fn clamp_backward<T: Element>(gradient: &mut [T], y: &[T], bounds: Bounds<T>) {
        let (lo, hi) = bounds;
        for (gradient, y) in gradient.iter_mut().zip(y) {
            *gradient = if (*y > lo) & (*y < hi) { *gradient } else { T::zero() };
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
        shift: &Lanes<T>,
        sum: &mut Lanes<f64>,
        sum_of_squares: &mut Lanes<f64>,
    ) {
        for x in x.chunks(FLUSH) {
            let mut partial = [[T::zero(); BLOCK]; 4];
            let mut partial_squares = [[T::zero(); BLOCK]; 4];
            let (quads, rest) = x.as_chunks::<{ 4 * BLOCK }>();
            for quad in quads {
                for part in 0..4 {
                    for lane in 0..BLOCK {
                        let value = quad[part * BLOCK + lane] - shift[lane];
                        partial[part][lane] += value;
                        partial_squares[part][lane] += value * value;
                    }
                }
            }
            for (index, value) in rest.iter().enumerate() {
                let lane = index % BLOCK;
                let value = *value - shift[lane];
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
        scale: &Lanes<T>,
        offset: &Lanes<T>,
        bounds: Bounds<T>,
    ) {
        let (lo, hi) = bounds;
        let (scale, offset) = (*scale, *offset);
        let rest = y.len() / BLOCK * BLOCK;
        let (y_blocks, y_rest) = y.as_chunks_mut::<BLOCK>();
        let (x_blocks, x_rest) = x.as_chunks::<BLOCK>();
        let clamp = |value: T| {
            let value = if value < lo { lo } else { value };
            if value > hi { hi } else { value }
        };
        if residual.is_empty() {
            for (y, x) in y_blocks.iter_mut().zip(x_blocks) {
                for lane in 0..BLOCK {
                    y[lane] = clamp(x[lane] * scale[lane] + offset[lane]);
                }
            }
            for (lane, (y, x)) in y_rest.iter_mut().zip(x_rest).enumerate() {
                *y = clamp(*x * scale[lane] + offset[lane]);
            }
        } else {
            let (residual_blocks, _) = residual.as_chunks::<BLOCK>();
            for ((y, x), residual) in y_blocks.iter_mut().zip(x_blocks).zip(residual_blocks) {
                for lane in 0..BLOCK {
                    y[lane] = clamp(x[lane] * scale[lane] + offset[lane] + residual[lane]);
                }
            }
            let residual_rest = &residual[rest..];
            for (lane, (y, x)) in y_rest.iter_mut().zip(x_rest).enumerate() {
                *y = clamp(*x * scale[lane] + offset[lane] + residual_rest[lane]);
            }
        }
    }
}

multiversion! {
    /// Adds `sum(dy)` and `sum(dy * (x - mean))` per lane.
    fn normalise_sums<T: Element>(
        dy: &[T],
        x: &[T],
        mean: &Lanes<T>,
        sum: &mut Lanes<f64>,
        sum_times_x: &mut Lanes<f64>,
    ) {
        for (dy, x) in dy.chunks(FLUSH).zip(x.chunks(FLUSH)) {
            let mut partial = [[T::zero(); BLOCK]; 2];
            let mut partial_times_x = [[T::zero(); BLOCK]; 2];
            let (dy_pairs, dy_rest) = dy.as_chunks::<{ 2 * BLOCK }>();
            let (x_pairs, x_rest) = x.as_chunks::<{ 2 * BLOCK }>();
            for (dy, x) in dy_pairs.iter().zip(x_pairs) {
                for part in 0..2 {
                    for lane in 0..BLOCK {
                        let gradient = dy[part * BLOCK + lane];
                        partial[part][lane] += gradient;
                        partial_times_x[part][lane] += gradient * (x[part * BLOCK + lane] - mean[lane]);
                    }
                }
            }
            for (index, (dy, x)) in dy_rest.iter().zip(x_rest).enumerate() {
                let lane = index % BLOCK;
                partial[0][lane] += *dy;
                partial_times_x[0][lane] += *dy * (*x - mean[lane]);
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
        mean: &Lanes<T>,
        scale: &Lanes<T>,
        offset: &Lanes<T>,
        slope: &Lanes<T>,
    ) {
        let (mean, scale, offset, slope) = (*mean, *scale, *offset, *slope);
        let (dx_blocks, dx_rest) = dx.as_chunks_mut::<BLOCK>();
        let (dy_blocks, dy_rest) = dy.as_chunks::<BLOCK>();
        let (x_blocks, x_rest) = x.as_chunks::<BLOCK>();
        for ((dx, dy), x) in dx_blocks.iter_mut().zip(dy_blocks).zip(x_blocks) {
            for lane in 0..BLOCK {
                dx[lane] = dy[lane] * scale[lane] + offset[lane] + (x[lane] - mean[lane]) * slope[lane];
            }
        }
        for (lane, ((dx, dy), x)) in dx_rest.iter_mut().zip(dy_rest).zip(x_rest).enumerate() {
            *dx = *dy * scale[lane] + offset[lane] + (*x - mean[lane]) * slope[lane];
        }
    }
}

multiversion! {
    /// As [`normalise_backward`], overwriting the gradient.
    fn normalise_backward_in_place<T: Element>(
        gradient: &mut [T],
        x: &[T],
        mean: &Lanes<T>,
        scale: &Lanes<T>,
        offset: &Lanes<T>,
        slope: &Lanes<T>,
    ) {
        let (mean, scale, offset, slope) = (*mean, *scale, *offset, *slope);
        let (blocks, rest) = gradient.as_chunks_mut::<BLOCK>();
        let (x_blocks, x_rest) = x.as_chunks::<BLOCK>();
        for (gradient, x) in blocks.iter_mut().zip(x_blocks) {
            for lane in 0..BLOCK {
                gradient[lane] =
                    gradient[lane] * scale[lane] + offset[lane] + (x[lane] - mean[lane]) * slope[lane];
            }
        }
        for (lane, (gradient, x)) in rest.iter_mut().zip(x_rest).enumerate() {
            *gradient = *gradient * scale[lane] + offset[lane] + (*x - mean[lane]) * slope[lane];
        }
    }
}
