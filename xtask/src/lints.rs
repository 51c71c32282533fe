//! Lints that differ between programs and tests.

/// In tests, and only there, a failure may panic.
pub const LINTS_OF_TESTS: [&str; 8] =
    ["-D", "warnings", "-A", "clippy::unwrap_used", "-A", "clippy::panic", "-A", "clippy::type_complexity"];
