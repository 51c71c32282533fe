//! Maximum and average over sliding windows.

use candle_core::Result;
use rayon::prelude::*;

use crate::{
    Activation, OpError,
    activation::{BLOCK, Dims, Feature, Order, dispatch},
    buffer::Buffer,
    element::Element,
    error::Checked,
    window::Window,
};

/// Maximum over windows of `kernel` x `kernel` pixels; padding never wins.
///
/// The gradient goes to the first maximum of a window in reading order. A NaN in
/// a window is its maximum, as in PyTorch.
///
/// # Shapes
/// - `x`: `[N, C, H, W]`
/// - result: `[N, C, (H + 2 padding - kernel) / stride + 1, same of W]`
///
/// # Errors
/// A window larger than the padded image, padding of more than half the window.
pub fn max_pool2d(x: &Activation, kernel: usize, stride: usize, padding: usize) -> Result<Activation> {
    let window = square(kernel, stride, padding);
    dispatch!(x, x => max_pool_feature(x, window).map(Activation::from))
}

/// Mean over windows of `kernel` x `kernel` pixels; padding counts as zeros in a
/// mean over all `kernel * kernel` pixels, as PyTorch's default.
///
/// # Shapes
/// As [`max_pool2d`].
///
/// # Errors
/// As [`max_pool2d`].
pub fn avg_pool2d(x: &Activation, kernel: usize, stride: usize, padding: usize) -> Result<Activation> {
    let window = square(kernel, stride, padding);
    dispatch!(x, x => avg_pool_feature(x, window).map(Activation::from))
}

fn square(kernel: usize, stride: usize, padding: usize) -> Window {
    Window { kernel_h: kernel, kernel_w: kernel, stride, padding }
}

fn output_dims(op: &'static str, window: Window, input: Dims) -> Checked<Dims> {
    if window.padding > window.kernel_h / 2 {
        return Err(OpError::Setting {
            op,
            reason: format!("padding {} is more than half the kernel {}", window.padding, window.kernel_h),
        });
    }
    let (h, w) = window.output(op, input)?;
    Ok(Dims { h, w, ..input })
}

fn max_pool_feature<T: Element>(x: &Feature<T>, window: Window) -> Result<Feature<T>> {
    const OP: &str = "max_pool2d";
    let output = output_dims(OP, window, x.dims)?;
    let (input, order) = (x.dims, x.order);
    let pool = Planes { input, output, window };
    let mut y = Buffer::unspecified(output.count());
    // Which tap won, per output number.
    let mut winners = vec![0u32; output.count()];
    let block = order.block();
    y.par_chunks_mut(output.h * output.w * block)
        .zip(winners.par_chunks_mut(output.h * output.w * block))
        .zip(x.values.par_chunks(input.h * input.w * block))
        .for_each(|((y, winners), x)| match order {
            Order::Plain => pool.maximum::<T, 1>(y, winners, x),
            Order::Blocked => pool.maximum::<T, BLOCK>(y, winners, x),
        });
    x.produce_from(OP, y, output, order, move |dy| {
        let mut dx = Buffer::zeroed(input.count());
        dx.par_chunks_mut(input.h * input.w * block)
            .zip(dy.par_chunks(output.h * output.w * block))
            .zip(winners.par_chunks(output.h * output.w * block))
            .for_each(|((dx, dy), winners)| match order {
                Order::Plain => pool.maximum_backward::<T, 1>(dx, dy, winners),
                Order::Blocked => pool.maximum_backward::<T, BLOCK>(dx, dy, winners),
            });
        dx
    })
}

fn avg_pool_feature<T: Element>(x: &Feature<T>, window: Window) -> Result<Feature<T>> {
    const OP: &str = "avg_pool2d";
    let output = output_dims(OP, window, x.dims)?;
    let (input, order) = (x.dims, x.order);
    let pool = Planes { input, output, window };
    let mut y = Buffer::unspecified(output.count());
    let block = order.block();
    y.par_chunks_mut(output.h * output.w * block)
        .zip(x.values.par_chunks(input.h * input.w * block))
        .for_each(|(y, x)| match order {
            Order::Plain => pool.mean::<T, 1>(y, x),
            Order::Blocked => pool.mean::<T, BLOCK>(y, x),
        });
    x.produce_from(OP, y, output, order, move |dy| {
        let mut dx = Buffer::zeroed(input.count());
        dx.par_chunks_mut(input.h * input.w * block)
            .zip(dy.par_chunks(output.h * output.w * block))
            .for_each(|(dx, dy)| match order {
                Order::Plain => pool.mean_backward::<T, 1>(dx, dy),
                Order::Blocked => pool.mean_backward::<T, BLOCK>(dx, dy),
            });
        dx
    })
}

