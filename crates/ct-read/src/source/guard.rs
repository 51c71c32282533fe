//! A decoder that breaks off costs one file, not the run.
//!
//! Bad data shall be answered with a [`Fault`], and the mutation tests over
//! [`crate::fuzz_targets`] hold our own code to that. Where it is broken nevertheless, by a foreign codec or
//! by us, the panic ends here, and the file is set aside like any other bad one.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::fault::Fault;

/// Runs `work` on one file; a panic becomes `broken`.
///
/// # Errors
/// What `work` returns, or `broken`.
pub fn guarded<T>(broken: Fault, work: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    quietly(|| catch_unwind(AssertUnwindSafe(work))).unwrap_or(Err(broken))
}

thread_local! {
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` without the panic message of this thread: the fault is reported
/// by the caller, and a message could repeat what stands in a patient's file.
fn quietly<T>(work: impl FnOnce() -> T) -> T {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let outer = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !IS_QUIET.get() {
                outer(info);
            }
        }));
    });
    let before = IS_QUIET.replace(true);
    let result = work();
    IS_QUIET.set(before);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_the_fault_of_its_file() {
        let broken = || guarded(Fault::BurnedIn, || -> Result<(), Fault> { panic!("a name") });
        assert_eq!(broken(), Err(Fault::BurnedIn));
        assert_eq!(guarded(Fault::BurnedIn, || Ok(1)), Ok(1));
        let inner = guarded(Fault::Truncated, || {
            let _ = broken();
            assert!(IS_QUIET.get(), "the inner one ends, the outer one goes on");
            Err::<(), _>(Fault::NoLung)
        });
        assert_eq!(inner, Err(Fault::NoLung));
        assert!(!IS_QUIET.get());
    }
}
