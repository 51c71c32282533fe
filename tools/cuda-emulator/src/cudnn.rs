//! cuDNN's graph interface, as far as a single convolution needs it.
//!
//! Every call is checked as the real library might, and more strictly where it may; a refusal
//! is printed, because a status number does not say what was wrong. Descriptors are entries of
//! a table: one that is used after its end is found out, also as a part of another.

mod attributes;
mod content;
mod convolution;
mod descriptors;
#[cfg(test)]
mod tests;

use std::ffi::c_void;

use crate::{
    driver::{Handle, Out, complain},
    gpu::gpu,
    memory::{Fault, Memory},
};
use descriptors::{Answer, library};

/// `cudnnStatus_t`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Success = 0,
    NotInitialized = 1001,
    BadParam = 2000,
    NullPointer = 2002,
    MisalignedPointer = 2003,
    NotFinalized = 2004,
    ShapeMismatch = 2008,
    DuplicatedEntries = 2009,
    AttributeType = 2010,
    DescriptorType = 2012,
    NotSupported = 3000,
    UnsupportedDataType = 3003,
    InternalError = 4000,
    ExecutionFailed = 5000,
}

/// Why a call does not do what it was asked for.
#[derive(Debug)]
struct Refusal {
    status: Status,
    /// Absent where the caller did nothing wrong.
    reason: Option<String>,
}

type Checked<T = ()> = Result<T, Refusal>;

/// A [`Refusal`] of a status and a format string.
macro_rules! refusal {
    ($status:ident, $($words:tt)*) => {
        $crate::cudnn::Refusal { status: $crate::cudnn::Status::$status, reason: Some(format!($($words)*)) }
    };
}
use refusal;

fn answer(function: &str, result: Checked) -> Status {
    let Err(Refusal { status, reason }) = result else { return Status::Success };
    if let Some(reason) = reason {
        complain(format_args!("cudnn: {function}: {reason}"));
    }
    status
}

fn put<T>(to: Out<'_, T>, value: T) -> Checked {
    to.ok_or_else(|| refusal!(NullPointer, "there is no place for the result"))?.write(value);
    Ok(())
}

fn not_null<T>(elements: *const T) -> Checked {
    if elements.is_null() { Err(refusal!(NullPointer, "arrayOfElements is null")) } else { Ok(()) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cudnnCreate(handle: Out<'_, Handle>) -> Status {
    answer("cudnnCreate", put(handle, library().create_handle()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cudnnDestroy(handle: Handle) -> Status {
    answer("cudnnDestroy", library().destroy_handle(handle))
}

#[unsafe(no_mangle)]
pub extern "C" fn cudnnSetStream(handle: Handle, stream: Handle) -> Status {
    answer("cudnnSetStream", library().set_stream(handle, stream))
}

#[unsafe(no_mangle)]
pub extern "C" fn cudnnBackendCreateDescriptor(kind: u32, descriptor: Out<'_, Handle>) -> Status {
    let created = library().create(kind);
    answer("cudnnBackendCreateDescriptor", created.and_then(|created| put(descriptor, created)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cudnnBackendDestroyDescriptor(descriptor: Handle) -> Status {
    answer("cudnnBackendDestroyDescriptor", library().destroy(descriptor))
}

/// # Safety
/// `elements` points to `count` of the type that `kind` names, or is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudnnBackendSetAttribute(
    descriptor: Handle,
    name: u32,
    kind: u32,
    count: i64,
    elements: *const c_void,
) -> Status {
    let set = || {
        let mut library = library();
        let attribute = library.settable(descriptor, name, kind, count)?;
        not_null(elements)?;
        // SAFETY: as the caller says, whose type was found to be the attribute's.
        let values = unsafe { read(elements, attribute.elements.size(), count as usize) };
        library.set(descriptor, attribute, values)
    };
    answer("cudnnBackendSetAttribute", set())
}

/// # Safety
/// `elements` has room for `requested` of the type that `kind` names, or is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cudnnBackendGetAttribute(
    descriptor: Handle,
    name: u32,
    kind: u32,
    requested: i64,
    count: Out<'_, i64>,
    elements: *mut c_void,
) -> Status {
    let get = || {
        let Ok(requested) = usize::try_from(requested) else {
            return Err(refusal!(BadParam, "requestedElementCount is {requested}"));
        };
        if requested > 0 {
            not_null(elements)?;
        }
        let mut library = library();
        let available = match library.get(descriptor, name, kind)? {
            Answer::Numbers(size, values) => {
                // SAFETY: as the caller says, whose type was found to be the attribute's.
                unsafe { write(elements, size, &values[..requested.min(values.len())]) };
                values.len()
            }
            Answer::Engines(kind, engines) => {
                // SAFETY: the caller has descriptors there, which are to be filled.
                let ids = unsafe { read(elements, 8, requested.min(engines.len())) };
                library.fill(descriptor, kind, &ids, &engines)?;
                engines.len()
            }
        };
        put(count, available as i64)
    };
    answer("cudnnBackendGetAttribute", get())
}

#[unsafe(no_mangle)]
pub extern "C" fn cudnnBackendFinalize(descriptor: Handle) -> Status {
    answer("cudnnBackendFinalize", library().finalize(descriptor))
}

#[unsafe(no_mangle)]
pub extern "C" fn cudnnBackendExecute(handle: Handle, plan: Handle, pack: Handle) -> Status {
    let execute = || {
        // The library is free again before the GPU is asked for.
        let (stream, launch) = library().launch(handle, plan, pack)?;
        let name = format!("cudnn {:?}", launch.operation.direction);
        let task = Box::new(move |memory: &mut Memory| launch.run(memory));
        let queued = gpu().queue(stream as u64, name, task);
        queued.map_err(|Fault(words)| refusal!(ExecutionFailed, "{words}"))
    };
    answer("cudnnBackendExecute", execute())
}

/// Numbers of 4 or 8 bytes, the former with zeros before them.
///
/// # Safety
/// That many of this size must be there.
unsafe fn read(elements: *const c_void, size: usize, count: usize) -> Vec<u64> {
    let read = |index| {
        // SAFETY: the caller's promise.
        unsafe {
            match size {
                4 => u64::from(elements.cast::<u32>().add(index).read_unaligned()),
                _ => elements.cast::<u64>().add(index).read_unaligned(),
            }
        }
    };
    (0..count).map(read).collect()
}

/// Reverse of [`read`].
///
/// # Safety
/// There must be room for them.
unsafe fn write(elements: *mut c_void, size: usize, values: &[u64]) {
    for (index, &value) in values.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            match size {
                4 => elements.cast::<u32>().add(index).write_unaligned(value as u32),
                _ => elements.cast::<u64>().add(index).write_unaligned(value),
            }
        }
    }
}
