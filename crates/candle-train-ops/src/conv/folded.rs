//! Convolution for inference: batch normalisation folded into weight and bias, the
//! residual and the activation function applied before the result is written.

use std::sync::{Arc, OnceLock};

use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use crate::{
    Act, Activation, Conv2dSpec, OpError, RunningStats,
    activation::{BLOCK, Dims, Feature, Order, Repr, preferred_order, reorder},
    buffer::Buffer,
    conv::{
        Geometry,
        correlation::Correlation,
        depthwise, direct, general, packing, stored,
        winograd::{self, Winograd},
        write::Write,
    },
    element::{check_kind, check_shape, with_values},
    kernels::{VectorWidth, direct::Finish, lanes, vector_width},
    norm,
};
#[cfg(target_arch = "x86_64")]
use {
    crate::{conv::mixed, kernels::mixed::Engine},
    half::bf16,
};

const OP: &str = "folded_conv2d";

/// A convolution followed by batch normalisation with its running statistics, made
/// into one convolution with a bias.
///
/// Keeps a copy of the numbers at the time of folding, packed for the kernels of
/// this machine, and no graph: no gradient flows through it. Clones share the copy.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_train_ops::{Act, Activation, Conv2dSpec, FoldedConv2d, RunningStats};
/// # fn main() -> candle_core::Result<()> {
/// let weight_oihw = Tensor::ones((16, 1, 1, 1), DType::F32, &Device::Cpu)?;
/// let (gamma_c, beta_c) = (weight_oihw.flatten_all()?, Tensor::zeros(16, DType::F32, &Device::Cpu)?);
/// let stats = RunningStats::new(16);
/// stats.set(vec![1.0; 16], vec![4.0; 16])?;
/// let conv = FoldedConv2d::new(&weight_oihw, &gamma_c, &beta_c, &stats, Conv2dSpec::default())?;
/// let x = Activation::from_nchw(&Tensor::new(&[[[[0f32, 5.0]]]], &Device::Cpu)?)?;
/// let y = conv.forward(&x, None, Act::Relu)?;
/// assert_eq!(y.dims(), (1, 16, 1, 2));
/// // (0 - 1) / 2 is cut off, (5 - 1) / 2 is not.
/// let y = y.to_nchw()?.flatten_all()?.to_vec1::<f32>()?;
/// assert!(y[0] == 0.0 && (y[1] - 2.0).abs() < 1e-4);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct FoldedConv2d {
    form: Form,
    shape_oihw: Vec<usize>,
    spec: Conv2dSpec,
}

#[derive(Clone)]
enum Form {
    Cpu(Arc<Folded>),
    #[cfg(feature = "cuda")]
    Gpu(Arc<crate::cuda::Folded>),
}

struct Folded {
    /// OIHW, scaled.
    weight: Vec<f32>,
    bias: Vec<f32>,
    packed: OnceLock<Buffer<f32>>,
    transformed: OnceLock<Buffer<f32>>,
    #[cfg(target_arch = "x86_64")]
    rounded: OnceLock<Buffer<bf16>>,
    #[cfg(target_arch = "x86_64")]
    rounded_transformed: OnceLock<Buffer<bf16>>,
}

