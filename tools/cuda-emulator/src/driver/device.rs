//! The devices, one context each.

use std::{
    ffi::{c_char, c_int, c_uint},
    sync::atomic::{AtomicBool, Ordering},
};

use super::{Answer, CONTEXT, CURRENT, Handle, Out, Refusal, Status, complain, on_gpu, put, refusal::status};
use crate::gpu::n_gpus;

const NAME: &str = "CUDA emulator";

/// `CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT`, and their number: few, so that grids stay small.
const MULTIPROCESSOR_COUNT: (c_int, c_int) = (16, 2);
/// `CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED`, and that they are.
const MEMORY_POOLS_SUPPORTED: (c_int, c_int) = (115, 1);

static INITIALIZED: AtomicBool = AtomicBool::new(false);

/// # Errors
/// A device that is not there, or not yet.
pub fn check_device(device: c_int) -> Answer {
    match usize::try_from(device) {
        _ if !INITIALIZED.load(Ordering::Relaxed) => Err(Refusal::NOT_INITIALIZED),
        Ok(device) if device < n_gpus() => Ok(()),
        _ => Err(Refusal::INVALID_DEVICE),
    }
}

fn put_of_device<T>(device: c_int, to: Out<'_, T>, value: T) -> Status {
    status(check_device(device).and_then(|()| put(to, value)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_flags: c_uint) -> Status {
    INITIALIZED.store(true, Ordering::Relaxed);
    status(Ok(()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetCount(count: Out<'_, c_int>) -> Status {
    put_of_device(0, count, n_gpus() as c_int)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGet(device: Out<'_, c_int>, ordinal: c_int) -> Status {
    put_of_device(ordinal, device, ordinal)
}

/// # Safety
/// `name` has room for `room` bytes, or is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, room: c_int, device: c_int) -> Status {
    status(check_device(device).and_then(|()| {
        if name.is_null() || room < 1 {
            return Err(Refusal::INVALID_VALUE);
        }
        let len = NAME.len().min(room as usize - 1);
        // SAFETY: no more bytes than the caller has room for.
        unsafe {
            name.copy_from_nonoverlapping(NAME.as_ptr().cast(), len);
            name.add(len).write(0);
        }
        Ok(())
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetAttribute(value: Out<'_, c_int>, attribute: c_int, device: c_int) -> Status {
    let known = [MULTIPROCESSOR_COUNT, MEMORY_POOLS_SUPPORTED];
    match known.iter().find(|(number, _)| *number == attribute) {
        Some((_, known)) => put_of_device(device, value, *known),
        None => {
            complain(format_args!("cuDeviceGetAttribute: attribute {attribute} is unknown here"));
            Refusal::NOT_SUPPORTED.0
        }
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetUuid_v2(uuid: Out<'_, [u8; 16]>, device: c_int) -> Status {
    let mut value = *b"GPU-emulator----";
    value[12..].copy_from_slice(&device.to_be_bytes());
    put_of_device(device, uuid, value)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRetain(context: Out<'_, Handle>, device: c_int) -> Status {
    put_of_device(device, context, CONTEXT.wrapping_add_signed(device as isize))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(device: c_int) -> Status {
    status(check_device(device))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: Handle) -> Status {
    if context != 0 && !(CONTEXT..CONTEXT + n_gpus()).contains(&context) {
        return Refusal::INVALID_CONTEXT.0;
    }
    CURRENT.set(context);
    status(Ok(()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxGetCurrent(context: Out<'_, Handle>) -> Status {
    status(put(context, CURRENT.get()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSynchronize() -> Status {
    on_gpu(|gpu| Ok(gpu.synchronize_all()?))
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use super::*;

    #[test]
    fn there_is_one_device() {
        assert_eq!(cuInit(0), 0);
        assert_eq!(cuDeviceGet(Some(&mut MaybeUninit::uninit()), 0), 0);
        assert_eq!(cuDeviceGet(Some(&mut MaybeUninit::uninit()), 1), Refusal::INVALID_DEVICE.0);
        assert_eq!(cuDeviceGetCount(None), Refusal::INVALID_VALUE.0);
        assert_eq!(cuDeviceGetAttribute(Some(&mut MaybeUninit::uninit()), 9999, 0), Refusal::NOT_SUPPORTED.0);
    }

    #[test]
    fn its_name_is_cut_to_the_room() {
        assert_eq!(cuInit(0), 0);
        let mut name = [1; 5];
        // SAFETY: as much room as it says.
        assert_eq!(unsafe { cuDeviceGetName(name.as_mut_ptr(), 5, 0) }, 0);
        assert_eq!(name.map(|letter| letter as u8), *b"CUDA\0");
    }

    #[test]
    fn a_thread_needs_a_context() {
        assert_eq!(cuCtxSynchronize(), Refusal::INVALID_CONTEXT.0);
        assert_eq!(cuCtxSetCurrent(7), Refusal::INVALID_CONTEXT.0);
        assert_eq!(cuCtxSetCurrent(CONTEXT), 0);
        assert_eq!(cuCtxSynchronize(), 0);
    }
}
