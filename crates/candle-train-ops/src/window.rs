//! Where a sliding window lands: shared by convolution and pooling.

use crate::{OpError, activation::Dims};

/// A window moved over an image with equal padding on opposite sides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    pub kernel_h: usize,
    pub kernel_w: usize,
    pub stride: usize,
    pub padding: usize,
}

impl Window {
    /// Height and width of the result, rounded down as PyTorch does.
    pub(crate) fn output(self, op: &'static str, dims: Dims) -> Result<(usize, usize), OpError> {
        if self.stride == 0 || self.kernel_h == 0 || self.kernel_w == 0 {
            return Err(OpError::Setting { op, reason: "stride and kernel must be at least 1".to_owned() });
        }
        let too_large = || OpError::WindowTooLarge {
            op,
            window: (self.kernel_h, self.kernel_w),
            image: (
                dims.h.saturating_add(self.padding.saturating_mul(2)),
                dims.w.saturating_add(self.padding.saturating_mul(2)),
            ),
        };
        let count = |extent: usize, kernel: usize| {
            let padded = self.padding.checked_mul(2)?.checked_add(extent)?;
            Some(padded.checked_sub(kernel)? / self.stride + 1)
        };
        let h = count(dims.h, self.kernel_h).ok_or_else(too_large)?;
        let w = count(dims.w, self.kernel_w).ok_or_else(too_large)?;
        Ok((h, w))
    }

    /// The output positions `lo..hi` whose tap `tap` falls inside an image of
    /// `extent` pixels, out of `count` positions.
    pub(crate) fn valid(self, tap: usize, extent: usize, count: usize) -> std::ops::Range<usize> {
        let lo = self.padding.saturating_sub(tap).div_ceil(self.stride);
        let hi = match (extent + self.padding).checked_sub(tap + 1) {
            Some(last) => (last / self.stride + 1).min(count),
            None => 0,
        };
        lo.min(hi)..hi
    }

    /// Input position of an output position inside [`Window::valid`].
    pub(crate) fn source(self, position: usize, tap: usize) -> usize {
        position * self.stride + tap - self.padding
    }
}