impl FoldedConv2d {
    /// Folds `(conv(x) - mean) / sqrt(var + epsilon) * gamma + beta` into one convolution.
    ///
    /// # Shapes
    /// - `weight_oihw`: `[O, I / groups, KH, KW]`, f32
    /// - `gamma_c`, `beta_c`, `stats`: `[O]`, f32
    ///
    /// # Errors
    /// Shapes that do not fit, another dtype or device.
    pub fn new(
        weight_oihw: &Tensor,
        gamma_c: &Tensor,
        beta_c: &Tensor,
        stats: &RunningStats,
        spec: Conv2dSpec,
    ) -> Result<Self> {
        let channels = weight_oihw.dims4()?.0;
        check_shape(OP, "gamma_c", gamma_c, &[channels])?;
        check_shape(OP, "beta_c", beta_c, &[channels])?;
        if stats.channels() != channels {
            let (got, expected) = (vec![stats.channels()], format!("[{channels}]"));
            return Err(OpError::Shape { op: OP, argument: "stats", got, expected }.into());
        }
        let shape_oihw = weight_oihw.dims().to_vec();
        #[cfg(feature = "cuda")]
        if weight_oihw.device().is_cuda() {
            let folded = crate::cuda::Folded::new(weight_oihw, gamma_c, beta_c, stats)?;
            return Ok(Self { form: Form::Gpu(Arc::new(folded)), shape_oihw, spec });
        }
        for (argument, tensor) in [("weight_oihw", weight_oihw), ("gamma_c", gamma_c), ("beta_c", beta_c)] {
            check_kind(OP, argument, tensor, DType::F32)?;
        }
        let (mean, var) = (stats.mean()?, stats.var()?);
        let numbers = |tensor: &Tensor| with_values::<f32, _>(OP, tensor, |values| Ok(values.to_vec()));
        let (mut weight, gamma, beta) = (numbers(weight_oihw)?, numbers(gamma_c)?, numbers(beta_c)?);
        let mut bias = vec![0.0; channels];
        let kernel_len = (weight.len() / channels.max(1)).max(1);
        for (channel, kernel) in weight.chunks_exact_mut(kernel_len).enumerate() {
            let scale = norm::scale(f64::from(gamma[channel]), f64::from(var[channel]), stats.epsilon());
            bias[channel] = (f64::from(beta[channel]) - f64::from(mean[channel]) * scale) as f32;
            for value in kernel {
                *value = (f64::from(*value) * scale) as f32;
            }
        }
        let folded = Folded {
            weight,
            bias,
            packed: OnceLock::new(),
            transformed: OnceLock::new(),
            #[cfg(target_arch = "x86_64")]
            rounded: OnceLock::new(),
            #[cfg(target_arch = "x86_64")]
            rounded_transformed: OnceLock::new(),
        };
        Ok(Self { form: Form::Cpu(Arc::new(folded)), shape_oihw, spec })
    }

    /// `act(conv(x) + bias + residual)`, cut off from any graph.
    ///
    /// # Shapes
    /// - `x`: `[N, I, H, W]`, f32 or stored in bf16
    /// - `residual`, result: `[N, O, OH, OW]`, as [`conv2d`](crate::conv2d)
    ///
    /// # Errors
    /// Shapes that do not fit, f64.
    pub fn forward(&self, x: &Activation, residual: Option<&Activation>, act: Act) -> Result<Activation> {
        let (n, c, h, w) = x.dims();
        let geometry = Geometry::new(Dims { n, c, h, w }, &self.shape_oihw, self.spec)?;
        if let Some(residual) = residual.filter(|residual| residual.dims() != geometry.output.to_tuple()) {
            let (n, c, h, w) = residual.dims();
            let (got, expected) = (vec![n, c, h, w], format!("{:?}", geometry.output.to_vec()));
            return Err(OpError::Shape { op: OP, argument: "residual", got, expected }.into());
        }
        match &self.form {
            Form::Cpu(folded) => {
                #[cfg(target_arch = "x86_64")]
                if let Some(engine) = mixed::takes(&geometry) {
                    let residual = residual.map(|residual| half(residual, "residual")).transpose()?;
                    let y = folded.mixed(engine, &half(x, "x")?, residual.as_ref(), act, &geometry)?;
                    return Ok(y.into());
                }
                let residual = residual.map(|residual| single(residual, "residual")).transpose()?;
                stored(folded.forward(&single(x, "x")?, residual.as_ref(), act, &geometry)?)
            }
            #[cfg(feature = "cuda")]
            Form::Gpu(folded) => {
                let residual = residual.map(|residual| on_gpu(residual, "residual")).transpose()?;
                folded.forward(on_gpu(x, "x")?, residual, &geometry, act).map(Activation::from)
            }
        }
    }
}

/// The activation in f32.
fn single(x: &Activation, argument: &'static str) -> Result<Feature<f32>> {
    match &x.0 {
        Repr::F32(x) => Ok(x.clone()),
        Repr::Bf16(x) => x.detach().widened(),
        Repr::F64(_) => Err(f64_refused(argument).into()),
        #[cfg(feature = "cuda")]
        Repr::Gpu(_) => Err(OpError::Device { op: OP, argument }.into()),
    }
}

/// The activation in bf16.
#[cfg(target_arch = "x86_64")]
fn half(x: &Activation, argument: &'static str) -> Result<Feature<bf16>> {
    match &x.0 {
        Repr::F32(x) => x.detach().narrowed(),
        Repr::Bf16(x) => Ok(x.clone()),
        Repr::F64(_) => Err(f64_refused(argument).into()),
        #[cfg(feature = "cuda")]
        Repr::Gpu(_) => Err(OpError::Device { op: OP, argument }.into()),
    }
}

