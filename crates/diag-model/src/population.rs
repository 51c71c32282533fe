//! Statistics of the normalisations over many batches instead of a moving average.
//!
//! "PreciseBN" (Wu and Johnson 2021, *Rethinking "Batch" in BatchNorm*, section 3): with fixed
//! weights, batches pass through the network in training mode, and every normalisation gets
//! mean E\[x\] and variance E\[x^2\] - E\[x\]^2 over the values of all of these batches. In
//! training mode a layer's input depends on the batch alone and on no running statistic, so
//! that one pass finds for all layers what a pass for each layer in turn would.

use candle_core::{Result, Tensor};
use candle_train_ops::RunningStats;

use crate::network::{Network, Pass};

impl Network {
    /// The batch statistics of every normalisation that learns, in training mode; weights and
    /// running statistics stay as they are. Dropout has no influence: it follows the last
    /// normalisation.
    ///
    /// # Shapes
    /// - `image_nchw`: as of [`forward`](Self::forward), the whole batch in this process
    /// - result: mean `[C]` and biased variance `[C]` of each normalisation behind the first
    ///   `n_frozen` parts, in the order of the layers, one after the other
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn batch_statistics(&self, image_nchw: &Tensor, n_frozen: usize) -> Result<Vec<f64>> {
        self.learning_stats(n_frozen).for_each(RunningStats::record);
        let passed = self.forward(image_nchw, Pass::Train { noise_seed: 0, first_row: 0, n_frozen });
        let mut numbers = Vec::new();
        for recorded in self.learning_stats(n_frozen).map(RunningStats::take_recorded) {
            let Some(recorded) = recorded else { continue };
            numbers.extend(recorded.mean);
            numbers.extend(recorded.var);
        }
        passed.map(|_| numbers)
    }

    /// Replaces the running statistics of every normalisation that learns by those of the
    /// values of all `batches`, which are of equal size, each as
    /// [`batch_statistics`](Self::batch_statistics) returned it.
    ///
    /// # Errors
    /// No batch, or one with another number of statistics.
    pub fn set_population_statistics(&self, batches: &[Vec<f64>], n_frozen: usize) -> Result<()> {
        let n_numbers: usize = self.learning_stats(n_frozen).map(|stats| 2 * stats.channels()).sum();
        let Some(first) = batches.first() else {
            candle_core::bail!("population statistics of no batch");
        };
        if let Some(batch) = batches.iter().find(|batch| batch.len() != n_numbers) {
            candle_core::bail!("{} batch statistics, expected {n_numbers}", batch.len());
        }
        let mean_over_batches = |value: &dyn Fn(&[f64]) -> f64| {
            batches.iter().map(|b| value(b)).sum::<f64>() / batches.len() as f64
        };
        let mut start = 0;
        for stats in self.learning_stats(n_frozen) {
            let n_channels = stats.channels();
            let (mut means, mut vars) = (Vec::with_capacity(n_channels), Vec::with_capacity(n_channels));
            for m in start..start + n_channels {
                let v = m + n_channels;
                // Around the first batch's mean, so that no digits are lost where the mean is
                // large beside the deviation.
                let apart = mean_over_batches(&|b| b[m] - first[m]);
                let square = mean_over_batches(&|b| b[v] + (b[m] - first[m]).powi(2));
                means.push((first[m] + apart) as f32);
                vars.push((square - apart * apart).max(0.0) as f32);
            }
            stats.set(means, vars)?;
            start += 2 * n_channels;
        }
        Ok(())
    }

    /// The statistics of the normalisations behind the first `n_frozen` parts.
    fn learning_stats(&self, n_frozen: usize) -> impl Iterator<Item = &RunningStats> {
        let of_part = self.parameters.stats.iter().zip(&self.parameters.stats_parts);
        of_part.filter(move |(_, part)| **part >= n_frozen).map(|((_, stats), _)| stats)
    }
}
