//! Convolution in mixed precision: factors and results are bf16, sums f32.

mod correlation;
mod planes;
mod weight_gradient;
mod winograd;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};
use half::bf16;

use self::{
    correlation::{Correlation, pack_weight},
    weight_gradient::weight_gradient,
    winograd::Winograd,
};
use super::{Geometry, OP, weight_gradient_by_parts, write::Write};
use crate::{
    activation::{BLOCK, Feature, GradientSlot, Kept, Order, token_gradient, token_storage},
    arithmetic, backward,
    buffer::Buffer,
    element::with_values,
    kernels::mixed::{self, Engine},
};

/// The engine, if a convolution is to be done this way: asked for, one group, whole
/// blocks of channels.
pub(super) fn takes(geometry: &Geometry) -> Option<Engine> {
    let blocked = geometry.groups == 1
        && geometry.input.c.is_multiple_of(BLOCK)
        && geometry.output.c.is_multiple_of(BLOCK);
    if arithmetic::bf16() && blocked { mixed::engine() } else { None }
}

/// The convolution; `engine` comes from [`takes`].
pub(super) fn conv2d(
    engine: Engine,
    x: &Feature<bf16>,
    weight_oihw: &Tensor,
    geometry: Geometry,
) -> Result<Feature<bf16>> {
    let x = &x.in_order(Order::Blocked)?;
    let mut y = Buffer::unspecified(geometry.output.count());
    with_values(OP, weight_oihw, |weight| {
        let plan = Plan::forward(engine, geometry);
        plan.run(&x.values, &plan.pack(weight), &mut y, Write::Replace);
        Ok(())
    })?;
    Feature::produce(y, geometry.output, Order::Blocked, |_, output| {
        x.token
            .apply_op2(weight_oihw, MixedConv2d { engine, geometry, input: x.clone_without_token(), output })
    })
}

/// The forward pass or the gradient of the input, by the fastest way on this processor.
pub(super) struct Plan {
    engine: Engine,
    geometry: Geometry,
    backwards: bool,
}

impl Plan {
    /// `y` from `x`.
    pub(super) fn forward(engine: Engine, geometry: Geometry) -> Self {
        Self { engine, geometry, backwards: false }
    }

    /// `dx` from `dy`.
    fn input_gradient(engine: Engine, geometry: Geometry) -> Self {
        Self { engine, geometry, backwards: true }
    }

    /// Whether Winograd's algorithm does it, which wants a weight of its own.
    pub(super) fn is_winograd(&self) -> bool {
        winograd::takes(self.engine, &self.geometry)
    }

    fn winograd(&self) -> Winograd {
        if self.backwards {
            Winograd::input_gradient(&self.geometry)
        } else {
            Winograd::forward(&self.geometry)
        }
    }

    /// The weight, OIHW, as [`Self::run`] wants it.
    pub(super) fn pack(&self, weight: &[f32]) -> Buffer<bf16> {
        if self.is_winograd() {
            self.winograd().pack(self.engine, weight)
        } else {
            pack_weight(self.engine, weight, &self.geometry, self.backwards)
        }
    }

    /// Writes `target` from `source`, both blocked.
    pub(super) fn run(&self, source: &[bf16], weight: &[bf16], target: &mut [bf16], write: Write<'_, bf16>) {
        if self.is_winograd() {
            self.winograd().run(self.engine, source, weight, target, write);
        } else if self.backwards {
            Correlation::input_gradient(&self.geometry).run(self.engine, source, weight, target, write);
        } else {
            Correlation::forward(&self.geometry).run(self.engine, source, weight, target, write);
        }
    }
}

struct MixedConv2d {
    engine: Engine,
    geometry: Geometry,
    input: Kept<bf16>,
    output: Arc<GradientSlot<bf16>>,
}

impl MixedConv2d {
    /// The gradient of the input, on top of what other users of it sent.
    fn input_gradient(&self, weight: &[f32], dy: &[bf16]) -> Buffer<bf16> {
        let sum = self.input.gradient.take_sum();
        let write = if sum.is_some() { Write::Add } else { Write::Replace };
        let mut dx = sum.unwrap_or_else(|| Buffer::unspecified(self.geometry.input.count()));
        let plan = Plan::input_gradient(self.engine, self.geometry);
        plan.run(dy, &plan.pack(weight), &mut dx, write);
        dx
    }
}

impl CustomOp2 for MixedConv2d {
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
                weight_gradient(self.engine, x, dy, part)
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
    use crate::{
        activation::{Dims, reorder},
        conv::{Conv2dSpec, general},
        element::Element,
        kernels::lanes,
    };

