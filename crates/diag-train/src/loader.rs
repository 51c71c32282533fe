//! Batches, prepared ahead of the loop on threads of their own.
//!
//! A rank holds a part of the slices, and works on other ones in every batch: the ranks
//! give each other what each needs, batch by batch. All of them know the order of an epoch,
//! so nobody has to ask.

use std::collections::{BTreeMap, BTreeSet};
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
use crate::ranks::Ranks;
use crate::recipe::{AugmentationSpec, MixingSpec};

/// Batches that wait while the network works.
const BATCHES_AHEAD: usize = 3;

/// What the loader needs to know of an epoch.
pub(crate) struct Loading<'a> {
    pub seed: u64,
    /// Slices of a batch, over all ranks.
    pub batch_size: usize,
    pub augmentation: AugmentationSpec,
    pub mixing: MixingSpec,
    pub ranks: &'a Ranks,
    pub epoch: u32,
    /// Batches of the epoch that were taken before.
    pub n_done: usize,
    /// Where the images are brought to.
    pub device: &'a Device,
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

/// Calls `step` with every batch of an epoch that is not done, in order, until it breaks
/// or fails. Every rank must end at the same one.
pub(crate) fn for_each_batch(
    dataset: &Dataset,
    order: &[usize],
    loading: &Loading<'_>,
    mut step: impl FnMut(Batch) -> Result<ControlFlow<()>, TrainError>,
) -> Result<(), TrainError> {
    let pool = crate::fit::thread_pool(rayon::current_num_threads())?;
    let n_batches = n_batches(order.len(), loading.batch_size);
    let batches = order.chunks(loading.batch_size).take(n_batches).enumerate().skip(loading.n_done);
    // On this thread, between steps: what passes between ranks has to come in the same order
    // in all of them.
    let mut drafts = batches.map(|(b, items)| Draft::new(dataset, items, loading, b as u32));
    let (to_assemble, drafted) = mpsc::channel::<Draft<'_>>();
    let (assembled, receiver) = mpsc::sync_channel(BATCHES_AHEAD);
    let mut transport = Transport::to(loading.device)?;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for draft in drafted {
                let batch = pool.install(|| draft.assemble(dataset, loading, &mut transport));
                // The loop hung up: it stopped early.
                if assembled.send(batch).is_err() {
                    return;
                }
            }
        });
        // Both ends of the channels live in here, so that a stop unblocks the loader.
        let (to_assemble, receiver) = (to_assemble, receiver);
        let mut n_waiting = 0;
        loop {
            while n_waiting <= BATCHES_AHEAD
                && let Some(draft) = drafts.next()
            {
                // Nobody listens only where the loader panicked, which the scope passes on.
                let _ = to_assemble.send(draft?);
                n_waiting += 1;
            }
            if n_waiting == 0 {
                return Ok(());
            }
            let Ok(batch) = receiver.recv() else {
                return Ok(());
            };
            n_waiting -= 1;
            if step(batch?)?.is_break() {
                return Ok(());
            }
        }
    })
}

/// The rows of a batch that a rank works on.
fn rows(part: Part, n: usize) -> Range<usize> {
    let own = part.rows(n);
    // A rank without rows takes part with one that counts nothing.
    if own.is_empty() { 0..1 } else { own }
}

/// A batch whose images are still to be varied.
struct Draft<'a> {
    /// Number in the epoch.
    b: u32,
    /// All slices of the batch.
    items: &'a [usize],
    mixture: Option<Mixture>,
    /// Pixels that other ranks hold and this one needs, by item.
    guests: BTreeMap<usize, Vec<u8>>,
}

impl<'a> Draft<'a> {
    /// Draws how a batch is mixed, and gets what this rank needs of it from the others.
    fn new(dataset: &Dataset, items: &'a [usize], loading: &Loading<'_>, b: u32) -> Result<Self, TrainError> {
        let shape = (dataset.height, dataset.width);
        let mut rng = stream(loading.seed, Domain::Mixing, loading.epoch, b);
        let mixture = Mixture::draw(items.len(), shape, &loading.mixing, &mut rng);
        let ranks = loading.ranks;
        // What a rank needs of what another one holds.
        let missing = |rank: usize, holder: usize| -> BTreeSet<usize> {
            let rows = rows(Part { rank, ..ranks.part() }, items.len());
            let partners = mixture.iter().flat_map(|mixture| &mixture.partners[rows.clone()]);
            let needed = rows.clone().chain(partners.copied()).map(|row| items[row]);
            needed.filter(|&item| dataset.items[item].holder == holder).collect()
        };
        let (own, size) = (ranks.rank(), shape.0 * shape.1);
        let given = ranks.exchange(
            |peer| missing(peer, own).into_iter().flat_map(|item| dataset.pixels(item)).copied().collect(),
            |peer| size * missing(own, peer).len(),
        )?;
        let mut guests = BTreeMap::new();
        for (peer, pixels) in given {
            guests.extend(missing(own, peer).into_iter().zip(pixels.chunks_exact(size).map(<[u8]>::to_vec)));
        }
        Ok(Self { b, items, mixture, guests })
    }

