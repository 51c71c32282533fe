//! Memory of the GPU, in the order of streams, and its pool.

use std::ffi::{c_int, c_void};

use super::{
    Answer, Handle, Out, Refusal, Status, complain, device::check_device, on_gpu, put, queue,
    refusal::status, stream_of,
};
use crate::gpu::{Gpu, StreamId, gpu_of};

/// The one pool there is. Freed memory goes back to the GPU at once, which no program can tell.
const POOL: Handle = 0x9001 << 32;

/// `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`.
const RELEASE_THRESHOLD: c_int = 4;

/// Memory that is there when the stream comes to it.
pub fn allocate(gpu: &mut Gpu, stream: Handle, n_bytes: usize) -> Answer<u64> {
    stream_of(gpu, stream)?;
    let address = match gpu.memory.reserve(n_bytes) {
        Some(address) => address,
        None => {
            // Much may be freed by work that nobody waited for.
            gpu.synchronize_all()?;
            gpu.memory.reserve(n_bytes).ok_or(Refusal::OUT_OF_MEMORY)?
        }
    };
    queue(gpu, stream, "cuMemAllocAsync", Box::new(move |memory| memory.commit(address)))?;
    Ok(address)
}

pub fn free(gpu: &mut Gpu, stream: Handle, address: u64) -> Answer {
    queue(gpu, stream, "cuMemFreeAsync", Box::new(move |memory| memory.free(address)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAllocAsync(address: Out<'_, u64>, n_bytes: usize, stream: Handle) -> Status {
    // No bytes are nowhere.
    on_gpu(|gpu| put(address, if n_bytes == 0 { 0 } else { allocate(gpu, stream, n_bytes)? }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync(address: u64, stream: Handle) -> Status {
    // Memory is let go by threads that are bound to another device, or to none.
    let mut gpu = gpu_of(stream as StreamId);
    status(gpu.check().map_err(Refusal::from).and_then(|()| match address {
        0 => Ok(()),
        _ => free(&mut gpu, stream, address),
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetDefaultMemPool(pool: Out<'_, Handle>, device: c_int) -> Status {
    status(check_device(device).and_then(|()| put(pool, POOL)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolTrimTo(pool: Handle, _bytes_to_keep: usize) -> Status {
    on_gpu(|_| check_pool(pool))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemPoolSetAttribute(pool: Handle, attribute: c_int, value: *const c_void) -> Status {
    on_gpu(|_| {
        check_pool(pool)?;
        if attribute != RELEASE_THRESHOLD {
            complain(format_args!("attribute {attribute} of a pool of memory is unknown here"));
            return Err(Refusal::NOT_SUPPORTED);
        }
        if value.is_null() { Err(Refusal::INVALID_VALUE) } else { Ok(()) }
    })
}

fn check_pool(pool: Handle) -> Answer {
    if pool == POOL { Ok(()) } else { Err(Refusal::INVALID_HANDLE) }
}

#[cfg(test)]
mod tests {
    use super::{super::device::cuInit, *};
    use crate::driver::made;

    #[test]
    fn memory_that_is_short_comes_from_work_that_nobody_waited_for() {
        let mut gpu = Gpu::new(100, 0);
        let stream = gpu.create_stream() as Handle;
        let first = allocate(&mut gpu, stream, 60).unwrap();
        free(&mut gpu, stream, first).unwrap();
        let second = allocate(&mut gpu, stream, 60).unwrap();
        assert_ne!(first, second);
        assert_eq!(allocate(&mut gpu, stream, 60), Err(Refusal::OUT_OF_MEMORY));
        assert!(gpu.check().is_ok(), "which is no fault");
    }

    #[test]
    fn memory_is_not_freed_twice() {
        let mut gpu = Gpu::new(100, 0);
        let address = allocate(&mut gpu, 0, 4).unwrap();
        free(&mut gpu, 0, address).unwrap();
        free(&mut gpu, 0, address).unwrap();
        assert!(gpu.synchronize(0).unwrap_err().0.contains("freed"));
        assert_eq!(allocate(&mut gpu, 0, 4), Err(Refusal::ILLEGAL_ADDRESS), "and nothing works after that");
    }

    #[test]
    fn the_pool_is_known_by_its_handle() {
        assert_eq!(cuInit(0), 0);
        let pool = made(|to| cuDeviceGetDefaultMemPool(to, 0));
        let value = (&raw const pool).cast();
        assert_eq!(cuMemPoolSetAttribute(pool, RELEASE_THRESHOLD, value), 0);
        assert_eq!(
            cuMemPoolSetAttribute(pool, RELEASE_THRESHOLD, std::ptr::null()),
            Refusal::INVALID_VALUE.0
        );
        assert_eq!(cuMemPoolSetAttribute(pool, 99, value), Refusal::NOT_SUPPORTED.0);
        assert_eq!(cuMemPoolTrimTo(pool, 0), 0);
        assert_eq!(cuMemPoolTrimTo(1, 0), Refusal::INVALID_HANDLE.0);
    }
}
