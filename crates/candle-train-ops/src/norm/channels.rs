//! Activations channel by channel: their statistics, and what these do to them.

use candle_core::{Result, WithDType};
use rayon::prelude::*;

use super::Act;
use super::running::RunningStats;
use crate::{
    BatchSum,
    activation::{BLOCK, Dims},
    buffer::Buffer,
    element::Element,
    kernels::lanes::{self, Lanes},
    together,
};

/// What the normalisation subtracts and divides by, per channel.
pub(super) struct Statistics {
    pub mean: Vec<f64>,
    /// Biased variance.
    pub var: Vec<f64>,
    /// Added to it.
    pub epsilon: f64,
}

impl Statistics {
    pub fn from_running(stats: &RunningStats) -> Result<Self> {
        let moments = stats.on_host()?;
        Ok(Self {
            mean: moments.mean.iter().map(|mean| f64::from(*mean)).collect(),
            var: moments.var.iter().map(|var| f64::from(*var)).collect(),
            epsilon: moments.epsilon,
        })
    }

    pub fn inverse_deviation(&self, channel: usize) -> f64 {
        1.0 / (self.var[channel] + self.epsilon).sqrt()
    }
}

/// Walks an activation by groups of channels that lie side by side.
#[derive(Clone, Copy)]
pub(super) struct Channels {
    pub dims: Dims,
    pub block: usize,
}

impl Channels {
    pub fn n_groups(self) -> usize {
        self.dims.c / self.block
    }

    pub fn plane_len(self) -> usize {
        self.dims.h * self.dims.w * self.block
    }

    /// The planes of one channel group, image by image.
    pub fn planes<T>(self, values: &[T], group: usize) -> impl Iterator<Item = &[T]> {
        values.chunks_exact(self.plane_len()).skip(group).step_by(self.n_groups())
    }

    /// Spreads per-channel numbers of one group over the lanes.
    pub fn lanes<T: Element>(self, group: usize, value: impl Fn(usize) -> f64) -> Lanes<T> {
        std::array::from_fn(|lane| T::from_f64(value(group * self.block + lane % self.block)))
    }

    /// Adds up the lanes that belong to one channel.
    pub fn fold(self, sums: Lanes<f64>) -> Lanes<f64> {
        let mut folded = [0.0; BLOCK];
        for (lane, sum) in sums.into_iter().enumerate() {
            folded[lane % self.block] += sum;
        }
        folded
    }

    fn batch_statistics<T: Element>(self, x: &[T], epsilon: f64) -> Statistics {
        let count = (self.dims.count() / self.dims.c) as f64;
        let mut moments = vec![(0.0, 0.0); self.dims.c];
        moments.par_chunks_mut(self.block).enumerate().for_each(|(group, moments)| {
            // Sums of squares around a value of the channel itself lose no
            // digits when its mean is far from 0.
            let first = group * self.plane_len();
            let shift: Lanes<T::Wide> = std::array::from_fn(|lane| x[first + lane % self.block].widen());
            let (mut sum, mut sum_of_squares) = ([0.0; BLOCK], [0.0; BLOCK]);
            for plane in self.planes(x, group) {
                lanes::moments(plane, &shift, &mut sum, &mut sum_of_squares);
            }
            let (sum, sum_of_squares) = (self.fold(sum), self.fold(sum_of_squares));
            for (lane, moments) in moments.iter_mut().enumerate() {
                let mean = sum[lane] / count;
                let var = (sum_of_squares[lane] / count - mean * mean).max(0.0);
                *moments = (shift[lane].to_f64() + mean, var);
            }
        });
        let (mean, var) = moments.into_iter().unzip();
        Statistics { mean, var, epsilon }
    }

    /// The statistics of the whole batch and its number of values per channel, where it
    /// lies in several parts or processes.
    pub fn joint_statistics<T: Element>(
        self,
        x: &[T],
        stats: &RunningStats,
        sum: Option<&BatchSum>,
    ) -> Result<(Statistics, f64)> {
        let n = self.dims.n;
        if stats.is_recording() || (sum.is_none() && together::batch_parts() == 1) {
            let count = (self.dims.count() / self.dims.c) as f64;
            return Ok((self.batch_statistics(x, stats.epsilon()), count));
        }
        // Sums of squares around a mean that all parts agree on: the running one is near
        // enough that they lose no digits that matter.
        let centre = stats.mean()?;
        let mut sums = vec![0.0; 1 + 2 * self.dims.c];
        for images in together::parts_of(n) {
            let part = Self { dims: Dims { n: images.len(), ..self.dims }, ..self };
            let statistics = part.batch_statistics(&x[together::of_images(x, n, &images)], stats.epsilon());
            let count = (part.dims.count() / part.dims.c) as f64;
            sums[0] += count;
            let moments = statistics.mean.iter().zip(&statistics.var).zip(&centre);
            for (sums, ((mean, var), centre)) in sums[1..].chunks_exact_mut(2).zip(moments) {
                let apart = mean - f64::from(*centre);
                sums[0] += count * apart;
                sums[1] += count * (var + apart * apart);
            }
        }
        if let Some(sum) = sum {
            sum.add_up(&mut sums)?;
        }
        let count = sums[0];
        let moments = sums[1..].chunks_exact(2).zip(&centre).map(|(sums, centre)| {
            let apart = sums[0] / count;
            (f64::from(*centre) + apart, (sums[1] / count - apart * apart).max(0.0))
        });
        let (mean, var) = moments.unzip();
        Ok((Statistics { mean, var, epsilon: stats.epsilon() }, count))
    }

    pub fn normalise<T: Element>(
        self,
        x: &[T],
        residual: Option<&[T]>,
        affine: &[T::Wide],
        statistics: &Statistics,
        act: Act,
    ) -> Buffer<T> {
        let (gamma, beta) = affine.split_at(self.dims.c);
        let plane_len = self.plane_len();
        let scale = |c: usize| gamma[c].to_f64() * statistics.inverse_deviation(c);
        let offset = |c: usize| beta[c].to_f64() - statistics.mean[c] * scale(c);
        let mut y = Buffer::unspecified(x.len());
        y.par_chunks_mut(plane_len).zip(x.par_chunks(plane_len)).enumerate().for_each(|(index, (y, x))| {
            let group = index % self.n_groups();
            let residual = residual.map_or(&[][..], |r| &r[index * plane_len..][..plane_len]);
            let (scale, offset) = (self.lanes(group, scale), self.lanes(group, offset));
            lanes::normalise(y, x, residual, &scale, &offset, act.bounds());
        });
        y
    }
}
