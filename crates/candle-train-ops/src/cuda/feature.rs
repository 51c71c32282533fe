//! The value that flows between operations on a GPU, and how its gradient flows back: as
//! [`crate::activation`] does it on the CPU.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, backend::BackendStorage,
};

use super::{
    context::{Context, Kind, address_of, launch},
    memory::Numbers,
};
use crate::{OpError, activation::Dims, arithmetic};

/// An activation in the memory of a GPU, `[N, H, W, C]`.
#[derive(Clone)]
pub(crate) struct Feature {
    /// Scalar in candle's graph; its op runs this activation's backward.
    pub token: Tensor,
    pub values: Arc<Numbers>,
    pub gradient: Arc<GradientSlot>,
    pub dims: Dims,
}

/// A feature as an op keeps it: without the token, which would tie the graph into a cycle.
pub(super) struct Kept {
    pub values: Arc<Numbers>,
    pub gradient: Arc<GradientSlot>,
    pub dims: Dims,
}

/// Where the gradient of one activation waits until its producer runs backwards.
#[derive(Default)]
pub(crate) struct GradientSlot(Mutex<Option<Numbers>>);

impl GradientSlot {
    /// Adds a gradient; the first is moved in, not added to zeros.
    pub(super) fn add(&self, context: &Context, gradient: Numbers) -> Result<()> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*slot {
            None => *slot = Some(gradient),
            Some(sum) => {
                let (to, from, packs) = (sum.address(), gradient.address(), sum.packs());
                let config = context.elementwise(packs as usize);
                launch!(context, "add_assign", sum.kind.suffix(), config, to, from, packs);
            }
        }
        Ok(())
    }

    /// Takes the finished gradient when the producer runs backwards.
    pub fn take(&self, op: &'static str) -> Result<Numbers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().ok_or_else(|| {
            let reason = "no gradient arrived; do two backward passes run at once?".to_owned();
            OpError::Setting { op, reason }.into()
        })
    }
}

impl Feature {
    /// Takes a tensor in, rounded to bf16 where that is switched on.
    pub fn from_nchw(image_nchw: &Tensor) -> Result<Self> {
        const OP: &str = "from_nchw";
        check_f32(OP, "image_nchw", image_nchw)?;
        let got = image_nchw.dims().to_vec();
        let &[n, c, h, w] = image_nchw.dims() else {
            let expected = "[N, C, H, W]".to_owned();
            return Err(OpError::Shape { op: OP, argument: "image_nchw", got, expected }.into());
        };
        if got.contains(&0) {
            return Err(OpError::Empty { op: OP, argument: "image_nchw", got }.into());
        }
        let dims = Dims { n, c, h, w };
        let kind = if arithmetic::bf16() { Kind::Bf16 } else { Kind::F32 };
        let context = Context::of(image_nchw.device())?;
        let image_nchw = image_nchw.contiguous()?;
        let values = Numbers::unspecified(&context, dims.count(), kind)?;
        let (from, to) = (address_of(&context.device, OP, "image_nchw", &image_nchw)?, values.address());
        let (channels, pixels, count) = plane_extents(dims);
        let config = context.elementwise(dims.count());
        launch!(context, "from_nchw", kind.suffix(), config, from, to, channels, pixels, count);
        Self::produce(values, dims, |_, gradient| image_nchw.apply_op1(FromNchw { gradient, dims }))
    }

    /// The activation as a plain tensor `[N, C, H, W]`, f32.
    pub fn to_nchw(&self) -> Result<Tensor> {
        self.token.apply_op1(ToNchw(self.clone_without_token()))
    }

    /// Mean over all pixels, `[N, C]`, f32.
    pub fn global_avg_pool(&self) -> Result<Tensor> {
        self.token.apply_op1(GlobalAvgPool(self.clone_without_token()))
    }

    pub fn detach(&self) -> Self {
        Self { token: self.token.detach(), gradient: Arc::default(), ..self.clone() }
    }

    pub(super) fn clone_without_token(&self) -> Kept {
        let (values, gradient) = (Arc::clone(&self.values), Arc::clone(&self.gradient));
        Kept { values, gradient, dims: self.dims }
    }

    /// The result of an op: `bind` puts a token into candle's graph, given the slot where
    /// the gradient will arrive.
    pub(super) fn produce(
        values: Numbers,
        dims: Dims,
        bind: impl FnOnce(&Arc<Numbers>, Arc<GradientSlot>) -> Result<Tensor>,
    ) -> Result<Self> {
        let (values, gradient) = (Arc::new(values), Arc::default());
        let token = bind(&values, Arc::clone(&gradient))?;
        Ok(Self { token, values, gradient, dims })
    }