/// Pooling of one plane of `B` channels side by side.
#[derive(Clone, Copy)]
struct Planes {
    input: Dims,
    output: Dims,
    window: Window,
}

impl Planes {
    /// Calls `visit(output pixel, input pixel, tap)` for every tap that falls
    /// inside the image, output pixels and taps in reading order.
    #[inline(always)]
    fn for_each_tap(&self, mut visit: impl FnMut(usize, usize, usize)) {
        let Window { kernel_h, kernel_w, stride, padding } = self.window;
        let range = |position: usize, kernel: usize, extent: usize| {
            let start = position * stride;
            padding.saturating_sub(start)..kernel.min((extent + padding).saturating_sub(start))
        };
        for y in 0..self.output.h {
            let taps_y = range(y, kernel_h, self.input.h);
            for x in 0..self.output.w {
                let taps_x = range(x, kernel_w, self.input.w);
                for tap_y in taps_y.clone() {
                    let row = (self.window.source(y, tap_y)) * self.input.w;
                    for tap_x in taps_x.clone() {
                        visit(
                            y * self.output.w + x,
                            row + self.window.source(x, tap_x),
                            tap_y * kernel_w + tap_x,
                        );
                    }
                }
            }
        }
    }

    fn maximum<T: Element, const B: usize>(&self, y: &mut [T], winners: &mut [u32], x: &[T]) {
        let (y, _) = y.as_chunks_mut::<B>();
        let (winners, _) = winners.as_chunks_mut::<B>();
        let (x, _) = x.as_chunks::<B>();
        y.fill([T::from_f64(f64::NEG_INFINITY); B]);
        winners.fill([u32::MAX; B]);
        self.for_each_tap(|to, from, tap| {
            let (best, winner, x) = (&mut y[to], &mut winners[to], &x[from]);
            for lane in 0..B {
                // A first tap wins even as -inf; NaN differs from itself.
                #[expect(clippy::eq_op, reason = "true for NaN alone")]
                let wins = x[lane] > best[lane] || x[lane] != x[lane] || winner[lane] == u32::MAX;
                best[lane] = if wins { x[lane] } else { best[lane] };
                winner[lane] = if wins { tap as u32 } else { winner[lane] };
            }
        });
    }

    fn maximum_backward<T: Element, const B: usize>(&self, dx: &mut [T], dy: &[T], winners: &[u32]) {
        let (dx, _) = dx.as_chunks_mut::<B>();
        let (dy, _) = dy.as_chunks::<B>();
        let (winners, _) = winners.as_chunks::<B>();
        self.for_each_tap(|from, to, tap| {
            for lane in 0..B {
                if winners[from][lane] == tap as u32 {
                    dx[to][lane] += dy[from][lane];
                }
            }
        });
    }

    fn mean<T: Element, const B: usize>(&self, y: &mut [T], x: &[T]) {
        let (y, _) = y.as_chunks_mut::<B>();
        let (x, _) = x.as_chunks::<B>();
        y.fill([T::zero(); B]);
        self.for_each_tap(|to, from, _| {
            for lane in 0..B {
                y[to][lane] += x[from][lane];
            }
        });
        let scale = self.scale::<T>();
        for value in y.as_flattened_mut() {
            *value *= scale;
        }
    }

    fn mean_backward<T: Element, const B: usize>(&self, dx: &mut [T], dy: &[T]) {
        let (dx, _) = dx.as_chunks_mut::<B>();
        let (dy, _) = dy.as_chunks::<B>();
        let scale = self.scale::<T>();
        self.for_each_tap(|from, to, _| {
            for lane in 0..B {
                dx[to][lane] += dy[from][lane] * scale;
            }
        });
    }

    fn scale<T: Element>(&self) -> T {
        T::from_f64(1.0 / (self.window.kernel_h * self.window.kernel_w) as f64)
    }
}
