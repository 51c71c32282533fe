//! Convolution with one window per channel.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{Geometry, OP, weight_gradient_by_parts};
use crate::{
    activation::{BLOCK, Feature, GradientSlot, Kept, Order, preferred_order, token_gradient, token_storage},
    backward,
    buffer::Buffer,
    element::{Element, with_values},
    kernels::{
        depthwise,
        lanes::{self, Bounds},
        pooling::Planes,
    },
};

/// Whether every channel has a window of its own.
pub(super) fn takes(geometry: &Geometry) -> bool {
    geometry.groups > 1 && geometry.groups == geometry.input.c && geometry.groups == geometry.output.c
}

/// The convolution; `takes(geometry)` holds.
pub(super) fn conv2d<T: Element<Wide = T>>(
    x: &Feature<T>,
    weight_oihw: &Tensor,
    geometry: Geometry,
) -> Result<Feature<T>> {
    let x = &x.in_order(preferred_order::<T>(geometry.input.c))?;
    let plan = Depthwise { geometry, order: x.order };
    let weight = with_values::<T, _>(OP, weight_oihw, |weight| Ok(plan.pack(weight)))?;
    let mut y = Buffer::unspecified(geometry.output.count());
    plan.each_output(&x.values, &mut y, |y, x, group| plan.forward(y, x, plan.of_group(&weight, group)));
    Feature::produce(y, geometry.output, x.order, |_, output| {
        let kept = x.clone_without_token();
        x.token.apply_op2(weight_oihw, DepthwiseConv2d { plan, weight, input: kept, output })
    })
}

/// The same outside any graph, with bias, residual (in the preferred order) and bounds.
pub(super) fn folded(
    x: &Feature<f32>,
    weight: &[f32],
    bias: &[f32],
    residual: Option<&Feature<f32>>,
    bounds: Bounds<f32>,
    geometry: Geometry,
) -> Result<Feature<f32>> {
    let order = preferred_order::<f32>(geometry.input.c);
    let x = &x.in_order(order)?;
    let residual = residual.map(|residual| residual.in_order(order)).transpose()?;
    let plan = Depthwise { geometry, order };
    let weight = plan.pack(weight);
    let mut y = Buffer::unspecified(geometry.output.count());
    let plane_len = plan.output_len();
    let n_groups = geometry.output.c / order.block();
    y.par_chunks_mut(plane_len).enumerate().for_each_init(
        || Buffer::unspecified(plane_len),
        |sums, (index, y)| {
            let group = index % n_groups;
            let x = &x.values[index * plan.input_len()..][..plan.input_len()];
            plan.forward(sums, x, plan.of_group(&weight, group));
            let residual = residual.as_ref().map_or(&[][..], |r| &r.values[index * plane_len..][..plane_len]);
            let bias = std::array::from_fn(|lane| bias[group * order.block() + lane % order.block()]);
            lanes::normalise(y, sums, residual, &[1.0; BLOCK], &bias, bounds);
        },
    );
    Feature::constant(y, geometry.output, order)
}

/// Extents and layout of one depthwise convolution.
#[derive(Clone, Copy)]
struct Depthwise {
    geometry: Geometry,
    order: Order,
}

impl Depthwise {
    fn planes(&self) -> Planes {
        let Geometry { input, output, window, .. } = self.geometry;
        Planes { input, output, window }
    }

    fn input_len(&self) -> usize {
        self.geometry.input.h * self.geometry.input.w * self.order.block()
    }

    fn output_len(&self) -> usize {
        self.geometry.output.h * self.geometry.output.w * self.order.block()
    }

    fn n_groups(&self) -> usize {
        self.geometry.input.c / self.order.block()
    }

    /// OIHW to `[C / block][tap][block]`.
    fn pack<T: Element>(&self, weight: &[T]) -> Vec<T> {
        let (taps, block) = (self.geometry.taps(), self.order.block());
        let value = |index: usize| {
            let (group, tap, lane) = (index / (taps * block), index / block % taps, index % block);
            weight[(group * block + lane) * taps + tap]
        };
        (0..weight.len()).map(value).collect()
    }

