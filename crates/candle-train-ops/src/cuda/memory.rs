//! The memory of a GPU: devices, numbers, and what is kept of them for the next step.
#![expect(unsafe_code, reason = "CUDA is a C library; each block says why it is sound")]

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
};

use candle_core::{
    CudaDevice, Device, Result,
    cuda_backend::{
        DeviceId,
        cudarc::driver::{CudaSlice, DevicePtr, result::device::get_default_mem_pool, sys},
    },
};

use super::context::{Address, Context, Kind, release_workspaces};
use crate::buffer::Pool;

/// Numbers in the memory of a GPU.
///
/// Kernels write through a shared reference: Rust never sees the memory, and everything
/// that touches it runs on one stream, in order.
pub(crate) struct Numbers {
    /// Present until dropped.
    bytes: Option<CudaSlice<u8>>,
    memory: Arc<Memory>,
    pub len: usize,
    pub kind: Kind,
}

impl Numbers {
    /// Numbers of unspecified value: the caller has every one written before it is read.
    pub(super) fn unspecified(context: &Context, len: usize, kind: Kind) -> Result<Self> {
        // Whole packs of 16 bytes, so that a kernel may end with one.
        let n_bytes = (len * kind.bytes()).next_multiple_of(16).max(16);
        let memory = Arc::clone(&context.memory);
        Ok(Self { bytes: Some(memory.take(&context.device, n_bytes)?), memory, len, kind })
    }

    /// Where they are. Valid for work queued on the stream before `self` is dropped.
    pub fn address(&self) -> Address {
        self.bytes.as_ref().map_or(0, |bytes| bytes.device_ptr(bytes.stream()).0)
    }

    /// Packs of 16 bytes.
    pub fn packs(&self) -> i64 {
        self.len.div_ceil(self.kind.wide()) as i64
    }
}

impl Drop for Numbers {
    fn drop(&mut self) {
        if let Some(bytes) = self.bytes.take() {
            self.memory.lock().give(bytes.len(), bytes);
        }
    }
}

/// Memory of values that are gone, of one device: the next step needs the same sizes, and
/// asking the driver for each costs more than many a kernel. What is taken again may still be
/// read by queued work; whatever writes to it is queued behind that.
pub(super) struct Memory(Mutex<Pool<CudaSlice<u8>>>);

impl Memory {
    fn lock(&self) -> MutexGuard<'_, Pool<CudaSlice<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, device: &CudaDevice, n_bytes: usize) -> Result<CudaSlice<u8>> {
        if let Some((_, bytes)) = self.lock().take(n_bytes) {
            return Ok(bytes);
        }
        self.allocate(device, n_bytes).inspect_err(|_| self.lock().forget(n_bytes))
    }

    /// Memory from the driver, of unspecified content. Where there is no more, what is kept
    /// goes first.
    pub fn allocate(&self, device: &CudaDevice, n_bytes: usize) -> Result<CudaSlice<u8>> {
        // SAFETY: any byte is a number, and nobody reads one before a kernel, or the library
        // that it is lent to, wrote it.
        let ask = || unsafe { device.alloc::<u8>(n_bytes) };
        ask().or_else(|_| {
            self.release();
            ask()
        })
    }

    fn release(&self) {
        let free = self.lock().drain();
        drop(free);
    }
}

/// What is kept, by device; all threads share it.
static MEMORIES: LazyLock<Mutex<HashMap<DeviceId, Arc<Memory>>>> = LazyLock::new(Mutex::default);

/// The devices that are open, by number: one handle each, because each has a stream of its own.
static DEVICES: LazyLock<Mutex<HashMap<usize, Device>>> = LazyLock::new(Mutex::default);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The memory of a device.
pub(super) fn of(device: &CudaDevice) -> Arc<Memory> {
    let mut memories = lock(&MEMORIES);
    Arc::clone(memories.entry(device.id()).or_insert_with(|| Arc::new(Memory(Mutex::new(Pool::new())))))
}

/// The CUDA device of this number: one stream, and memory that stays with the process when
/// it is freed.
pub(super) fn device(index: usize) -> Result<Device> {
    let mut devices = lock(&DEVICES);
    if let Some(device) = devices.get(&index) {
        return Ok(device.clone());
    }
    let device = Device::new_cuda_with_stream(index)?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: events would order the work of several streams. All work is on this one, but for
    // that of `Uploader`, which sets its own events.
    unsafe { cuda.disable_event_tracking() };
    // By default freed memory would go back to the driver at every wait.
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    let mut everything = u64::MAX;
    // SAFETY: the pool is the process's own, and takes a u64 for its threshold.
    with_driver_pool(cuda, |pool| unsafe {
        sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut everything).cast())
    })?;
    // A missing cuDNN, or kernels that this GPU cannot run, show now and not in the first step.
    Context::of(&device)?;
    devices.insert(index, device.clone());
    Ok(device)
}

/// Gives the memory of values that are gone, and this thread's workspaces, back to the driver,
/// for other processes to use.
pub(crate) fn release_buffers() {
    lock(&MEMORIES).values().for_each(|memory| memory.release());
    release_workspaces();
    for device in lock(&DEVICES).values() {
        // What the driver does not take back now stays with the process; nothing is lost by it.
        let _ = trim(device);
    }
}

fn trim(device: &Device) -> Result<()> {
    // Memory is freed in the order of the stream.
    device.synchronize()?;
    // SAFETY: the pool is the process's own; only what is free is given back.
    with_driver_pool(device.as_cuda_device()?, |pool| unsafe { sys::cuMemPoolTrimTo(pool, 0) })
}

/// Does something to the driver's pool of a device's freed memory.
fn with_driver_pool(device: &CudaDevice, act: impl FnOnce(sys::CUmemoryPool) -> sys::CUresult) -> Result<()> {
    let wrap = candle_core::Error::wrap;
    let context = device.cuda_stream().context().clone();
    context.bind_to_thread().map_err(wrap)?;
    // SAFETY: the device is live.
    let pool = unsafe { get_default_mem_pool(context.cu_device()).map_err(wrap)? };
    act(pool).result().map_err(wrap)
}
