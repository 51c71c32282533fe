//! Logs on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts the log: as `RUST_LOG` says, else errors only.
pub fn start() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("error"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(has_colour())
        // A closed standard error must not end the program.
        .log_internal_errors(false);
    // A second start would only repeat the first.
    let _ = log.try_init();
}

/// Whether standard error is a terminal whose user wants colour.
fn has_colour() -> bool {
    std::env::var_os("NO_COLOR").is_none() && std::io::stderr().is_terminal()
}
