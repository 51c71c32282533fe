//! Two-dimensional convolution with input and weight gradients.

mod blocks;
mod correlation;
mod depthwise;
mod direct;
mod folded;
mod general;
#[cfg(target_arch = "x86_64")]
mod mixed;
mod packing;
mod weight_gradient;
mod winograd;
mod write;

pub use folded::FoldedConv2d;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, DType, Device, Layout, Result, Shape, Tensor};

use crate::{
    Activation, OpError,
    activation::{Dims, Feature, GradientSlot, Kept, Order, Repr, token_gradient, token_storage},
    arithmetic, backward,
    buffer::Buffer,
    element::{Element, check_kind, with_values},
    error::Checked,
    kernels::vector_width,
    together,
    window::Window,
};

const OP: &str = "conv2d";

/// Settings of a convolution; dilation is always 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dSpec {
    /// Pixels between two windows, along both axes; at least 1.
    pub stride: usize,
    /// Zero pixels added on each of the four sides.
    pub padding: usize,
    /// Independent channel groups; `groups == C` is a depthwise convolution.
    pub groups: usize,
}

impl Default for Conv2dSpec {
    fn default() -> Self {
        Self { stride: 1, padding: 0, groups: 1 }
    }
}

/// Convolves (in the sense of networks: correlates) an activation.
///
/// # Shapes
/// - `x`: `[N, I, H, W]`
/// - `weight_oihw`: `[O, I / groups, KH, KW]`, dtype of `x` or f32 where that is stored in bf16
/// - result: `[N, O, (H + 2 padding - KH) / stride + 1, (W + 2 padding - KW) / stride + 1]`
///
/// # Errors
/// Channels that do not fit the weight or the groups, a kernel larger than the
/// padded image, another dtype or device.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_train_ops::{Activation, Conv2dSpec, conv2d};
/// # fn main() -> candle_core::Result<()> {
/// let x = Activation::from_nchw(&Tensor::ones((1, 1, 5, 5), DType::F32, &Device::Cpu)?)?;
/// let weight_oihw = Tensor::ones((1, 1, 3, 3), DType::F32, &Device::Cpu)?;
/// let spec = Conv2dSpec { stride: 2, padding: 1, ..Conv2dSpec::default() };
/// let y = conv2d(&x, &weight_oihw, spec)?.to_nchw()?;
/// assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, [4., 6., 4., 6., 9., 6., 4., 6., 4.]);
/// # Ok(())
/// # }
/// ```
pub fn conv2d(x: &Activation, weight_oihw: &Tensor, spec: Conv2dSpec) -> Result<Activation> {
    match &x.0 {
        Repr::F32(x) => {
            check_kind(OP, "weight_oihw", weight_oihw, DType::F32)?;
            let geometry = Geometry::new(x.dims, weight_oihw.dims(), spec)?;
            #[cfg(target_arch = "x86_64")]
            if let Some(engine) = mixed::takes(&geometry) {
                return mixed::conv2d(engine, &x.narrowed()?, weight_oihw, geometry).map(Activation::from);
            }
            stored(conv2d_single(x, weight_oihw, geometry)?)
        }
        Repr::Bf16(x) => {
            check_kind(OP, "weight_oihw", weight_oihw, DType::F32)?;
            let geometry = Geometry::new(x.dims, weight_oihw.dims(), spec)?;
            #[cfg(target_arch = "x86_64")]
            if let Some(engine) = mixed::takes(&geometry) {
                return mixed::conv2d(engine, x, weight_oihw, geometry).map(Activation::from);
            }
            stored(conv2d_single(&x.widened()?, weight_oihw, geometry)?)
        }
        Repr::F64(x) => {
            check_kind(OP, "weight_oihw", weight_oihw, DType::F64)?;
            let geometry = Geometry::new(x.dims, weight_oihw.dims(), spec)?;
            if depthwise::takes(&geometry) {
                return depthwise::conv2d(x, weight_oihw, geometry).map(Activation::from);
            }
            conv2d_general(x, weight_oihw, geometry).map(Activation::from)
        }
        #[cfg(feature = "cuda")]
        Repr::Gpu(x) => crate::cuda::conv2d(x, weight_oihw, spec).map(Activation::from),
    }
}

/// The products of f32 numbers.
fn conv2d_single(x: &Feature<f32>, weight_oihw: &Tensor, geometry: Geometry) -> Result<Feature<f32>> {
    if depthwise::takes(&geometry) {
        return depthwise::conv2d(x, weight_oihw, geometry);
    }
    if let Some(width) = vector_width().filter(|_| direct::takes(&geometry)) {
        return direct::conv2d(width, x, weight_oihw, geometry);
    }
    conv2d_general(x, weight_oihw, geometry)
}

/// A result of f32 products as activations are stored at present.
fn stored(y: Feature<f32>) -> Result<Activation> {
    if arithmetic::stores_bf16() { y.narrowed().map(Activation::from) } else { Ok(y.into()) }
}

