//! Convolution, its input gradient and its weight gradient.
#![expect(unsafe_code, reason = "cuDNN is a C library; each block says why it is sound")]

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, Layout, Result, Shape, Tensor,
    backend::BackendStorage,
    cuda_backend::cudarc::cudnn::{
        ConvBackwardData, ConvBackwardFilter, ConvDescriptor, ConvForward, Cudnn, FilterDescriptor,
        TensorDescriptor, sys,
    },
};

use super::{
    check_fits,
    context::{Context, Number, by_number, extents, numbers, unspecified},
    deterministic, image_dims, not_on_the_cpu,
};
use crate::{Conv2dSpec, activation::Dims, conv::Geometry};

const OP: &str = "cuda::conv2d";

/// As [`conv2d`](crate::conv2d), on a GPU; any groups, depthwise too.
///
/// # Shapes
/// - `x_nchw`: `[N, I, H, W]`, f32 or f64
/// - `weight_oihw`: `[O, I / groups, KH, KW]`, dtype of `x_nchw`
/// - result: `[N, O, (H + 2 padding - KH) / stride + 1, (W + 2 padding - KW) / stride + 1]`
///
/// # Errors
/// As [`conv2d`](crate::conv2d); a tensor that is not on one CUDA device; whatever cuDNN
/// refuses.
pub fn conv2d(x_nchw: &Tensor, weight_oihw: &Tensor, spec: Conv2dSpec) -> Result<Tensor> {
    let input = image_dims(OP, x_nchw)?;
    check_fits(OP, "weight_oihw", weight_oihw, x_nchw)?;
    let geometry = Geometry::new(input, weight_oihw.dims(), spec)?;
    let key = PlanKey::new(&geometry, weight_oihw.dim(1)?);
    x_nchw.contiguous()?.apply_op2(&weight_oihw.contiguous()?, Forward(key))
}

/// Everything that a plan depends on, besides device and number type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PlanKey {
    /// `[N, I, H, W]`.
    input: [usize; 4],
    /// `[O, I / groups, KH, KW]`.
    weight: [usize; 4],
    /// `[N, O, OH, OW]`.
    output: [usize; 4],
    stride: usize,
    padding: usize,
    groups: usize,
    deterministic: bool,
}

impl PlanKey {
    fn new(geometry: &Geometry, group_channels: usize) -> Self {
        let Geometry { input, output, window, groups } = *geometry;
        let sizes = |dims: Dims| [dims.n, dims.c, dims.h, dims.w];
        Self {
            input: sizes(input),
            weight: [output.c, group_channels, window.kernel_h, window.kernel_w],
            output: sizes(output),
            stride: window.stride,
            padding: window.padding,
            groups,
            deterministic: deterministic(),
        }
    }
}

/// Descriptors, algorithms and their workspaces for one shape, made once a thread.
pub(super) struct Plan<T: Number> {
    conv: ConvDescriptor<T>,
    x: TensorDescriptor<T>,
    weight: FilterDescriptor<T>,
    y: TensorDescriptor<T>,
    forward: (sys::cudnnConvolutionFwdAlgo_t, usize),
    /// Chosen when first wanted: inference never does.
    input_gradient: RefCell<Option<(sys::cudnnConvolutionBwdDataAlgo_t, usize)>>,
    weight_gradient: RefCell<Option<(sys::cudnnConvolutionBwdFilterAlgo_t, usize)>>,
}

/// Number types that the context keeps plans of.
trait Planned: Number {
    fn plans(context: &Context) -> &RefCell<HashMap<PlanKey, Rc<Plan<Self>>>>;
}

impl Planned for f32 {
    fn plans(context: &Context) -> &RefCell<HashMap<PlanKey, Rc<Plan<f32>>>> {
        &context.plans_f32
    }
}

impl Planned for f64 {
    fn plans(context: &Context) -> &RefCell<HashMap<PlanKey, Rc<Plan<f64>>>> {
        &context.plans_f64
    }
}

