//! Convolution by the direct kernels, on blocked activations.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::{
    activation::{BLOCK, Feature, GradientSlot, Kept, Order, reorder, token_gradient, token_storage},
    backward,
    buffer::Buffer,
    conv::{
        Geometry, OP,
        correlation::Correlation,
        general, packing,
        weight_gradient::weight_gradient,
        weight_gradient_by_parts,
        winograd::{self, Winograd},
        write::Write,
    },
    element::with_values,
    kernels::VectorWidth,
};

/// Whether the direct kernels take a convolution: outputs of each group in whole
/// blocks, stride 1 or 2. Inputs in whole blocks are fastest; others (the first
/// layer of a network) go channel by channel, if there is one group.
pub(super) fn takes(geometry: &Geometry) -> bool {
    let Geometry { input, output, groups, window } = *geometry;
    (output.c / groups).is_multiple_of(BLOCK)
        && (groups == 1 || (input.c / groups).is_multiple_of(BLOCK))
        && window.stride <= 2
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
    let mut y = Buffer::unspecified(geometry.output.count());
    with_values(OP, weight_oihw, |weight| {
        if winograd::takes(&geometry) {
            let plan = Winograd::forward(&geometry);
            plan.run(width, &x.values, &plan.transform_weight(weight), &mut y, Write::Replace);
        } else if geometry.groups == 1 {
            let packed = packing::for_forward(weight, &geometry);
            Correlation::forward(&geometry).run(width, &x.values, &packed, &mut y, Write::Replace);
        } else {
            grouped_forward(width, &x.values, weight, &mut y, &geometry);
        }
        Ok(())
    })?;
    Feature::produce(y, geometry.output, Order::Blocked, |_, output| {
        x.token
            .apply_op2(weight_oihw, DirectConv2d { width, geometry, input: x.clone_without_token(), output })
    })
}

/// Every group of every image as a convolution of its own: blocks of channels make
/// them lie in one piece.
fn grouped_forward(width: VectorWidth, x: &[f32], weight: &[f32], y: &mut [f32], geometry: &Geometry) {
    let part = geometry.part();
    let pack = |weight| packing::for_forward(weight, &part);
    let weights: Vec<_> = weight.chunks_exact(part.weight_count()).map(pack).collect();
    let plan = Correlation::forward(&part);
    let pieces = y.par_chunks_mut(part.output.count()).zip(x.par_chunks(part.input.count()));
    pieces.enumerate().for_each(|(index, (y, x))| {
        plan.run(width, x, &weights[index % geometry.groups], y, Write::Replace);
    });
}

