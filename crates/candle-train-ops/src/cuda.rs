//! Operations on tensors in the memory of an NVIDIA GPU, through cuDNN.
//!
//! They take and give plain candle tensors `[N, C, H, W]`, f32 or f64, all on one
//! device, and take part in candle's graph. [`Activation`](crate::Activation) stays on
//! the CPU. No machine with a GPU has run them yet: hold them against the CPU first, with
//! `cargo test --release -p candle-train-ops --features cudnn --test cuda`.

mod context;
mod conv;
mod pool;

use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{DType, Device, Result, Tensor};

use crate::{OpError, activation::Dims};

pub use conv::conv2d;
pub use pool::{avg_pool2d, max_pool2d};

static DETERMINISTIC: AtomicBool = AtomicBool::new(false);

/// Lets convolutions on a GPU use only algorithms that give the same bits every time,
/// and full f32 multiplication instead of TF32 (about 1e-3 relative); it starts off.
/// Pooling chooses a deterministic algorithm always. Belongs to the
/// whole process; a graph keeps the mode that its forward pass ran in.
pub fn set_deterministic(enabled: bool) {
    DETERMINISTIC.store(enabled, Ordering::Relaxed);
}

fn deterministic() -> bool {
    DETERMINISTIC.load(Ordering::Relaxed)
}

/// The CUDA device of this number, or why there is none.
///
/// # Errors
/// No driver, no such device, or a CUDA library that is missing.
pub fn device(index: usize) -> Result<Device> {
    Device::new_cuda(index)
}

/// Refuses a tensor on the CPU or of another number type than f32 and f64.
fn check_device(op: &'static str, argument: &'static str, tensor: &Tensor) -> Result<()> {
    if !tensor.device().is_cuda() {
        let reason = format!("{argument} is not on a CUDA device; move it with to_device");
        return Err(OpError::Setting { op, reason }.into());
    }
    if !matches!(tensor.dtype(), DType::F32 | DType::F64) {
        let got = tensor.dtype().as_str().to_owned();
        return Err(OpError::DType { op, argument, got, expected: "f32 or f64".to_owned() }.into());
    }
    Ok(())
}

/// Refuses a tensor of another number type or on another device than `first`.
fn check_fits(op: &'static str, argument: &'static str, tensor: &Tensor, first: &Tensor) -> Result<()> {
    check_device(op, argument, tensor)?;
    if tensor.dtype() != first.dtype() {
        let (got, expected) = (tensor.dtype().as_str().to_owned(), first.dtype().as_str().to_owned());
        return Err(OpError::DType { op, argument, got, expected }.into());
    }
    if !tensor.device().same_device(first.device()) {
        return Err(OpError::Setting { op, reason: format!("{argument} is on another device") }.into());
    }
    Ok(())
}

/// The extents of an image batch, none of them 0.
fn image_dims(op: &'static str, image_nchw: &Tensor) -> Result<Dims> {
    check_device(op, "x_nchw", image_nchw)?;
    let got = image_nchw.dims().to_vec();
    let &[n, c, h, w] = image_nchw.dims() else {
        let expected = "[N, C, H, W]".to_owned();
        return Err(OpError::Shape { op, argument: "x_nchw", got, expected }.into());
    };
    if got.contains(&0) {
        return Err(OpError::Empty { op, argument: "x_nchw", got }.into());
    }
    Ok(Dims { n, c, h, w })
}

/// What the operations answer when candle runs them on the CPU.
fn not_on_the_cpu<T>(op: &'static str) -> Result<T> {
    Err(OpError::Setting { op, reason: "runs on CUDA only".to_owned() }.into())
}
