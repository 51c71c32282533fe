//! The number types: f32 for speed, f64 to check gradients, bf16 to store activations in
//! half the memory.

use std::sync::Mutex;

use candle_core::{CpuStorage, DType, Layout, Storage, Tensor, WithDType};
use half::bf16;

use crate::{
    OpError,
    buffer::{Buffer, Pool},
    kernels::lanes,
};

/// A number type that activations are stored in.
pub(crate) trait Element: WithDType {
    /// What the operations work in, and what parameters and plain tensors are.
    type Wide: Element<Wide = Self::Wide>;

    /// The number 0.
    const ZERO: Self;

    /// The pool its buffers return to.
    fn pool() -> &'static Mutex<Pool<Vec<Self>>>;

    /// The same number.
    fn widen(self) -> Self::Wide;

    /// The nearest number, ties to even.
    fn narrow(value: Self::Wide) -> Self;

    /// Fills `values` with what `write` makes of as many wide zeros.
    fn with_sums(values: &mut [Self], write: impl FnOnce(&mut [Self::Wide]));

    /// Stands for a small number in a buffer of this type; only compared with
    /// [`Self::same`].
    fn label(number: usize) -> Self;

    /// Whether two labels stand for the same number.
    fn same(self, other: Self) -> bool;
}

/// A type that the operations work in as it is.
macro_rules! wide_element {
    ($number:ty) => {
        impl Element for $number {
            type Wide = Self;
            const ZERO: Self = 0.0;

            #[inline(always)]
            fn widen(self) -> Self {
                self
            }

            #[inline(always)]
            fn narrow(value: Self) -> Self {
                value
            }

            fn with_sums(values: &mut [Self], write: impl FnOnce(&mut [Self])) {
                values.fill(0.0);
                write(values);
            }

            #[inline(always)]
            fn label(number: usize) -> Self {
                number as Self
            }

            #[inline(always)]
            fn same(self, other: Self) -> bool {
                self == other
            }

            fn pool() -> &'static Mutex<Pool<Vec<Self>>> {
                static POOL: Mutex<Pool<Vec<$number>>> = Mutex::new(Pool::new());
                &POOL
            }
        }
    };
}
wide_element!(f32);
wide_element!(f64);

impl Element for bf16 {
    type Wide = f32;
    const ZERO: Self = bf16::ZERO;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        // A NaN must not be rounded to infinity.
        let bits = if value.is_nan() { bits | 0x40_0000 } else { rounded };
        Self::from_bits((bits >> 16) as u16)
    }

    /// Adding up in bf16 itself would round every sum on the way.
    fn with_sums(values: &mut [Self], write: impl FnOnce(&mut [f32])) {
        let mut sums = Buffer::zeroed(values.len());
        write(&mut sums);
        lanes::narrow(values, &sums);
    }

    #[inline(always)]
    fn label(number: usize) -> Self {
        Self::from_bits(number as u16)
    }

    #[inline(always)]
    fn same(self, other: Self) -> bool {
        self.to_bits() == other.to_bits()
    }

    fn pool() -> &'static Mutex<Pool<Vec<Self>>> {
        static POOL: Mutex<Pool<Vec<bf16>>> = Mutex::new(Pool::new());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_even() {
        // Half a unit above 1 goes down to the even neighbour, above 1 + 1/128 up.
        for (value, want) in
            [(1.0, 0x3f80), (1.0 + 1.0 / 256.0, 0x3f80), (1.0 + 3.0 / 256.0, 0x3f82), (-0.0, 0x8000)]
        {
            assert_eq!(bf16::narrow(value).to_bits(), want, "{value}");
        }
        for bits in [0x7f80_0001, 0x7fff_ffff, 0xffff_ffff] {
            assert!(bf16::narrow(f32::from_bits(bits)).widen().is_nan(), "{bits:x}");
        }
    }
}
