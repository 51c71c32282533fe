//! What one step works on.

use candle_core::Tensor;

/// Slices of one step: those of this rank.
pub(crate) struct Batch {
    pub images: Images,
    /// `[N]`.
    pub label_n: Vec<usize>,
    /// The labels of the images that these are mixed with, if they are.
    pub partner: Option<Partner>,
    /// Slices of the whole batch, over all ranks.
    pub n_slices: usize,
    /// Row of the first of these in the whole batch.
    pub first_row: usize,
    /// Which fraction of the whole batch these are; 0 where one slice stands in for none.
    pub fraction: f64,
}

/// The images of a batch, `[N, 1, height, width]` in [-1, 1].
pub(crate) enum Images {
    Cpu(Tensor),
    /// A copy to a GPU that may still be running.
    #[cfg(feature = "cuda")]
    Upload(candle_train_ops::cuda::Upload),
}

impl Images {
    pub fn tensor(self) -> candle_core::Result<Tensor> {
        match self {
            Self::Cpu(tensor) => Ok(tensor),
            #[cfg(feature = "cuda")]
            Self::Upload(upload) => upload.tensor(),
        }
    }
}

/// What the images of a batch are mixed with.
#[derive(Clone, Debug)]
pub(crate) struct Partner {
    /// `[N]`.
    pub label_n: Vec<usize>,
    /// Weight of each image's own label, in [0, 1].
    pub share: f64,
}

/// Number of batches that `n_slices` make. A last batch of one slice is left
/// out, because batch statistics of a single slice say little.
pub(crate) fn n_batches(n_slices: usize, batch_size: usize) -> usize {
    n_slices / batch_size + usize::from(n_slices % batch_size > 1)
}
