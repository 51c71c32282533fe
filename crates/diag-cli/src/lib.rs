//! What all programs share at the terminal.
//!
//! Standard output carries the result, standard error everything else: [`log`], progress
//! [`bar`]s, notes and errors. [`signal`] lets Ctrl-C and SIGTERM end a program in order.
//! [`output`] writes results and errors, and does not panic when the reader has closed the pipe.
//!
//! Libraries do not depend on this crate: they return values and errors that know their
//! remedy, and take a flag that says when to stop.

pub mod bar;
pub mod log;
pub mod output;
pub mod printable;
pub mod signal;

pub use output::{Outcome, fail, fail_in, finish, note, say};
pub use printable::{printable, printable_json};
