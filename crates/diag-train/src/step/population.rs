//! Batch statistics for validation and for the saved weights, recomputed with fixed weights:
//! see [`diag_model::Network::batch_statistics`].
//!
//! The ranks share the batches out among them and exchange their statistics, so that the result
//! does not depend on the number of ranks.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;
use diag_model::Network;

use crate::data::dataset::Dataset;
use crate::data::loader::{Division, LoaderOptions, for_each_batch};
use crate::error::TrainError;
use crate::recipe::{AugmentationSpec, MixingSpec, TrainSpec};
use crate::sync::ranks::Ranks;

/// Most slices of one recomputation. Wu and Johnson find that 1,000 to 10,000 images suffice.
const MOST_SLICES: usize = 1024;

/// At most one in so many training slices: a pass in training mode without gradients takes a
/// third of a step's time, so that the recomputation takes about a ninth of an epoch's.
const ONE_IN: usize = 3;

/// Slices of one recomputation: whole batches, at least one.
pub(crate) fn n_slices(n_training: usize, batch_size: usize) -> usize {
    let bound = MOST_SLICES.min(n_training / ONE_IN);
    (bound / batch_size).max(1) * batch_size
}

/// Replaces the running statistics by those of whole batches of `order`, in training mode without
/// gradient, augmentation and mixing. Frozen parts keep theirs. Returns whether `stop` was set on
/// any rank; then nothing changes.
pub(crate) fn recompute_statistics(
    network: &Network,
    recipe: &TrainSpec,
    (dataset, order): (&Dataset, &[usize]),
    epoch: u32,
    (ranks, device): (&Ranks, &Device),
    stop: &AtomicBool,
) -> Result<bool, TrainError> {
    let n_frozen = recipe.n_frozen(epoch);
    let options = LoaderOptions {
        seed: recipe.seed,
        batch_size: recipe.batch_size,
        augmentation: AugmentationSpec::default(),
        mixing: MixingSpec::default(),
        ranks,
        division: Division::Batches,
        epoch,
        n_skip: 0,
        device,
    };
    let mut own: Vec<Vec<f64>> = Vec::new();
    let mut stopped = false;
    for_each_batch(dataset, order, &options, |batch| {
        stopped |= stop.load(Ordering::Relaxed);
        // Only the computation is skipped: other ranks wait for the pixels that this one holds.
        if !stopped {
            own.push(network.batch_statistics(&batch.images.tensor()?, n_frozen)?);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if ranks.any(stopped)? {
        return Ok(true);
    }
    let n_batches = order.len() / recipe.batch_size;
    network.set_population_statistics(&gathered(&own, n_batches, ranks)?, n_frozen)?;
    Ok(false)
}

/// The statistics of all batches in their order, from those that each rank computed.
fn gathered(own: &[Vec<f64>], n_batches: usize, ranks: &Ranks) -> Result<Vec<Vec<f64>>, TrainError> {
    let bytes: Vec<u8> = own.iter().flatten().flat_map(|number| number.to_le_bytes()).collect();
    let numbers: Vec<Vec<f64>> = ranks
        .all_gather(&bytes)?
        .iter()
        .map(|bytes| bytes.as_chunks().0.iter().map(|number| f64::from_le_bytes(*number)).collect())
        .collect();
    // Rank 0 has the first batch.
    let length = numbers.first().map_or(0, Vec::len) / n_batches.div_ceil(ranks.n_ranks()).max(1);
    let of_batch = |b: usize| {
        let at = b / ranks.n_ranks() * length;
        numbers[b % ranks.n_ranks()].get(at..at + length).map(<[f64]>::to_vec)
    };
    (0..n_batches)
        .map(of_batch)
        .collect::<Option<_>>()
        .ok_or_else(|| candle_core::Error::msg("a rank sent too few batch statistics").into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::ranks::tests::on_ranks;

    #[test]
    fn slices_are_bounded_and_fill_whole_batches() {
        for (n_training, batch_size, want) in
            [(358, 16, 112), (20, 16, 16), (2, 2, 2), (3977, 32, 1024), (4000, 100, 1000), (90, 30, 30)]
        {
            assert_eq!(
                n_slices(n_training, batch_size),
                want,
                "{n_training} slices, batches of {batch_size}"
            );
            assert!(want <= n_training);
        }
    }

    #[test]
    fn the_batches_of_all_ranks_come_in_their_order() {
        for (n_ranks, n_batches) in [(1, 3), (2, 5), (3, 4), (4, 2)] {
            let all = on_ranks(n_ranks, move |ranks| {
                let own: Vec<Vec<f64>> = (0..n_batches)
                    .filter(|b| b % n_ranks == ranks.rank())
                    .map(|b| vec![b as f64, 0.1 * b as f64, -1.0])
                    .collect();
                gathered(&own, n_batches, ranks).unwrap()
            });
            let want: Vec<Vec<f64>> = (0..n_batches).map(|b| vec![b as f64, 0.1 * b as f64, -1.0]).collect();
            assert!(all.iter().all(|all| *all == want), "{n_ranks} ranks, {n_batches} batches");
        }
    }
}
