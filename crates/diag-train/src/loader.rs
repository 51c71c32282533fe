//! Batches, prepared ahead of the loop on threads of their own.

use std::ops::ControlFlow;
use std::sync::mpsc;

use rayon::prelude::*;

use crate::TrainError;
use crate::augment::augment;
use crate::dataset::Dataset;
use crate::mixing::mix;
use crate::random::{Domain, stream};
use crate::recipe::{AugmentationSpec, MixingSpec};

/// Batches that wait while the network works.
const BATCHES_AHEAD: usize = 3;

/// What the loader needs to know of the plan.
#[derive(Clone, Debug)]
pub(crate) struct Loading {
    pub seed: u64,
    pub batch_size: usize,
    pub augmentation: AugmentationSpec,
    pub mixing: MixingSpec,
}

/// Slices of one step.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// `N * height * width` values in [-1, 1].
    pub values: Vec<f32>,
    /// `[N]`.
    pub label_n: Vec<usize>,
    /// The images that these are mixed with, if they are.
    pub partner: Option<Partner>,
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
/// until it breaks or fails.
pub(crate) fn for_each_batch(
    dataset: &Dataset,
    order: &[usize],
    loading: &Loading,
    epoch: u32,
    n_done: usize,
    mut step: impl FnMut(Batch) -> Result<ControlFlow<()>, TrainError>,
) -> Result<(), TrainError> {
    let pool = crate::fit::thread_pool(rayon::current_num_threads())?;
    let (sender, receiver) = mpsc::sync_channel(BATCHES_AHEAD);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let batches = order.chunks(loading.batch_size).take(n_batches(order.len(), loading.batch_size));
            for (b, items) in batches.enumerate().skip(n_done) {
                let batch = pool.install(|| assemble(dataset, items, loading, epoch, b as u32));
                // The loop hung up: it stopped early.
                if sender.send(batch).is_err() {
                    return;
                }
            }
        });
        // The receiver lives in here, so that a stop unblocks the loader.
        for batch in receiver {
            if step(batch)?.is_break() {
                break;
            }
        }
        Ok(())
    })
}

fn assemble(dataset: &Dataset, items: &[usize], loading: &Loading, epoch: u32, b: u32) -> Batch {
    let shape = (dataset.height, dataset.width);
    let size = dataset.height * dataset.width;
    let mut values = vec![0f32; items.len() * size];
    values.par_chunks_exact_mut(size).zip(items).enumerate().for_each(|(row, (target, &item))| {
        // By place in the epoch: balanced sampling shows a slice more than once.
        let place = b as usize * loading.batch_size + row;
        let mut rng = stream(loading.seed, Domain::Augmentation, epoch, place as u32);
        augment(dataset.pixels(item), shape, &loading.augmentation, &mut rng, target);
    });
    let label_n: Vec<usize> = items.iter().map(|&item| dataset.items[item].label.index()).collect();
    let mut rng = stream(loading.seed, Domain::Mixing, epoch, b);
    let partner = mix(&mut values, &label_n, shape, &loading.mixing, &mut rng);
    Batch { values, label_n, partner }
}
