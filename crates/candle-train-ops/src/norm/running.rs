//! What a normalisation remembers from batch to batch.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Result, Tensor};

use super::channels::Statistics;
use crate::{BatchSum, OpError};

/// Added to the variance before its square root unless told otherwise, as PyTorch.
const EPSILON: f64 = 1e-5;

/// Weight of the new batch in the running statistics, as PyTorch.
pub(crate) const MOMENTUM: f64 = 0.1;

/// Running mean and unbiased variance per channel, `[C]` f32; updated by every
/// training pass, used by evaluation, saved with the model. Clones share them.
#[derive(Clone, Debug)]
pub struct RunningStats(Arc<Mutex<Moments>>);

#[derive(Clone, Debug)]
pub(super) struct Moments {
    pub mean: Vec<f32>,
    pub var: Vec<f32>,
    /// Added to every variance before its square root.
    pub epsilon: f64,
    /// Joins the statistics of a batch whose parts lie in several processes.
    sum: Option<BatchSum>,
    /// Present while training passes are recorded.
    recording: Option<Recording>,
    /// Mean and variance while a GPU has them; those above are then out of date.
    #[cfg(feature = "cuda")]
    on_gpu: Option<(Tensor, Tensor)>,
}

/// What a recorded pass leaves: nothing yet, or the statistics of its batch.
pub(super) type Recording = Option<BatchStatistics>;

/// Statistics of one batch, per channel.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchStatistics {
    /// Mean over N, H and W, `[C]`.
    pub mean: Vec<f64>,
    /// Biased variance (divided by the number of values), `[C]`.
    pub var: Vec<f64>,
}

impl RunningStats {
    /// Mean 0 and variance 1 in every channel.
    pub fn new(channels: usize) -> Self {
        Self::with_epsilon(channels, EPSILON)
    }

    /// As [`new`](Self::new); normalisation with these statistics adds `epsilon`
    /// to the variance and not 1e-5. TensorFlow's networks use 1e-3.
    pub fn with_epsilon(channels: usize, epsilon: f64) -> Self {
        Self(Arc::new(Mutex::new(Moments {
            mean: vec![0.0; channels],
            var: vec![1.0; channels],
            epsilon,
            sum: None,
            recording: None,
            #[cfg(feature = "cuda")]
            on_gpu: None,
        })))
    }

    /// What is added to the variance.
    pub(crate) fn epsilon(&self) -> f64 {
        self.lock().epsilon
    }

    /// From now on every training pass takes mean and variance over the batches of
    /// all processes that `sum` joins, forwards and backwards; the gradients of scale and
    /// shift then arrive whole in every one of them. Each process must hold the same
    /// running statistics.
    pub fn join(&self, sum: BatchSum) {
        self.lock().sum = Some(sum);
    }

    /// From now on, until [`take_recorded`](Self::take_recorded), a training pass records the
    /// statistics of its batch and leaves the running statistics as they are. The batch lies
    /// in this process alone, whatever [`join`](Self::join) and `set_batch_parts` say: its
    /// statistics do not depend on the number of processes.
    pub fn record(&self) {
        self.lock().recording = Some(None);
    }

    /// Ends the recording; returns the statistics of the last batch, `None` where no training
    /// pass came by.
    pub fn take_recorded(&self) -> Option<BatchStatistics> {
        self.lock().recording.take().flatten()
    }

    /// Whether training passes are recorded.
    pub(crate) fn is_recording(&self) -> bool {
        self.lock().recording.is_some()
    }

    /// Stores what a recorded pass found.
    pub(crate) fn set_recorded(&self, mean: Vec<f64>, var: Vec<f64>) {
        self.lock().recording = Some(Some(BatchStatistics { mean, var }));
    }

    /// Number of channels.
    pub fn channels(&self) -> usize {
        self.lock().mean.len()
    }

