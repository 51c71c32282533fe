//! Sixteen f32 in the registers of x86-64.

use std::arch::x86_64::{
    __m256, __m512, _mm256_add_ps, _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_max_ps,
    _mm256_min_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_max_ps, _mm512_min_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::Vector;

/// AVX-512F.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct One512(__m512);

impl Vector for One512 {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller runs on a processor with AVX-512F, here and below.
        Self(unsafe { _mm512_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's pointer is valid for 16 numbers.
        Self(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's pointer is valid for 16 numbers.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: the caller's pointer is valid for one number.
        Self(unsafe { _mm512_set1_ps(*from) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the processor has AVX-512F.
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn clamp(self, lo: *const f32, hi: *const f32) -> Self {
        // Where one operand is a NaN, both instructions give the second.
        // SAFETY: the caller's pointers are valid for one number.
        unsafe { Self(_mm512_min_ps(_mm512_set1_ps(*hi), _mm512_max_ps(_mm512_set1_ps(*lo), self.0))) }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the processor has AVX-512F.
        Self(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
    }
}

/// AVX2 and FMA.
#[derive(Clone, Copy)]
pub(in crate::kernels) struct Two256(__m256, __m256);

impl Vector for Two256 {
    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller runs on a processor with AVX2 and FMA, here and below.
        unsafe { Self(_mm256_setzero_ps(), _mm256_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's pointer is valid for 16 numbers.
        unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's pointer is valid for 16 numbers.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn splat(from: *const f32) -> Self {
        // SAFETY: the caller's pointer is valid for one number.
        let value = unsafe { _mm256_broadcast_ss(&*from) };
        Self(value, value)
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: the processor has AVX2.
        unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }

    #[inline(always)]
    unsafe fn clamp(self, lo: *const f32, hi: *const f32) -> Self {
        // Where one operand is a NaN, both instructions give the second.
        // SAFETY: the caller's pointers are valid for one number.
        unsafe {
            let (lo, hi) = (_mm256_broadcast_ss(&*lo), _mm256_broadcast_ss(&*hi));
            let half = |values| _mm256_min_ps(hi, _mm256_max_ps(lo, values));
            Self(half(self.0), half(self.1))
        }
    }

    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        // SAFETY: the processor has FMA.
        unsafe { Self(_mm256_fmadd_ps(a.0, b.0, self.0), _mm256_fmadd_ps(a.1, b.1, self.1)) }
    }
}
