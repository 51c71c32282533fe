//! The inner loops: all that knows instruction sets, and all `unsafe` of the
//! crate. The functions offered here are safe; they check the extents of their
//! slices before they touch memory.

pub(crate) mod depthwise;
pub(crate) mod direct;
pub(crate) mod gemm;
pub(crate) mod lanes;
#[cfg(target_arch = "x86_64")]
pub(crate) mod mixed;
pub(crate) mod outer;
#[cfg(target_arch = "x86_64")]
pub(crate) mod placing;
pub(crate) mod pooling;
#[cfg(test)]
mod tests;
mod vector;
pub(crate) mod winograd;

use std::sync::OnceLock;

/// Instruction set of the vector kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VectorWidth {
    /// AVX-512F: 16 f32 in a register, 32 registers.
    #[cfg(target_arch = "x86_64")]
    Bits512,
    /// AVX2 and FMA: 8 f32 in a register, 16 registers.
    #[cfg(target_arch = "x86_64")]
    Bits256,
    /// NEON: 4 f32 in a register, 32 registers.
    #[cfg(target_arch = "aarch64")]
    Bits128,
}

/// The widest instruction set this processor has, found once; `None` sends
/// everything through the general path.
pub(crate) fn vector_width() -> Option<VectorWidth> {
    static WIDTH: OnceLock<Option<VectorWidth>> = OnceLock::new();
    *WIDTH.get_or_init(detect)
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Option<VectorWidth> {
    if is_x86_feature_detected!("avx512f") {
        Some(VectorWidth::Bits512)
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        Some(VectorWidth::Bits256)
    } else {
        None
    }
}

/// Every processor of this architecture has NEON.
#[cfg(target_arch = "aarch64")]
fn detect() -> Option<VectorWidth> {
    Some(VectorWidth::Bits128)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detect() -> Option<VectorWidth> {
    None
}

/// Compiles a plain loop once per instruction set that needs asking for, and calls the best one. The
/// arithmetic is the same in each: only the number of lanes differs.
macro_rules! multiversion {
    (
        $(#[$meta:meta])*
        fn $name:ident<T: Element $(, const $size:ident: usize)?>(
            $($arg:ident: $ty:ty),* $(,)?
        ) $body:block
    ) => {
        $(#[$meta])*
        #[cfg_attr(
            target_arch = "x86_64",
            expect(unsafe_code, reason = "calls loops compiled for the instruction set found at run time")
        )]
        pub(crate) fn $name<T: Element $(, const $size: usize)?>($($arg: $ty),*) {
            #[inline(always)]
            fn body<T: Element $(, const $size: usize)?>($($arg: $ty),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f")]
            fn bits_512<T: Element $(, const $size: usize)?>($($arg: $ty),*) {
                body::<T $(, $size)?>($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn bits_256<T: Element $(, const $size: usize)?>($($arg: $ty),*) {
                body::<T $(, $size)?>($($arg),*)
            }

            match $crate::kernels::vector_width() {
                // SAFETY: `vector_width` found the instruction set on this processor.
                #[cfg(target_arch = "x86_64")]
                Some($crate::kernels::VectorWidth::Bits512) => unsafe { bits_512::<T $(, $size)?>($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Some($crate::kernels::VectorWidth::Bits256) => unsafe { bits_256::<T $(, $size)?>($($arg),*) },
                _ => body::<T $(, $size)?>($($arg),*),
            }
        }
    };
}
pub(crate) use multiversion;
