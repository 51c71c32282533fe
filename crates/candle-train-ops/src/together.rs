//! What training on several processes at once needs: sums over the parts of a batch
//! that they hold.
//!
//! How the processes talk to each other is the caller's business.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Device, Layout, Result, Shape, Tensor};

use crate::{
    element::{Element, storage_slice, with_values},
    kernels::lanes,
};

static BATCH_PARTS: AtomicUsize = AtomicUsize::new(1);

/// Takes every sum over a batch in so many parts from now on, in the whole process; it
/// starts with 1. The parts are those that as many processes would hold, so that one
/// process gets bit for bit the gradients and statistics that they get together.
pub fn set_batch_parts(n: usize) {
    BATCH_PARTS.store(n.max(1), Ordering::Relaxed);
}

/// As [`set_batch_parts`] set it.
pub fn batch_parts() -> usize {
    BATCH_PARTS.load(Ordering::Relaxed)
}

/// Adds up numbers over all processes that hold a part of the same batch.
///
/// Every process must make the same calls in the same order, and must get the same
/// bits back.
#[derive(Clone)]
pub struct BatchSum(Arc<Way>);

/// How numbers are added up.
struct Way {
    on_host: Box<AddUp>,
    /// For what lies on a GPU, if the processes' GPUs reach each other.
    #[cfg(feature = "nccl")]
    on_gpu: Option<Arc<crate::cuda::Nccl>>,
    left_out: AtomicBool,
}

type AddUp = dyn Fn(&mut [f64]) -> Result<()> + Send + Sync;

impl BatchSum {
    /// `add_up` replaces every number by its sum over the processes. What lies on a GPU is copied
    /// to the host for it.
    pub fn new(add_up: impl Fn(&mut [f64]) -> Result<()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(Way {
            on_host: Box::new(add_up),
            #[cfg(feature = "nccl")]
            on_gpu: None,
            left_out: AtomicBool::new(false),
        }))
    }

    /// As [`new`](Self::new); what lies on a GPU is added up there.
    #[cfg(feature = "nccl")]
    pub fn with_nccl(
        add_up: impl Fn(&mut [f64]) -> Result<()> + Send + Sync + 'static,
        nccl: Arc<crate::cuda::Nccl>,
    ) -> Self {
        let left_out = AtomicBool::new(false);
        Self(Arc::new(Way { on_host: Box::new(add_up), on_gpu: Some(nccl), left_out }))
    }

    /// Whether the numbers of this process count as 0 from now on: it holds no part of the batch
    /// and works on a stand-in, so that the others get their sums.
    pub fn leave_out(&self, left_out: bool) {
        self.0.left_out.store(left_out, Ordering::Relaxed);
    }

    /// As [`leave_out`](Self::leave_out) set it.
    pub fn is_left_out(&self) -> bool {
        self.0.left_out.load(Ordering::Relaxed)
    }

    /// Replaces every number by its sum over the processes.
    ///
    /// # Errors
    /// As the function that it was made of.
    pub fn add_up(&self, numbers: &mut [f64]) -> Result<()> {
        if self.is_left_out() {
            numbers.fill(0.0);
        }
        (self.0.on_host)(numbers)
    }

    #[cfg(feature = "nccl")]
    pub(crate) fn nccl(&self) -> Option<&crate::cuda::Nccl> {
        self.0.on_gpu.as_deref()
    }

    /// The same tensor; its gradient is added up over the processes, so that it arrives
    /// whole in every one of them.
    ///
    /// # Errors
    /// A tensor that is not f64 on the CPU.
    pub fn whole(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1(Whole(self.clone()))
    }
}

struct Whole(BatchSum);

impl CustomOp1 for Whole {
    fn name(&self) -> &'static str {
        "whole"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let values = storage_slice::<f64>(self.name(), x, layout)?.to_vec();
        Ok((CpuStorage::F64(values), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let mut sums = gradient.flatten_all()?.to_vec1::<f64>()?;
        self.0.add_up(&mut sums)?;
        Tensor::from_vec(sums, x.shape(), &Device::Cpu).map(Some)
    }
}

/// `x weight`, one weight for all numbers; the weight's gradient is taken in f64 and
/// added up over the processes that `sum` joins.
///
/// # Shapes
/// - `x`: any, f32; `weight_1`: `[1]`, f32
///
/// # Errors
/// Other element types.
pub fn scale_jointly(x: &Tensor, weight_1: &Tensor, sum: Option<&BatchSum>) -> Result<Tensor> {
    x.contiguous()?.apply_op2(&weight_1.contiguous()?, Scale(sum.cloned()))
}

struct Scale(Option<BatchSum>);

impl CustomOp2 for Scale {
    fn name(&self) -> &'static str {
        "scale_jointly"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let weight = storage_slice::<f32>(self.name(), weight, weight_layout)?[0];
        let x = storage_slice::<f32>(self.name(), x, x_layout)?;
        Ok((CpuStorage::F32(x.iter().map(|x| x * weight).collect()), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight_1: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut dot = [0.0];
        with_values(self.name(), x, |x: &[f32]| {
            with_values(self.name(), gradient, |gradient: &[f32]| {
                dot[0] = x.iter().zip(gradient).map(|(x, dy)| f64::from(*x) * f64::from(*dy)).sum();
                Ok(())
            })
        })?;
        if let Some(sum) = &self.0 {
            sum.add_up(&mut dot)?;
        }
        let weight_gradient = Tensor::new(&[dot[0] as f32], &Device::Cpu)?;
        Ok((Some(gradient.broadcast_mul(weight_1)?), Some(weight_gradient)))
    }
}

impl fmt::Debug for BatchSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BatchSum")
    }
}

/// The images of each part of a batch of `n`; none is empty.
pub(crate) fn parts_of(n: usize) -> impl Iterator<Item = Range<usize>> {
    all_parts_of(n).filter(|part| !part.is_empty())
}

fn all_parts_of(n: usize) -> impl Iterator<Item = Range<usize>> {
    let n_parts = batch_parts();
    (0..n_parts).map(move |part| n * part / n_parts..n * (part + 1) / n_parts)
}

/// What `sum_over` makes of each part of a batch of `n` images, added up as pairs, then
/// pairs of pairs: processes that hold neighbouring parts add theirs in the same way.
pub(crate) fn sum_of_parts<T: Element>(n: usize, sum_over: impl Fn(Range<usize>) -> Vec<T>) -> Vec<T> {
    // An empty part keeps its place: its process takes part too.
    let sum_of = |part: Range<usize>| if part.is_empty() { None } else { Some(sum_over(part)) };
    let mut sums: Vec<Option<Vec<T>>> = all_parts_of(n).map(sum_of).collect();
    while sums.len() > 1 {
        let pair = |pair: &mut [Option<Vec<T>>]| match pair {
            [Some(sum), Some(other)] => {
                lanes::add_assign(sum, other);
                Some(std::mem::take(sum))
            }
            _ => pair.iter_mut().find_map(Option::take),
        };
        sums = sums.chunks_mut(2).map(pair).collect();
    }
    sums.pop().flatten().unwrap_or_default()
}

/// The values of some images, where all images have equally many.
pub(crate) fn of_images<T>(values: &[T], n: usize, images: &Range<usize>) -> Range<usize> {
    let size = values.len() / n;
    images.start * size..images.end * size
}
