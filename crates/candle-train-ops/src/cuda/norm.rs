//! Batch normalisation fused with a residual addition and an activation function.

use std::sync::Arc;

use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor,
    cuda_backend::cudarc::driver::CudaSlice,
};

use super::{
    context::{Context, Kind, address_of, launch},
    conv::check_residual,
    feature::{Feature, GradientSlot, Kept, check_f32, forward_makes_a_token, token_gradient},
    memory::Numbers,
};
use crate::{
    Act, BatchSum, OpError, RunningStats, activation::Dims, backward, element::check_shape, norm::MOMENTUM,
    together,
};

const OP: &str = "batch_norm";

/// Numbers per channel that normalisation keeps: mean, 1 / deviation, scale, shift.
const STATISTICS: usize = 4;

pub(crate) fn batch_norm(
    x: &Feature,
    (gamma_c, beta_c): (&Tensor, &Tensor),
    stats: &RunningStats,
    residual: Option<&Feature>,
    act: Act,
    train: bool,
) -> Result<Feature> {
    let dims = x.dims;
    for (argument, tensor) in [("gamma_c", gamma_c), ("beta_c", beta_c)] {
        check_f32(OP, argument, tensor)?;
        check_shape(OP, argument, tensor, &[dims.c])?;
    }
    if stats.channels() != dims.c {
        let (got, expected) = (vec![stats.channels()], format!("[{}]", dims.c));
        return Err(OpError::Shape { op: OP, argument: "stats", got, expected }.into());
    }
    if let Some(residual) = residual {
        check_residual(OP, x, residual)?;
    }
    let context = Context::of(x.token.device())?;
    let (statistics, shared) = match train {
        true => batch_statistics(&context, x, (gamma_c, beta_c), stats)?,
        false => (running_statistics(&context, (gamma_c, beta_c), stats)?, None),
    };
    let residual_values = residual.map(|residual| &*residual.values);
    let y = normalise(&context, &x.values, residual_values, &statistics, dims, act)?;
    Feature::produce(y, dims, |y, output| {
        let norm = BatchNorm {
            input: x.clone_without_token(),
            residual: residual
                .filter(|residual| residual.token.track_op())
                .map(|residual| Arc::clone(&residual.gradient)),
            // Without a residual x tells where the activation function was flat.
            y: (residual.is_some() && act != Act::Identity).then(|| Arc::clone(y)),
            act,
            input_learns: x.token.track_op(),
            statistics,
            train,
            shared,
            output,
        };
        let token = match residual {
            Some(residual) => x.token.apply_op2(&residual.token, Join)?,
            None => x.token.clone(),
        };
        token.apply_op3(gamma_c, beta_c, norm)
    })
}

/// A batch that lies in several processes.
struct Shared {
    sum: BatchSum,
    /// What all of them hold of it: the number of values of a channel, then its two sums.
    moments: CudaSlice<f64>,
}

