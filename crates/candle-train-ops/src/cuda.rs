//! NVIDIA GPUs: convolutions through cuDNN, everything else by kernels of this crate.
//!
//! The operations are those of the CPU. They run on a GPU where their tensors are on one:
//! [`Activation::from_nchw`](crate::Activation::from_nchw) of a tensor on
//! [`device`]`(0)` starts a network there, whose weights must be there too. Activations are
//! stored channels last, in f32 (multiplied as f32, not TF32) or, after
//! [`set_bf16`](crate::set_bf16), in bf16. Weights, statistics and optimisers stay f32, and so
//! are the gradients of weights, which convolutions in bf16 have rounded to bf16 once.

mod context;
mod conv;
mod cudnn;
mod feature;
mod joining;
mod memory;
#[cfg(feature = "nccl")]
mod nccl;
mod norm;
mod optim;
mod pool;
mod together;
mod upload;

use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{Device, Result, cuda_backend::cudarc::driver::CudaContext};

pub(crate) use conv::{Folded, conv2d};
pub(crate) use feature::Feature;
pub(crate) use joining::{concat_channels, pad_end, relu};
pub(crate) use memory::release_buffers;
pub(crate) use norm::batch_norm;
pub(crate) use optim::{AdamWStep, Changes};
pub(crate) use pool::{avg_pool2d, max_pool2d};

#[cfg(feature = "nccl")]
pub use nccl::{Nccl, NcclId};
pub use upload::{Upload, Uploader};

static DETERMINISTIC: AtomicBool = AtomicBool::new(false);

/// Gives convolutions on a GPU the same bits every time: no algorithm with a varying order
/// of summation, none chosen by how long it took. It starts off. Everything else always
/// gives the same bits. Belongs to the whole process; a graph keeps the mode that its
/// forward pass ran in.
pub fn set_deterministic(enabled: bool) {
    DETERMINISTIC.store(enabled, Ordering::Relaxed);
}

/// What a device calls itself: "NVIDIA H100 80GB HBM3".
///
/// # Errors
/// A device that is not a GPU.
pub fn name(device: &Device) -> Result<String> {
    device.as_cuda_device()?.cuda_stream().context().name().map_err(candle_core::Error::wrap)
}

/// The number of GPUs that this process sees, or why it sees none.
///
/// # Errors
/// No driver.
pub fn n_devices() -> Result<usize> {
    let n = CudaContext::device_count().map_err(candle_core::Error::wrap)?;
    Ok(usize::try_from(n).unwrap_or(0))
}

/// What tells a GPU from every other one, whichever number a process gives it.
///
/// # Errors
/// A device that is not a GPU.
pub fn uuid(device: &Device) -> Result<[u8; 16]> {
    let uuid = device.as_cuda_device()?.cuda_stream().context().uuid().map_err(candle_core::Error::wrap)?;
    Ok(uuid.bytes.map(|byte| byte as u8))
}

/// Milliseconds that all convolutions which this thread has queued on a device take alone,
/// forwards and backwards: the times of their engines as measured when they were chosen. Those
/// whose engine was chosen without measuring count nothing: rare shapes, and all where
/// [`set_deterministic`] is on.
///
/// # Errors
/// A device that is not a GPU.
pub fn convolution_ms(device: &Device) -> Result<f64> {
    Ok(context::Context::of(device)?.convolution_ms.get())
}

fn deterministic() -> bool {
    DETERMINISTIC.load(Ordering::Relaxed)
}

/// The CUDA device of this number, or why there is none.
///
/// All its work is queued on one stream, whichever thread queues it; asked again, it is the same.
///
/// # Errors
/// No driver, no such device, or a CUDA library that is missing.
pub fn device(index: usize) -> Result<Device> {
    memory::device(index)
}