fn f64_refused(argument: &'static str) -> OpError {
    OpError::DType { op: OP, argument, got: "f64".to_owned(), expected: "f32".to_owned() }
}

#[cfg(feature = "cuda")]
fn on_gpu<'a>(x: &'a Activation, argument: &'static str) -> crate::error::Checked<&'a crate::cuda::Feature> {
    match &x.0 {
        Repr::Gpu(x) => Ok(x),
        _ => {
            let reason = format!("{argument} is on the CPU, the weight on a GPU");
            Err(OpError::Setting { op: OP, reason })
        }
    }
}

impl Folded {
    fn forward(
        &self,
        x: &Feature<f32>,
        residual: Option<&Feature<f32>>,
        act: Act,
        geometry: &Geometry,
    ) -> Result<Feature<f32>> {
        if depthwise::takes(geometry) {
            return depthwise::folded(x, &self.weight, &self.bias, residual, act.bounds(), *geometry);
        }
        if let Some(width) = vector_width().filter(|_| geometry.groups == 1 && direct::takes(geometry)) {
            return self.direct(width, x, residual, act, geometry);
        }
        self.general(x, residual, act, geometry)
    }

    #[cfg(target_arch = "x86_64")]
    fn mixed(
        &self,
        engine: Engine,
        x: &Feature<bf16>,
        residual: Option<&Feature<bf16>>,
        act: Act,
        geometry: &Geometry,
    ) -> Result<Feature<bf16>> {
        let x = x.in_order(Order::Blocked)?;
        let residual = residual.map(|residual| residual.in_order(Order::Blocked)).transpose()?;
        let write = Write::Finish(Finish {
            bias: &self.bias,
            residual: residual.as_ref().map(|residual| &residual.values[..]),
            bounds: act.bounds(),
        });
        let mut y = Buffer::unspecified(geometry.output.count());
        let plan = mixed::Plan::forward(engine, *geometry);
        let weight = if plan.is_winograd() { &self.rounded_transformed } else { &self.rounded };
        plan.run(&x.values, weight.get_or_init(|| plan.pack(&self.weight)), &mut y, write);
        Feature::constant(y, geometry.output, Order::Blocked)
    }

    fn direct(
        &self,
        width: VectorWidth,
        x: &Feature<f32>,
        residual: Option<&Feature<f32>>,
        act: Act,
        geometry: &Geometry,
    ) -> Result<Feature<f32>> {
        let x = match packing::input_block(geometry) {
            1 => x.in_order(Order::Plain)?,
            _ => x.in_order(Order::Blocked)?,
        };
        let residual = residual.map(|residual| residual.in_order(Order::Blocked)).transpose()?;
        let write = Write::Finish(Finish {
            bias: &self.bias,
            residual: residual.as_ref().map(|residual| &residual.values[..]),
            bounds: act.bounds(),
        });
        let mut y = Buffer::unspecified(geometry.output.count());
        if winograd::takes(geometry) {
            let plan = Winograd::forward(geometry);
            let weight = self.transformed.get_or_init(|| plan.transform_weight(&self.weight));
            plan.run(width, &x.values, weight, &mut y, write);
        } else {
            let weight = self.packed.get_or_init(|| packing::for_forward(&self.weight, geometry));
            Correlation::forward(geometry).run(width, &x.values, weight, &mut y, write);
        }
        Feature::constant(y, geometry.output, Order::Blocked)
    }

    fn general(
        &self,
        x: &Feature<f32>,
        residual: Option<&Feature<f32>>,
        act: Act,
        geometry: &Geometry,
    ) -> Result<Feature<f32>> {
        let x = x.in_order(Order::Plain)?;
        let residual = residual.map(|residual| residual.in_order(Order::Plain)).transpose()?;
        let sums = general::forward(&x.values, &self.weight, geometry);
        let Dims { c, h, w, .. } = geometry.output;
        let mut y = Buffer::unspecified(sums.len());
        y.par_chunks_mut(h * w).zip(sums.par_chunks(h * w)).enumerate().for_each(|(plane, (y, sums))| {
            let residual = residual.as_ref().map_or(&[][..], |r| &r.values[plane * h * w..][..h * w]);
            let bias = [self.bias[plane % c]; BLOCK];
            lanes::normalise(y, sums, residual, &[1.0; BLOCK], &bias, act.bounds());
        });
        let order = preferred_order::<f32>(c);
        Feature::constant(reorder(&y, geometry.output, Order::Plain, order), geometry.output, order)
    }
}
