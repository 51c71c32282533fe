//! Convolution by the direct kernels, on blocked activations.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};

use crate::{
    activation::{BLOCK, Feature, GradientSlot, Kept, Order, reorder, token_gradient, token_storage},
    buffer::Buffer,
    conv::{Geometry, OP, correlation::Correlation, general, packing, weight_gradient::weight_gradient},
    element::with_values,
    kernels::VectorWidth,
};

/// Whether the direct kernels take a convolution: one group, outputs in whole
/// blocks, stride 1 or 2. Inputs in whole blocks are fastest; others (the first
/// layer of a network) go channel by channel.
pub(super) fn takes(geometry: &Geometry) -> bool {
    geometry.groups == 1 && geometry.output.c % BLOCK == 0 && geometry.window.stride <= 2
}

/// The convolution; `takes(geometry)` holds.
pub(super) fn conv2d(
    width: VectorWidth,
    x: &Feature<f32>,
    weight_oihw: &Tensor,
    geometry: Geometry,
) -> Result<Feature<f32>> {
    let x = &match packing::input_block(&geometry) {
        1 => x.in_order(Order::Plain)?,
        _ => x.in_order(Order::Blocked)?,
    };
    let packed = with_values(OP, weight_oihw, |weight| Ok(packing::for_forward(weight, &geometry)))?;
    let mut y = Buffer::unspecified(geometry.output.count());
    Correlation::forward(&geometry).run(width, &x.values, &packed, &mut y, false);
    Feature::produce(y, geometry.output, Order::Blocked, |_, output| {
        x.token
            .apply_op2(weight_oihw, DirectConv2d { width, geometry, input: x.clone_without_token(), output })
    })
}

struct DirectConv2d {
    width: VectorWidth,
    geometry: Geometry,
    input: Kept<f32>,
    output: Arc<GradientSlot<f32>>,
}

impl DirectConv2d {
    /// The gradient of the input, on top of what other users of it sent.
    fn input_gradient(&self, weight: &[f32], dy: &[f32]) -> Buffer<f32> {
        let geometry = &self.geometry;
        let sum = self.input.gradient.take_sum();
        if self.input.order == Order::Plain {
            let dy = reorder(dy, geometry.output, Order::Blocked, Order::Plain);
            let sum = sum.unwrap_or_else(|| Buffer::zeroed(geometry.input.count()));
            return general::input_gradient(sum, weight, &dy, geometry);
        }
        let packed = packing::for_input_gradient(weight, geometry);
        let accumulate = sum.is_some();
        let mut dx = sum.unwrap_or_else(|| Buffer::unspecified(geometry.input.count()));
        Correlation::input_gradient(geometry).run(self.width, dy, &packed, &mut dx, accumulate);
        dx
    }
}

impl CustomOp2 for DirectConv2d {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(token_storage())
    }

    fn bwd(
        &self,
        input_token: &Tensor,
        weight_oihw: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = self.output.take(OP)?;
        let mut gradients = (None, None);
        if weight_oihw.track_op() {
            let dw = weight_gradient(self.width, &self.input.values, &dy, &self.geometry);
            gradients.1 = Some(Tensor::from_vec(dw, weight_oihw.shape(), &Device::Cpu)?);
        }
        if input_token.track_op() {
            let dx = with_values(OP, weight_oihw, |weight| Ok(self.input_gradient(weight, &dy)))?;
            self.input.gradient.add(dx);
            gradients.0 = token_gradient()?;
        }
        Ok(gradients)
    }
}
