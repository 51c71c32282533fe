//! Batch normalisation fused with a residual addition and an activation function.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, WithDType};
use rayon::prelude::*;

use crate::{
    Activation, BatchSum, OpError,
    activation::{BLOCK, Dims, Feature, GradientSlot, Kept, Repr, token_gradient, token_storage},
    buffer::Buffer,
    element::{Element, check_kind, check_shape, with_values},
    kernels::lanes::{self, Bounds, Lanes},
    together,
};

const OP: &str = "batch_norm";

/// Added to the variance before its square root unless told otherwise, as PyTorch.
const EPSILON: f64 = 1e-5;

/// Weight of the new batch in the running statistics, as PyTorch.
pub(crate) const MOMENTUM: f64 = 0.1;

/// Running mean and unbiased variance per channel, `[C]` f32; updated by every
/// training pass, used by evaluation, saved with the model. Clones share them.
#[derive(Clone, Debug)]
pub struct RunningStats(Arc<Mutex<Moments>>);

#[derive(Clone, Debug)]
struct Moments {
    mean: Vec<f32>,
    var: Vec<f32>,
    /// Added to every variance before its square root.
    epsilon: f64,
    /// Joins the statistics of a batch whose parts lie in several processes.
    sum: Option<BatchSum>,
    /// Mean and variance while a GPU has them; those above are then out of date.
    #[cfg(feature = "cuda")]
    on_gpu: Option<(Tensor, Tensor)>,
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
    fn on_host(&self) -> Result<MutexGuard<'_, Moments>> {
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
        self.lock().sum.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Moments> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Activation function applied after the normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// None.
    Identity,
    /// `max(x, 0)`, with gradient 0 at 0.
    Relu,
    /// `min(max(x, 0), 6)`, with gradient 0 at 0 and 6.
    Relu6,
}

impl Act {
    /// The smallest and the largest result.
    pub(crate) fn bounds<T: Element>(self) -> Bounds<T> {
        let (lo, hi) = match self {
            Self::Identity => (f64::NEG_INFINITY, f64::INFINITY),
            Self::Relu => (0.0, f64::INFINITY),
            Self::Relu6 => (0.0, 6.0),
        };
        (T::from_f64(lo), T::from_f64(hi))
    }
}

/// What a normalised number is multiplied by.
pub(crate) fn scale(gamma: f64, var: f64, epsilon: f64) -> f64 {
    gamma / (var + epsilon).sqrt()
}

/// `act((x - mean) / sqrt(var + epsilon) * gamma + beta + residual)`, epsilon 1e-5
/// unless the statistics say otherwise.
///
/// In training mode mean and (biased) variance are those of the batch over N, H
/// and W, and the running statistics move by a tenth towards them, the variance
/// unbiased, as PyTorch's `BatchNorm2d`; after [`RunningStats::join`] the batch is
/// that of all processes. Otherwise the running statistics are used and left alone.
///
/// # Shapes
/// - `x`, `residual`, result: `[N, C, H, W]`
/// - `gamma_c`, `beta_c`: `[C]`, dtype of `x` or f32 where that is stored in bf16
///
/// # Errors
/// Shapes that do not fit; one value per channel in training mode; another dtype
/// or device.
pub fn batch_norm(
    x: &Activation,
    gamma_c: &Tensor,
    beta_c: &Tensor,
    stats: &RunningStats,
    residual: Option<&Activation>,
    act: Act,
    train: bool,
) -> Result<Activation> {
    let mixed = || OpError::DType {
        op: OP,
        argument: "residual",
        got: "of another type".to_owned(),
        expected: "the dtype of x".to_owned(),
    };
    let affine = (gamma_c, beta_c);
    match (&x.0, residual.map(|residual| &residual.0)) {
        (Repr::F32(x), None) => feature(x, affine, stats, None, act, train).map(Into::into),
        (Repr::F64(x), None) => feature(x, affine, stats, None, act, train).map(Into::into),
        (Repr::Bf16(x), None) => feature(x, affine, stats, None, act, train).map(Into::into),
        (Repr::F32(x), Some(Repr::F32(residual))) => {
            feature(x, affine, stats, Some(residual), act, train).map(Into::into)
        }
        (Repr::F32(x), Some(Repr::Bf16(residual))) => {
            feature(x, affine, stats, Some(&residual.widened()?), act, train).map(Into::into)
        }
        (Repr::Bf16(x), Some(Repr::Bf16(residual))) => {
            feature(x, affine, stats, Some(residual), act, train).map(Into::into)
        }
        (Repr::Bf16(x), Some(Repr::F32(residual))) => {
            feature(x, affine, stats, Some(&residual.narrowed()?), act, train).map(Into::into)
        }
        (Repr::F64(x), Some(Repr::F64(residual))) => {
            feature(x, affine, stats, Some(residual), act, train).map(Into::into)
        }
        #[cfg(feature = "cuda")]
        (Repr::Gpu(x), None) => crate::cuda::batch_norm(x, affine, stats, None, act, train).map(Into::into),
        #[cfg(feature = "cuda")]
        (Repr::Gpu(x), Some(Repr::Gpu(residual))) => {
            crate::cuda::batch_norm(x, affine, stats, Some(residual), act, train).map(Into::into)
        }
        _ => Err(mixed().into()),
    }
}

