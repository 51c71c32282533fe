//! Copies between the host and the GPU, and bytes that are set.

use super::{Answer, Handle, Status, on_gpu, page_locked, queue, stream_of};
use crate::{
    gpu::Gpu,
    memory::{Memory, Work},
};

/// Queues a copy from the host. Page-locked memory is read when the stream comes to it; other
/// memory is read now.
///
/// # Safety
/// `from` are bytes of the host, until the copy is done if they are page-locked.
unsafe fn copy_in(gpu: &mut Gpu, stream: Handle, to: u64, from: usize, n_bytes: usize) -> Answer {
    // SAFETY: as the caller says.
    let read = move || unsafe { std::slice::from_raw_parts(from as *const u8, n_bytes) }.to_vec();
    let name = "copy from the host";
    match page_locked::of(from, n_bytes)? {
        Some(locked) => {
            // The task holds `locked`, in which the bytes lie, until it has run.
            let task = move |memory: &mut Memory| locked.check().and_then(|()| write(memory, to, &read()));
            queue(gpu, stream, name, Box::new(task))
        }
        None => {
            let bytes = read();
            queue(gpu, stream, name, Box::new(move |memory| write(memory, to, &bytes)))
        }
    }
}

/// Queues a copy to the host, and waits for it unless the memory is page-locked.
///
/// # Safety
/// `to` is memory of the host, until the copy is done if it is page-locked.
unsafe fn copy_out(gpu: &mut Gpu, stream: Handle, to: usize, from: u64, n_bytes: usize) -> Answer {
    let locked = page_locked::of(to, n_bytes)?;
    let waits = locked.is_none();
    let task = move |memory: &mut Memory| {
        locked.as_ref().map_or(Ok(()), |locked| locked.check())?;
        let bytes = memory.read(from, n_bytes)?;
        // SAFETY: it lies in `locked`, which is held until here; or the caller still waits.
        unsafe { (to as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), n_bytes) };
        Ok(())
    };
    queue(gpu, stream, "copy to the host", Box::new(task))?;
    if waits {
        let stream = stream_of(gpu, stream)?;
        gpu.synchronize(stream)?;
    }
    Ok(())
}

fn write(memory: &mut Memory, to: u64, bytes: &[u8]) -> Work {
    memory.write(to, bytes.len())?.copy_from_slice(bytes);
    Ok(())
}

/// A call that does something to so many bytes. No bytes need to be anywhere.
fn on_bytes(n_bytes: usize, stream: Handle, call: impl FnOnce(&mut Gpu) -> Answer) -> Status {
    on_gpu(|gpu| {
        stream_of(gpu, stream)?;
        if n_bytes == 0 { Ok(()) } else { call(gpu) }
    })
}

/// # Safety
/// `from` are bytes of the host, until the copy is done if they are page-locked.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: usize,
    n_bytes: usize,
    stream: Handle,
) -> Status {
    // SAFETY: as the caller says.
    on_bytes(n_bytes, stream, |gpu| unsafe { copy_in(gpu, stream, to, from, n_bytes) })
}

