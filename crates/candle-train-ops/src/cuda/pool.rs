//! Maximum and average over sliding windows.
#![expect(unsafe_code, reason = "a kernel takes a struct; the block says why it is sound")]

use candle_core::{Result, cuda_backend::cudarc::driver::DeviceRepr};

use super::{
    context::{Context, launch},
    feature::Feature,
    memory::Numbers,
};
use crate::{OpError, activation::Dims, pool::output_dims, window::Window};

/// As the kernels take it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Pool {
    n: i32,
    h: i32,
    w: i32,
    c: i32,
    oh: i32,
    ow: i32,
    kernel: i32,
    stride: i32,
    padding: i32,
}

// SAFETY: nine numbers in C's order, as `struct Pool` of the kernels.
unsafe impl DeviceRepr for Pool {}

impl Pool {
    fn new(input: Dims, output: Dims, window: Window) -> Self {
        let Dims { n, c, h, w } = input;
        let [n, h, w, c, oh, ow, kernel, stride, padding] =
            [n, h, w, c, output.h, output.w, window.kernel_h, window.stride, window.padding]
                .map(|n| n as i32);
        Self { n, h, w, c, oh, ow, kernel, stride, padding }
    }
}

pub(crate) fn max_pool2d(x: &Feature, window: Window) -> Result<Feature> {
    const OP: &str = "max_pool2d";
    let (input, output) = (x.dims, output_dims(OP, window, x.dims)?);
    if window.kernel_h > 16 {
        let reason = format!("a window of {} pixels is too large; 16 on a GPU", window.kernel_h);
        return Err(OpError::Setting { op: OP, reason }.into());
    }
    let context = Context::of(x.token.device())?;
    let kind = x.values.kind;
    let y = Numbers::unspecified(&context, output.count(), kind)?;
    // Which pixel of the window won, one byte each.
    let winners = Numbers::unspecified(&context, output.count().div_ceil(kind.bytes()), kind)?;
    let pool = Pool::new(input, output, window);
    let (suffix, held) = kind.by_channels(input.c);
    let config = context.elementwise(output.count() / held);
    launch!(context, "max_pool", suffix, config, x.values.address(), y.address(), winners.address(), pool);
    x.produce_from(OP, y, output, move |context, dy| gradient(context, &dy, winners.address(), pool, input))
}

pub(crate) fn avg_pool2d(x: &Feature, window: Window) -> Result<Feature> {
    const OP: &str = "avg_pool2d";
    let (input, output) = (x.dims, output_dims(OP, window, x.dims)?);
    let context = Context::of(x.token.device())?;
    let y = Numbers::unspecified(&context, output.count(), x.values.kind)?;
    let pool = Pool::new(input, output, window);
    let (suffix, held) = x.values.kind.by_channels(input.c);
    let config = context.elementwise(output.count() / held);
    launch!(context, "avg_pool", suffix, config, x.values.address(), y.address(), pool);
    x.produce_from(OP, y, output, move |context, dy| gradient(context, &dy, 0, pool, input))
}

/// Of a maximum, given where it came from, or of a mean.
fn gradient(context: &Context, dy: &Numbers, winners: u64, pool: Pool, input: Dims) -> Result<Numbers> {
    let dx = Numbers::unspecified(context, input.count(), dy.kind)?;
    let (suffix, held) = dy.kind.by_channels(input.c);
    let config = context.elementwise(input.count() / held);
    launch!(context, "pool_gradient", suffix, config, dy.address(), winners, dx.address(), pool);
    Ok(dx)
}