    /// The reverse of [`Self::pack`].
    fn unpack<T: Element>(&self, packed: &[f64]) -> Vec<T> {
        let (taps, block) = (self.geometry.taps(), self.order.block());
        let value = |index: usize| {
            let (channel, tap) = (index / taps, index % taps);
            T::from_f64(packed[(channel / block * taps + tap) * block + channel % block])
        };
        (0..packed.len()).map(value).collect()
    }

    fn of_group<'a, T>(&self, weight: &'a [T], group: usize) -> &'a [T] {
        let len = self.geometry.taps() * self.order.block();
        &weight[group * len..][..len]
    }

    /// Calls `run(output plane, input plane, group)` for all planes.
    fn each_output<T: Element>(&self, x: &[T], y: &mut [T], run: impl Fn(&mut [T], &[T], usize) + Sync) {
        y.par_chunks_mut(self.output_len())
            .zip(x.par_chunks(self.input_len()))
            .enumerate()
            .for_each(|(index, (y, x))| run(y, x, index % self.n_groups()));
    }

    fn forward<T: Element>(&self, y: &mut [T], x: &[T], weight: &[T]) {
        match self.order {
            Order::Plain => depthwise::forward::<T, 1>(self.planes(), y, x, weight),
            Order::Blocked => depthwise::forward::<T, BLOCK>(self.planes(), y, x, weight),
        }
    }

    /// Adds the gradient of the input to `dx`.
    fn input_gradient<T: Element>(&self, dx: &mut [T], dy: &[T], weight: &[T]) {
        dx.par_chunks_mut(self.input_len()).zip(dy.par_chunks(self.output_len())).enumerate().for_each(
            |(index, (dx, dy))| {
                let weight = self.of_group(weight, index % self.n_groups());
                match self.order {
                    Order::Plain => depthwise::input_gradient::<T, 1>(self.planes(), dx, dy, weight),
                    Order::Blocked => depthwise::input_gradient::<T, BLOCK>(self.planes(), dx, dy, weight),
                }
            },
        );
    }

    /// The gradient of the weight in OIHW; every group adds its images up in order.
    fn weight_gradient<T: Element>(&self, x: &[T], dy: &[T]) -> Vec<T> {
        let len = self.geometry.taps() * self.order.block();
        let mut sums = vec![0.0; self.geometry.weight_count()];
        sums.par_chunks_mut(len).enumerate().for_each(|(group, sums)| {
            let mut row_sums = vec![T::zero(); len];
            for image in 0..self.geometry.input.n {
                let plane = image * self.n_groups() + group;
                let x = &x[plane * self.input_len()..][..self.input_len()];
                let dy = &dy[plane * self.output_len()..][..self.output_len()];
                let (planes, row_sums) = (self.planes(), &mut row_sums[..]);
                match self.order {
                    Order::Plain => depthwise::weight_gradient::<T, 1>(planes, sums, row_sums, x, dy),
                    Order::Blocked => depthwise::weight_gradient::<T, BLOCK>(planes, sums, row_sums, x, dy),
                }
            }
        });
        self.unpack(&sums)
    }
}

struct DepthwiseConv2d<T: Element> {
    plan: Depthwise,
    /// Packed.
    weight: Vec<T>,
    input: Kept<T>,
    output: Arc<GradientSlot<T>>,
}

impl<T: Element<Wide = T>> CustomOp2 for DepthwiseConv2d<T> {
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
            let geometry = &self.plan.geometry;
            let dw = weight_gradient_by_parts(&self.input.values, &dy, geometry, |x, dy, part| {
                Depthwise { geometry: *part, ..self.plan }.weight_gradient(x, dy)
            });
            let dw = Tensor::from_vec(dw, weight_oihw.shape(), &Device::Cpu)?;
            gradients.1 = backward::offer(weight_oihw, dw)?;
        }
        if input_token.track_op() {
            let sum = self.input.gradient.take_sum();
            let mut dx = sum.unwrap_or_else(|| Buffer::zeroed(self.plan.geometry.input.count()));
            self.plan.input_gradient(&mut dx, &dy, &self.weight);
            self.input.gradient.add(dx);
            gradients.0 = token_gradient()?;
        }
        Ok(gradients)
    }
}
