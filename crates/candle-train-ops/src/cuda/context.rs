//! What the operations need on a GPU: kernels, a cuDNN handle, plans, one workspace.
#![expect(unsafe_code, reason = "CUDA and cuDNN are C libraries; each block says why it is sound")]

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
};

use candle_core::{
    CudaDevice, CudaStorage, DType, Device, Result, Shape, Storage, Tensor,
    cuda_backend::{
        CudaDType, DeviceId,
        cudarc::{
            cudnn::{result, sys},
            driver::{
                CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr, LaunchArgs,
                LaunchConfig, PushKernelArg, sys as driver,
            },
            nvrtc::Ptx,
        },
    },
};

use super::{
    cudnn::{Plan, PlanKey},
    memory::{self, Memory},
};
use crate::OpError;

/// The kernels, as `build.rs` compiled them.
const KERNELS: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// An address in the memory of a GPU; 0 is none.
pub(super) type Address = u64;

/// Number type of activations on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    F32,
    Bf16,
}

impl Kind {
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// Numbers in 16 bytes, the widest access of a thread.
    pub fn wide(self) -> usize {
        16 / self.bytes()
    }

    /// How the kernels of this number type are named.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// How the kernels are named that walk pixels with `channels` channels, and the
    /// channels that one of their threads holds.
    pub fn by_channels(self, channels: usize) -> (&'static str, usize) {
        match (self, channels.is_multiple_of(self.wide())) {
            (Self::F32, true) => ("f32x4", 4),
            (Self::F32, false) => ("f32x1", 1),
            (Self::Bf16, true) => ("bf16x8", 8),
            (Self::Bf16, false) => ("bf16x1", 1),
        }
    }
}

/// Kernels, plans and workspace on one device, for one thread: a cuDNN handle must not be
/// shared between threads.
///
/// Everything runs on the stream of candle's device, so it is ordered with candle's own
/// kernels, and calls that follow each other may share one workspace. Fields are dropped
/// in this order: plans before the handle that they were made with.
pub(super) struct Context {
    pub plans: RefCell<HashMap<PlanKey, Rc<Plan>>>,
    workspace: RefCell<Option<CudaSlice<u8>>>,
    pub memory: Arc<Memory>,
    /// What the convolutions so far took, by the times of their engines.
    pub convolution_ms: Cell<f64>,
    pub cudnn: Handle,
    functions: RefCell<HashMap<(&'static str, &'static str), CudaFunction>>,
    module: Arc<CudaModule>,
    pub device: CudaDevice,
    pub stream: Arc<CudaStream>,
    n_processors: usize,
}

thread_local! {
    static CONTEXTS: RefCell<HashMap<DeviceId, Rc<Context>>> = RefCell::new(HashMap::new());
}

/// Gives up this thread's workspaces.
pub(super) fn release_workspaces() {
    CONTEXTS.with_borrow(|contexts| contexts.values().for_each(|context| context.release_workspace()));
}

impl Context {
    /// The context of this thread for a CUDA device, made at the first call.
    pub fn of(device: &Device) -> Result<Rc<Self>> {
        let device = device.as_cuda_device()?;
        CONTEXTS.with(|contexts| {
            if let Some(context) = contexts.borrow().get(&device.id()) {
                return Ok(Rc::clone(context));
            }
            let wrap = candle_core::Error::wrap;
            let stream = device.cuda_stream();
            let attribute = driver::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
            let n_processors = stream.context().attribute(attribute).map_err(wrap)?;
            let context = Rc::new(Self {
                plans: RefCell::default(),
                workspace: RefCell::default(),
                memory: memory::of(device),
                convolution_ms: Cell::default(),
                cudnn: Handle::new(&stream)?,
                functions: RefCell::default(),
                module: stream.context().load_module(Ptx::from_src(KERNELS)).map_err(wrap)?,
                device: device.clone(),
                n_processors: usize::try_from(n_processors).unwrap_or(1),
                stream,
            });
            contexts.borrow_mut().insert(device.id(), Rc::clone(&context));
            Ok(context)
        })
    }

    /// A kernel by the two parts of its name.
    fn function(&self, name: &'static str, suffix: &'static str) -> Result<CudaFunction> {
        if let Some(function) = self.functions.borrow().get(&(name, suffix)) {
            return Ok(function.clone());
        }
        let joint = if suffix.is_empty() { "" } else { "_" };
        let function =
            self.module.load_function(&format!("{name}{joint}{suffix}")).map_err(candle_core::Error::wrap)?;
        self.functions.borrow_mut().insert((name, suffix), function.clone());
        Ok(function)
    }

    /// Queues a kernel. The arguments must have the types of its parameters, and the addresses
    /// must be those of buffers as long as the extents beside them say.
    pub fn launch(
        &self,
        name: &'static str,
        suffix: &'static str,
        config: LaunchConfig,
        arguments: &[&dyn Parameter],
    ) -> Result<()> {
        let function = self.function(name, suffix)?;
        let mut call = self.stream.launch_builder(&function);
        for argument in arguments {
            argument.push(&mut call);
        }
        // SAFETY: as the callers, all in this module's folder, were told.
        unsafe { call.launch(config) }.map_err(candle_core::Error::wrap)?;
        Ok(())
    }

    /// Lends the workspace, made larger if need be and never zeroed.
    pub fn workspace(&self, bytes: usize) -> Result<Address> {
        let mut slot = self.workspace.borrow_mut();
        let kept = slot.take().filter(|workspace| workspace.len() >= bytes);
        // One that is too small is gone by now: freed in the order of the stream, after its last use.
        let workspace = match kept {
            Some(workspace) => workspace,
            None => self.memory.allocate(&self.device, bytes.max(1))?,
        };
        let address = workspace.device_ptr(&self.stream).0;
        *slot = Some(workspace);
        Ok(address)
    }

