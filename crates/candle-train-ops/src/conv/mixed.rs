//! Convolution in mixed precision: factors are rounded to bf16, sums stay f32.

mod correlation;
mod planes;
mod weight_gradient;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Device, Layout, Result, Shape, Tensor};

use self::{
    correlation::{Correlation, pack_weight},
    weight_gradient::weight_gradient,
};
use super::{Geometry, OP, weight_gradient_by_parts, write::Write};
use crate::{
    activation::{BLOCK, Feature, GradientSlot, Kept, Order, token_gradient, token_storage},
    arithmetic,
    buffer::Buffer,
    element::with_values,
    kernels::bf16::{self, Engine},
    together,
};

/// The engine, if a convolution is to be done this way: asked for, one group, whole
/// blocks of channels.
pub(super) fn takes(geometry: &Geometry) -> Option<Engine> {
    let blocked = geometry.groups == 1
        && geometry.input.c.is_multiple_of(BLOCK)
        && geometry.output.c.is_multiple_of(BLOCK);
    if arithmetic::bf16() && blocked { bf16::engine() } else { None }
}

/// The convolution; `engine` comes from [`takes`].
pub(super) fn conv2d(
    engine: Engine,
    x: &Feature<f32>,
    weight_oihw: &Tensor,
    geometry: Geometry,
) -> Result<Feature<f32>> {
    let x = &x.in_order(Order::Blocked)?;
    let mut y = Buffer::unspecified(geometry.output.count());
    with_values(OP, weight_oihw, |weight| {
        forward(engine, &x.values, &pack(weight, &geometry), &mut y, Write::Replace, &geometry);
        Ok(())
    })?;
    Feature::produce(y, geometry.output, Order::Blocked, |_, output| {
        x.token
            .apply_op2(weight_oihw, MixedConv2d { engine, geometry, input: x.clone_without_token(), output })
    })
}

/// The weight as [`forward`] wants it.
pub(super) fn pack(weight: &[f32], geometry: &Geometry) -> Halves {
    pack_weight(weight, geometry, false)
}

/// Writes `y`, blocked, from `x`, blocked.
pub(super) fn forward(
    engine: Engine,
    x: &[f32],
    weight: &Halves,
    y: &mut [f32],
    write: Write<'_>,
    geometry: &Geometry,
) {
    Correlation::forward(geometry).run(engine, x, weight, y, write);
}

struct MixedConv2d {
    engine: Engine,
    geometry: Geometry,
    input: Kept<f32>,
    output: Arc<GradientSlot<f32>>,
}

impl MixedConv2d {
    /// The gradient of the input, on top of what other users of it sent.
    fn input_gradient(&self, weight: &[f32], dy: &[f32]) -> Buffer<f32> {
        let sum = self.input.gradient.take_sum();
        let write = if sum.is_some() { Write::Add } else { Write::Replace };
        let mut dx = sum.unwrap_or_else(|| Buffer::unspecified(self.geometry.input.count()));
        let weight = pack_weight(weight, &self.geometry, true);
        Correlation::input_gradient(&self.geometry).run(self.engine, dy, &weight, &mut dx, write);
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
            together::report(weight_oihw, &dw)?;
            gradients.1 = Some(dw);
        }
        if input_token.track_op() {
            let dx = with_values(OP, weight_oihw, |weight| Ok(self.input_gradient(weight, &dy)))?;
            self.input.gradient.add(dx);
            gradients.0 = token_gradient()?;
        }
        Ok(gradients)
    }
}

/// bf16 numbers, in the memory of a pooled buffer of f32.
pub(super) struct Halves(Buffer<f32>);

impl Halves {
    /// Unspecified numbers, an even count.
    pub(super) fn new(len: usize) -> Self {
        Self(Buffer::unspecified(len.div_ceil(2)))
    }

    pub(super) fn get(&self) -> &[u16] {
        bf16::halves(&self.0)
    }

    pub(super) fn get_mut(&mut self) -> &mut [u16] {
        bf16::halves_mut(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        activation::{Dims, reorder},
        conv::{Conv2dSpec, general},
    };

    /// Numbers in [-1, 1] that bf16 holds exactly, so that only the order of the f32
    /// sums differs from the general path.
    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        let number = |i: usize| ((i * 7919 + seed * 104_729) % 257) as f32 / 128.0 - 1.0;
        (0..count).map(number).collect()
    }

    #[track_caller]
    fn check_close(what: &str, got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len(), "{what}");
        let scale = want.iter().fold(0f32, |largest, v| largest.max(v.abs()));
        for (index, (got, want)) in got.iter().zip(want).enumerate() {
            assert!((got - want).abs() <= 1e-5 * scale, "{what}, {index}: {got} instead of {want}");
        }
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
        let x = reorder(&x, input, Order::Plain, Order::Blocked);
        let dy = reorder(&dy, output, Order::Plain, Order::Blocked);
        let engines = bf16::engines();
        if engines.is_empty() {
            eprintln!("SKIPPED: this processor has no AVX512-BF16");
        }
        for engine in engines {
            let name = format!("{input:?} * {weight_oihw:?}, {spec:?}, {engine:?}");
            let mut y = Buffer::unspecified(output.count());
            forward(engine, &x, &pack(&weight, &geometry), &mut y, Write::Replace, &geometry);
            let y = reorder(&y, output, Order::Blocked, Order::Plain);
            check_close(&format!("y of {name}"), &y, &want_y);
            let mut dx = Buffer::unspecified(input.count());
            let packed = pack_weight(&weight, &geometry, true);
            Correlation::input_gradient(&geometry).run(engine, &dy, &packed, &mut dx, Write::Replace);
            let dx = reorder(&dx, input, Order::Blocked, Order::Plain);
            check_close(&format!("dx of {name}"), &dx, &want_dx);
            let dw = weight_gradient(engine, &x, &dy, &geometry);
            check_close(&format!("dw of {name}"), &dw, &want_dw);
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
    }

    #[test]
    fn rounding_is_to_nearest_even() {
        // Half a unit above 1 goes down to the even neighbour, above 1 + 1/128 up.
        for (value, want) in
            [(1.0, 0x3f80), (1.0 + 1.0 / 256.0, 0x3f80), (1.0 + 3.0 / 256.0, 0x3f82), (-0.0, 0x8000)]
        {
            assert_eq!(bf16::round(value), want, "{value}");
        }
        assert!(bf16::round(f32::NAN) & 0x7fff > 0x7f80);
    }
}
