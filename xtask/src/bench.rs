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

fn train() -> Result<(), Failure> {
    process::cargo(&[
        "build",
        "--release",
        "--locked",
        "--package",
        "candle-train-ops",
        "--example",
        "step_bench",
    ])?;
    let root = workspace_root();
    let python = std::env::var("COVID19_DIAG_PYTHON").unwrap_or_else(|_| "python3".into());
    let harness = root.join("crates/candle-train-ops/bench/compare.py");
    let status = process::run(Command::new(&python).arg(harness).current_dir(&root))?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::new(
        anyhow!("the comparison did not run ({status})"),
        "set COVID19_DIAG_PYTHON to a Python that has torch and numpy",
    ))
}