    /// Frees the workspace; the next one is as large as its user says.
    pub fn release_workspace(&self) {
        self.workspace.take();
    }

    /// One thread a number, in grid-stride loops.
    pub fn elementwise(&self, count: usize) -> LaunchConfig {
        let blocks = count.div_ceil(256).clamp(1, 16 * self.n_processors);
        LaunchConfig { grid_dim: (blocks as u32, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 }
    }

    /// Threads along x for the channels of a pixel, along y for pixels, `held` channels a
    /// thread; blocks along x share `rows` pixels. Memory for `sum_rows` of the kernels.
    pub fn by_rows(&self, rows: usize, channels: usize, held: usize) -> LaunchConfig {
        let lanes = channels.div_ceil(held);
        let x = lanes.next_power_of_two().min(32);
        let y = 256 / x;
        let columns = lanes.div_ceil(x);
        let most = (4 * self.n_processors / columns).max(1);
        let blocks = rows.div_ceil(4 * y).clamp(1, most);
        LaunchConfig {
            grid_dim: (blocks as u32, columns as u32, 1),
            block_dim: (x as u32, y as u32, 1),
            shared_mem_bytes: (256 * held * size_of::<f32>()) as u32,
        }
    }

    /// 32 channels a block, 32 threads a channel.
    pub fn by_channel(&self, channels: usize) -> LaunchConfig {
        LaunchConfig {
            grid_dim: (channels.div_ceil(32) as u32, 1, 1),
            block_dim: (32, 32, 1),
            shared_mem_bytes: 0,
        }
    }

    /// A tensor of f32 that a kernel will fill, and where it is.
    pub fn tensor(&self, shape: impl Into<Shape>) -> Result<(Tensor, Address)> {
        // SAFETY: every caller has a kernel write all of it before anything reads it.
        let tensor = unsafe { Tensor::empty(shape, DType::F32, &Device::Cuda(self.device.clone()))? };
        let address = address_of(&self.device, "tensor", "result", &tensor)?;
        Ok((tensor, address))
    }

    /// A storage of f32 that a kernel will fill, and where it is.
    pub fn storage(&self, len: usize) -> Result<(CudaStorage, Address)> {
        // SAFETY: as in `tensor`.
        let slice = unsafe { self.device.alloc::<f32>(len)? };
        let address = slice.device_ptr(&self.stream).0;
        Ok((f32::wrap_cuda_slice(slice, self.device.clone()), address))
    }

    /// Numbers in f64 that a kernel will fill.
    pub fn sums(&self, len: usize) -> Result<CudaSlice<f64>> {
        // SAFETY: as in `tensor`.
        unsafe { self.device.alloc::<f64>(len) }
    }

    /// Where such numbers are.
    pub fn address_of_sums(&self, sums: &CudaSlice<f64>) -> Address {
        sums.device_ptr(&self.stream).0
    }
}

/// Queues a kernel: `launch!(context, "name", "suffix", config, arguments...)`.
macro_rules! launch {
    ($context:expr, $name:expr, $suffix:expr, $config:expr, $($argument:expr),+ $(,)?) => {
        $context.launch($name, $suffix, $config, &[$(&$argument),+])?
    };
}
pub(super) use launch;

/// What a kernel takes as one of its parameters.
pub(super) trait Parameter {
    fn push<'a>(&'a self, call: &mut LaunchArgs<'a>);
}

impl<T: DeviceRepr> Parameter for T {
    fn push<'a>(&'a self, call: &mut LaunchArgs<'a>) {
        call.arg(self);
    }
}

/// Where the numbers of a contiguous f32 tensor on a device are.
pub(super) fn address_of(
    device: &CudaDevice,
    op: &'static str,
    argument: &'static str,
    tensor: &Tensor,
) -> Result<Address> {
    let (storage, layout) = tensor.storage_and_layout();
    let storage = match &*storage {
        // Another handle of the same GPU is another stream, whose work is not ordered with ours.
        Storage::Cuda(storage) if storage.device.id() == device.id() => storage,
        _ => {
            let reason =
                format!("{argument} is not on the GPU of the other arguments; move it with to_device");
            return Err(OpError::Setting { op, reason }.into());
        }
    };
    let Some((start, _)) = layout.contiguous_offsets() else {
        return Err(OpError::Setting { op, reason: "internal: argument is not contiguous".to_owned() }.into());
    };
    let slice = storage.as_cuda_slice::<f32>()?;
    Ok(slice.device_ptr(slice.stream()).0 + (start * size_of::<f32>()) as u64)
}

/// A cuDNN handle on a stream.
pub(super) struct Handle(pub sys::cudnnHandle_t);

impl Handle {
    fn new(stream: &CudaStream) -> Result<Self> {
        stream.context().bind_to_thread().map_err(candle_core::Error::wrap)?;
        let handle = Self(result::create_handle().map_err(candle_core::Error::wrap)?);
        // SAFETY: the handle is live, and the stream outlives it: the context that holds
        // the handle holds the stream too.
        unsafe {
            result::set_stream(handle.0, stream.cu_stream().cast()).map_err(candle_core::Error::wrap)?;
        }
        Ok(handle)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by `create_handle`, destroyed once. An error at the end of a
        // thread has nobody to go to.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}
