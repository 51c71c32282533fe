//! Sums over the GPUs of several processes, by NVIDIA's library NCCL.
#![expect(unsafe_code, reason = "NCCL is a C library; each block says why it is sound")]

use std::ffi::{CStr, c_char};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{
    Device, Result, Tensor,
    cuda_backend::cudarc::{
        driver::CudaStream,
        nccl::{
            result::{self, NcclError, NcclStatus},
            sys,
        },
    },
};

use super::context::{Address, address_of};
use crate::OpError;

/// What processes have to know to meet: made by one of them, told to all.
pub type NcclId = [u8; 128];

/// The GPUs of processes that train one network together, one each, as seen from one of them.
///
/// All sums go through one communicator, one after the other, in the order in which they are
/// asked for, which must be the same in every process: NCCL's work waits for the other GPUs, so
/// that two communicators at work at once could wait for each other for ever.
pub struct Nccl {
    state: Mutex<State>,
    device: Device,
    /// Where gradients are added up while the backward pass goes on.
    stream: Arc<CudaStream>,
}

struct State {
    /// Gone after [`Nccl::abort`].
    communicator: Option<Communicator>,
    /// Gradients that the device's own stream does not wait for yet.
    under_way: Vec<Tensor>,
}

impl Nccl {
    /// The version of the library, "2.27.3".
    ///
    /// # Errors
    /// It is not there.
    pub fn version() -> Result<String> {
        let code = result::get_nccl_version().map_err(error)?;
        Ok(format!("{}.{}.{}", code / 10_000, code / 100 % 100, code % 100))
    }

    /// A meeting that no other group of processes has.
    ///
    /// # Errors
    /// The library is not there or finds no network.
    pub fn new_id() -> Result<NcclId> {
        Ok(result::get_uniqueid().map_err(error)?.internal.map(|byte| byte as u8))
    }

    /// Meets the other processes; returns when all are there.
    ///
    /// # Errors
    /// A device that is not a GPU; two processes on one GPU; GPUs that cannot reach each other.
    pub fn meet(device: &Device, id: &NcclId, rank: usize, n_ranks: usize) -> Result<Self> {
        let context = device.as_cuda_device()?.cuda_stream().context().clone();
        let stream = context.new_stream().map_err(candle_core::Error::wrap)?;
        context.bind_to_thread().map_err(candle_core::Error::wrap)?;
        let id = sys::ncclUniqueId { internal: id.map(|byte| byte as c_char) };
        let mut communicator = ptr::null_mut();
        // SAFETY: NCCL writes a communicator for the device that this thread is bound to.
        unsafe { result::comm_init_rank(&mut communicator, n_ranks as i32, id, rank as i32) }
            .map_err(error)?;
        let state = State { communicator: Some(Communicator(communicator)), under_way: Vec::new() };
        Ok(Self { state: Mutex::new(state), device: device.clone(), stream })
    }

    /// Starts to replace the numbers of some tensors by their sums over the processes, as soon as
    /// what is queued on the device so far has made them. Whoever reads them calls
    /// [`finish`](Self::finish) first.
    ///
    /// # Errors
    /// A tensor that is not contiguous f32 on this device.
    pub fn start(&self, gradients: &[Tensor]) -> Result<()> {
        let mut state = self.lock();
        let device = self.device.as_cuda_device()?;
        let of = |gradient: &Tensor| {
            Ok((address_of(device, "Nccl::start", "gradient", gradient)?, gradient.elem_count()))
        };
        let addresses: Vec<(Address, usize)> = gradients.iter().map(of).collect::<Result<_>>()?;
        let own = device.cuda_stream();
        self.stream.join(&own).map_err(candle_core::Error::wrap)?;
        // Held from before the first is queued, so that no memory is freed under it.
        state.under_way.extend_from_slice(gradients);
        let communicator = state.communicator()?;
        result::group_start().map_err(error)?;
        let queued = addresses.into_iter().try_for_each(|(at, len)| {
            communicator.add_up(&self.stream, at, len, sys::ncclDataType_t::ncclFloat32)
        });
        // A group that was begun is ended, whatever happened in it.
        let ended = result::group_end().map_err(error);
        queued.and(ended.map(|_| ()))
    }

    /// What is queued on the device from now on comes after all sums that were started.
    ///
    /// # Errors
    /// A GPU that cannot be asked.
    pub fn finish(&self) -> Result<()> {
        let mut state = self.lock();
        let own = self.device.as_cuda_device()?.cuda_stream();
        own.join(&self.stream).map_err(candle_core::Error::wrap)?;
        state.under_way.clear();
        Ok(())
    }

    /// Replaces numbers in f64 by their sums, in the order of `stream`.
    pub(super) fn add_up(&self, stream: &CudaStream, at: Address, len: usize) -> Result<()> {
        self.lock().communicator()?.add_up(stream, at, len, sys::ncclDataType_t::ncclFloat64)
    }

    /// Ends all sums, those that are under way too, which would wait for a process that is gone for
    /// ever: what they leave is no sum. May be called from any thread.
    pub fn abort(&self) {
        self.lock().communicator.take();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn communicator(&self) -> Result<&Communicator> {
        let gone = || OpError::Setting { op: "Nccl", reason: "another process is gone".to_owned() };
        Ok(self.communicator.as_ref().ok_or_else(gone)?)
    }
}

struct Communicator(sys::ncclComm_t);

// SAFETY: NCCL takes a communicator from any thread, one at a time; it lies in a mutex.
unsafe impl Send for Communicator {}

impl Communicator {
    /// Queues a sum in place.
    fn add_up(&self, stream: &CudaStream, at: Address, len: usize, kind: sys::ncclDataType_t) -> Result<()> {
        stream.context().bind_to_thread().map_err(candle_core::Error::wrap)?;
        let (at, sum) = (at as *mut _, sys::ncclRedOp_t::ncclSum);
        // SAFETY: `len` numbers of this kind lie there, and the callers keep them until the stream
        // has passed the sum.
        let queued = unsafe {
            result::all_reduce(at, at, len, kind, sum, self.0, stream.cu_stream().cast()).map_err(error)?
        };
        match queued {
            NcclStatus::Success => Ok(()),
            // Only communicators that were asked not to block say so.
            _ => {
                Err(OpError::Setting { op: "Nccl", reason: "internal: work is unfinished".to_owned() }.into())
            }
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // SAFETY: made by `comm_init_rank`, ended once. Not `comm_destroy`, which waits for the
        // other processes: this one may end because one of them is gone.
        let _ = unsafe { result::comm_abort(self.0) };
    }
}

/// What NCCL says, in its words: the kind of error, then what it met last.
fn error(error: NcclError) -> candle_core::Error {
    // SAFETY: both give text that stays, or nothing; no communicator need be named.
    let texts = unsafe { [sys::ncclGetErrorString(error.0), sys::ncclGetLastError(ptr::null_mut())] };
    let mut words: Vec<_> = texts
        .into_iter()
        .filter(|text| !text.is_null())
        // SAFETY: it ends with a zero, as text in C does.
        .map(|text| unsafe { CStr::from_ptr(text) }.to_string_lossy())
        .filter(|text| !text.is_empty())
        .collect();
    words.dedup();
    candle_core::Error::msg(format!("NCCL: {}", words.join(": ")))
}