    /// The result of an op outside any graph.
    pub(super) fn constant(context: &Context, values: Numbers, dims: Dims) -> Result<Self> {
        let (token, _) = context.tensor(())?;
        Ok(Self { token, values: Arc::new(values), gradient: Arc::default(), dims })
    }

    /// The result of an op with one input; `backward` turns the gradient of the result into
    /// that of the input.
    pub(super) fn produce_from(
        &self,
        name: &'static str,
        values: Numbers,
        dims: Dims,
        backward: impl Fn(&Context, Numbers) -> Result<Numbers> + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::produce(values, dims, |_, output| {
            let input = Arc::clone(&self.gradient);
            self.token.apply_op1(Unary { name, input, output, backward: Box::new(backward) })
        })
    }
}

/// Channels, pixels of an image, and numbers, as the kernels take them.
fn plane_extents(dims: Dims) -> (i32, i32, i64) {
    (dims.c as i32, (dims.h * dims.w) as i32, dims.count() as i64)
}

/// Refuses a tensor of another type than f32, or in the memory of the CPU.
pub(super) fn check_f32(op: &'static str, argument: &'static str, tensor: &Tensor) -> Result<()> {
    if !tensor.device().is_cuda() {
        let reason = format!("{argument} is not on the GPU of the other arguments; move it with to_device");
        return Err(OpError::Setting { op, reason }.into());
    }
    if tensor.dtype() != DType::F32 {
        let (got, expected) = (tensor.dtype().as_str().to_owned(), "f32".to_owned());
        return Err(OpError::DType { op, argument, got, expected }.into());
    }
    Ok(())
}

/// The forward passes of an op with so many arguments: its values are there already, and a
/// new token stands for them in candle's graph.
macro_rules! forward_makes_a_token {
    (1) => {
        fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
            $crate::cuda::feature::not_on_the_cpu(self.name())
        }

        fn cuda_fwd(&self, token: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
            $crate::cuda::feature::token_storage(token)
        }
    };
    (2) => {
        fn cpu_fwd(
            &self,
            _: &CpuStorage,
            _: &Layout,
            _: &CpuStorage,
            _: &Layout,
        ) -> Result<(CpuStorage, Shape)> {
            $crate::cuda::feature::not_on_the_cpu(self.name())
        }

        fn cuda_fwd(
            &self,
            token: &CudaStorage,
            _: &Layout,
            _: &CudaStorage,
            _: &Layout,
        ) -> Result<(CudaStorage, Shape)> {
            $crate::cuda::feature::token_storage(token)
        }
    };
    (3) => {
        fn cpu_fwd(
            &self,
            _: &CpuStorage,
            _: &Layout,
            _: &CpuStorage,
            _: &Layout,
            _: &CpuStorage,
            _: &Layout,
        ) -> Result<(CpuStorage, Shape)> {
            $crate::cuda::feature::not_on_the_cpu(self.name())
        }

        fn cuda_fwd(
            &self,
            token: &CudaStorage,
            _: &Layout,
            _: &CudaStorage,
            _: &Layout,
            _: &CudaStorage,
            _: &Layout,
        ) -> Result<(CudaStorage, Shape)> {
            $crate::cuda::feature::token_storage(token)
        }
    };
}
pub(super) use forward_makes_a_token;

/// What the operations answer when candle runs them on the CPU.
pub(super) fn not_on_the_cpu<T>(op: &'static str) -> Result<T> {
    Err(OpError::Setting { op, reason: "internal: the token of a GPU is on the CPU".to_owned() }.into())
}

/// What a new token holds; nobody reads it.
pub(super) fn token_storage(token: &CudaStorage) -> Result<(CudaStorage, Shape)> {
    // SAFETY: candle only adds to it what it will not read either.
    #[expect(unsafe_code, reason = "memory that is never read needs no value")]
    let slice = unsafe { token.device().alloc::<f32>(1)? };
    Ok((CudaStorage::wrap_cuda_slice(slice, token.device().clone()), Shape::from(())))
}

/// The gradient of a token: tells candle to run its producer backwards. Any scalar will do,
/// and one is at hand.
pub(super) fn token_gradient(token_dy: &Tensor) -> Tensor {
    token_dy.clone()
}

