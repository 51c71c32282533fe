//! Convolution, its input gradient and its weight gradient.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CudaStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::{
    context::{Address, Context, Kind, address_of, launch},
    cudnn::{self, Addresses, Direction, PlanKey},
    deterministic,
    feature::{Feature, GradientSlot, Kept, check_f32, forward_makes_a_token, token_gradient},
    memory::Numbers,
    norm,
};
use crate::{Act, Conv2dSpec, OpError, RunningStats, backward, conv::Geometry};

const OP: &str = "conv2d";

pub(crate) fn conv2d(x: &Feature, weight_oihw: &Tensor, spec: Conv2dSpec) -> Result<Feature> {
    check_f32(OP, "weight_oihw", weight_oihw)?;
    let geometry = Geometry::new(x.dims, weight_oihw.dims(), spec)?;
    let context = Context::of(x.token.device())?;
    let weight = pack(&context, weight_oihw, x.values.kind)?;
    let y = forward(&context, &x.values, &weight, &geometry)?;
    Feature::produce(y, geometry.output, |_, output| {
        let (input, deterministic) = (x.clone_without_token(), deterministic());
        x.token.apply_op2(weight_oihw, Conv2d { geometry, input, weight, output, deterministic })
    })
}

fn forward(context: &Context, x: &Numbers, weight: &Numbers, geometry: &Geometry) -> Result<Numbers> {
    let y = Numbers::unspecified(context, geometry.output.count(), x.kind)?;
    let key = PlanKey::new(Direction::Forward, x.kind, geometry, deterministic());
    let addresses = Addresses { x: x.address(), weight: weight.address(), y: y.address() };
    cudnn::run(context, key, addresses)?;
    Ok(y)
}

/// Inputs of a group, pixels of the kernel, and pairs of output and input.
fn weight_extents(weight_oihw: &Tensor) -> Result<(i32, i32, usize)> {
    let (outputs, inputs, kernel_h, kernel_w) = weight_oihw.dims4()?;
    Ok((inputs as i32, (kernel_h * kernel_w) as i32, outputs * inputs))
}

/// The weight as cuDNN takes it: `[O, KH, KW, I]`, in the number type of the activations.
fn pack(context: &Context, weight_oihw: &Tensor, kind: Kind) -> Result<Numbers> {
    let packed = Numbers::unspecified(context, weight_oihw.elem_count(), kind)?;
    let weight_oihw = weight_oihw.contiguous()?;
    let (from, to) = (address_of(&context.device, OP, "weight_oihw", &weight_oihw)?, packed.address());
    let (inputs, taps, pairs) = weight_extents(&weight_oihw)?;
    let config = context.elementwise(pairs);
    launch!(context, "pack_weight", kind.suffix(), config, from, to, inputs, taps, pairs as i64);
    Ok(packed)
}

struct Conv2d {
    geometry: Geometry,
    input: Kept,
    weight: Numbers,
    output: Arc<GradientSlot>,
    /// The mode that the forward pass ran in.
    deterministic: bool,
}

impl Conv2d {
    fn run(
        &self,
        context: &Context,
        direction: Direction,
        x: Address,
        weight: Address,
        y: Address,
    ) -> Result<()> {
        let key = PlanKey::new(direction, self.weight.kind, &self.geometry, self.deterministic);
        cudnn::run(context, key, Addresses { x, weight, y })
    }
}

impl CustomOp2 for Conv2d {
    fn name(&self) -> &'static str {
        OP
    }

    forward_makes_a_token!(2);

    fn bwd(
        &self,
        input_token: &Tensor,
        weight_oihw: &Tensor,
        _: &Tensor,
        token_dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let context = Context::of(token_dy.device())?;
        let dy = self.output.take(OP)?;
        let kind = self.weight.kind;
        let mut weight_gradient = None;
        if weight_oihw.track_op() {
            let packed = Numbers::unspecified(&context, self.weight.len, kind)?;
            let x = self.input.values.address();
            self.run(&context, Direction::WeightGradient, x, packed.address(), dy.address())?;
            let (gradient, to) = context.tensor(weight_oihw.shape())?;
            let (inputs, taps, pairs) = weight_extents(weight_oihw)?;
            let (config, from) = (context.elementwise(pairs), packed.address());
            launch!(context, "unpack_weight", kind.suffix(), config, from, to, inputs, taps, pairs as i64);
            weight_gradient = backward::offer(weight_oihw, gradient)?;
        }
        let mut input_gradient = None;
        if input_token.track_op() {
            let dx = Numbers::unspecified(&context, self.geometry.input.count(), kind)?;
            let weight = self.weight.address();
            self.run(&context, Direction::InputGradient, dx.address(), weight, dy.address())?;
            self.input.gradient.add(&context, dx)?;
            input_gradient = Some(token_gradient(token_dy));
        }
        Ok((input_gradient, weight_gradient))
    }
}

/// A convolution with what batch normalisation by the running statistics makes of it.
pub(crate) struct Folded {
    weight_oihw: Tensor,
    /// Scale and shift of every channel, among what else normalisation needs.
    statistics: Numbers,
    /// The weight as it was last used.
    packed: Mutex<Option<Arc<Numbers>>>,
}

impl Folded {
    pub fn new(
        weight_oihw: &Tensor,
        gamma_c: &Tensor,
        beta_c: &Tensor,
        stats: &RunningStats,
    ) -> Result<Self> {
        let context = Context::of(weight_oihw.device())?;
        let statistics = norm::running_statistics(&context, (gamma_c, beta_c), stats)?;
        // A copy: optimisers change variables where they are.
        Ok(Self { weight_oihw: weight_oihw.copy()?.detach(), statistics, packed: Mutex::new(None) })
    }

    /// `act(conv(x) * scale + shift + residual)`, cut off from any graph.
    pub fn forward(
        &self,
        x: &Feature,
        residual: Option<&Feature>,
        geometry: &Geometry,
        act: Act,
    ) -> Result<Feature> {
        if let Some(residual) = residual {
            check_kind(OP, x, residual)?;
        }
        let context = Context::of(x.token.device())?;
        let weight = {
            let mut packed = self.packed.lock().unwrap_or_else(PoisonError::into_inner);
            match packed.as_ref().filter(|packed| packed.kind == x.values.kind) {
                Some(packed) => Arc::clone(packed),
                None => {
                    let weight = Arc::new(pack(&context, &self.weight_oihw, x.values.kind)?);
                    Arc::clone(packed.insert(weight))
                }
            }
        };
        let sums = forward(&context, &x.values, &weight, geometry)?;
        let residual = residual.map(|residual| &*residual.values);
        let y = norm::normalise(&context, &sums, residual, &self.statistics, geometry.output, act)?;
        Feature::constant(&context, y, geometry.output)
    }
}

/// Refuses a residual that cannot be added.
pub(super) fn check_residual(op: &'static str, x: &Feature, residual: &Feature) -> Result<()> {
    if residual.dims != x.dims {
        let (got, expected) = (residual.dims.to_vec(), format!("{:?}", x.dims.to_vec()));
        return Err(OpError::Shape { op, argument: "residual", got, expected }.into());
    }
    check_kind(op, x, residual)
}

fn check_kind(op: &'static str, x: &Feature, residual: &Feature) -> Result<()> {
    if residual.values.kind != x.values.kind {
        let (got, expected) = (residual.values.kind.suffix().to_owned(), x.values.kind.suffix().to_owned());
        return Err(OpError::DType { op, argument: "residual", got, expected }.into());
    }
    Ok(())
}