fn feature<T: Element>(
    x: &Feature<T>,
    (gamma_c, beta_c): (&Tensor, &Tensor),
    stats: &RunningStats,
    residual: Option<&Feature<T>>,
    act: Act,
    train: bool,
) -> Result<Feature<T>> {
    let dims = x.dims;
    for (argument, tensor) in [("gamma_c", gamma_c), ("beta_c", beta_c)] {
        check_kind(OP, argument, tensor, T::Wide::DTYPE)?;
        check_shape(OP, argument, tensor, &[dims.c])?;
    }
    if stats.channels() != dims.c {
        return Err(OpError::Shape {
            op: OP,
            argument: "stats",
            got: vec![stats.channels()],
            expected: format!("[{}]", dims.c),
        }
        .into());
    }
    let residual = match residual {
        Some(residual) if residual.dims != dims => {
            return Err(OpError::Shape {
                op: OP,
                argument: "residual",
                got: residual.dims.to_vec(),
                expected: format!("{:?}", dims.to_vec()),
            }
            .into());
        }
        Some(residual) => Some(residual.in_order(x.order)?),
        None => None,
    };
    let layout = Channels { dims, block: x.order.block() };
    let sum = if train { stats.sum() } else { None };
    let mut count = (dims.count() / dims.c) as f64;
    let statistics = if train {
        let statistics;
        (statistics, count) = layout.joint_statistics(&x.values, stats, sum.as_ref())?;
        if count <= 1.0 {
            let reason = "training needs more than one value per channel".to_owned();
            return Err(OpError::Setting { op: OP, reason }.into());
        }
        stats.update(&statistics, count)?;
        statistics
    } else {
        Statistics::from_running(stats)?
    };

    let affine = Tensor::cat(&[gamma_c, beta_c], 0)?;
    let values = with_values::<T::Wide, _>(OP, &affine, |affine| {
        let residual = residual.as_ref().map(|residual| &residual.values[..]);
        Ok(layout.normalise(&x.values, residual, affine, &statistics, act))
    })?;
    Feature::produce(values, dims, x.order, |y, output| {
        let no_residual = Tensor::zeros((), DType::F32, &Device::Cpu)?;
        let residual_token = residual.as_ref().map_or(&no_residual, |residual| &residual.token);
        x.token.apply_op3(
            &affine,
            residual_token,
            BatchNorm {
                layout,
                train,
                statistics,
                count,
                sum,
                input: x.clone_without_token(),
                residual: residual.as_ref().map(|residual| Arc::clone(&residual.gradient)),
                clamped: (act != Act::Identity).then(|| (Arc::clone(y), act.bounds())),
                output,
            },
        )
    })
}

/// What the normalisation subtracts and divides by, per channel.
struct Statistics {
    mean: Vec<f64>,
    /// Biased variance.
    var: Vec<f64>,
    /// Added to it.
    epsilon: f64,
}

impl Statistics {
    fn from_running(stats: &RunningStats) -> Result<Self> {
        let moments = stats.on_host()?;
        Ok(Self {
            mean: moments.mean.iter().map(|mean| f64::from(*mean)).collect(),
            var: moments.var.iter().map(|var| f64::from(*var)).collect(),
            epsilon: moments.epsilon,
        })
    }