    /// The batch: the rows that fall to this rank.
    fn assemble(
        self,
        dataset: &Dataset,
        loading: &Loading<'_>,
        transport: &mut Transport,
    ) -> candle_core::Result<Batch> {
        let shape = (dataset.height, dataset.width);
        let size = dataset.height * dataset.width;
        let (items, n_slices) = (self.items, self.items.len());
        let rows = rows(loading.ranks.part(), n_slices);
        let varied = |row: usize, target: &mut [f32]| {
            // By place in the epoch: balanced sampling shows a slice more than once.
            let place = self.b as usize * loading.batch_size + row;
            let mut rng = stream(loading.seed, Domain::Augmentation, loading.epoch, place as u32);
            let pixels =
                self.guests.get(&items[row]).map_or_else(|| dataset.pixels(items[row]), Vec::as_slice);
            augment(pixels, shape, &loading.augmentation, &mut rng, target);
        };
        let mut values = vec![0f32; rows.len() * size];
        let images = values.par_chunks_exact_mut(size).zip(rows.clone());
        images.for_each(|(target, row)| varied(row, target));
        let label = |row: usize| dataset.items[items[row]].label.index();
        let partner = self.mixture.as_ref().map(|mixture| {
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
            n_slices,
            first_row: rows.start,
            share: loading.ranks.part().rows(n_slices).len() as f64 / n_slices as f64,
        })
    }
}

#[cfg(test)]
mod tests {
    use diag_data::case::Split;

    use super::*;
    use crate::dataset::tests::shards;
    use crate::ranks::tests::on_ranks;
    use crate::recipe::Sampling;
    use crate::sampling::order;

    /// What one rank sees of two epochs, of which the second was begun before.
    fn seen(ranks: &Ranks, shards: &diag_data::shard::ShardSet) -> Vec<Batch> {
        let mut dataset = Dataset::list(shards, &[Split::Train]).unwrap();
        dataset.load(shards, ranks.part()).unwrap();
        let mut batches = Vec::new();
        for (epoch, n_done) in [(1, 0), (2, 3)] {
            let loading = Loading {
                seed: 5,
                batch_size: 13,
                augmentation: AugmentationSpec { rotation_degrees: 9.0, noise: 0.1, ..Default::default() },
                mixing: MixingSpec { mixup: 0.4, cutmix: 0.4 },
                ranks,
                epoch,
                n_done,
                device: &Device::Cpu,
            };
            let order = order(&dataset, &dataset.of_split(Split::Train), Sampling::CaseBalanced, 5, epoch);
            for_each_batch(&dataset, &order, &loading, |batch| {
                batches.push(batch);
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
        }
        batches
    }

    fn values(batch: &Batch) -> Vec<f32> {
        match &batch.images {
            Images::Here(images) => images.flatten_all().unwrap().to_vec1().unwrap(),
            #[cfg(feature = "cuda")]
            Images::Sent(_) => Vec::new(),
        }
    }

    #[test]
    fn ranks_that_hold_a_part_each_make_the_batches_of_one() {
        let folder = tempfile::tempdir().unwrap();
        let shards = shards(folder.path(), 100);
        let whole = seen(&Ranks::alone(), &shards);
        // 80 slices: the last batch has 2, fewer than 4 ranks.
        assert_eq!(whole.len(), 7 + 4);
        for n_ranks in [2, 3, 4] {
            let parts = on_ranks(n_ranks, {
                let shards = shards.clone();
                move |ranks| seen(ranks, &shards)
            });
            for (b, whole) in whole.iter().enumerate() {
                let of_ranks = parts.iter().map(|batches| &batches[b]).filter(|part| part.share > 0.0);
                let of_ranks_values: Vec<f32> = of_ranks.clone().flat_map(values).collect();
                assert!(of_ranks_values == values(whole), "batch {b} of {n_ranks} ranks");
                let labels: Vec<usize> = of_ranks.flat_map(|part| part.label_n.clone()).collect();
                assert_eq!(labels, whole.label_n);
            }
        }
    }

    #[test]
    fn a_stop_in_an_epoch_leaves_the_ranks_able_to_talk() {
        let folder = tempfile::tempdir().unwrap();
        let shards = shards(folder.path(), 100);
        let sums = on_ranks(2, move |ranks| {
            let mut dataset = Dataset::list(&shards, &[Split::Train]).unwrap();
            dataset.load(&shards, ranks.part()).unwrap();
            let order = dataset.of_split(Split::Train);
            let loading = Loading {
                seed: 5,
                batch_size: 4,
                augmentation: AugmentationSpec::default(),
                mixing: MixingSpec::default(),
                ranks,
                epoch: 1,
                n_done: 0,
                device: &Device::Cpu,
            };
            for_each_batch(&dataset, &order, &loading, |_| Ok(ControlFlow::Break(()))).unwrap();
            let mut numbers = [ranks.rank() as f64 + 1.0];
            ranks.add_up(&mut numbers).unwrap();
            numbers[0]
        });
        assert_eq!(sums, [3.0, 3.0]);
    }

    #[test]
    fn the_parts_of_a_batch_are_even_and_leave_nothing_out() {
        for n in 1..10 {
            let parts: Vec<_> = (0..4).map(|rank| Part { rank, n_ranks: 4 }.rows(n)).collect();
            assert_eq!(parts.iter().cloned().flatten().collect::<Vec<_>>(), (0..n).collect::<Vec<_>>());
            assert!(parts.iter().all(|part| part.len() == n / 4 || part.len() == n / 4 + 1));
        }
    }
}