/// Mean and variance of the batch; moves the running ones.
fn batch_statistics(
    context: &Context,
    x: &Feature,
    (gamma_c, beta_c): (&Tensor, &Tensor),
    stats: &RunningStats,
) -> Result<(Numbers, Option<Shared>)> {
    let recording = stats.is_recording();
    if together::batch_parts() > 1 && !recording {
        let reason = "one process takes a batch in parts on the CPU only; set batch_parts = 1".to_owned();
        return Err(OpError::Setting { op: OP, reason }.into());
    }
    let sum = stats.sum();
    let dims = x.dims;
    let rows = dims.count() / dims.c;
    if sum.is_none() && rows <= 1 {
        let reason = "training needs more than one value per channel".to_owned();
        return Err(OpError::Setting { op: OP, reason }.into());
    }
    let (suffix, held) = x.values.kind.by_channels(dims.c);
    let config = context.by_rows(rows, dims.c, held);
    let blocks = config.grid_dim.0 as i32;
    let partial = Numbers::unspecified(context, blocks as usize * 2 * dims.c, Kind::F32)?;
    let (x_at, partial_at) = (x.values.address(), partial.address());
    let (rows, channels) = (rows as i64, dims.c as i32);
    launch!(context, "moments", suffix, config, x_at, partial_at, rows, channels);

    let statistics = Numbers::unspecified(context, STATISTICS * dims.c, Kind::F32)?;
    let statistics_at = statistics.address();
    // A momentum of 1 leaves the statistics of this batch alone in what is passed as running ones.
    let (mean, var) = match recording {
        true => (x_zeros(x, dims.c)?, x_zeros(x, dims.c)?),
        false => stats.on_gpu(x.token.device())?,
    };
    let momentum = if recording { 1.0 } else { MOMENTUM };
    let (mean_at, var_at) =
        (address_of(&context.device, OP, "stats", &mean)?, address_of(&context.device, OP, "stats", &var)?);
    let (gamma_c, beta_c) = (gamma_c.contiguous()?, beta_c.contiguous()?);
    let (gamma_at, beta_at) = (
        address_of(&context.device, OP, "gamma_c", &gamma_c)?,
        address_of(&context.device, OP, "beta_c", &beta_c)?,
    );
    let (suffix, by_channel, epsilon) = (x.values.kind.suffix(), context.by_channel(dims.c), stats.epsilon());
    let Some(sum) = sum else {
        launch!(
            context,
            "finish_moments",
            suffix,
            by_channel,
            partial_at,
            blocks,
            x_at,
            rows,
            channels,
            epsilon,
            momentum,
            gamma_at,
            beta_at,
            mean_at,
            var_at,
            statistics_at,
        );
        if recording {
            let wide = |values: &Tensor| -> Result<Vec<f64>> {
                Ok(values.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
            };
            // The kernel leaves the unbiased variance.
            let biased = (rows - 1) as f64 / rows as f64;
            stats.set_recorded(wide(&mean)?, wide(&var)?.into_iter().map(|var| var * biased).collect());
        }
        return Ok((statistics, None));
    };
    let mut moments = context.sums(1 + 2 * dims.c)?;
    let at = context.address_of_sums(&moments);
    launch!(
        context,
        "shared_moments",
        suffix,
        by_channel,
        partial_at,
        blocks,
        x_at,
        rows,
        channels,
        mean_at,
        at
    );
    sum.add_up_on(context, &mut moments)?;
    launch!(
        context,
        "finish_shared_moments",
        "",
        context.elementwise(dims.c),
        at,
        channels,
        epsilon,
        momentum,
        gamma_at,
        beta_at,
        mean_at,
        var_at,
        statistics_at,
    );
    Ok((statistics, Some(Shared { sum, moments })))
}

/// `[n]` zeros where `x` lies.
fn x_zeros(x: &Feature, n: usize) -> Result<Tensor> {
    Tensor::zeros(n, candle_core::DType::F32, x.token.device())
}

/// What normalisation by the running statistics needs.
pub(super) fn running_statistics(
    context: &Context,
    (gamma_c, beta_c): (&Tensor, &Tensor),
    stats: &RunningStats,
) -> Result<Numbers> {
    let channels = stats.channels();
    let statistics = Numbers::unspecified(context, STATISTICS * channels, Kind::F32)?;
    let (mean, var) = stats.on_gpu(gamma_c.device())?;
    launch!(
        context,
        "running_statistics",
        "",
        context.elementwise(channels),
        address_of(&context.device, OP, "stats", &mean)?,
        address_of(&context.device, OP, "stats", &var)?,
        address_of(&context.device, OP, "gamma_c", &gamma_c.contiguous()?)?,
        address_of(&context.device, OP, "beta_c", &beta_c.contiguous()?)?,
        stats.epsilon(),
        channels as i32,
        statistics.address(),
    );
    Ok(statistics)
}

/// `act(x * scale + shift + residual)`.
pub(super) fn normalise(
    context: &Context,
    x: &Numbers,
    residual: Option<&Numbers>,
    statistics: &Numbers,
    dims: Dims,
    act: Act,
) -> Result<Numbers> {
    let y = Numbers::unspecified(context, dims.count(), x.kind)?;
    let (suffix, held) = x.kind.by_channels(dims.c);
    let rows = dims.count() / dims.c;
    let (lo, hi) = act.bounds::<f32>();
    launch!(
        context,
        "normalise",
        suffix,
        context.by_rows(rows, dims.c, held),
        x.address(),
        residual.map_or(0, Numbers::address),
        y.address(),
        statistics.address(),
        rows as i64,
        dims.c as i32,
        lo,
        hi,
    );
    Ok(y)
}

/// Makes one token of those of an activation and a residual: an op of candle has three
/// arguments at most.
struct Join;

impl CustomOp2 for Join {
    fn name(&self) -> &'static str {
        "join"
    }

    forward_makes_a_token!(2);

    fn bwd(
        &self,
        input: &Tensor,
        residual: &Tensor,
        _: &Tensor,
        token_dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let wanted = |token: &Tensor| token.track_op().then(|| token_gradient(token_dy));
        Ok((wanted(input), wanted(residual)))
    }
}

