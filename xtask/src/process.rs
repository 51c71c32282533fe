//! Child processes that end when we are told to end.

use std::ffi::OsString;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::{Context, anyhow};

use crate::{Failure, workspace_root};

static CHILD: AtomicU32 = AtomicU32::new(0);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C and SIGTERM are passed to the running stage, which leaves
/// its files whole, and no further stage starts.
pub fn forward_interrupts() -> Result<(), Failure> {
    let handler = || {
        INTERRUPTED.store(true, Ordering::SeqCst);
        let child = CHILD.load(Ordering::SeqCst);
        if child != 0 {
            let _ = Command::new("kill").args(["-TERM", &child.to_string()]).status();
        }
    };
    ctrlc::set_handler(handler).map_err(|err| Failure::new(err, "run in another terminal"))
}

/// Runs a command to its end; what it prints is passed through.
pub fn run(command: &mut Command) -> Result<ExitStatus, Failure> {
    let shown = shown(command);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {shown}"))
        .map_err(|err| Failure::new(err, "build first: cargo build --release --workspace"))?;
    CHILD.store(child.id(), Ordering::SeqCst);
    let status = child.wait();
    CHILD.store(0, Ordering::SeqCst);
    if INTERRUPTED.load(Ordering::SeqCst) {
        return Err(Failure::new(
            anyhow!("interrupted"),
            "run the same command again: finished stages are kept",
        ));
    }
    status.with_context(|| format!("lost {shown}")).map_err(|err| Failure::new(err, "run again"))
}

/// Runs `cargo` in the workspace; anything but success is an error.
pub fn cargo(args: &[&str]) -> Result<(), Failure> {
    cargo_with(args, &[])
}

/// [`cargo`] with more in its environment.
pub fn cargo_with(args: &[&str], environment: &[(&str, OsString)]) -> Result<(), Failure> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(workspace_root());
    command.envs(environment.iter().map(|(name, value)| (*name, value)));
    let status = run(&mut command)?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(anyhow!("cargo {} failed ({status})", args.join(" ")), "see its messages above"))
}

/// Whether a program can be started here.
pub fn is_here(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// The command as a user would type it.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words.map(|word| {
        let word = word.to_string_lossy();
        if word.contains(' ') { format!("'{word}'") } else { word.into_owned() }
    });
    words.collect::<Vec<_>>().join(" ")
}