struct FromNchw {
    gradient: Arc<GradientSlot>,
    dims: Dims,
}

impl CustomOp1 for FromNchw {
    fn name(&self) -> &'static str {
        "from_nchw"
    }

    forward_makes_a_token!(1);

    fn bwd(&self, image_nchw: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        let context = Context::of(image_nchw.device())?;
        let gradient = self.gradient.take(self.name())?;
        let (tensor, to) = context.tensor(image_nchw.shape())?;
        to_nchw(&context, &gradient, to, self.dims)?;
        Ok(Some(tensor))
    }
}

fn to_nchw(context: &Context, values: &Numbers, to: u64, dims: Dims) -> Result<()> {
    let (channels, pixels, count) = plane_extents(dims);
    let config = context.elementwise(dims.count());
    launch!(context, "to_nchw", values.kind.suffix(), config, values.address(), to, channels, pixels, count);
    Ok(())
}

struct ToNchw(Kept);

impl CustomOp1 for ToNchw {
    fn name(&self) -> &'static str {
        "to_nchw"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_the_cpu(self.name())
    }

    fn cuda_fwd(&self, token: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let context = Context::of(&candle_core::Device::Cuda(token.device().clone()))?;
        let (storage, to) = context.storage(self.0.dims.count())?;
        to_nchw(&context, &self.0.values, to, self.0.dims)?;
        Ok((storage, Shape::from(self.0.dims.to_vec())))
    }

    fn bwd(&self, token: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let context = Context::of(token.device())?;
        let (gradient, kind) = (gradient.contiguous()?, self.0.values.kind);
        let values = Numbers::unspecified(&context, self.0.dims.count(), kind)?;
        let (from, to) = (address_of(&context.device, self.name(), "gradient", &gradient)?, values.address());
        let (channels, pixels, count) = plane_extents(self.0.dims);
        let config = context.elementwise(self.0.dims.count());
        launch!(context, "from_nchw", kind.suffix(), config, from, to, channels, pixels, count);
        self.0.gradient.add(&context, values)?;
        Ok(Some(token_gradient(token)))
    }
}

struct GlobalAvgPool(Kept);

impl CustomOp1 for GlobalAvgPool {
    fn name(&self) -> &'static str {
        "global_avg_pool"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        not_on_the_cpu(self.name())
    }

    fn cuda_fwd(&self, token: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let context = Context::of(&candle_core::Device::Cuda(token.device().clone()))?;
        let Dims { n, c, .. } = self.0.dims;
        let (storage, means) = context.storage(n * c)?;
        let (suffix, held) = self.0.values.kind.by_channels(c);
        let (channels, pixels, _) = plane_extents(self.0.dims);
        let mut config = context.by_rows(1, c, held);
        config.grid_dim.0 = n as u32;
        launch!(context, "image_means", suffix, config, self.0.values.address(), means, pixels, channels);
        Ok((storage, Shape::from((n, c))))
    }

    fn bwd(&self, token: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let context = Context::of(token.device())?;
        let (gradient, kind) = (gradient.contiguous()?, self.0.values.kind);
        let dx = Numbers::unspecified(&context, self.0.dims.count(), kind)?;
        let (from, to) = (address_of(&context.device, self.name(), "gradient", &gradient)?, dx.address());
        let (channels, pixels, count) = plane_extents(self.0.dims);
        let config = context.elementwise(self.0.dims.count());
        launch!(context, "image_means_gradient", kind.suffix(), config, from, to, pixels, channels, count);
        self.0.gradient.add(&context, dx)?;
        Ok(Some(token_gradient(token)))
    }
}

/// How an op with one input turns gradients back.
type UnaryBackward = Box<dyn Fn(&Context, Numbers) -> Result<Numbers> + Send + Sync>;

struct Unary {
    name: &'static str,
    input: Arc<GradientSlot>,
    output: Arc<GradientSlot>,
    backward: UnaryBackward,
}

impl CustomOp1 for Unary {
    fn name(&self) -> &'static str {
        self.name
    }

    forward_makes_a_token!(1);

    fn bwd(&self, _: &Tensor, _: &Tensor, token_dy: &Tensor) -> Result<Option<Tensor>> {
        let context = Context::of(token_dy.device())?;
        let gradient = self.output.take(self.name)?;
        self.input.add(&context, (self.backward)(&context, gradient)?)?;
        Ok(Some(token_gradient(token_dy)))
    }
}
