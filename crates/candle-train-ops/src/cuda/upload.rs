//! Batches on their way to a GPU while it works.
#![expect(unsafe_code, reason = "CUDA is a C library; each block says why it is sound")]

use std::sync::Arc;

use candle_core::{
    CudaStorage, Device, Result, Storage, Tensor,
    cuda_backend::cudarc::driver::{CudaEvent, CudaSlice, CudaStream, PinnedHostSlice},
    op::BackpropOp,
};

/// Buffers that take turns: one is filled while another is copied.
const BUFFERS: usize = 2;

/// Copies batches to a GPU from page-locked memory on a stream of their own, from any
/// thread. The thread that trains does not wait for them; a copy begins when the work queued
/// before it is done, because its memory may have been that of a value which this work reads.
pub struct Uploader {
    device: Device,
    stream: Arc<CudaStream>,
    buffers: [Option<Buffer>; BUFFERS],
    turn: usize,
}

/// Page-locked memory, and when it was last read.
struct Buffer {
    memory: PinnedHostSlice<f32>,
    copied: CudaEvent,
    stream: Arc<CudaStream>,
}

/// A batch that is being copied.
pub struct Upload {
    /// Present until it is handed out.
    values: Option<CudaSlice<f32>>,
    shape: Vec<usize>,
    device: Device,
    arrived: CudaEvent,
}

impl Uploader {
    /// For a device that [`device`](super::device) gave.
    ///
    /// # Errors
    /// A device that is not a GPU, or that refuses.
    pub fn new(device: &Device) -> Result<Self> {
        let context = device.as_cuda_device()?.cuda_stream().context().clone();
        let stream = context.new_stream().map_err(candle_core::Error::wrap)?;
        Ok(Self { device: device.clone(), stream, buffers: [None, None], turn: 0 })
    }

    /// Starts to copy a batch.
    ///
    /// # Errors
    /// Another number of values than the shape says; memory that cannot be had.
    pub fn send(&mut self, values: &[f32], shape: &[usize]) -> Result<Upload> {
        if values.len() != shape.iter().product::<usize>() {
            candle_core::bail!("{} values do not fill the shape {shape:?}", values.len());
        }
        let wrap = candle_core::Error::wrap;
        let device = self.device.as_cuda_device()?;
        let buffer = match self.buffers[self.turn].take() {
            Some(mut buffer) if buffer.memory.len() >= values.len() => {
                buffer.copied.synchronize().map_err(wrap)?;
                buffer.fill(values)?;
                buffer
            }
            _ => Buffer::new(&self.stream, values)?,
        };
        // SAFETY: all of it is written by the copy below.
        let mut to = unsafe { device.alloc::<f32>(values.len())? };
        // The memory may be that of a value which queued work still reads.
        let free = device.cuda_stream().record_event(None).map_err(wrap)?;
        self.stream.wait(&free).map_err(wrap)?;
        let from = &buffer.memory.as_slice().map_err(wrap)?[..values.len()];
        self.stream.memcpy_htod(from, &mut to).map_err(wrap)?;
        buffer.copied.record(&self.stream).map_err(wrap)?;
        let arrived = self.stream.record_event(None).map_err(wrap)?;
        self.buffers[self.turn] = Some(buffer);
        self.turn = (self.turn + 1) % BUFFERS;
        Ok(Upload { values: Some(to), shape: shape.to_vec(), device: self.device.clone(), arrived })
    }
}

impl Buffer {
    fn new(stream: &Arc<CudaStream>, values: &[f32]) -> Result<Self> {
        let wrap = candle_core::Error::wrap;
        // SAFETY: any bits are a number, and `fill` writes those that are read.
        let memory = unsafe { stream.context().alloc_pinned::<f32>(values.len()).map_err(wrap)? };
        let copied = stream.record_event(None).map_err(wrap)?;
        let mut buffer = Self { memory, copied, stream: Arc::clone(stream) };
        buffer.fill(values)?;
        Ok(buffer)
    }

    fn fill(&mut self, values: &[f32]) -> Result<()> {
        let memory = self.memory.as_mut_slice().map_err(candle_core::Error::wrap)?;
        memory[..values.len()].copy_from_slice(values);
        Ok(())
    }
}

impl Upload {
    /// The batch; work queued from now on waits until it has arrived.
    ///
    /// # Errors
    /// A GPU that cannot be asked.
    pub fn tensor(mut self) -> Result<Tensor> {
        self.wait()?;
        let Some(values) = self.values.take() else {
            candle_core::bail!("a batch is handed out once");
        };
        let device = self.device.as_cuda_device()?;
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(values, device.clone()));
        Ok(Tensor::from_storage(storage, self.shape.as_slice(), BackpropOp::none(), false))
    }

    /// Has work queued from now on wait for the copy.
    fn wait(&self) -> Result<()> {
        let stream = self.device.as_cuda_device()?.cuda_stream();
        stream.wait(&self.arrived).map_err(candle_core::Error::wrap)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if self.values.is_some() {
            // Its memory is freed in the order of the other stream, and then used again. An error
            // has nobody to go to.
            let _ = self.wait();
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // Not while it is read. An error at the end has nobody to go to.
        let _ = self.stream.synchronize();
    }
}