    /// Numbers in [-1, 1] that bf16 holds exactly, so that only the order of the f32
    /// sums differs from the general path.
    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        let number = |i: usize| ((i * 7919 + seed * 104_729) % 257) as f32 / 128.0 - 1.0;
        (0..count).map(number).collect()
    }

    /// Error of f32 sums of exact products, relative to the largest.
    const SUMS: f32 = 1e-5;

    /// The same where Winograd's factors, which bf16 does not hold exactly, are rounded.
    const WINOGRAD: f32 = 1e-2;

    /// Half a unit in the last place of a result, relative to itself.
    const ROUNDING: f32 = 1.0 / 256.0;

    #[track_caller]
    fn check_close(what: &str, got: &[f32], want: &[f32], error: f32) {
        assert_eq!(got.len(), want.len(), "{what}");
        let scale = want.iter().fold(0f32, |largest, v| largest.max(v.abs()));
        for (index, (got, want)) in got.iter().zip(want).enumerate() {
            let tolerance = error * scale + ROUNDING * want.abs();
            assert!((got - want).abs() <= tolerance, "{what}, {index}: {got} instead of {want}");
        }
    }

    fn blocked(values: &[f32], dims: Dims) -> Buffer<bf16> {
        let mut narrow = Buffer::unspecified(values.len());
        lanes::narrow(&mut narrow, &reorder(values, dims, Order::Plain, Order::Blocked));
        narrow
    }

    fn plain(values: &[bf16], dims: Dims) -> Vec<f32> {
        reorder(values, dims, Order::Blocked, Order::Plain).iter().map(|value| value.widen()).collect()
    }

    /// Every engine of this processor against the general path in f32.
    #[track_caller]
    fn check(input: [usize; 4], weight_oihw: [usize; 4], stride: usize, padding: usize) {
        let [n, c, h, w] = input;
        let input = Dims { n, c, h, w };
        let spec = Conv2dSpec { stride, padding, groups: 1 };
        let geometry = Geometry::new(input, &weight_oihw, spec).unwrap();
        let output = geometry.output;
        let (x, dy) = (numbers(input.count(), 1), numbers(output.count(), 2));
        let weight = numbers(geometry.weight_count(), 3);
        let want_y = general::forward(&x, &weight, &geometry);
        let want_dw = general::weight_gradient(&x, &dy, &geometry);
        let want_dx = general::input_gradient(Buffer::zeroed(input.count()), &weight, &dy, &geometry);
        let (x, dy) = (blocked(&x, input), blocked(&dy, output));
        let engines = mixed::engines();
        if engines.is_empty() {
            eprintln!("SKIPPED: this processor has no AVX512-BF16");
        }
        for engine in engines {
            let name = format!("{input:?} * {weight_oihw:?}, {spec:?}, {engine:?}");
            let check_all = |name: &str, y: &[bf16], dx: &[bf16], error: f32| {
                check_close(&format!("y of {name}"), &plain(y, output), &want_y, error);
                check_close(&format!("dx of {name}"), &plain(dx, input), &want_dx, error);
            };
            let mut y = Buffer::unspecified(output.count());
            let mut dx = Buffer::unspecified(input.count());
            let packed = pack_weight(engine, &weight, &geometry, false);
            Correlation::forward(&geometry).run(engine, &x, &packed, &mut y, Write::Replace);
            let packed = pack_weight(engine, &weight, &geometry, true);
            Correlation::input_gradient(&geometry).run(engine, &dy, &packed, &mut dx, Write::Replace);
            check_all(&name, &y, &dx, SUMS);
            if winograd::takes(engine, &geometry) {
                let plan = Winograd::forward(&geometry);
                plan.run(engine, &x, &plan.pack(engine, &weight), &mut y, Write::Replace);
                let plan = Winograd::input_gradient(&geometry);
                plan.run(engine, &dy, &plan.pack(engine, &weight), &mut dx, Write::Replace);
                check_all(&format!("{name}, Winograd"), &y, &dx, WINOGRAD);
            }
            let dw = weight_gradient(engine, &x, &dy, &geometry);
            check_close(&format!("dw of {name}"), &dw, &want_dw, SUMS);
        }
    }

    #[test]
    fn mixed_layers_agree_with_the_general_path() {
        check([2, 16, 7, 7], [32, 16, 3, 3], 1, 1);
        check([3, 48, 15, 33], [16, 48, 3, 3], 2, 1);
        check([1, 32, 14, 13], [64, 32, 1, 1], 2, 0);
        check([1, 16, 6, 5], [48, 16, 5, 2], 2, 3);
        check([1, 16, 5, 6], [16, 16, 1, 1], 1, 2);
        check([2, 64, 17, 11], [32, 64, 3, 3], 3, 1);
        check([1, 16, 31, 30], [16, 16, 11, 11], 3, 5);
        check([2, 16, 12, 12], [32, 16, 3, 3], 1, 1);
        check([2, 48, 29, 30], [16, 48, 3, 3], 1, 0);
        check([1, 64, 13, 61], [48, 64, 3, 3], 1, 2);
    }
}
