//! Batches, prepared on threads of their own ahead of the training loop.
//!
//! A rank holds the pixels of a share of the slices, and needs those of others in every batch:
//! the ranks exchange them, batch by batch. All ranks know the order of an epoch, so that none
//! has to send a request.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};
use std::sync::mpsc;

use candle_core::Device;
use diag_model::input;
use rayon::prelude::*;

use super::augment::augment;
use super::batch::{Batch, Images, Partner, n_batches};
use super::dataset::Dataset;
use super::mixing::Mixture;
use crate::error::TrainError;
use crate::random::{Domain, stream};
use crate::recipe::{AugmentationSpec, MixingSpec};
use crate::sync::ranks::Ranks;
use crate::sync::share::RankShare;
use crate::threads::thread_pool;

/// Prepared batches that may wait while the network works.
const BATCHES_AHEAD: usize = 3;

/// How the ranks divide the work on the batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Division {
    /// Every rank computes its rows of every batch.
    Rows,
    /// Each batch is computed by one rank, in turn.
    Batches,
}

/// How the batches of an epoch are made.
pub(crate) struct LoaderOptions<'a> {
    pub seed: u64,
    /// Slices of a batch, over all ranks.
    pub batch_size: usize,
    pub augmentation: AugmentationSpec,
    pub mixing: MixingSpec,
    pub ranks: &'a Ranks,
    pub division: Division,
    pub epoch: u32,
    /// Batches of the epoch to skip: they were used before a resume.
    pub n_skip: usize,
    /// Device that the images are copied to.
    pub device: &'a Device,
}

/// Copies the images of a batch to the device, from the loader's thread.
enum DeviceCopy {
    Cpu,
    #[cfg(feature = "cuda")]
    Gpu(candle_train_ops::cuda::Uploader),
}

impl DeviceCopy {
    fn new(device: &Device) -> candle_core::Result<Self> {
        #[cfg(feature = "cuda")]
        if device.is_cuda() {
            return candle_train_ops::cuda::Uploader::new(device).map(Self::Gpu);
        }
        debug_assert!(device.is_cpu());
        Ok(Self::Cpu)
    }

    fn start(&mut self, values: Vec<f32>, (height, width): (usize, usize)) -> candle_core::Result<Images> {
        match self {
            Self::Cpu => input::from_scaled(values, height, width).map(Images::Cpu),
            #[cfg(feature = "cuda")]
            Self::Gpu(uploader) => {
                let shape = [values.len() / (height * width), 1, height, width];
                uploader.send(&values, &shape).map(Images::Upload)
            }
        }
    }
}

