//! The value that flows between operations, and how its gradient flows back.
//!
//! candle's backward pass zero-fills every gradient and then adds to it, on one
//! thread. For activations that costs as much as a fifth of the arithmetic, so
//! only a scalar stand-in (the *token*) goes through candle's graph: it fixes
//! the order in which operations run backwards. The numbers themselves pass
//! through a [`GradientSlot`] beside it, moved rather than added wherever one
//! operation alone uses an activation.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, DType, Device, Result, Shape, Tensor, WithDType};
use half::bf16;
use rayon::prelude::*;

#[cfg(feature = "cuda")]
use crate::cuda;
use crate::{
    OpError,
    buffer::Buffer,
    element::{Element, check_kind, with_values},
    kernels::{self, lanes},
};

/// Channels in a block of the blocked layout: one AVX-512 register of f32.
pub(crate) const BLOCK: usize = 16;

/// Activation in whatever layout the operations prefer on this machine: plain
/// NCHW, or blocks of 16 channels (`[N, C/16, H, W, 16]`) for the vector kernels.
///
/// Holds f32 (fast) or f64 (for checking gradients) on the CPU, or bf16 behind a
/// convolution while [`set_bf16`](crate::set_bf16) is on; with the feature `cuda`
/// also f32 or bf16 on a GPU, `[N, H, W, C]`. A gradient
/// flows through every operation of this crate by `loss.backward()`; two
/// backward passes through one graph must not run at the same time.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_train_ops::Activation;
/// # fn main() -> candle_core::Result<()> {
/// let image_nchw = Tensor::zeros((2, 3, 8, 8), candle_core::DType::F32, &Device::Cpu)?;
/// let activation = Activation::from_nchw(&image_nchw)?;
/// assert_eq!(activation.dims(), (2, 3, 8, 8));
/// assert_eq!(activation.global_avg_pool()?.dims(), [2, 3]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Activation(pub(crate) Repr);

/// An activation of any number type.
#[derive(Clone)]
pub(crate) enum Repr {
    F32(Feature<f32>),
    Bf16(Feature<bf16>),
    F64(Feature<f64>),
    #[cfg(feature = "cuda")]
    Gpu(cuda::Feature),
}

/// Runs a generic function on whichever number type an activation holds, or another one
/// where it is on a GPU.
macro_rules! dispatch {
    ($activation:expr, $feature:ident => $body:expr, on_gpu: $on_gpu:expr) => {
        match &$activation.0 {
            $crate::activation::Repr::F32($feature) => $body,
            $crate::activation::Repr::Bf16($feature) => $body,
            $crate::activation::Repr::F64($feature) => $body,
            #[cfg(feature = "cuda")]
            $crate::activation::Repr::Gpu($feature) => $on_gpu,
        }
    };
}
pub(crate) use dispatch;

