//! Why the driver refuses a call.

use std::ffi::{c_char, c_int};

use super::{Out, put};
use crate::memory::Fault;

/// `CUresult`.
pub type Status = c_int;

/// Result of a call.
pub type Answer<T = ()> = Result<T, Refusal>;

/// Why a call is refused: a `CUresult` other than `CUDA_SUCCESS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal(pub Status);

const SUCCESS: Status = 0;

/// The refusals, each with its status and CUDA's words for it.
macro_rules! refusals {
    ($($name:ident = $status:literal, $words:literal;)*) => {
        impl Refusal {
            $(pub const $name: Self = Self($status);)*
        }

        /// By status, ends of C strings included.
        const NAMES: &[(Status, &str, &str)] = &[
            (SUCCESS, "CUDA_SUCCESS\0", "no error\0"),
            // What a program's own stubs return for a function that is not here.
            (34, "CUDA_ERROR_STUB_LIBRARY\0", "the emulator does not have this function\0"),
            $(($status, concat!("CUDA_ERROR_", stringify!($name), "\0"), concat!($words, "\0")),)*
        ];
    };
}

refusals! {
    INVALID_VALUE = 1, "invalid argument";
    OUT_OF_MEMORY = 2, "out of memory";
    NOT_INITIALIZED = 3, "initialization error";
    INVALID_DEVICE = 101, "invalid device ordinal";
    INVALID_CONTEXT = 201, "invalid device context";
    INVALID_PTX = 218, "a PTX JIT compilation failed";
    INVALID_HANDLE = 400, "invalid resource handle";
    NOT_FOUND = 500, "named symbol not found";
    NOT_READY = 600, "device not ready";
    ILLEGAL_ADDRESS = 700, "an illegal memory access was encountered";
    NOT_SUPPORTED = 801, "operation not supported";
}

impl From<Fault> for Refusal {
    /// The words were printed when it happened.
    fn from(_: Fault) -> Self {
        Self::ILLEGAL_ADDRESS
    }
}

/// What C gets for an answer.
pub fn status(answer: Answer) -> Status {
    answer.map_or_else(|refusal| refusal.0, |()| SUCCESS)
}

fn put_text(
    to: Out<'_, *const c_char>,
    error: Status,
    choose: fn(&(Status, &str, &str)) -> *const c_char,
) -> Status {
    let known = NAMES.iter().find(|(status, ..)| *status == error);
    status(known.ok_or(Refusal::INVALID_VALUE).and_then(|known| put(to, choose(known))))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorName(error: Status, name: Out<'_, *const c_char>) -> Status {
    put_text(name, error, |(_, name, _)| name.as_ptr().cast())
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorString(error: Status, words: Out<'_, *const c_char>) -> Status {
    put_text(words, error, |(.., words)| words.as_ptr().cast())
}

#[cfg(test)]
mod tests {
    use std::{ffi::CStr, mem::MaybeUninit};

    use super::*;

    #[test]
    fn an_error_has_a_name() {
        let mut name = MaybeUninit::uninit();
        assert_eq!(cuGetErrorName(700, Some(&mut name)), 0);
        // SAFETY: written by the call, with a constant text.
        let name = unsafe { CStr::from_ptr(name.assume_init()) };
        assert_eq!(name, c"CUDA_ERROR_ILLEGAL_ADDRESS");
        assert_eq!(cuGetErrorString(12345, Some(&mut MaybeUninit::uninit())), 1);
        assert_eq!(cuGetErrorString(700, None), 1);
    }
}
