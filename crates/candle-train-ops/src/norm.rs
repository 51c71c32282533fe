//! Batch normalisation fused with a residual addition and an activation function.

mod channels;
mod running;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, WithDType};
use rayon::prelude::*;

use crate::{
    Activation, BatchSum, OpError,
    activation::{BLOCK, Dims, Feature, GradientSlot, Kept, Repr, token_gradient, token_storage},
    buffer::Buffer,
    element::{Element, check_kind, check_shape, with_values},
    kernels::lanes::{self, Bounds},
    together,
};

#[cfg(feature = "cuda")]
pub(crate) use running::MOMENTUM;
pub use running::{BatchStatistics, RunningStats};

use channels::{Channels, Statistics};

const OP: &str = "batch_norm";

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
/// that of all processes; after [`RunningStats::record`] the running statistics stay as they
/// are. Otherwise the running statistics are used and left alone.
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
        if stats.is_recording() {
            stats.set_recorded(statistics.mean.clone(), statistics.var.clone());
        } else {
            stats.update(&statistics, count)?;
        }
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