fn plan<T: Planned>(context: &Context, key: &PlanKey) -> Result<Rc<Plan<T>>> {
    if let Some(plan) = T::plans(context).borrow().get(key) {
        return Ok(Rc::clone(plan));
    }
    let plan = Rc::new(Plan::new(&context.cudnn, key)?);
    T::plans(context).borrow_mut().insert(*key, Rc::clone(&plan));
    Ok(plan)
}

impl<T: Number> Plan<T> {
    fn new(cudnn: &Arc<Cudnn>, key: &PlanKey) -> Result<Self> {
        let wrap = candle_core::Error::wrap;
        let format = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NCHW;
        let [padding, stride, groups] = extents(OP, [key.padding, key.stride, key.groups])?;
        let mode = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
        let mut conv = cudnn.create_conv2d::<T>([padding; 2], [stride; 2], [1; 2], mode).map_err(wrap)?;
        conv.set_group_count(groups).map_err(wrap)?;
        // By default cuDNN may round factors to TF32.
        let math = match key.deterministic {
            true => sys::cudnnMathType_t::CUDNN_FMA_MATH,
            false => sys::cudnnMathType_t::CUDNN_DEFAULT_MATH,
        };
        conv.set_math_type(math).map_err(wrap)?;
        let x = cudnn.create_4d_tensor::<T>(format, extents(OP, key.input)?).map_err(wrap)?;
        let weight = cudnn.create_4d_filter::<T>(format, extents(OP, key.weight)?).map_err(wrap)?;
        let y = cudnn.create_4d_tensor::<T>(format, extents(OP, key.output)?).map_err(wrap)?;
        let op = ConvForward { conv: &conv, x: &x, w: &weight, y: &y };
        // All of cuDNN's forward algorithms give the same bits every time.
        let algorithm = op.pick_algorithm().map_err(wrap)?;
        let forward = (algorithm, op.get_workspace_size(algorithm).map_err(wrap)?);
        let (input_gradient, weight_gradient) = (RefCell::default(), RefCell::default());
        Ok(Self { conv, x, weight, y, forward, input_gradient, weight_gradient })
    }
}

#[derive(Clone, Copy)]
struct Forward(PlanKey);

impl CustomOp2 for Forward {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_the_cpu(OP)
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        by_number!(OP, x, forward(&self.0, (x, x_layout), (weight, weight_layout)))
    }

    fn bwd(
        &self,
        x_nchw: &Tensor,
        weight_oihw: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let mut gradients = (None, None);
        if x_nchw.track_op() {
            gradients.0 = Some(weight_oihw.apply_op2_no_bwd(&dy, &InputGradient(self.0))?);
        }
        if weight_oihw.track_op() {
            gradients.1 = Some(x_nchw.apply_op2_no_bwd(&dy, &WeightGradient(self.0))?);
        }
        Ok(gradients)
    }
}

struct InputGradient(PlanKey);

impl CustomOp2 for InputGradient {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_the_cpu(OP)
    }

    fn cuda_fwd(
        &self,
        weight: &CudaStorage,
        weight_layout: &Layout,
        dy: &CudaStorage,
        dy_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        by_number!(OP, dy, input_gradient(&self.0, (weight, weight_layout), (dy, dy_layout)))
    }
}

struct WeightGradient(PlanKey);

impl CustomOp2 for WeightGradient {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_the_cpu(OP)
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        dy: &CudaStorage,
        dy_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        by_number!(OP, dy, weight_gradient(&self.0, (x, x_layout), (dy, dy_layout)))
    }
}

type Argument<'a> = (&'a CudaStorage, &'a Layout);

