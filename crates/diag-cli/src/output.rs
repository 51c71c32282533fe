//! Results, notes and errors; a reader that has closed the pipe is no error.

use std::error::Error;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use crate::printable::printable;

/// How a command ended, beside its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done: exit code 0.
    Done,
    /// Done, but something was set aside or a gate failed, which was said: exit code 3.
    SetAside,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Done => Self::SUCCESS,
            Outcome::SetAside => Self::from(3),
        }
    }
}

/// Writes the result of a command and a newline to standard output; its exit code.
///
/// A closed pipe is no error: its reader has what it wanted. A full disk is one.
pub fn finish(result: &str, outcome: Outcome) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{result}").and_then(|()| out.flush()) {
        Ok(()) => outcome.into(),
        Err(err) if err.kind() == ErrorKind::BrokenPipe => outcome.into(),
        Err(err) => {
            say(&format!(
                "error: cannot write the result to standard output: {err}\n  fix: free some space, or write to another place"
            ));
            ExitCode::FAILURE
        }
    }
}

/// Shows an error in two lines: what and where with its causes, and what can be done. Control
/// characters of names and paths are escaped.
/// Exit code 1.
pub fn fail(err: &dyn Error, remedy: &str) -> ExitCode {
    fail_in("", err, remedy)
}

/// [`fail`] with the place that the error is from before it, such as `rank 1: `.
pub fn fail_in(place: &str, err: &dyn Error, remedy: &str) -> ExitCode {
    say(&format!("error: {place}{}\n  fix: {}", printable(&chain(err)), printable(remedy)));
    ExitCode::FAILURE
}

/// Writes a line to standard error.
pub fn note(text: &str) {
    say(&format!("note: {text}"));
}

/// Writes to standard error; a failed write is ignored.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// An error and its causes, outermost first.
pub fn chain(err: &dyn Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text.push_str(&format!(": {err}"));
        cause = err.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Outer(std::io::Error);

    impl std::fmt::Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("cannot read scan.dcm")
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn an_error_is_shown_with_its_causes() {
        let err = Outer(std::io::Error::other("disk is gone"));
        assert_eq!(chain(&err), "cannot read scan.dcm: disk is gone");
    }
}
