//! Ctrl-C and SIGTERM.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A flag that the first Ctrl-C or SIGTERM sets. A program that has not ended `grace`
/// later is ended where it is: every stage leaves its files as a kill would, whole or
/// under construction, so that the next run continues.
///
/// A second signal ends it at once.
pub fn stop_flag(grace: Duration) -> Arc<AtomicBool> {
    stop_flag_with(grace, "run the same command again; a fit with --resume continues")
}

/// As [`stop_flag`], with advice of its own for a program that is ended where it is.
pub fn stop_flag_with(grace: Duration, fix: &'static str) -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let handler = move || {
        if flag.swap(true, Ordering::Relaxed) {
            end(fix);
        }
        std::thread::spawn(move || {
            std::thread::sleep(grace);
            end(fix);
        });
    };
    if let Err(err) = ctrlc::set_handler(handler) {
        // The signal then ends the process at once, which every stage survives.
        crate::note(&format!("signals are not handled: {err}"));
    }
    stop
}

/// Ends the program in the middle of its work.
fn end(fix: &str) -> ! {
    crate::say(&format!("error: interrupted\n  fix: {fix}"));
    std::process::exit(1)
}
