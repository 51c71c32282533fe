//! Maximum and average over sliding windows.

use candle_core::Result;
use rayon::prelude::*;

use crate::{
    Activation, OpError,
    activation::{BLOCK, Dims, Feature, Order, dispatch},
    buffer::Buffer,
    element::Element,
    error::Checked,
    kernels::pooling::{self, Planes},
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
    dispatch!(
        x,
        x => max_pool_feature(x, window).map(Activation::from),
        on_gpu: crate::cuda::max_pool2d(x, window).map(Activation::from)
    )
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
    dispatch!(
        x,
        x => avg_pool_feature(x, window).map(Activation::from),
        on_gpu: crate::cuda::avg_pool2d(x, window).map(Activation::from)
    )
}

pub(crate) fn square(kernel: usize, stride: usize, padding: usize) -> Window {
    Window { kernel_h: kernel, kernel_w: kernel, stride, padding }
}

pub(crate) fn output_dims(op: &'static str, window: Window, input: Dims) -> Checked<Dims> {
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
    let block = order.block();
    if !x.token.track_op() {
        y.par_chunks_mut(output.h * output.w * block)
            .zip(x.values.par_chunks(input.h * input.w * block))
            .for_each(|(y, x)| match order {
                Order::Plain => pooling::maximum_alone::<T, 1>(pool, y, x),
                Order::Blocked => pooling::maximum_alone::<T, BLOCK>(pool, y, x),
            });
        return Feature::constant(y, output, order);
    }
    // Which tap won, per output number.
    let mut winners = Buffer::unspecified(output.count());
    y.par_chunks_mut(output.h * output.w * block)
        .zip(winners.par_chunks_mut(output.h * output.w * block))
        .zip(x.values.par_chunks(input.h * input.w * block))
        .for_each(|((y, winners), x)| match order {
            Order::Plain => pooling::maximum::<T, 1>(pool, y, winners, x),
            Order::Blocked => pooling::maximum::<T, BLOCK>(pool, y, winners, x),
        });
    x.produce_from(OP, y, output, order, move |dy| {
        let mut dx = Buffer::unspecified(input.count());
        dx.par_chunks_mut(input.h * input.w * block)
            .zip(dy.par_chunks(output.h * output.w * block))
            .zip(winners.par_chunks(output.h * output.w * block))
            .for_each(|((dx, dy), winners)| {
                T::with_sums(dx, |dx| match order {
                    Order::Plain => pooling::maximum_backward::<T, 1>(pool, dx, dy, winners),
                    Order::Blocked => pooling::maximum_backward::<T, BLOCK>(pool, dx, dy, winners),
                });
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
            Order::Plain => pooling::mean::<T, 1>(pool, y, x),
            Order::Blocked => pooling::mean::<T, BLOCK>(pool, y, x),
        });
    x.produce_from(OP, y, output, order, move |dy| {
        let mut dx = Buffer::unspecified(input.count());
        dx.par_chunks_mut(input.h * input.w * block)
            .zip(dy.par_chunks(output.h * output.w * block))
            .for_each(|(dx, dy)| {
                T::with_sums(dx, |dx| match order {
                    Order::Plain => pooling::mean_backward::<T, 1>(pool, dx, dy),
                    Order::Blocked => pooling::mean_backward::<T, BLOCK>(pool, dx, dy),
                });
            });
        dx
    })
}
