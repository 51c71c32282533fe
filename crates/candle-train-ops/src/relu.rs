//! The rectifier on its own, where no normalisation precedes it.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::{
    Act, Activation,
    activation::{CHUNK, Feature, GradientSlot, dispatch, token_gradient, token_storage},
    buffer::Buffer,
    element::Element,
    kernels::lanes,
};

/// `max(x, 0)` of an activation of any shape; the gradient at 0 is 0.
///
/// # Errors
/// None of its own; candle's if memory cannot be had.
pub fn relu(x: &Activation) -> Result<Activation> {
    dispatch!(x, x => relu_feature(x).map(Activation::from), on_gpu: crate::cuda::relu(x).map(Activation::from))
}

fn relu_feature<T: Element>(x: &Feature<T>) -> Result<Feature<T>> {
    let mut y = Buffer::unspecified(x.values.len());
    y.par_chunks_mut(CHUNK).zip(x.values.par_chunks(CHUNK)).for_each(|(y, x)| lanes::relu(y, x));
    Feature::produce(y, x.dims, x.order, |y, output| {
        x.token.apply_op1(Relu { input: Arc::clone(&x.gradient), result: Arc::clone(y), output })
    })
}

struct Relu<T: Element> {
    input: Arc<GradientSlot<T>>,
    result: Arc<Buffer<T>>,
    output: Arc<GradientSlot<T>>,
}

impl<T: Element> CustomOp1 for Relu<T> {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(token_storage())
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        let mut gradient = self.output.take(self.name())?;
        gradient
            .par_chunks_mut(CHUNK)
            .zip(self.result.par_chunks(CHUNK))
            .for_each(|(gradient, y)| lanes::clamp_backward(gradient, y, Act::Relu.bounds()));
        self.input.add(gradient);
        token_gradient()
    }
}