/// Extents of one convolution, checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub input: Dims,
    pub output: Dims,
    pub window: Window,
    pub groups: usize,
}

impl Geometry {
    pub(crate) fn new(input: Dims, weight_oihw: &[usize], spec: Conv2dSpec) -> Checked<Self> {
        let &[out_channels, group_channels, kernel_h, kernel_w] = weight_oihw else {
            return Err(OpError::Shape {
                op: OP,
                argument: "weight_oihw",
                got: weight_oihw.to_vec(),
                expected: "[O, I / groups, KH, KW]".to_owned(),
            });
        };
        if weight_oihw.contains(&0) {
            return Err(OpError::Empty { op: OP, argument: "weight_oihw", got: weight_oihw.to_vec() });
        }
        if spec.groups == 0
            || !input.c.is_multiple_of(spec.groups)
            || !out_channels.is_multiple_of(spec.groups)
        {
            return Err(OpError::Setting {
                op: OP,
                reason: format!(
                    "{} groups do not divide {} input and {out_channels} output channels",
                    spec.groups, input.c
                ),
            });
        }
        if group_channels * spec.groups != input.c {
            return Err(OpError::Shape {
                op: OP,
                argument: "weight_oihw",
                got: weight_oihw.to_vec(),
                expected: format!("[O, {}, KH, KW]", input.c / spec.groups),
            });
        }
        let window = Window { kernel_h, kernel_w, stride: spec.stride, padding: spec.padding };
        let (h, w) = window.output(OP, input)?;
        let output = Dims { n: input.n, c: out_channels, h, w };
        Ok(Self { input, output, window, groups: spec.groups })
    }

    /// One group of one image, as a convolution of its own.
    pub(crate) fn part(&self) -> Self {
        Self {
            input: Dims { n: 1, c: self.input.c / self.groups, ..self.input },
            output: Dims { n: 1, c: self.output.c / self.groups, ..self.output },
            groups: 1,
            ..*self
        }
    }

    /// Numbers in the weight.
    pub(crate) fn weight_count(&self) -> usize {
        self.output.c * self.input.c / self.groups * self.taps()
    }

    /// Pixels of the kernel.
    pub(crate) fn taps(&self) -> usize {
        self.window.kernel_h * self.window.kernel_w
    }
}

/// The gradient of the weight, by the parts of the batch.
fn weight_gradient_by_parts<T: Element>(
    x: &[T],
    dy: &[T],
    geometry: &Geometry,
    weight_gradient: impl Fn(&[T], &[T], &Geometry) -> Vec<T::Wide>,
) -> Vec<T::Wide> {
    let n = geometry.input.n;
    together::sum_of_parts(n, |images| {
        let part = Geometry {
            input: Dims { n: images.len(), ..geometry.input },
            output: Dims { n: images.len(), ..geometry.output },
            ..*geometry
        };
        let x = &x[together::of_images(x, n, &images)];
        weight_gradient(x, &dy[together::of_images(dy, n, &images)], &part)
    })
}

fn conv2d_general<T: Element<Wide = T>>(
    x: &Feature<T>,
    weight_oihw: &Tensor,
    geometry: Geometry,
) -> Result<Feature<T>> {
    let x = &x.in_order(Order::Plain)?;
    let values =
        with_values::<T, _>(OP, weight_oihw, |weight| Ok(general::forward(&x.values, weight, &geometry)))?;
    Feature::produce(values, geometry.output, Order::Plain, |_, output| {
        x.token.apply_op2(weight_oihw, Conv2d { geometry, input: x.clone_without_token(), output })
    })
}

struct Conv2d<T: Element> {
    geometry: Geometry,
    input: Kept<T>,
    output: Arc<GradientSlot<T>>,
}

impl<T: Element<Wide = T>> CustomOp2 for Conv2d<T> {
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
        let geometry = &self.geometry;
        let gradient = self.output.take(OP)?;
        let weight_gradient = if weight_oihw.track_op() {
            let values = weight_gradient_by_parts(&self.input.values, &gradient, geometry, |x, dy, part| {
                general::weight_gradient(x, dy, part)
            });
            let values = Tensor::from_vec(values, weight_oihw.shape(), &Device::Cpu)?;
            backward::offer(weight_oihw, values)?
        } else {
            None
        };
        let input_gradient = if input_token.track_op() {
            let sum = self.input.gradient.take_sum();
            let sum = sum.unwrap_or_else(|| Buffer::zeroed(geometry.input.count()));
            let values = with_values::<T, _>(OP, weight_oihw, |weight| {
                Ok(general::input_gradient(sum, weight, &gradient, geometry))
            })?;
            self.input.gradient.add(values);
            token_gradient()?
        } else {
            None
        };
        Ok((input_gradient, weight_gradient))
    }
}
