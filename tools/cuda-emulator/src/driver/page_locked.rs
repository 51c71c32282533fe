//! Memory of the host that the GPU copies from and to by itself, when its turn comes.

use std::{
    collections::BTreeMap,
    ffi::c_uint,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{Answer, Out, Refusal, Status, complain, lock, on_gpu, put};
use crate::memory::{Work, fault};

/// An allocation of such memory.
pub struct PageLocked {
    /// The memory itself, which only the program touches, and queued copies.
    _words: Vec<u128>,
    n_bytes: usize,
    freed: AtomicBool,
}

impl PageLocked {
    /// What a queued copy finds when its turn comes. It holds the allocation until then: only
    /// the program's addresses end with `cuMemFreeHost`.
    pub fn check(&self) -> Work {
        if self.freed.load(Ordering::Relaxed) {
            return Err(fault!("the page-locked memory of the host was freed before the copy ran"));
        }
        Ok(())
    }
}

/// By their first addresses.
static ALLOCATIONS: Mutex<BTreeMap<usize, Arc<PageLocked>>> = Mutex::new(BTreeMap::new());

/// The page-locked memory of a range of the host's addresses, `None` for a range of other memory.
///
/// # Errors
/// A range that goes beyond the allocation that it begins in.
pub fn of(address: usize, n_bytes: usize) -> Answer<Option<Arc<PageLocked>>> {
    let allocations = lock(&ALLOCATIONS);
    let Some((start, allocation)) = allocations.range(..=address).next_back() else { return Ok(None) };
    match allocation.n_bytes.checked_sub(address - start) {
        None | Some(0) => Ok(None),
        Some(there) if n_bytes <= there => Ok(Some(Arc::clone(allocation))),
        Some(there) => {
            complain(format_args!(
                "{n_bytes} bytes of page-locked memory of the host, of which {there} are there"
            ));
            Err(Refusal::INVALID_VALUE)
        }
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostAlloc(address: Out<'_, usize>, n_bytes: usize, _flags: c_uint) -> Status {
    on_gpu(|_| {
        if n_bytes == 0 {
            return Err(Refusal::INVALID_VALUE);
        }
        // A NaN in every number format, as memory of the GPU that nobody wrote.
        let mut words = vec![u128::MAX; n_bytes.div_ceil(size_of::<u128>())];
        let start = words.as_mut_ptr() as usize;
        let allocation = Arc::new(PageLocked { _words: words, n_bytes, freed: AtomicBool::new(false) });
        lock(&ALLOCATIONS).insert(start, allocation);
        put(address, start)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(address: usize) -> Status {
    on_gpu(|_| {
        let allocation = lock(&ALLOCATIONS).remove(&address).ok_or(Refusal::INVALID_VALUE)?;
        allocation.freed.store(true, Ordering::Relaxed);
        Ok(())
    })
}
