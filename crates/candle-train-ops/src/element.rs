//! The two number types: f32 for speed, f64 to check gradients.

use std::sync::Mutex;

use candle_core::{CpuStorage, DType, Layout, Storage, Tensor, WithDType};

use crate::{OpError, buffer::Pool};

/// A number type the operations work in.
pub(crate) trait Element: WithDType {
    /// The pool its buffers return to.
    fn pool() -> &'static Mutex<Pool<Vec<Self>>>;
}

impl Element for f32 {
    fn pool() -> &'static Mutex<Pool<Vec<Self>>> {
        static POOL: Mutex<Pool<Vec<f32>>> = Mutex::new(Pool::new());
        &POOL
    }
}

impl Element for f64 {
    fn pool() -> &'static Mutex<Pool<Vec<Self>>> {
        static POOL: Mutex<Pool<Vec<f64>>> = Mutex::new(Pool::new());
        &POOL
    }
}

/// The contiguous numbers of a storage that candle hands to a custom op.
pub(crate) fn storage_slice<'a, T: Element>(
    op: &'static str,
    storage: &'a CpuStorage,
    layout: &Layout,
) -> candle_core::Result<&'a [T]> {
    let values = storage.as_slice::<T>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => {
            Err(OpError::Setting { op, reason: "internal: argument is not contiguous".to_owned() }.into())
        }
    }
}

/// Lends the numbers of a tensor, copied only if it is not contiguous.
pub(crate) fn with_values<T: Element, R>(
    op: &'static str,
    tensor: &Tensor,
    read: impl FnOnce(&[T]) -> candle_core::Result<R>,
) -> candle_core::Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => read(storage_slice(op, storage, layout)?),
        Storage::Cuda(_) | Storage::Metal(_) => Err(OpError::Device { op, argument: "tensor" }.into()),
    }
}

/// Refuses a tensor of another element type or on another device.
pub(crate) fn check_kind(
    op: &'static str,
    argument: &'static str,
    tensor: &Tensor,
    dtype: DType,
) -> Result<(), OpError> {
    if !tensor.device().is_cpu() {
        return Err(OpError::Device { op, argument });
    }
    if tensor.dtype() != dtype {
        return Err(OpError::DType {
            op,
            argument,
            got: tensor.dtype().as_str().to_owned(),
            expected: dtype.as_str().to_owned(),
        });
    }
    Ok(())
}

/// Refuses a tensor whose shape differs from `expected`.
pub(crate) fn check_shape(
    op: &'static str,
    argument: &'static str,
    tensor: &Tensor,
    expected: &[usize],
) -> Result<(), OpError> {
    if tensor.dims() == expected {
        return Ok(());
    }
    Err(OpError::Shape { op, argument, got: tensor.dims().to_vec(), expected: format!("{expected:?}") })
}