/// # Safety
/// `to` is memory of the host, until the copy is done if it is page-locked.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: usize,
    from: u64,
    n_bytes: usize,
    stream: Handle,
) -> Status {
    // SAFETY: as the caller says.
    on_bytes(n_bytes, stream, |gpu| unsafe { copy_out(gpu, stream, to, from, n_bytes) })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, n_bytes: usize, stream: Handle) -> Status {
    let task = move |memory: &mut Memory| {
        let bytes = memory.read(from, n_bytes)?.to_vec();
        write(memory, to, &bytes)
    };
    on_bytes(n_bytes, stream, |gpu| queue(gpu, stream, "copy within the GPU", Box::new(task)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(to: u64, byte: u8, n_bytes: usize, stream: Handle) -> Status {
    let task = move |memory: &mut Memory| {
        memory.write(to, n_bytes)?.fill(byte);
        Ok(())
    };
    on_bytes(n_bytes, stream, |gpu| queue(gpu, stream, "cuMemsetD8Async", Box::new(task)))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            Refusal,
            allocation::{allocate, cuMemAllocAsync, cuMemFreeAsync, free},
            page_locked::{cuMemFreeHost, cuMemHostAlloc},
        },
        *,
    };
    use crate::driver::made;

    const MIB: usize = 1 << 20;

    /// Page-locked bytes, as the program and the GPU know them. Nobody frees them but tests of it.
    fn page_locked(bytes: &[u8]) -> (&'static mut [u8], usize) {
        let address: usize = made(|to| cuMemHostAlloc(to, bytes.len(), 0));
        // SAFETY: allocated above, and nobody else knows it.
        let there = unsafe { std::slice::from_raw_parts_mut(address as *mut u8, bytes.len()) };
        there.copy_from_slice(bytes);
        (there, address)
    }

    fn address(bytes: &[u8]) -> usize {
        bytes.as_ptr() as usize
    }

    /// Queues a copy of the host's bytes.
    fn send(gpu: &mut Gpu, stream: Handle, to: u64, bytes: &[u8]) -> Answer {
        // SAFETY: not page-locked, so they are read at once.
        unsafe { copy_in(gpu, stream, to, address(bytes), bytes.len()) }
    }

    fn receive(gpu: &mut Gpu, stream: Handle, from: u64) -> Answer<[u8; 4]> {
        let mut bytes = [0; 4];
        // SAFETY: not page-locked, so all is done afterwards.
        unsafe { copy_out(gpu, stream, bytes.as_mut_ptr() as usize, from, 4) }.map(|()| bytes)
    }

    #[test]
    fn bytes_come_back() {
        let [a, b] = [0; 2].map(|_| made(|to| cuMemAllocAsync(to, 8, 0)));
        let bytes = *b"together";
        let mut back = [0; 8];
        // SAFETY: arrays of 8 bytes.
        unsafe {
            assert_eq!(cuMemcpyHtoDAsync_v2(a, address(&bytes), 8, 0), 0);
            assert_eq!(cuMemcpyDtoDAsync_v2(b, a, 8, 0), 0);
            assert_eq!(cuMemsetD8Async(b + 1, b'x', 2, 0), 0);
            assert_eq!(cuMemcpyDtoHAsync_v2(back.as_mut_ptr() as usize, b, 8, 0), 0);
        }
        assert_eq!(&back, b"txxether");
        for address in [a, b] {
            assert_eq!(cuMemFreeAsync(address, 0), 0);
        }
        assert_eq!(cuMemsetD8Async(a, 0, 1, 12345), Refusal::INVALID_HANDLE.0);
        assert_eq!(cuMemsetD8Async(a, 0, 0, 12345), Refusal::INVALID_HANDLE.0);
    }

    #[test]
    fn pageable_memory_may_be_changed_after_the_call() {
        let mut gpu = Gpu::new(MIB, 0);
        let to = allocate(&mut gpu, 0, 4).unwrap();
        let mut bytes = *b"sent";
        send(&mut gpu, 0, to, &bytes).unwrap();
        bytes.fill(0);
        assert_eq!(receive(&mut gpu, 0, to), Ok(*b"sent"));
    }

    #[test]
    fn page_locked_memory_that_is_filled_again_too_early_shows() {
        let mut gpu = Gpu::new(MIB, 0);
        let to = allocate(&mut gpu, 0, 4).unwrap();
        let (bytes, from) = page_locked(b"sent");
        // SAFETY: never freed.
        unsafe { copy_in(&mut gpu, 0, to, from, 4) }.unwrap();
        bytes.copy_from_slice(b"next");
        assert_eq!(receive(&mut gpu, 0, to), Ok(*b"next"));
        let (bytes, back) = page_locked(b"....");
        // SAFETY: never freed.
        unsafe { copy_out(&mut gpu, 0, back, to, 4) }.unwrap();
        assert_eq!(bytes, b"....", "written when somebody waits");
        gpu.synchronize(0).unwrap();
        assert_eq!(bytes, b"next");
    }

    #[test]
    fn page_locked_memory_that_is_freed_too_early_is_a_fault() {
        let mut gpu = Gpu::new(MIB, 0);
        let to = allocate(&mut gpu, 0, 4).unwrap();
        let (_, from) = page_locked(b"sent");
        // SAFETY: the copy holds it.
        unsafe { copy_in(&mut gpu, 0, to, from, 4) }.unwrap();
        assert_eq!(cuMemFreeHost(from), 0);
        assert_eq!(cuMemFreeHost(from), Refusal::INVALID_VALUE.0);
        assert!(gpu.synchronize(0).unwrap_err().0.contains("freed before the copy"));
    }

    #[test]
    fn a_copy_beyond_page_locked_memory_is_refused() {
        let mut gpu = Gpu::new(MIB, 0);
        let to = allocate(&mut gpu, 0, 100).unwrap();
        let (_, from) = page_locked(b"four");
        // SAFETY: refused.
        assert_eq!(unsafe { copy_in(&mut gpu, 0, to, from + 1, 4) }, Err(Refusal::INVALID_VALUE));
    }

    /// A stream that writes "new!" over "old!", and another one that reads, after a wait or not.
    fn read_on_another_stream(waits: bool) -> Answer<[u8; 4]> {
        let mut gpu = Gpu::new(MIB, 0);
        let [writes, reads] = [0; 2].map(|_| gpu.create_stream() as Handle);
        let at = allocate(&mut gpu, writes, 4)?;
        send(&mut gpu, writes, at, b"old!")?;
        gpu.synchronize_all()?;
        send(&mut gpu, writes, at, b"new!")?;
        if waits {
            let event = gpu.create_event();
            gpu.record(event, writes as u64)?;
            gpu.wait(reads as u64, event)?;
        }
        receive(&mut gpu, reads, at)
    }

    #[test]
    fn a_forgotten_wait_shows_old_numbers() {
        assert_eq!(read_on_another_stream(true), Ok(*b"new!"));
        assert_eq!(read_on_another_stream(false), Ok(*b"old!"));
    }

    #[test]
    fn memory_is_there_in_the_order_of_its_stream() {
        let mut gpu = Gpu::new(MIB, 0);
        let [owner, other] = [0; 2].map(|_| gpu.create_stream() as Handle);
        let at = allocate(&mut gpu, owner, 4).unwrap();
        send(&mut gpu, other, at, b"soon").unwrap();
        assert!(gpu.synchronize_all().is_ok(), "the owner's stream is the first to run");
        let at = allocate(&mut gpu, owner, 4).unwrap();
        send(&mut gpu, other, at, b"soon").unwrap();
        assert!(gpu.synchronize(other as u64).unwrap_err().0.contains("used before its allocation"));
    }

    #[test]
    fn freed_memory_is_not_read() {
        let mut gpu = Gpu::new(MIB, 0);
        let at = allocate(&mut gpu, 0, 4).unwrap();
        send(&mut gpu, 0, at, b"gone").unwrap();
        free(&mut gpu, 0, at).unwrap();
        assert_eq!(receive(&mut gpu, 0, at), Err(Refusal::ILLEGAL_ADDRESS));
        assert!(gpu.check().unwrap_err().0.contains("lies in freed memory"));
        assert_eq!(
            send(&mut gpu, 0, at, b"gone"),
            Err(Refusal::ILLEGAL_ADDRESS),
            "and nothing works after that"
        );
    }

    #[test]
    fn no_copy_goes_beyond_an_allocation() {
        let mut gpu = Gpu::new(MIB, 0);
        let at = allocate(&mut gpu, 0, 6).unwrap();
        send(&mut gpu, 0, at + 3, b"long").unwrap();
        assert!(gpu.synchronize(0).unwrap_err().0.contains("writes 4 bytes at byte 3 of an allocation of 6"));
    }
}
