//! Batches, prepared ahead of the loop on threads of their own.

use std::ops::{ControlFlow, Range};
use std::sync::mpsc;

use candle_core::{Device, Tensor};
use diag_model::input;
use rayon::prelude::*;

use crate::TrainError;
use crate::augment::augment;
use crate::dataset::Dataset;
use crate::mixing::Mixture;
use crate::random::{Domain, stream};
use crate::recipe::{AugmentationSpec, MixingSpec};

/// Batches that wait while the network works.
const BATCHES_AHEAD: usize = 3;

/// What the loader needs to know of the plan.
#[derive(Clone, Debug)]
pub(crate) struct Loading {
    pub seed: u64,
    /// Slices of a batch, over all ranks.
    pub batch_size: usize,
    pub augmentation: AugmentationSpec,
    pub mixing: MixingSpec,
    pub part: Part,
}

/// Which part of every batch this process works on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub rank: usize,
    pub n_ranks: usize,
}

impl Part {
    /// All of it.
    pub const WHOLE: Self = Self { rank: 0, n_ranks: 1 };

    /// The rows of a batch of `n`.
    pub fn rows(self, n: usize) -> Range<usize> {
        n * self.rank / self.n_ranks..n * (self.rank + 1) / self.n_ranks
    }
}

/// Slices of one step: those of this rank.
pub(crate) struct Batch {
    pub images: Images,
    /// `[N]`.
    pub label_n: Vec<usize>,
    /// The images that these are mixed with, if they are.
    pub partner: Option<Partner>,
    /// Slices of the whole batch.
    pub n_slices: usize,
    /// Place of the first of these in it.
    pub first_row: usize,
    /// Which share of it these are; 0 where one stands in for none.
    pub share: f64,
}

/// The images of a batch, `[N, 1, height, width]` in [-1, 1].
pub(crate) enum Images {
    Here(Tensor),
    /// On their way to a GPU.
    #[cfg(feature = "cuda")]
    Sent(candle_train_ops::cuda::Upload),
}

impl Images {
    pub fn tensor(self) -> candle_core::Result<Tensor> {
        match self {
            Self::Here(tensor) => Ok(tensor),
            #[cfg(feature = "cuda")]
            Self::Sent(upload) => upload.tensor(),
        }
    }
}

/// Takes the images of a batch to where they are needed, from the loader's thread.
enum Transport {
    Here,
    #[cfg(feature = "cuda")]
    Gpu(candle_train_ops::cuda::Uploader),
}

impl Transport {
    fn to(device: &Device) -> candle_core::Result<Self> {
        #[cfg(feature = "cuda")]
        if device.is_cuda() {
            return candle_train_ops::cuda::Uploader::new(device).map(Self::Gpu);
        }
        debug_assert!(device.is_cpu());
        Ok(Self::Here)
    }

    fn take(&mut self, values: Vec<f32>, (height, width): (usize, usize)) -> candle_core::Result<Images> {
        match self {
            Self::Here => input::from_scaled(values, height, width).map(Images::Here),
            #[cfg(feature = "cuda")]
            Self::Gpu(uploader) => {
                let shape = [values.len() / (height * width), 1, height, width];
                uploader.send(&values, &shape).map(Images::Sent)
            }
        }
    }
}

/// What the images of a batch are mixed with.
#[derive(Clone, Debug)]
pub(crate) struct Partner {
    /// `[N]`.
    pub label_n: Vec<usize>,
    /// How much of each image is its own, in [0, 1].
    pub share: f64,
}

/// Number of batches that `n_slices` make. A last batch of one slice is left
/// out, because batch statistics of a single slice say little.
pub(crate) fn n_batches(n_slices: usize, batch_size: usize) -> usize {
    n_slices / batch_size + usize::from(n_slices % batch_size > 1)
}

/// Calls `step` with every batch of an epoch but the first `n_done`, in order,
/// until it breaks or fails. The images are brought to `device`.
pub(crate) fn for_each_batch(
    dataset: &Dataset,
    order: &[usize],
    loading: &Loading,
    device: &Device,
    epoch: u32,
    n_done: usize,
    mut step: impl FnMut(Batch) -> Result<ControlFlow<()>, TrainError>,
) -> Result<(), TrainError> {
    let pool = crate::fit::thread_pool(rayon::current_num_threads())?;
    let (sender, receiver) = mpsc::sync_channel(BATCHES_AHEAD);
    let mut transport = Transport::to(device)?;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let batches = order.chunks(loading.batch_size).take(n_batches(order.len(), loading.batch_size));
            for (b, items) in batches.enumerate().skip(n_done) {
                let batch =
                    pool.install(|| assemble(dataset, items, loading, epoch, b as u32, &mut transport));
                // The loop hung up: it stopped early.
                if sender.send(batch).is_err() {
                    return;
                }
            }
        });
        // The receiver lives in here, so that a stop unblocks the loader.
        for batch in receiver {
            if step(batch?)?.is_break() {
                break;
            }
        }
        Ok(())
    })
}

/// Batch `b` of an epoch, of which `items` are the slices: the rows that fall to this rank.
fn assemble(
    dataset: &Dataset,
    items: &[usize],
    loading: &Loading,
    epoch: u32,
    b: u32,
    transport: &mut Transport,
) -> candle_core::Result<Batch> {
    let shape = (dataset.height, dataset.width);
    let size = dataset.height * dataset.width;
    let own = loading.part.rows(items.len());
    // A rank without rows takes part with one that counts nothing.
    let rows = if own.is_empty() { 0..1 } else { own.clone() };
    let varied = |row: usize, target: &mut [f32]| {
        // By place in the epoch: balanced sampling shows a slice more than once.
        let place = b as usize * loading.batch_size + row;
        let mut rng = stream(loading.seed, Domain::Augmentation, epoch, place as u32);
        augment(dataset.pixels(items[row]), shape, &loading.augmentation, &mut rng, target);
    };
    let mut values = vec![0f32; rows.len() * size];
    let images = values.par_chunks_exact_mut(size).zip(rows.clone());
    images.for_each(|(target, row)| varied(row, target));
    let label = |row: usize| dataset.items[items[row]].label.index();
    let mut rng = stream(loading.seed, Domain::Mixing, epoch, b);
    let partner = Mixture::draw(items.len(), shape, &loading.mixing, &mut rng).map(|mixture| {
        let whole = values.clone();
        let images = values.par_chunks_exact_mut(size).zip(rows.clone());
        images.for_each(|(image, row)| match mixture.partners[row] {
            partner if rows.contains(&partner) => {
                mixture.apply(image, &whole[(partner - rows.start) * size..][..size], shape.1);
            }
            partner => {
                let mut other = vec![0f32; size];
                varied(partner, &mut other);
                mixture.apply(image, &other, shape.1);
            }
        });
        let label_n = rows.clone().map(|row| label(mixture.partners[row])).collect();
        Partner { label_n, share: mixture.share }
    });
    Ok(Batch {
        images: transport.take(values, shape)?,
        label_n: rows.clone().map(label).collect(),
        partner,
        n_slices: items.len(),
        first_row: rows.start,
        share: own.len() as f64 / items.len() as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_batch_are_even_and_leave_nothing_out() {
        for n in 1..10 {
            let parts: Vec<_> = (0..4).map(|rank| Part { rank, n_ranks: 4 }.rows(n)).collect();
            assert_eq!(parts.iter().cloned().flatten().collect::<Vec<_>>(), (0..n).collect::<Vec<_>>());
            assert!(parts.iter().all(|part| part.len() == n / 4 || part.len() == n / 4 + 1));
        }
    }
}
