//! Into activations and out of them, and the operations that only turn gradients back.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, WithDType};
use rayon::prelude::*;

use super::BLOCK;
use super::feature::{Dims, Feature, GradientSlot, Kept, Order, narrow, preferred_order, reorder};
use crate::{
    OpError,
    buffer::Buffer,
    element::{Element, check_kind, with_values},
};

pub(super) fn feature_from_nchw<T: Element>(image_nchw: &Tensor) -> Result<Feature<T>> {
    const OP: &str = "from_nchw";
    check_kind(OP, "image_nchw", image_nchw, T::DTYPE)?;
    let got = image_nchw.dims().to_vec();
    let &[n, c, h, w] = image_nchw.dims() else {
        return Err(OpError::Shape {
            op: OP,
            argument: "image_nchw",
            got,
            expected: "[N, C, H, W]".to_owned(),
        }
        .into());
    };
    if got.contains(&0) {
        return Err(OpError::Empty { op: OP, argument: "image_nchw", got }.into());
    }
    let dims = Dims { n, c, h, w };
    let order = preferred_order::<T>(c);
    let values =
        with_values::<T, _>(OP, image_nchw, |values| Ok(reorder(values, dims, Order::Plain, order)))?;
    Feature::produce(values, dims, order, |_, gradient| {
        image_nchw.apply_op1(FromNchw { gradient, dims, order })
    })
}

/// What every token holds; nobody reads it.
pub(crate) fn token_storage() -> (CpuStorage, Shape) {
    (CpuStorage::F32(vec![0.0]), Shape::from(()))
}

/// The gradient of a token: tells candle to run its producer backwards.
pub(crate) fn token_gradient() -> Result<Option<Tensor>> {
    Tensor::zeros((), DType::F32, &Device::Cpu).map(Some)
}

struct FromNchw<T: Element> {
    gradient: Arc<GradientSlot<T>>,
    dims: Dims,
    order: Order,
}

impl<T: Element> CustomOp1 for FromNchw<T> {
    fn name(&self) -> &'static str {
        "from_nchw"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(token_storage())
    }

    fn bwd(&self, image_nchw: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        let gradient = self.gradient.take(self.name())?;
        let plain = reorder(&gradient, self.dims, self.order, Order::Plain);
        Tensor::from_slice(&plain, image_nchw.shape(), &Device::Cpu).map(Some)
    }
}

pub(super) struct ToNchw<T: Element>(pub Kept<T>);

impl<T: Element> CustomOp1 for ToNchw<T> {
    fn name(&self) -> &'static str {
        "to_nchw"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let plain = reorder(&self.0.values, self.0.dims, self.0.order, Order::Plain);
        let plain = plain.iter().map(|value| value.widen()).collect();
        Ok((T::Wide::to_cpu_storage_owned(plain), Shape::from(self.0.dims.to_vec())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let gradient = with_values::<T::Wide, _>(self.name(), gradient, |gradient| {
            Ok(reorder(&narrow::<T>(gradient), self.0.dims, Order::Plain, self.0.order))
        })?;
        self.0.gradient.add(gradient);
        token_gradient()
    }
}

pub(super) struct GlobalAvgPool<T: Element>(pub Kept<T>);

impl<T: Element> CustomOp1 for GlobalAvgPool<T> {
    fn name(&self) -> &'static str {
        "global_avg_pool"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let Dims { n, c, h, w } = self.0.dims;
        let block = self.0.order.block();
        let mut means = vec![T::Wide::ZERO; n * c];
        let planes = self.0.values.par_chunks(h * w * block);
        means.par_chunks_mut(block).zip(planes).for_each(|(means, plane)| {
            let mut sums = [0f64; BLOCK];
            for pixel in plane.chunks_exact(block) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += value.widen().to_f64();
                }
            }
            for (mean, sum) in means.iter_mut().zip(sums) {
                *mean = T::Wide::from_f64(sum / (h * w) as f64);
            }
        });
        Ok((T::Wide::to_cpu_storage_owned(means), Shape::from((n, c))))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let Dims { h, w, .. } = self.0.dims;
        let block = self.0.order.block();
        let scale = T::Wide::from_f64(1.0 / (h * w) as f64);
        let mut result = Buffer::<T>::unspecified(self.0.dims.count());
        with_values::<T::Wide, _>(self.name(), gradient, |gradient| {
            let planes = result.par_chunks_mut(h * w * block);
            planes.zip(gradient.par_chunks(block)).for_each(|(plane, gradient)| {
                for pixel in plane.chunks_exact_mut(block) {
                    for (value, gradient) in pixel.iter_mut().zip(gradient) {
                        *value = T::narrow(*gradient * scale);
                    }
                }
            });
            Ok(())
        })?;
        self.0.gradient.add(result);
        token_gradient()
    }
}

/// One number type into another; so is the gradient on its way back.
pub(super) struct Converted<T: Element, S: Element> {
    pub input: Arc<GradientSlot<T>>,
    pub output: Arc<GradientSlot<S>>,
    pub back: fn(&[S]) -> Buffer<T>,
}

impl<T: Element, S: Element> CustomOp1 for Converted<T, S> {
    fn name(&self) -> &'static str {
        "converted"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(token_storage())
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        self.input.add((self.back)(&self.output.take(self.name())?));
        token_gradient()
    }
}

/// How an op with one input turns gradients back.
pub(super) type UnaryBackward<T> = Box<dyn Fn(Buffer<T>) -> Buffer<T> + Send + Sync>;

/// What only has to turn its gradient back: its result was made beforehand.
pub(super) struct Unary<T: Element> {
    pub name: &'static str,
    pub input: Arc<GradientSlot<T>>,
    pub output: Arc<GradientSlot<T>>,
    pub backward: UnaryBackward<T>,
}

impl<T: Element> CustomOp1 for Unary<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(token_storage())
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        let gradient = self.output.take(self.name)?;
        self.input.add((self.backward)(gradient));
        token_gradient()
    }
}