impl Activation {
    /// Takes a tensor in; its gradient comes back through it.
    ///
    /// # Shapes
    /// - `image_nchw`: `[N, C, H, W]`, f32 or f64 (f32 on a GPU), none of the axes empty
    ///
    /// # Errors
    /// Another rank, an empty axis, another element type or device.
    pub fn from_nchw(image_nchw: &Tensor) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if image_nchw.device().is_cuda() {
            return cuda::Feature::from_nchw(image_nchw).map(Into::into);
        }
        match image_nchw.dtype() {
            DType::F64 => feature_from_nchw::<f64>(image_nchw).map(|x| Self(Repr::F64(x))),
            _ => feature_from_nchw::<f32>(image_nchw).map(|x| Self(Repr::F32(x))),
        }
    }

    /// The activation as a plain tensor `[N, C, H, W]`, f32 or f64, differentiable.
    ///
    /// # Errors
    /// None of its own; candle's if memory cannot be had.
    pub fn to_nchw(&self) -> Result<Tensor> {
        dispatch!(self, x => x.token.apply_op1(ToNchw(x.clone_without_token())), on_gpu: x.to_nchw())
    }

    /// `(N, C, H, W)`.
    pub fn dims(&self) -> (usize, usize, usize, usize) {
        dispatch!(self, x => x.dims, on_gpu: x.dims).to_tuple()
    }

    /// Mean over all pixels, `[N, C]`, f32 or f64, differentiable.
    ///
    /// # Errors
    /// None of its own; candle's if memory cannot be had.
    pub fn global_avg_pool(&self) -> Result<Tensor> {
        dispatch!(
            self,
            x => x.token.apply_op1(GlobalAvgPool(x.clone_without_token())),
            on_gpu: x.global_avg_pool()
        )
    }

    /// The same numbers, cut off from the graph: no gradient flows back.
    pub fn detach(&self) -> Self {
        match &self.0 {
            Repr::F32(x) => Self(Repr::F32(x.detach())),
            Repr::Bf16(x) => Self(Repr::Bf16(x.detach())),
            Repr::F64(x) => Self(Repr::F64(x.detach())),
            #[cfg(feature = "cuda")]
            Repr::Gpu(x) => x.detach().into(),
        }
    }
}

#[cfg(feature = "cuda")]
impl From<cuda::Feature> for Activation {
    fn from(feature: cuda::Feature) -> Self {
        Self(Repr::Gpu(feature))
    }
}

impl From<Feature<f32>> for Activation {
    fn from(feature: Feature<f32>) -> Self {
        Self(Repr::F32(feature))
    }
}

impl From<Feature<bf16>> for Activation {
    fn from(feature: Feature<bf16>) -> Self {
        Self(Repr::Bf16(feature))
    }
}

impl From<Feature<f64>> for Activation {
    fn from(feature: Feature<f64>) -> Self {
        Self(Repr::F64(feature))
    }
}

/// Extents of an activation; none is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dims {
    pub n: usize,
    pub c: usize,
    pub h: usize,
    pub w: usize,
}

impl Dims {
    pub(crate) fn count(self) -> usize {
        self.n * self.c * self.h * self.w
    }

    pub(crate) fn to_tuple(self) -> (usize, usize, usize, usize) {
        (self.n, self.c, self.h, self.w)
    }

    pub(crate) fn to_vec(self) -> Vec<usize> {
        vec![self.n, self.c, self.h, self.w]
    }
}

/// Order of the numbers in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// `[N, C, H, W]`.
    Plain,
    /// `[N, C/16, H, W, 16]`; C is a multiple of 16.
    Blocked,
}

impl Order {
    /// Channels stored side by side for each pixel.
    pub(crate) fn block(self) -> usize {
        match self {
            Self::Plain => 1,
            Self::Blocked => BLOCK,
        }
    }
}

/// Where the gradient of one activation waits until its producer runs backwards.
pub(crate) struct GradientSlot<T: Element>(Mutex<Option<Buffer<T>>>);

impl<T: Element> GradientSlot<T> {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(None)))
    }

    /// Adds a gradient; the first is moved in, not added to zeros.
    pub(crate) fn add(&self, gradient: Buffer<T>) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *slot {
            None => *slot = Some(gradient),
            Some(sum) => sum
                .par_chunks_mut(CHUNK)
                .zip(gradient.par_chunks(CHUNK))
                .for_each(|(sum, gradient)| lanes::add_assign(sum, gradient)),
        }
    }

    /// Takes what has been added so far, if anything.
    pub(crate) fn take_sum(&self) -> Option<Buffer<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Takes the finished gradient when the producer runs backwards.
    pub(crate) fn take(&self, op: &'static str) -> Result<Buffer<T>> {
        self.take_sum().ok_or_else(|| {
            OpError::Setting {
                op,
                reason: "no gradient arrived; do two backward passes run at once?".to_owned(),
            }
            .into()
        })
    }
}

/// Numbers per parallel piece of an elementwise pass.
pub(crate) const CHUNK: usize = 1 << 15;

