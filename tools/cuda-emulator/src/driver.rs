//! `libcuda`: the driver, as far as cudarc's streams, memory, modules and launches need it.
//!
//! What C declares as a pointer to something of the driver's own is a number here, which is
//! looked up and never followed.

use std::{
    cell::Cell,
    fmt::Display,
    mem::MaybeUninit,
    sync::{Mutex, MutexGuard, PoisonError},
};

pub use refusal::{Answer, Refusal, Status};
pub use table::{Handle, Table};

use crate::gpu::{Gpu, StreamId, Task, gpu};

mod allocation;
mod copy;
mod device;
mod module;
mod page_locked;
mod refusal;
mod stream;
mod table;

/// Where a result goes. C may pass null, and memory that nobody wrote.
pub type Out<'a, T> = Option<&'a mut MaybeUninit<T>>;

/// Hands out a result.
///
/// # Errors
/// Null.
pub fn put<T>(to: Out<'_, T>, value: T) -> Answer {
    to.ok_or(Refusal::INVALID_VALUE)?.write(value);
    Ok(())
}

/// Says what is wrong: an error code cannot.
#[expect(clippy::print_stderr, reason = "the caller gets no more than a number")]
pub fn complain(words: impl Display) {
    eprintln!("cuda-emulator: {words}");
}

/// What a mutex guards; a panic elsewhere does not make a table wrong.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Queues work on the stream of this handle; `name` is for messages.
///
/// # Errors
/// A handle that is no stream; what went wrong on the GPU before.
pub fn queue(gpu: &mut Gpu, stream: Handle, name: impl Into<String>, task: Task) -> Answer {
    let stream = stream_of(gpu, stream)?;
    Ok(gpu.queue(stream, name, task)?)
}

/// The stream of a handle.
fn stream_of(gpu: &Gpu, stream: Handle) -> Answer<StreamId> {
    let id = match stream {
        // The default stream by its three names. One stream for all threads is more order than
        // a stream each, the third name's meaning, would have.
        0..=2 => 0,
        handle => handle as StreamId,
    };
    if gpu.has_stream(id) { Ok(id) } else { Err(Refusal::INVALID_HANDLE) }
}

/// The context of the first device; those of others follow.
const CONTEXT: Handle = 0xc0de << 32;

thread_local! {
    /// The thread's context, or null.
    static CURRENT: Cell<Handle> = const { Cell::new(0) };
}

/// The device that the thread is bound to.
pub fn current_device() -> Option<u32> {
    CURRENT.get().checked_sub(CONTEXT).map(|device| device as u32)
}

/// A call on the GPU that the thread is bound to.
fn on_gpu(call: impl FnOnce(&mut Gpu) -> Answer) -> Status {
    let bound = current_device().ok_or(Refusal::INVALID_CONTEXT);
    refusal::status(bound.and_then(|_| {
        let mut gpu = gpu();
        gpu.check()?;
        call(&mut gpu)
    }))
}

/// What a call of a bound thread hands out.
#[cfg(test)]
#[track_caller]
pub fn made<T: Default + Copy>(call: impl FnOnce(Out<'_, T>) -> Status) -> T {
    CURRENT.set(CONTEXT);
    let mut value = MaybeUninit::new(T::default());
    assert_eq!(call(Some(&mut value)), 0);
    // SAFETY: initialized above.
    unsafe { value.assume_init() }
}