    fn inverse_deviation(&self, channel: usize) -> f64 {
        1.0 / (self.var[channel] + self.epsilon).sqrt()
    }
}

impl RunningStats {
    fn update(&self, batch: &Statistics, values_per_channel: f64) -> Result<()> {
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

/// Walks an activation by groups of channels that lie side by side.
#[derive(Clone, Copy)]
struct Channels {
    dims: Dims,
    block: usize,
}

impl Channels {
    fn n_groups(self) -> usize {
        self.dims.c / self.block
    }

    fn plane_len(self) -> usize {
        self.dims.h * self.dims.w * self.block
    }

    /// The planes of one channel group, image by image.
    fn planes<T>(self, values: &[T], group: usize) -> impl Iterator<Item = &[T]> {
        values.chunks_exact(self.plane_len()).skip(group).step_by(self.n_groups())
    }

    /// Spreads per-channel numbers of one group over the lanes.
    fn lanes<T: Element>(self, group: usize, value: impl Fn(usize) -> f64) -> Lanes<T> {
        std::array::from_fn(|lane| T::from_f64(value(group * self.block + lane % self.block)))
    }

    /// Adds up the lanes that belong to one channel.
    fn fold(self, sums: Lanes<f64>) -> Lanes<f64> {
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
    fn joint_statistics<T: Element>(
        self,
        x: &[T],
        stats: &RunningStats,
        sum: Option<&BatchSum>,
    ) -> Result<(Statistics, f64)> {
        let n = self.dims.n;
        if sum.is_none() && together::batch_parts() == 1 {
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

    fn normalise<T: Element>(
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

type Clamped<T> = (Arc<Buffer<T>>, Bounds<<T as Element>::Wide>);

struct BatchNorm<T: Element> {
    layout: Channels,
    train: bool,
    statistics: Statistics,
    /// Values per channel behind the statistics.
    count: f64,
    /// Present where they lie in several processes.
    sum: Option<BatchSum>,
    input: Kept<T>,
    residual: Option<Arc<GradientSlot<T>>>,
    /// The result and its bounds where it has some: the gradient passes inside them.
    clamped: Option<Clamped<T>>,
    output: Arc<GradientSlot<T>>,
}

impl<T: Element> BatchNorm<T> {
    /// Per channel `sum(dy)` (the gradient of beta) and `sum(dy * (x - mean))`, over all
    /// parts and processes.
    fn sums(&self, dy: &[T]) -> Result<Vec<(f64, f64)>> {
        let Dims { n, c, .. } = self.layout.dims;
        let mut sums = vec![(0.0, 0.0); c];
        for images in together::parts_of(n) {
            let of_part = self.sums_of_part(dy, &images);
            for (sum, of_part) in sums.iter_mut().zip(of_part) {
                *sum = (sum.0 + of_part.0, sum.1 + of_part.1);
            }
        }
        self.whole(sums)
    }

    fn sums_of_part(&self, dy: &[T], images: &Range<usize>) -> Vec<(f64, f64)> {
        let n = self.layout.dims.n;
        let layout = Channels { dims: Dims { n: images.len(), ..self.layout.dims }, ..self.layout };
        let dy = &dy[together::of_images(dy, n, images)];
        let x = &self.input.values[together::of_images(&self.input.values, n, images)];
        let mut sums = vec![(0.0, 0.0); layout.dims.c];
        sums.par_chunks_mut(layout.block).enumerate().for_each(|(group, sums)| {
            let mean = layout.lanes(group, |c| self.statistics.mean[c]);
            let (mut sum, mut sum_times_x) = ([0.0; BLOCK], [0.0; BLOCK]);
            let x_planes = layout.planes(x, group);
            for (dy, x) in layout.planes(dy, group).zip(x_planes) {
                lanes::normalise_sums(dy, x, &mean, &mut sum, &mut sum_times_x);
            }
            let (sum, sum_times_x) = (layout.fold(sum), layout.fold(sum_times_x));
            for (lane, sums) in sums.iter_mut().enumerate() {
                *sums = (sum[lane], sum_times_x[lane]);
            }
        });
        sums
    }

    /// The sums over all processes, from those of this one.
    fn whole(&self, sums: Vec<(f64, f64)>) -> Result<Vec<(f64, f64)>> {
        let Some(sum) = &self.sum else {
            return Ok(sums);
        };
        let mut flat: Vec<f64> = sums.iter().flat_map(|&(dy, dy_times_x)| [dy, dy_times_x]).collect();
        sum.add_up(&mut flat)?;
        Ok(flat.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    /// Turns the gradient of the normalised values into that of `x`.
    fn input_gradient(
        &self,
        dy: Buffer<T>,
        keep_dy: bool,
        gamma: &[T::Wide],
        sums: &[(f64, f64)],
    ) -> (Buffer<T>, Option<Buffer<T>>) {
        let layout = self.layout;
        let count = self.count;
        let inverse = |c: usize| self.statistics.inverse_deviation(c);
        let scale = |c: usize| gamma[c].to_f64() * inverse(c);
        let train = f64::from(u8::from(self.train));
        let offset = |c: usize| -train * scale(c) * sums[c].0 / count;
        let slope = |c: usize| -train * scale(c) * inverse(c) * inverse(c) * sums[c].1 / count;
        let coefficients = |group: usize| {
            (
                layout.lanes::<T::Wide>(group, |c| self.statistics.mean[c]),
                layout.lanes::<T::Wide>(group, scale),
                layout.lanes::<T::Wide>(group, offset),
                layout.lanes::<T::Wide>(group, slope),
            )
        };
        let plane_len = layout.plane_len();
        let x = self.input.values.par_chunks(plane_len);
        if keep_dy {
            let mut dx = Buffer::unspecified(dy.len());
            dx.par_chunks_mut(plane_len).zip(dy.par_chunks(plane_len)).zip(x).enumerate().for_each(
                |(index, ((dx, dy), x))| {
                    let (mean, scale, offset, slope) = coefficients(index % layout.n_groups());
                    lanes::normalise_backward(dx, dy, x, &mean, &scale, &offset, &slope);
                },
            );
            (dx, Some(dy))
        } else {
            let mut dx = dy;
            dx.par_chunks_mut(plane_len).zip(x).enumerate().for_each(|(index, (dx, x))| {
                let (mean, scale, offset, slope) = coefficients(index % layout.n_groups());
                lanes::normalise_backward_in_place(dx, x, &mean, &scale, &offset, &slope);
            });
            (dx, None)
        }
    }
}

impl<T: Element> CustomOp3 for BatchNorm<T> {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok(token_storage())
    }

    fn bwd(
        &self,
        input_token: &Tensor,
        affine: &Tensor,
        residual_token: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let channels = self.layout.dims.c;
        let mut dy = self.output.take(OP)?;
        if let Some((y, bounds)) = &self.clamped {
            let plane_len = self.layout.plane_len();
            dy.par_chunks_mut(plane_len)
                .zip(y.par_chunks(plane_len))
                .for_each(|(dy, y)| lanes::clamp_backward(dy, y, *bounds));
        }
        let sums = self.sums(&dy)?;
        let affine_gradient = affine
            .track_op()
            .then(|| {
                let gamma = sums.iter().enumerate().map(|(channel, sums)| {
                    T::Wide::from_f64(sums.1 * self.statistics.inverse_deviation(channel))
                });
                let beta = sums.iter().map(|sums| T::Wide::from_f64(sums.0));
                let values: Vec<T::Wide> = gamma.chain(beta).collect();
                Tensor::from_vec(values, 2 * channels, &Device::Cpu)
            })
            .transpose()?;

        let residual = self.residual.as_ref().filter(|_| residual_token.track_op());
        let (mut input_gradient, mut residual_gradient) = (None, None);
        let mut residual_values = None;
        if input_token.track_op() {
            let (dx, dy) = with_values::<T::Wide, _>(OP, affine, |affine| {
                Ok(self.input_gradient(dy, residual.is_some(), &affine[..channels], &sums))
            })?;
            self.input.gradient.add(dx);
            input_gradient = token_gradient()?;
            residual_values = dy;
        } else if residual.is_some() {
            residual_values = Some(dy);
        }
        if let (Some(residual), Some(values)) = (residual, residual_values) {
            residual.add(values);
            residual_gradient = token_gradient()?;
        }
        Ok((input_gradient, affine_gradient, residual_gradient))
    }
}
