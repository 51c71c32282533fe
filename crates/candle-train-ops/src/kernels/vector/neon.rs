//! Sixteen f32 in the registers of AArch64, all of whose processors have NEON.

use std::arch::aarch64::{
    float32x4_t, vaddq_f32, vdupq_n_f32, vfmaq_f32, vld1q_dup_f32, vld1q_f32, vmaxq_f32, vminq_f32, vst1q_f32,
};

use super::Vector;

/// NEON.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Four128([float32x4_t; 4]);

impl Vector for Four128 {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: every processor of this architecture has NEON, here and below.
        Self([unsafe { vdupq_n_f32(0.0) }; 4])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's pointer is valid for 16 numbers.
        Self(std::array::from_fn(|i| unsafe { vld1q_f32(from.add(4 * i)) }))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        for (i, quarter) in self.0.into_iter().enumerate() {
            // SAFETY: the caller's pointer is valid for 16 numbers.
            unsafe { vst1q_f32(to.add(4 * i), quarter) }
        }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: the caller's pointer is valid for one number.
        Self([unsafe { vld1q_dup_f32(from) }; 4])
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: as above.
        Self(std::array::from_fn(|i| unsafe { vaddq_f32(self.0[i], other.0[i]) }))
    }

    #[inline(always)]
    unsafe fn clamp(self, lo: *const f32, hi: *const f32) -> Self {
        // Both instructions give a NaN where one operand is one.
        // SAFETY: the caller's pointers are valid for one number.
        let (lo, hi) = unsafe { (vld1q_dup_f32(lo), vld1q_dup_f32(hi)) };
        // SAFETY: as above.
        Self(self.0.map(|quarter| unsafe { vminq_f32(hi, vmaxq_f32(lo, quarter)) }))
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: as above.
        Self(std::array::from_fn(|i| unsafe { vfmaq_f32(self.0[i], a.0[i], b.0[i]) }))
    }
}
