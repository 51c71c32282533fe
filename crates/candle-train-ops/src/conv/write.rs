//! What becomes of the sums that a convolution makes.

use crate::{activation::BLOCK, kernels::direct::Finish};

/// How results reach the target.
#[derive(Clone, Copy)]
pub(super) enum Write<'a> {
    /// They overwrite it.
    Replace,
    /// They are added to it.
    Add,
    /// Bias, residual and bounds are applied first; the bias counts channels of the
    /// whole target, the residual lies like it.
    Finish(Finish<'a>),
}

impl<'a> Write<'a> {
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
    pub(super) fn finish(self, block: usize, start: usize) -> Option<Finish<'a>> {
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
