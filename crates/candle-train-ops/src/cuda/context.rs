//! What cuDNN needs on every thread: handles, plans, one workspace.
#![expect(unsafe_code, reason = "cuDNN is a C library; each block says why it is sound")]

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};

use candle_core::{
    CudaStorage, DType, Layout, Result,
    cuda_backend::{
        CudaDType, CudaDevice, DeviceId,
        cudarc::{
            cudnn::{Cudnn, CudnnDataType, result, sys},
            driver::{CudaSlice, CudaView, DeviceRepr},
        },
    },
};

use super::conv::{Plan, PlanKey};
use crate::{OpError, activation::Dims};

/// A number type that cuDNN computes in here.
pub(super) trait Number: CudaDType + CudnnDataType + DeviceRepr + Copy + 'static {
    const ONE: Self;
    const ZERO: Self;
}

impl Number for f32 {
    const ONE: Self = 1.0;
    const ZERO: Self = 0.0;
}

impl Number for f64 {
    const ONE: Self = 1.0;
    const ZERO: Self = 0.0;
}

/// Runs a generic function for the number type of a storage.
macro_rules! by_number {
    ($op:expr, $storage:expr, $function:ident ( $($argument:expr),* )) => {
        match candle_core::backend::BackendStorage::dtype($storage) {
            candle_core::DType::F32 => $function::<f32>($($argument),*),
            candle_core::DType::F64 => $function::<f64>($($argument),*),
            other => $crate::cuda::context::refuse($op, other),
        }
    };
}
pub(super) use by_number;

pub(super) fn refuse<T>(op: &'static str, got: DType) -> Result<T> {
    let (got, expected) = (got.as_str().to_owned(), "f32 or f64".to_owned());
    Err(OpError::DType { op, argument: "x_nchw", got, expected }.into())
}

/// cuDNN on one device, for one thread: a handle must not be shared between threads.
///
/// Everything runs on the stream of candle's device, so it is ordered with candle's own
/// kernels, and calls that follow each other may share one workspace. Fields are dropped
/// in this order: plans before the handle that they were made with.
pub(super) struct Context {
    pub plans_f32: RefCell<HashMap<PlanKey, Rc<Plan<f32>>>>,
    pub plans_f64: RefCell<HashMap<PlanKey, Rc<Plan<f64>>>>,
    workspace: RefCell<Option<CudaSlice<u8>>>,
    /// For convolutions, which cudarc wraps.
    pub cudnn: Arc<Cudnn>,
    /// For what it does not wrap; it keeps its own handle to itself.
    pub raw: RawHandle,
    pub device: CudaDevice,
}

thread_local! {
    static CONTEXTS: RefCell<HashMap<DeviceId, Rc<Context>>> = RefCell::new(HashMap::new());
}

impl Context {
    /// The context of this thread for a device, made at the first call.
    pub fn of(device: &CudaDevice) -> Result<Rc<Self>> {
        CONTEXTS.with(|contexts| {
            if let Some(context) = contexts.borrow().get(&device.id()) {
                return Ok(Rc::clone(context));
            }
            let context = Rc::new(Self {
                plans_f32: RefCell::default(),
                plans_f64: RefCell::default(),
                workspace: RefCell::default(),
                cudnn: Cudnn::new(device.cuda_stream()).map_err(candle_core::Error::wrap)?,
                raw: RawHandle::new(device)?,
                device: device.clone(),
            });
            contexts.borrow_mut().insert(device.id(), Rc::clone(&context));
            Ok(context)
        })
    }

    /// Lends the workspace, made larger if need be and never zeroed.
    pub fn with_workspace<R>(
        &self,
        bytes: usize,
        run: impl FnOnce(&mut CudaSlice<u8>) -> Result<R>,
    ) -> Result<R> {
        let mut slot = self.workspace.borrow_mut();
        let workspace = match slot.take() {
            Some(workspace) if workspace.len() >= bytes => workspace,
            // The old one is freed in the order of the stream, after its last use.
            _ => unspecified::<u8>(&self.device, bytes.max(1))?,
        };
        run(slot.insert(workspace))
    }
}

/// A cuDNN handle of our own on the stream of a device.
pub(super) struct RawHandle(pub sys::cudnnHandle_t);

impl RawHandle {
    fn new(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        stream.context().bind_to_thread().map_err(candle_core::Error::wrap)?;
        let handle = Self(result::create_handle().map_err(candle_core::Error::wrap)?);
        // SAFETY: the handle is live, and the stream outlives it: the context that holds
        // the handle holds the device too.
        unsafe {
            result::set_stream(handle.0, stream.cu_stream().cast()).map_err(candle_core::Error::wrap)?;
        }
        Ok(handle)
    }
}

impl Drop for RawHandle {
    fn drop(&mut self) {
        // SAFETY: made by `create_handle`, destroyed once. An error at the end of a
        // thread has nobody to go to.
        let _ = unsafe { result::destroy_handle(self.0) };
    }
}

/// The description of a plain tensor `[N, C, H, W]`, destroyed when dropped.
pub(super) struct Shape4(pub sys::cudnnTensorDescriptor_t);

impl Shape4 {
    pub fn nchw<T: Number>(op: &'static str, dims: Dims) -> Result<Self> {
        let shape = Self(result::create_tensor_descriptor().map_err(candle_core::Error::wrap)?);
        let format = sys::cudnnTensorFormat_t::CUDNN_TENSOR_NCHW;
        let extents = extents(op, [dims.n, dims.c, dims.h, dims.w])?;
        // SAFETY: the descriptor is live.
        unsafe {
            result::set_tensor4d_descriptor(shape.0, format, T::DATA_TYPE, extents)
                .map_err(candle_core::Error::wrap)?;
        }
        Ok(shape)
    }
}

impl Drop for Shape4 {
    fn drop(&mut self) {
        // SAFETY: made by `create_tensor_descriptor`, destroyed once.
        let _ = unsafe { result::destroy_tensor_descriptor(self.0) };
    }
}

/// Extents as cuDNN wants them.
pub(super) fn extents<const K: usize>(op: &'static str, sizes: [usize; K]) -> Result<[i32; K]> {
    let mut extents = [0; K];
    for (extent, size) in extents.iter_mut().zip(sizes) {
        *extent = i32::try_from(size)
            .map_err(|_| OpError::Setting { op, reason: format!("{size} is beyond cuDNN's limit") })?;
    }
    Ok(extents)
}

/// Numbers of unspecified value on the device: the caller has every one written.
pub(super) fn unspecified<T: DeviceRepr>(device: &CudaDevice, len: usize) -> Result<CudaSlice<T>> {
    // SAFETY: every use hands the slice to a cuDNN call that overwrites all of it
    // (beta = 0) before anything reads it; scratch memory is never read by us.
    unsafe { device.alloc::<T>(len) }
}

/// The numbers of a tensor, which the callers have made contiguous.
pub(super) fn numbers<'a, T: Number>(
    op: &'static str,
    storage: &'a CudaStorage,
    layout: &Layout,
) -> Result<CudaView<'a, T>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(storage.as_cuda_slice::<T>()?.slice(start..end)),
        None => {
            Err(OpError::Setting { op, reason: "internal: argument is not contiguous".to_owned() }.into())
        }
    }
}
