//! The value that flows between operations, and how its gradient flows back.
//!
//! candle's backward pass zero-fills every gradient and then adds to it, on one
//! thread. For activations that costs as much as a fifth of the arithmetic, so
//! only a scalar stand-in (the *token*) goes through candle's graph: it fixes
//! the order in which operations run backwards. The numbers themselves pass
//! through a [`GradientSlot`] beside it, moved rather than added wherever one
//! operation alone uses an activation.

mod feature;
mod ops;

use candle_core::{DType, Result, Tensor};
use half::bf16;

#[cfg(feature = "cuda")]
use crate::cuda;

pub(crate) use feature::{CHUNK, Dims, Feature, GradientSlot, Kept, Order, preferred_order, reorder};
pub(crate) use ops::{token_gradient, token_storage};

use ops::{GlobalAvgPool, ToNchw, feature_from_nchw};

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
