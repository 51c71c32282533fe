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

    /// Writes some pixels of sixteen channels, `step` apart in the target, which starts
    /// at `start` of block `block`.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn pixels(
        self,
        target: &mut [f32],
        start: usize,
        sums: &[[f32; BLOCK]],
        step: usize,
        block: usize,
    ) {
        let (targets, _) = target.as_chunks_mut::<BLOCK>();
        let targets = targets.iter_mut().step_by(step).zip(sums);
        match self {
            Self::Replace => targets.for_each(|(target, sums)| *target = *sums),
            Self::Add => targets.for_each(|(target, sums)| {
                for lane in 0..BLOCK {
                    target[lane] += sums[lane];
                }
            }),
            Self::Finish(finish) => {
                let bias = &finish.bias[block * BLOCK..][..BLOCK];
                let (lo, hi) = finish.bounds;
                for (index, (target, sums)) in targets.enumerate() {
                    for lane in 0..BLOCK {
                        let at = start + index * step * BLOCK + lane;
                        let residual = finish.residual.map_or(0.0, |residual| residual[at]);
                        let value = sums[lane] + bias[lane] + residual;
                        let value = if value < lo { lo } else { value };
                        target[lane] = if value > hi { hi } else { value };
                    }
                }
            }
        }
    }
}
