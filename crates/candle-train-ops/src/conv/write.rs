//! How the sums of a convolution reach the output.

use crate::{activation::BLOCK, kernels::direct::Finish};
#[cfg(target_arch = "x86_64")]
use crate::{element::Element, kernels::placing};

/// How results reach the target.
#[derive(Clone, Copy)]
pub(super) enum Write<'a, T = f32> {
    /// They overwrite it.
    Replace,
    /// They are added to it.
    Add,
    /// Bias, residual and bounds are applied first; the bias counts channels of the
    /// whole target, the residual lies like it.
    Finish(Finish<'a, T>),
}

impl<'a, T: Copy> Write<'a, T> {
    /// The same for `len` numbers of the target from `start` on.
    pub(super) fn part(self, start: usize, len: usize) -> Self {
        match self {
            Self::Finish(finish) => {
                let residual = finish.residual.map(|residual| &residual[start..start + len]);
                Self::Finish(Finish { residual, ..finish })
            }
            other => other,
        }
    }

    /// What one plane of output blocks from `block` on applies; the plane starts at
    /// `start` in the target.
    pub(super) fn finish(self, block: usize, start: usize) -> Option<Finish<'a, T>> {
        match self {
            Self::Finish(finish) => Some(Finish {
                bias: &finish.bias[block * BLOCK..],
                residual: finish.residual.map(|residual| &residual[start..]),
                ..finish
            }),
            Self::Replace | Self::Add => None,
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl<T: Element<Wide = f32>> Write<'_, T> {
    /// Writes some pixels of sixteen channels, `step` apart in the target, which starts
    /// at `start` of block `block`.
    pub(super) fn pixels(
        self,
        target: &mut [T],
        start: usize,
        sums: &[[f32; BLOCK]],
        step: usize,
        block: usize,
    ) {
        match self {
            Self::Replace => placing::replace(target, sums, step),
            Self::Add => placing::add(target, sums, step),
            Self::Finish(finish) => {
                let mut bias = [0.0; BLOCK];
                bias.copy_from_slice(&finish.bias[block * BLOCK..][..BLOCK]);
                let residual = finish.residual.map_or(&[][..], |residual| &residual[start..]);
                placing::finish(target, sums, step, residual, &bias, finish.bounds);
            }
        }
    }
}