    /// Mean per channel.
    ///
    /// # Errors
    /// A GPU that holds it and cannot be asked.
    pub fn mean(&self) -> Result<Vec<f32>> {
        Ok(self.on_host()?.mean.clone())
    }

    /// Unbiased variance per channel.
    ///
    /// # Errors
    /// As [`mean`](Self::mean).
    pub fn var(&self) -> Result<Vec<f32>> {
        Ok(self.on_host()?.var.clone())
    }

    /// Replaces both, when a model is loaded.
    ///
    /// # Errors
    /// Another number of channels than at construction.
    pub fn set(&self, mean: Vec<f32>, var: Vec<f32>) -> Result<()> {
        let mut moments = self.lock();
        let channels = moments.mean.len();
        for (argument, values) in [("mean", &mean), ("var", &var)] {
            if values.len() != channels {
                return Err(OpError::Shape {
                    op: "RunningStats::set",
                    argument,
                    got: vec![values.len()],
                    expected: format!("[{channels}]"),
                }
                .into());
            }
        }
        (moments.mean, moments.var) = (mean, var);
        #[cfg(feature = "cuda")]
        {
            moments.on_gpu = None;
        }
        Ok(())
    }

    /// Copies of both as tensors `[C]` in f32, on the GPU if one holds them and else on the CPU.
    ///
    /// # Errors
    /// A GPU that holds them and cannot be asked.
    pub fn to_tensors(&self) -> Result<(Tensor, Tensor)> {
        let moments = self.lock();
        #[cfg(feature = "cuda")]
        if let Some((mean, var)) = &moments.on_gpu {
            return Ok((mean.copy()?, var.copy()?));
        }
        let tensor = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu);
        Ok((tensor(&moments.mean)?, tensor(&moments.var)?))
    }

    /// The moments as they are now, copied from a GPU if one holds them.
    pub(super) fn on_host(&self) -> Result<MutexGuard<'_, Moments>> {
        #[cfg_attr(not(feature = "cuda"), expect(unused_mut, reason = "a GPU may hold them"))]
        let mut moments = self.lock();
        #[cfg(feature = "cuda")]
        if let Some((mean, var)) = &moments.on_gpu {
            let both = (mean.to_vec1()?, var.to_vec1()?);
            (moments.mean, moments.var) = both;
        }
        Ok(moments)
    }

    /// Mean and variance on a GPU, whose kernels may move them from now on.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_gpu(&self, device: &Device) -> Result<(Tensor, Tensor)> {
        let held = self.lock().on_gpu.clone();
        if let Some(both) = held.filter(|(mean, _)| mean.device().same_device(device)) {
            return Ok(both);
        }
        let mut moments = self.on_host()?;
        let tensor = |values: &[f32]| Tensor::from_slice(values, values.len(), device);
        let both = (tensor(&moments.mean)?, tensor(&moments.var)?);
        moments.on_gpu = Some(both.clone());
        Ok(both)
    }

    /// What joins the processes, where the batch lies in several.
    pub(crate) fn sum(&self) -> Option<BatchSum> {
        let moments = self.lock();
        if moments.recording.is_some() { None } else { moments.sum.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Moments> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves towards the statistics of a batch.
    pub(super) fn update(&self, batch: &Statistics, values_per_channel: f64) -> Result<()> {
        let unbias = values_per_channel / (values_per_channel - 1.0);
        let mut moments = self.on_host()?;
        let blend = |old: f32, new: f64| ((1.0 - MOMENTUM) * f64::from(old) + MOMENTUM * new) as f32;
        for (running, mean) in moments.mean.iter_mut().zip(&batch.mean) {
            *running = blend(*running, *mean);
        }
        for (running, var) in moments.var.iter_mut().zip(&batch.var) {
            *running = blend(*running, *var * unbias);
        }
        #[cfg(feature = "cuda")]
        {
            moments.on_gpu = None;
        }
        Ok(())
    }
}