struct BatchNorm {
    input: Kept,
    input_learns: bool,
    /// Of a residual that wants its gradient.
    residual: Option<Arc<GradientSlot>>,
    y: Option<Arc<Numbers>>,
    act: Act,
    statistics: Numbers,
    train: bool,
    /// Present where the batch lies in several processes.
    shared: Option<Shared>,
    output: Arc<GradientSlot>,
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        OP
    }

    forward_makes_a_token!(3);

    fn bwd(
        &self,
        token: &Tensor,
        gamma_c: &Tensor,
        beta_c: &Tensor,
        _: &Tensor,
        token_dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let context = Context::of(token_dy.device())?;
        let dy = self.output.take(OP)?;
        let Kept { values: x, dims, .. } = &self.input;
        let (suffix, held) = x.kind.by_channels(dims.c);
        let config = context.by_rows(dims.count() / dims.c, dims.c, held);
        let (rows, channels) = ((dims.count() / dims.c) as i64, dims.c as i32);
        let (lo, hi) = self.act.bounds::<f32>();
        let (x_at, dy_at, statistics) = (x.address(), dy.address(), self.statistics.address());
        // Where there is a result, the first kernel cuts dy and nothing is left for the second.
        let (y_at, left) = match &self.y {
            Some(y) => (y.address(), OPEN),
            None => (0, (lo, hi)),
        };

        let blocks = config.grid_dim.0;
        let partial = Numbers::unspecified(&context, blocks as usize * 2 * dims.c, Kind::F32)?;
        let at = partial.address();
        launch!(
            context,
            "gradient_sums",
            suffix,
            config,
            dy_at,
            x_at,
            y_at,
            statistics,
            at,
            rows,
            channels,
            lo,
            hi,
        );
        let (dgamma, dgamma_at) = context.tensor(dims.c)?;
        let (dbeta, dbeta_at) = context.tensor(dims.c)?;
        let line = Numbers::unspecified(&context, 3 * dims.c, Kind::F32)?;
        let line_at = line.address();
        match &self.shared {
            None => launch!(
                context,
                "finish_gradient",
                "",
                context.by_channel(dims.c),
                at,
                blocks as i32,
                rows,
                channels,
                i32::from(self.train),
                statistics,
                dgamma_at,
                dbeta_at,
                line_at,
            ),
            Some(Shared { sum, moments }) => {
                let mut sums = context.sums(2 * dims.c)?;
                let (sums_at, count_at) = (context.address_of_sums(&sums), context.address_of_sums(moments));
                let by_channel = context.by_channel(dims.c);
                launch!(context, "shared_gradient", "", by_channel, at, blocks as i32, channels, sums_at);
                sum.add_up_on(&context, &mut sums)?;
                launch!(
                    context,
                    "finish_shared_gradient",
                    "",
                    context.elementwise(dims.c),
                    sums_at,
                    count_at,
                    channels,
                    statistics,
                    dgamma_at,
                    dbeta_at,
                    line_at,
                );
            }
        }
        if self.input_learns {
            let dx = Numbers::unspecified(&context, dims.count(), x.kind)?;
            launch!(
                context,
                "input_gradient",
                suffix,
                config,
                dy_at,
                x_at,
                statistics,
                line_at,
                dx.address(),
                rows,
                channels,
                left.0,
                left.1,
            );
            self.input.gradient.add(&context, dx)?;
        }
        if let Some(residual) = &self.residual {
            residual.add(&context, dy)?;
        }
        let wanted = |parameter: &Tensor, gradient| match parameter.track_op() {
            true => backward::offer_affine(parameter, gradient),
            false => Ok(None),
        };
        let of_token = token.track_op().then(|| token_gradient(token_dy));
        Ok((of_token, wanted(gamma_c, dgamma)?, wanted(beta_c, dbeta)?))
    }
}

/// Bounds that cut nothing off.
const OPEN: (f32, f32) = (f32::NEG_INFINITY, f32::INFINITY);