/// An activation of one number type.
#[derive(Clone)]
pub(crate) struct Feature<T: Element> {
    /// Scalar in candle's graph; its op runs this activation's backward.
    pub token: Tensor,
    pub values: Arc<Buffer<T>>,
    pub gradient: Arc<GradientSlot<T>>,
    pub dims: Dims,
    pub order: Order,
}

/// A feature as an op keeps it: without the token, which would tie the graph
/// into a cycle.
pub(crate) struct Kept<T: Element> {
    pub values: Arc<Buffer<T>>,
    pub gradient: Arc<GradientSlot<T>>,
    pub dims: Dims,
    pub order: Order,
}

impl<T: Element> Feature<T> {
    pub(crate) fn clone_without_token(&self) -> Kept<T> {
        Kept {
            values: Arc::clone(&self.values),
            gradient: Arc::clone(&self.gradient),
            dims: self.dims,
            order: self.order,
        }
    }

    pub(crate) fn detach(&self) -> Self {
        Self { token: self.token.detach(), gradient: GradientSlot::new(), ..self.clone() }
    }

    /// The result of an op: `bind` puts a token into candle's graph, given the
    /// slot where the gradient will arrive.
    pub(crate) fn produce(
        values: Buffer<T>,
        dims: Dims,
        order: Order,
        bind: impl FnOnce(&Arc<Buffer<T>>, Arc<GradientSlot<T>>) -> Result<Tensor>,
    ) -> Result<Self> {
        let values = Arc::new(values);
        let gradient = GradientSlot::new();
        let token = bind(&values, Arc::clone(&gradient))?;
        Ok(Self { token, values, gradient, dims, order })
    }

    /// The result of an op outside any graph.
    pub(crate) fn constant(values: Buffer<T>, dims: Dims, order: Order) -> Result<Self> {
        let token = Tensor::zeros((), DType::F32, &Device::Cpu)?;
        Ok(Self { token, values: Arc::new(values), gradient: GradientSlot::new(), dims, order })
    }

    /// The result of an op with one input; `backward` turns the gradient of the
    /// result into that of the input.
    pub(crate) fn produce_from(
        &self,
        name: &'static str,
        values: Buffer<T>,
        dims: Dims,
        order: Order,
        backward: impl Fn(Buffer<T>) -> Buffer<T> + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::produce(values, dims, order, |_, output| {
            self.token.apply_op1(Unary {
                name,
                input: Arc::clone(&self.gradient),
                output,
                backward: Box::new(backward),
            })
        })
    }

    /// The same activation in another order of memory, differentiable.
    pub(crate) fn in_order(&self, order: Order) -> Result<Self> {
        if order == self.order {
            return Ok(self.clone());
        }
        let (dims, from) = (self.dims, self.order);
        let values = reorder(&self.values, dims, from, order);
        self.produce_from("reorder", values, dims, order, move |gradient| {
            reorder(&gradient, dims, order, from)
        })
    }
}

impl Feature<f32> {
    /// The same activation rounded to bf16, differentiable.
    pub(crate) fn narrowed(&self) -> Result<Feature<bf16>> {
        Feature::produce(narrow(&self.values), self.dims, self.order, |_, output| {
            self.token.apply_op1(Converted { input: Arc::clone(&self.gradient), output, back: widen })
        })
    }
}

impl Feature<bf16> {
    /// The same activation in f32, differentiable.
    pub(crate) fn widened(&self) -> Result<Feature<f32>> {
        Feature::produce(widen(&self.values), self.dims, self.order, |_, output| {
            self.token.apply_op1(Converted { input: Arc::clone(&self.gradient), output, back: narrow })
        })
    }
}

fn narrow<T: Element>(values: &[T::Wide]) -> Buffer<T> {
    let mut result = Buffer::unspecified(values.len());
    result.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(to, from)| lanes::narrow(to, from));
    result
}