/// The same for the gradient of the input; `write` replaces or adds.
fn grouped_input_gradient(
    width: VectorWidth,
    dy: &[f32],
    weight: &[f32],
    dx: &mut [f32],
    write: Write<'_>,
    geometry: &Geometry,
) {
    let part = geometry.part();
    let pack = |weight| packing::for_input_gradient(weight, &part);
    let weights: Vec<_> = weight.chunks_exact(part.weight_count()).map(pack).collect();
    let plan = Correlation::input_gradient(&part);
    let pieces = dx.par_chunks_mut(part.input.count()).zip(dy.par_chunks(part.output.count()));
    pieces.enumerate().for_each(|(index, (dx, dy))| {
        plan.run(width, dy, &weights[index % geometry.groups], dx, write);
    });
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
        let write = if sum.is_some() { Write::Add } else { Write::Replace };
        let mut dx = sum.unwrap_or_else(|| Buffer::unspecified(geometry.input.count()));
        if winograd::takes(geometry) {
            let plan = Winograd::input_gradient(geometry);
            plan.run(self.width, dy, &plan.transform_weight(weight), &mut dx, write);
        } else if geometry.groups > 1 {
            grouped_input_gradient(self.width, dy, weight, &mut dx, write, geometry);
        } else {
            let packed = packing::for_input_gradient(weight, geometry);
            Correlation::input_gradient(geometry).run(self.width, dy, &packed, &mut dx, write);
        }
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
            let dw = weight_gradient_by_parts(&self.input.values, &dy, &self.geometry, |x, dy, part| {
                weight_gradient(self.width, x, dy, part)
            });
            let dw = Tensor::from_vec(dw, weight_oihw.shape(), &Device::Cpu)?;
            gradients.1 = backward::offer(weight_oihw, dw)?;
        }
        if input_token.track_op() {
            let dx = with_values(OP, weight_oihw, |weight| Ok(self.input_gradient(weight, &dy)))?;
            self.input.gradient.add(dx);
            gradients.0 = token_gradient()?;
        }
        Ok(gradients)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{activation::Dims, conv::Conv2dSpec};

    /// Numbers in [-1, 1] without a pattern that a wrong stride could hide in.
    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        let number = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0;
        (0..count).map(number).collect()
    }

    #[track_caller]
    fn check_close(what: &str, got: &[f32], want: &[f32]) {
        let scale = want.iter().fold(0f32, |largest, v| largest.max(v.abs()));
        for (got, want) in got.iter().zip(want) {
            let error = (got - want).abs();
            assert!(error <= 2e-5 * scale, "{what}: {got} instead of {want}");
        }
    }

    /// Every instruction set of this processor against the general path.
    #[track_caller]
    fn check(input: Dims, weight_oihw: [usize; 4], stride: usize, padding: usize) {
        let groups = input.c / weight_oihw[1];
        let spec = Conv2dSpec { stride, padding, groups };
        let geometry = Geometry::new(input, &weight_oihw, spec).unwrap();
        let output = geometry.output;
        let (x, dy) = (numbers(input.count(), 1), numbers(output.count(), 2));
        let weight = numbers(geometry.weight_count(), 3);
        let want_y = general::forward(&x, &weight, &geometry);
        let want_dw = general::weight_gradient(&x, &dy, &geometry);
        let zeros = Buffer::zeroed(input.count());
        let want_dx = general::input_gradient(zeros, &weight, &dy, &geometry);

        let order = match packing::input_block(&geometry) {
            1 => Order::Plain,
            _ => Order::Blocked,
        };
        let x = reorder(&x, input, Order::Plain, order);
        let dy = reorder(&dy, output, Order::Plain, Order::Blocked);
        for width in widths() {
            let name = format!("{input:?} * {weight_oihw:?}, {spec:?}, {width:?}");
            let mut y = Buffer::unspecified(output.count());
            if groups == 1 {
                let packed = packing::for_forward(&weight, &geometry);
                Correlation::forward(&geometry).run(width, &x, &packed, &mut y, Write::Replace);
            } else {
                grouped_forward(width, &x, &weight, &mut y, &geometry);
            }
            let y = reorder(&y, output, Order::Blocked, Order::Plain);
            check_close(&name, &y, &want_y);
            let dw = weight_gradient(width, &x, &dy, &geometry);
            check_close(&name, &dw, &want_dw);
            if winograd::takes(&geometry) {
                let mut y = Buffer::unspecified(output.count());
                let plan = Winograd::forward(&geometry);
                plan.run(width, &x, &plan.transform_weight(&weight), &mut y, Write::Replace);
                let y = reorder(&y, output, Order::Blocked, Order::Plain);
                check_close(&name, &y, &want_y);
                let mut dx = Buffer::unspecified(input.count());
                let plan = Winograd::input_gradient(&geometry);
                plan.run(width, &dy, &plan.transform_weight(&weight), &mut dx, Write::Replace);
                let dx = reorder(&dx, input, Order::Blocked, Order::Plain);
                check_close(&name, &dx, &want_dx);
            }
            if groups > 1 {
                let mut dx = Buffer::unspecified(input.count());
                grouped_input_gradient(width, &dy, &weight, &mut dx, Write::Replace, &geometry);
                let dx = reorder(&dx, input, Order::Blocked, Order::Plain);
                check_close(&name, &dx, &want_dx);
            } else if order == Order::Blocked {
                let packed = packing::for_input_gradient(&weight, &geometry);
                let mut dx = Buffer::unspecified(input.count());
                Correlation::input_gradient(&geometry).run(width, &dy, &packed, &mut dx, Write::Replace);
                let dx = reorder(&dx, input, Order::Blocked, Order::Plain);
                check_close(&name, &dx, &want_dx);
            }
        }
    }

    /// All that this processor has.
    #[cfg(target_arch = "x86_64")]
    fn widths() -> Vec<VectorWidth> {
        let narrow = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let wide = is_x86_feature_detected!("avx512f");
        let found = [(narrow, VectorWidth::Bits256), (wide, VectorWidth::Bits512)];
        found.into_iter().filter(|(is_there, _)| *is_there).map(|(_, width)| width).collect()
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn widths() -> Vec<VectorWidth> {
        crate::kernels::vector_width().into_iter().collect()
    }

    fn dims(n: usize, c: usize, h: usize, w: usize) -> Dims {
        Dims { n, c, h, w }
    }

    #[test]
    fn first_layers_agree_with_the_general_path() {
        check(dims(2, 1, 23, 19), [16, 1, 7, 7], 2, 3);
        check(dims(1, 3, 17, 40), [32, 3, 11, 11], 1, 5);
        check(dims(2, 17, 9, 8), [48, 17, 3, 3], 2, 1);
    }

    #[test]
    fn blocked_layers_agree_with_the_general_path() {
        check(dims(9, 16, 7, 7), [32, 16, 3, 3], 1, 1);
        check(dims(2, 48, 15, 33), [16, 48, 3, 3], 2, 1);
        check(dims(1, 32, 14, 13), [64, 32, 1, 1], 2, 0);
        check(dims(1, 16, 6, 5), [16, 16, 5, 2], 2, 3);
        check(dims(1, 16, 5, 6), [16, 16, 1, 1], 1, 2);
        check(dims(2, 256, 7, 9), [48, 256, 3, 3], 1, 1);
    }

    #[test]
    fn grouped_layers_agree_with_the_general_path() {
        check(dims(2, 32, 9, 8), [32, 16, 3, 3], 1, 1);
        check(dims(1, 96, 7, 6), [48, 32, 5, 5], 2, 2);
    }

    #[test]
    fn winograd_layers_agree_with_the_general_path() {
        check(dims(9, 16, 12, 12), [32, 16, 3, 3], 1, 1);
        check(dims(2, 48, 29, 30), [16, 48, 3, 3], 1, 0);
        check(dims(1, 128, 13, 19), [128, 128, 3, 3], 1, 2);
    }
}
