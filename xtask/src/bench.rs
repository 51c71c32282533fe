//! `cargo xtask bench`: our programs beside their peers, in one interleaved run.

use std::process::{Command, ExitCode};

use anyhow::anyhow;

use crate::{Failure, process, workspace_root};

#[derive(clap::Args)]
pub struct Args {
    /// Which benchmark; all of them when left out
    #[arg(value_enum)]
    name: Option<Name>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Name {
    /// One ResNet-18 training step against PyTorch
    Train,
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    process::forward_interrupts()?;
    if args.name.is_none_or(|name| name == Name::Train) {
        train()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Rounds of the interleaved run: the machine's speed drifts, so each round times both.
const ROUNDS: usize = 3;

fn train() -> Result<(), Failure> {
    let package = ["--package", "candle-train-ops", "--example", "step_bench"];
    process::cargo(&[&["build", "--release", "--locked"], &package[..]].concat())?;
    let own = std::env::current_exe().map_err(|err| Failure::new(err, "run through cargo xtask"))?;
    let ours = own.with_file_name("examples").join("step_bench");
    let theirs = workspace_root().join("crates/candle-train-ops/bench/step_torch.py");
    let python = std::env::var("COVID19_DIAG_PYTHON").unwrap_or_else(|_| "python3".into());
    for threads in ["1", "2"] {
        for _ in 0..ROUNDS {
            measure(Command::new(&ours).args(["train", threads, "5"]))?;
            measure(Command::new(&python).arg(&theirs).args(["train", threads, "5"]))?;
        }
    }
    Ok(())
}

/// Both sides keep freed memory, so that neither is timed faulting pages in.
fn measure(command: &mut Command) -> Result<(), Failure> {
    command.env("MALLOC_MMAP_MAX_", "0").env("MALLOC_TRIM_THRESHOLD_", "8589934592");
    let status = process::run(command)?;
    if status.success() {
        return Ok(());
    }
    let remedy = "set COVID19_DIAG_PYTHON to a Python that has torch";
    Err(Failure::new(anyhow!("{} failed ({status})", process::shown(command)), remedy))
}
