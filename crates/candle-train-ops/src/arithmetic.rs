//! Switches of the whole process: which arithmetic convolutions may use.

use std::sync::atomic::{AtomicBool, Ordering};

static WINOGRAD: AtomicBool = AtomicBool::new(true);
static BF16: AtomicBool = AtomicBool::new(false);

/// Turns Winograd's algorithm off or on again; it starts on. Off, 3x3 layers of stride
/// 1 take about twice as long and round a little less.
pub fn set_winograd(enabled: bool) {
    WINOGRAD.store(enabled, Ordering::Relaxed);
}

/// Lets convolutions round their factors to bf16 and store their results so, as
/// activations and gradients between operations then are, or forbids it again; it starts
/// forbidden. Sums, weights and their gradients, statistics and optimisers stay f32. Where
/// [`bf16_available`] is false nothing changes on the CPU: f32 throughout.
pub fn set_bf16(enabled: bool) {
    BF16.store(enabled, Ordering::Relaxed);
}

/// Whether this processor multiplies bf16: AVX512-BF16, and AMX where Linux lends it.
pub fn bf16_available() -> bool {
    #[cfg(target_arch = "x86_64")]
    return crate::kernels::mixed::engine().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Whether convolutions on the CPU store their results in bf16.
pub(crate) fn stores_bf16() -> bool {
    BF16.load(Ordering::Relaxed) && bf16_available()
}

pub(crate) fn winograd() -> bool {
    WINOGRAD.load(Ordering::Relaxed)
}

#[cfg(any(target_arch = "x86_64", feature = "cuda"))]
pub(crate) fn bf16() -> bool {
    BF16.load(Ordering::Relaxed)
}
