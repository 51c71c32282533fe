//! Storage of activations and gradients, reused from step to step.
//!
//! A training step asks for the same few hundred megabytes every time. Handing
//! them back to the operating system costs a page fault per 4 KiB at the next
//! step, a third of the arithmetic; so dropped buffers wait in a pool.

mod pool;

use std::{
    ops::{Deref, DerefMut},
    sync::{MutexGuard, PoisonError},
};

pub(crate) use pool::Pool;

use half::bf16;

use crate::element::Element;

/// Buffers below this length are cheaper to allocate than to look up.
const MIN_POOLED_LEN: usize = 4096;

/// A cache line: a vector load that straddles two costs double.
const ALIGNMENT_BYTES: usize = 64;

/// Numbers allocated beyond the wanted ones, so that the start can be aligned.
const fn alignment_slack<T>() -> usize {
    ALIGNMENT_BYTES / size_of::<T>()
}

/// A slice of numbers, starting on a cache line, whose memory returns to the pool
/// when dropped.
pub(crate) struct Buffer<T: Element> {
    /// At least `start + len` long; the rest is slack of a larger pooled buffer.
    values: Vec<T>,
    start: usize,
    len: usize,
}

fn lock<T: Element>() -> MutexGuard<'static, Pool<Vec<T>>> {
    T::pool().lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Element> Buffer<T> {
    /// `len` numbers of unspecified value: the caller writes every one.
    pub(crate) fn unspecified(len: usize) -> Self {
        let want = len + alignment_slack::<T>();
        let values = if want < MIN_POOLED_LEN {
            vec![T::zero(); want]
        } else {
            let found = lock::<T>().take(want);
            found.map_or_else(|| vec![T::zero(); want], |(_, values)| values)
        };
        let start = values.as_ptr().align_offset(ALIGNMENT_BYTES);
        Self {
            // An allocator that cannot tell leaves the start where it is.
            start: if start < alignment_slack::<T>() { start } else { 0 },
            values,
            len,
        }
    }

    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Self {
        let mut buffer = Self::unspecified(len);
        buffer.fill(T::zero());
        buffer
    }

    /// A copy of `values`.
    pub(crate) fn copy_of(values: &[T]) -> Self {
        let mut buffer = Self::unspecified(values.len());
        buffer.copy_from_slice(values);
        buffer
    }
}

impl<T: Element> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.values.len() >= MIN_POOLED_LEN {
            let values = std::mem::take(&mut self.values);
            lock::<T>().give(values.len(), values);
        }
    }
}

impl<T: Element> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.values[self.start..][..self.len]
    }
}

impl<T: Element> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values[self.start..][..self.len]
    }
}

fn release<T: Element>() {
    // The pool is unlocked before anything is freed.
    let free = lock::<T>().drain();
    drop(free);
}

/// Gives the memory of all pooled buffers back to the allocator, for a program
/// that goes on to something else after training.
pub fn release_buffers() {
    release::<f32>();
    release::<f64>();
    release::<bf16>();
    #[cfg(feature = "cuda")]
    crate::cuda::release_buffers();
}
