//! The numbers of an activation and where they lie, with the slot for their gradient.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, Result, Tensor};
use half::bf16;
use rayon::prelude::*;

use super::BLOCK;
use super::ops::{Converted, Unary};
use crate::{
    OpError,
    buffer::Buffer,
    element::Element,
    kernels::{self, lanes},
};

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

pub(super) fn narrow<T: Element>(values: &[T::Wide]) -> Buffer<T> {
    let mut result = Buffer::unspecified(values.len());
    result.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(to, from)| lanes::narrow(to, from));
    result
}

pub(super) fn widen<T: Element>(values: &[T]) -> Buffer<T::Wide> {
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