fn forward<T: Planned>(key: &PlanKey, x: Argument<'_>, weight: Argument<'_>) -> Result<(CudaStorage, Shape)> {
    let context = Context::of(x.0.device())?;
    let plan = plan::<T>(&context, key)?;
    let op = ConvForward { conv: &plan.conv, x: &plan.x, w: &plan.weight, y: &plan.y };
    let (algorithm, bytes) = plan.forward;
    let (x, weight) = (numbers::<T>(OP, x.0, x.1)?, numbers::<T>(OP, weight.0, weight.1)?);
    let mut y = unspecified::<T>(&context.device, key.output.iter().product())?;
    context.with_workspace(bytes, |workspace| {
        // SAFETY: the descriptors give the extents that `conv2d` checked the tensors
        // against, all contiguous; the workspace has the size that cuDNN named.
        unsafe { op.launch(algorithm, Some(workspace), (T::ONE, T::ZERO), &x, &weight, &mut y) }
            .map_err(candle_core::Error::wrap)
    })?;
    Ok((CudaStorage::wrap_cuda_slice(y, context.device.clone()), Shape::from(key.output.to_vec())))
}

fn input_gradient<T: Planned>(
    key: &PlanKey,
    weight: Argument<'_>,
    dy: Argument<'_>,
) -> Result<(CudaStorage, Shape)> {
    let wrap = candle_core::Error::wrap;
    let context = Context::of(dy.0.device())?;
    let plan = plan::<T>(&context, key)?;
    let op = ConvBackwardData { conv: &plan.conv, dx: &plan.x, w: &plan.weight, dy: &plan.y };
    let chosen = *plan.input_gradient.borrow();
    let (algorithm, bytes) = match chosen {
        Some(chosen) => chosen,
        None => {
            let algorithm = match key.deterministic {
                // Algorithm 0 adds in whatever order its threads arrive.
                true => sys::cudnnConvolutionBwdDataAlgo_t::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1,
                false => op.pick_algorithm().map_err(wrap)?,
            };
            let chosen = (algorithm, op.get_workspace_size(algorithm).map_err(wrap)?);
            *plan.input_gradient.borrow_mut() = Some(chosen);
            chosen
        }
    };
    let (weight, dy) = (numbers::<T>(OP, weight.0, weight.1)?, numbers::<T>(OP, dy.0, dy.1)?);
    let mut dx = unspecified::<T>(&context.device, key.input.iter().product())?;
    context.with_workspace(bytes, |workspace| {
        // SAFETY: as in `forward`; candle's gradient has the shape of the result.
        unsafe { op.launch(algorithm, Some(workspace), (T::ONE, T::ZERO), &mut dx, &weight, &dy) }
            .map_err(wrap)
    })?;
    Ok((CudaStorage::wrap_cuda_slice(dx, context.device.clone()), Shape::from(key.input.to_vec())))
}

fn weight_gradient<T: Planned>(
    key: &PlanKey,
    x: Argument<'_>,
    dy: Argument<'_>,
) -> Result<(CudaStorage, Shape)> {
    let wrap = candle_core::Error::wrap;
    let context = Context::of(dy.0.device())?;
    let plan = plan::<T>(&context, key)?;
    let op = ConvBackwardFilter { conv: &plan.conv, x: &plan.x, dw: &plan.weight, dy: &plan.y };
    let chosen = *plan.weight_gradient.borrow();
    let (algorithm, bytes) = match chosen {
        Some(chosen) => chosen,
        None => {
            let algorithm = match key.deterministic {
                // Algorithms 0 and 3 add in whatever order their threads arrive.
                true => sys::cudnnConvolutionBwdFilterAlgo_t::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1,
                false => op.pick_algorithm().map_err(wrap)?,
            };
            let chosen = (algorithm, op.get_workspace_size(algorithm).map_err(wrap)?);
            *plan.weight_gradient.borrow_mut() = Some(chosen);
            chosen
        }
    };
    let (x, dy) = (numbers::<T>(OP, x.0, x.1)?, numbers::<T>(OP, dy.0, dy.1)?);
    let mut dw = unspecified::<T>(&context.device, key.weight.iter().product())?;
    context.with_workspace(bytes, |workspace| {
        // SAFETY: as in `forward`; candle's gradient has the shape of the result.
        unsafe { op.launch(algorithm, Some(workspace), (T::ONE, T::ZERO), &x, &mut dw, &dy) }.map_err(wrap)
    })?;
    Ok((CudaStorage::wrap_cuda_slice(dw, context.device.clone()), Shape::from(key.weight.to_vec())))
}
