//! Batches, prepared ahead of the loop on threads of their own.

use std::ops::ControlFlow;
use std::sync::mpsc;

use rand::seq::SliceRandom;
use rayon::prelude::*;

use crate::TrainError;
use crate::augment::augment;
use crate::dataset::Dataset;
use crate::random::{Domain, stream};
use crate::recipe::AugmentationSpec;

/// Batches that wait while the network works.
const BATCHES_AHEAD: usize = 3;

/// What the loader needs to know of the plan.
#[derive(Clone, Debug)]
pub(crate) struct Loading {
    pub seed: u64,
    pub batch_size: usize,
    pub augmentation: AugmentationSpec,
}

/// Slices of one step.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// `N * height * width` values in [-1, 1].
    pub values: Vec<f32>,
    /// `[N]`.
    pub label_n: Vec<usize>,
}

/// Number of batches that `n_slices` make. A last batch of one slice is left
/// out, because batch statistics of a single slice say little.
pub(crate) fn n_batches(n_slices: usize, batch_size: usize) -> usize {
    n_slices / batch_size + usize::from(n_slices % batch_size > 1)
}

/// The slices of an epoch in their order of that epoch.
pub(crate) fn shuffled(items: &[usize], seed: u64, epoch: u32) -> Vec<usize> {
    let mut order = items.to_vec();
    order.shuffle(&mut stream(seed, Domain::Shuffle, epoch, 0));
    order
}

/// Calls `step` with every batch of an epoch, in order, until it breaks or fails.
pub(crate) fn for_each_batch(
    dataset: &Dataset,
    order: &[usize],
    loading: &Loading,
    epoch: u32,
    mut step: impl FnMut(Batch) -> Result<ControlFlow<()>, TrainError>,
) -> Result<(), TrainError> {
    let pool = crate::fit::thread_pool(rayon::current_num_threads())?;
    let (sender, receiver) = mpsc::sync_channel(BATCHES_AHEAD);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for items in order.chunks(loading.batch_size).take(n_batches(order.len(), loading.batch_size)) {
                let batch = pool.install(|| assemble(dataset, items, loading, epoch));
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

fn assemble(dataset: &Dataset, items: &[usize], loading: &Loading, epoch: u32) -> Batch {
    let size = dataset.height * dataset.width;
    let mut values = vec![0f32; items.len() * size];
    values.par_chunks_exact_mut(size).zip(items).for_each(|(target, &item)| {
        let mut rng = stream(loading.seed, Domain::Augmentation, epoch, item as u32);
        let shape = (dataset.height, dataset.width);
        augment(dataset.pixels(item), shape, &loading.augmentation, &mut rng, target);
    });
    Batch { values, label_n: items.iter().map(|&item| dataset.items[item].label.index()).collect() }
}