fn widen<T: Element>(values: &[T]) -> Buffer<T::Wide> {
    let mut result = Buffer::unspecified(values.len());
    result.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(to, from)| lanes::widen(to, from));
    result
}

/// The order the kernels of this machine prefer for `channels` of type `T`.
pub(crate) fn preferred_order<T: Element>(channels: usize) -> Order {
    if T::DTYPE != DType::F64 && channels.is_multiple_of(BLOCK) && kernels::vector_width().is_some() {
        Order::Blocked
    } else {
        Order::Plain
    }
}

/// Copies an activation into another order of memory.
pub(crate) fn reorder<T: Element>(values: &[T], dims: Dims, from: Order, to: Order) -> Buffer<T> {
    if from == to {
        return Buffer::copy_of(values);
    }
    let pixels = dims.h * dims.w;
    let mut result = Buffer::unspecified(values.len());
    let blocks = result.par_chunks_mut(pixels * BLOCK);
    let sources = values.par_chunks(pixels * BLOCK);
    blocks.zip(sources).for_each(|(result, source)| match to {
        Order::Blocked => {
            for (pixel, lanes) in result.chunks_exact_mut(BLOCK).enumerate() {
                for (channel, value) in lanes.iter_mut().enumerate() {
                    *value = source[channel * pixels + pixel];
                }
            }
        }
        Order::Plain => {
            for (channel, plane) in result.chunks_exact_mut(pixels).enumerate() {
                for (pixel, value) in plane.iter_mut().enumerate() {
                    *value = source[pixel * BLOCK + channel];
                }
            }
        }
    });
    result
}

fn feature_from_nchw<T: Element>(image_nchw: &Tensor) -> Result<Feature<T>> {
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

    fn cpu_fwd(&self, _: &CpuStorage, _: &candle_core::Layout) -> Result<(CpuStorage, Shape)> {
        Ok(token_storage())
    }

    fn bwd(&self, image_nchw: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        let gradient = self.gradient.take(self.name())?;
        let plain = reorder(&gradient, self.dims, self.order, Order::Plain);
        Tensor::from_slice(&plain, image_nchw.shape(), &Device::Cpu).map(Some)
    }
}

struct ToNchw<T: Element>(Kept<T>);

impl<T: Element> CustomOp1 for ToNchw<T> {
    fn name(&self) -> &'static str {
        "to_nchw"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &candle_core::Layout) -> Result<(CpuStorage, Shape)> {
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

struct GlobalAvgPool<T: Element>(Kept<T>);

impl<T: Element> CustomOp1 for GlobalAvgPool<T> {
    fn name(&self) -> &'static str {
        "global_avg_pool"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &candle_core::Layout) -> Result<(CpuStorage, Shape)> {
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
struct Converted<T: Element, S: Element> {
    input: Arc<GradientSlot<T>>,
    output: Arc<GradientSlot<S>>,
    back: fn(&[S]) -> Buffer<T>,
}

impl<T: Element, S: Element> CustomOp1 for Converted<T, S> {
    fn name(&self) -> &'static str {
        "converted"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &candle_core::Layout) -> Result<(CpuStorage, Shape)> {
        Ok(token_storage())
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        self.input.add((self.back)(&self.output.take(self.name())?));
        token_gradient()
    }
}

/// How an op with one input turns gradients back.
type UnaryBackward<T> = Box<dyn Fn(Buffer<T>) -> Buffer<T> + Send + Sync>;

struct Unary<T: Element> {
    name: &'static str,
    input: Arc<GradientSlot<T>>,
    output: Arc<GradientSlot<T>>,
    backward: UnaryBackward<T>,
}

impl<T: Element> CustomOp1 for Unary<T> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &candle_core::Layout) -> Result<(CpuStorage, Shape)> {
        Ok(token_storage())
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        let gradient = self.output.take(self.name)?;
        self.input.add((self.backward)(gradient));
        token_gradient()
    }
}
