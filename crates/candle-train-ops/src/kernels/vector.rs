//! Sixteen f32 in registers: one of AVX-512, two of AVX2, or four of NEON.
#![expect(unsafe_code, reason = "thin names for processor intrinsics on raw pointers")]

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
pub(super) use neon::Four128;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{One512, Two256};

/// Sixteen f32. Every method is `unsafe`: the processor must have the instruction
/// set, and pointers must be valid for 16 numbers (for one in [`Vector::splat`]).
pub(super) trait Vector: Copy {
    unsafe fn zero() -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// One number in all lanes.
    unsafe fn splat(from: *const f32) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    /// Kept between two numbers; a NaN stays one.
    unsafe fn clamp(self, lo: *const f32, hi: *const f32) -> Self;
    /// `self + a * b`, rounded once.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
}
