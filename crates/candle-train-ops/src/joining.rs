//! Activations made larger: by zeros at the end of an image, or by more channels.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::{
    Activation, OpError,
    activation::{
        Dims, Feature, GradientSlot, Order, Repr, dispatch, preferred_order, token_gradient, token_storage,
    },
    buffer::Buffer,
    element::Element,
};

/// Adds rows of zeros below and columns of zeros to the right of every image.
///
/// TensorFlow's "same" padding of a convolution with stride 2 is uneven; the
/// extra pixel at the end goes here, the rest into the convolution.
///
/// # Shapes
/// - `x`: `[N, C, H, W]`
/// - result: `[N, C, H + rows, W + cols]`
///
/// # Errors
/// None of its own; candle's if memory cannot be had.
pub fn pad_end(x: &Activation, rows: usize, cols: usize) -> Result<Activation> {
    dispatch!(
        x,
        x => pad_feature(x, rows, cols).map(Activation::from),
        on_gpu: crate::cuda::pad_end(x, rows, cols).map(Activation::from)
    )
}

fn pad_feature<T: Element>(x: &Feature<T>, rows: usize, cols: usize) -> Result<Feature<T>> {
    if rows == 0 && cols == 0 {
        return Ok(x.clone());
    }
    let (small, order) = (x.dims, x.order);
    let large = Dims { h: small.h + rows, w: small.w + cols, ..small };
    let (short, long) = (small.w * order.block(), large.w * order.block());
    let mut y = Buffer::zeroed(large.count());
    y.par_chunks_mut(large.h * long).zip(x.values.par_chunks(small.h * short)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(long).zip(x.chunks_exact(short)) {
            y[..short].copy_from_slice(x);
        }
    });
    x.produce_from("pad_end", y, large, order, move |dy| {
        let mut dx = Buffer::unspecified(small.count());
        dx.par_chunks_mut(small.h * short).zip(dy.par_chunks(large.h * long)).for_each(|(dx, dy)| {
            for (dx, dy) in dx.chunks_exact_mut(short).zip(dy.chunks_exact(long)) {
                dx.copy_from_slice(&dy[..short]);
            }
        });
        dx
    })
}

/// Puts the channels of one activation behind those of another.
///
/// # Shapes
/// - `first`: `[N, C, H, W]`, `second`: `[N, D, H, W]`, both of one element type
/// - result: `[N, C + D, H, W]`
///
/// # Errors
/// Another batch or image size, or another element type.
pub fn concat_channels(first: &Activation, second: &Activation) -> Result<Activation> {
    match (&first.0, &second.0) {
        (Repr::F32(first), Repr::F32(second)) => concat_features(first, second).map(Activation::from),
        (Repr::Bf16(first), Repr::Bf16(second)) => concat_features(first, second).map(Activation::from),
        (Repr::Bf16(first), Repr::F32(second)) => {
            concat_features(first, &second.narrowed()?).map(Activation::from)
        }
        (Repr::F32(first), Repr::Bf16(second)) => {
            concat_features(&first.narrowed()?, second).map(Activation::from)
        }
        (Repr::F64(first), Repr::F64(second)) => concat_features(first, second).map(Activation::from),
        #[cfg(feature = "cuda")]
        (Repr::Gpu(first), Repr::Gpu(second)) => {
            crate::cuda::concat_channels(first, second).map(Activation::from)
        }
        _ => Err(OpError::DType {
            op: OP,
            argument: "second",
            got: "another type".to_owned(),
            expected: "that of `first`".to_owned(),
        }
        .into()),
    }
}

const OP: &str = "concat_channels";

fn concat_features<T: Element>(first: &Feature<T>, second: &Feature<T>) -> Result<Feature<T>> {
    let dims = Dims { c: first.dims.c + second.dims.c, ..first.dims };
    if (Dims { c: first.dims.c, ..second.dims }) != first.dims {
        return Err(OpError::Shape {
            op: OP,
            argument: "second",
            got: second.dims.to_vec(),
            expected: format!("[{}, D, {}, {}]", dims.n, dims.h, dims.w),
        }
        .into());
    }
    // Blocks of channels stay whole only where both parts end with one.
    let order = match (preferred_order::<T>(first.dims.c), preferred_order::<T>(second.dims.c)) {
        (Order::Blocked, Order::Blocked) => Order::Blocked,
        _ => Order::Plain,
    };
    let (first, second) = (first.in_order(order)?, second.in_order(order)?);
    let (len1, len2) = (first.dims.count() / dims.n, second.dims.count() / dims.n);
    let mut y = Buffer::unspecified(dims.count());
    y.par_chunks_mut(len1 + len2)
        .zip(first.values.par_chunks(len1).zip(second.values.par_chunks(len2)))
        .for_each(|(y, (first, second))| {
            y[..len1].copy_from_slice(first);
            y[len1..].copy_from_slice(second);
        });
    Feature::produce(y, dims, order, |_, output| {
        let parts = [Arc::clone(&first.gradient), Arc::clone(&second.gradient)];
        first.token.apply_op2(&second.token, Concat { parts, lengths: [len1, len2], n: dims.n, output })
    })
}

struct Concat<T: Element> {
    parts: [Arc<GradientSlot<T>>; 2],
    /// Numbers of one image in either part.
    lengths: [usize; 2],
    n: usize,
    output: Arc<GradientSlot<T>>,
}

impl<T: Element> CustomOp2 for Concat<T> {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(token_storage())
    }

    fn bwd(
        &self,
        first: &Tensor,
        second: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = self.output.take(OP)?;
        let whole = self.lengths[0] + self.lengths[1];
        let part = |index: usize, token: &Tensor| -> Result<Option<Tensor>> {
            if !token.track_op() {
                return Ok(None);
            }
            let (start, len) = (index * self.lengths[0], self.lengths[index]);
            let mut dx = Buffer::unspecified(self.n * len);
            dx.par_chunks_mut(len)
                .zip(dy.par_chunks(whole))
                .for_each(|(dx, dy)| dx.copy_from_slice(&dy[start..start + len]));
            self.parts[index].add(dx);
            token_gradient()
        };
        Ok((part(0, first)?, part(1, second)?))
    }
}