/// Calls `step` with every batch of an epoch that is not done and of which this rank computes
/// rows, in order, until it breaks or fails. Every rank must end at the same batch.
pub(crate) fn for_each_batch(
    dataset: &Dataset,
    order: &[usize],
    options: &LoaderOptions<'_>,
    mut step: impl FnMut(Batch) -> Result<ControlFlow<()>, TrainError>,
) -> Result<(), TrainError> {
    let pool = thread_pool(rayon::current_num_threads())?;
    let n_batches = n_batches(order.len(), options.batch_size);
    let batches = order.chunks(options.batch_size).take(n_batches).enumerate().skip(options.n_skip);
    // On this thread, between steps: all ranks must exchange messages in the same order.
    let mut pending = batches.map(|(b, items)| PendingBatch::new(dataset, items, options, b as u32));
    let (to_assemble, exchanged) = mpsc::channel::<PendingBatch<'_>>();
    let (assembled, receiver) = mpsc::sync_channel(BATCHES_AHEAD);
    let mut device_copy = DeviceCopy::new(options.device)?;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for pending in exchanged {
                let batch = pool.install(|| pending.assemble(dataset, options, &mut device_copy));
                // The training loop stopped early.
                if assembled.send(batch).is_err() {
                    return;
                }
            }
        });
        // Moved in here, so that they are dropped on a stop and the loader thread ends.
        let (to_assemble, receiver) = (to_assemble, receiver);
        let mut n_waiting = 0;
        loop {
            while n_waiting <= BATCHES_AHEAD
                && let Some(batch) = pending.next()
            {
                let batch = batch?;
                if batch.rows.is_empty() {
                    continue;
                }
                // Fails only where the loader thread panicked; the scope passes the panic on.
                let _ = to_assemble.send(batch);
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

/// The rows of batch number `b`, of `n` slices, that a rank works on.
fn rows(division: Division, share: RankShare, b: u32, n: usize) -> Range<usize> {
    if division == Division::Batches {
        let is_own = b as usize % share.n_ranks == share.rank;
        return if is_own { 0..n } else { 0..0 };
    }
    let own = share.range(n);
    // A rank without rows computes the first one with weight 0: it must take part in the all-reduce.
    if own.is_empty() { 0..1 } else { own }
}

/// A batch whose pixels are here, before augmentation.
struct PendingBatch<'a> {
    /// Number in the epoch.
    b: u32,
    /// All slices of the batch.
    items: &'a [usize],
    /// Those that this rank works on.
    rows: Range<usize>,
    mixture: Option<Mixture>,
    /// Pixels received from the ranks that hold them, by item.
    received: BTreeMap<usize, Vec<u8>>,
}

impl<'a> PendingBatch<'a> {
    /// Draws how a batch is mixed, and exchanges pixels with the other ranks.
    fn new(
        dataset: &Dataset,
        items: &'a [usize],
        options: &LoaderOptions<'_>,
        b: u32,
    ) -> Result<Self, TrainError> {
        let shape = (dataset.height, dataset.width);
        let mut rng = stream(options.seed, Domain::Mixing, options.epoch, b);
        let mixture = Mixture::draw(items.len(), shape, &options.mixing, &mut rng);
        let ranks = options.ranks;
        // Items that `rank` needs and `owner` holds.
        let needed_from = |rank: usize, owner: usize| -> BTreeSet<usize> {
            let rows = rows(options.division, RankShare { rank, ..ranks.share() }, b, items.len());
            let partners = mixture.iter().flat_map(|mixture| &mixture.partners[rows.clone()]);
            let needed = rows.clone().chain(partners.copied()).map(|row| items[row]);
            needed.filter(|&item| dataset.items[item].owner == owner).collect()
        };
        let (own, size) = (ranks.rank(), shape.0 * shape.1);
        let received_bytes = ranks.all_to_all(
            |peer| {
                needed_from(peer, own).into_iter().flat_map(|item| dataset.pixels(item)).copied().collect()
            },
            |peer| size * needed_from(own, peer).len(),
        )?;
        let mut received = BTreeMap::new();
        for (peer, pixels) in received_bytes {
            received.extend(
                needed_from(own, peer).into_iter().zip(pixels.chunks_exact(size).map(<[u8]>::to_vec)),
            );
        }
        let rows = rows(options.division, ranks.share(), b, items.len());
        Ok(Self { b, items, rows, mixture, received })
    }

    /// The batch: the rows that fall to this rank.
    fn assemble(
        self,
        dataset: &Dataset,
        options: &LoaderOptions<'_>,
        device_copy: &mut DeviceCopy,
    ) -> candle_core::Result<Batch> {
        let shape = (dataset.height, dataset.width);
        let size = dataset.height * dataset.width;
        let (items, n_slices, rows) = (self.items, self.items.len(), &self.rows);
        let augmented = |row: usize, target: &mut [f32]| {
            // Seeded by the row of the epoch, not by the slice: balanced sampling repeats slices.
            let row_of_epoch = self.b as usize * options.batch_size + row;
            let mut rng = stream(options.seed, Domain::Augmentation, options.epoch, row_of_epoch as u32);
            let pixels =
                self.received.get(&items[row]).map_or_else(|| dataset.pixels(items[row]), Vec::as_slice);
            augment(pixels, shape, &options.augmentation, &mut rng, target);
        };
        let mut values = vec![0f32; rows.len() * size];
        let images = values.par_chunks_exact_mut(size).zip(rows.clone());
        images.for_each(|(target, row)| augmented(row, target));
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
                    augmented(partner, &mut other);
                    mixture.apply(image, &other, shape.1);
                }
            });
            let label_n = rows.clone().map(|row| label(mixture.partners[row])).collect();
            Partner { label_n, share: mixture.share }
        });
        Ok(Batch {
            images: device_copy.start(values, shape)?,
            label_n: rows.clone().map(label).collect(),
            partner,
            n_slices,
            first_row: rows.start,
            fraction: match options.division {
                Division::Rows => options.ranks.share().range(n_slices).len() as f64 / n_slices as f64,
                Division::Batches => 1.0,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use diag_data::case::Split;

    use super::*;
    use crate::data::dataset::tests::shards;
    use crate::data::sampling::order;
    use crate::recipe::Sampling;
    use crate::sync::ranks::tests::on_ranks;

    /// What one rank sees of two epochs, of which the second was begun before.
    fn seen(ranks: &Ranks, shards: &diag_data::shard::ShardSet) -> Vec<Batch> {
        let mut dataset = Dataset::list(shards, &[Split::Train]).unwrap();
        dataset.load(shards, ranks.share()).unwrap();
        let mut batches = Vec::new();
        for (epoch, n_skip) in [(1, 0), (2, 3)] {
            let options = LoaderOptions {
                seed: 5,
                batch_size: 13,
                augmentation: AugmentationSpec { rotation_degrees: 9.0, noise: 0.1, ..Default::default() },
                mixing: MixingSpec { mixup: 0.4, cutmix: 0.4 },
                ranks,
                division: Division::Rows,
                epoch,
                n_skip,
                device: &Device::Cpu,
            };
            let order = order(&dataset, &dataset.of_split(Split::Train), Sampling::CaseBalanced, 5, epoch);
            for_each_batch(&dataset, &order, &options, |batch| {
                batches.push(batch);
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
        }
        batches
    }

    fn values(batch: &Batch) -> Vec<f32> {
        match &batch.images {
            Images::Cpu(images) => images.flatten_all().unwrap().to_vec1().unwrap(),
            #[cfg(feature = "cuda")]
            Images::Upload(_) => Vec::new(),
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
                let of_ranks = parts.iter().map(|batches| &batches[b]).filter(|part| part.fraction > 0.0);
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
            dataset.load(&shards, ranks.share()).unwrap();
            let order = dataset.of_split(Split::Train);
            let options = LoaderOptions {
                seed: 5,
                batch_size: 4,
                augmentation: AugmentationSpec::default(),
                mixing: MixingSpec::default(),
                ranks,
                division: Division::Rows,
                epoch: 1,
                n_skip: 0,
                device: &Device::Cpu,
            };
            for_each_batch(&dataset, &order, &options, |_| Ok(ControlFlow::Break(()))).unwrap();
            let mut numbers = [ranks.rank() as f64 + 1.0];
            ranks.all_reduce_sum(&mut numbers).unwrap();
            numbers[0]
        });
        assert_eq!(sums, [3.0, 3.0]);
    }
}
