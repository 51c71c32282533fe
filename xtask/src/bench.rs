//! `cargo xtask bench`: our programs beside their peers, in one interleaved run.

mod ranks;
mod train;

use std::process::{Command, ExitCode};

use anyhow::anyhow;

use crate::{Failure, process, workspace_root};

#[derive(clap::Args)]
pub struct Args {
    /// Which benchmark; all of them when left out
    #[arg(value_enum)]
    name: Option<Name>,
    /// Slices of the smaller uncompressed cohort of `ingest`; the larger one has ten times as many
    #[arg(long, default_value_t = 240)]
    slices: usize,
    /// Rounds of `ingest` and `ranks`
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Name {
    /// ResNet-18, training and inference, against PyTorch and onnxruntime; makes its Python environment
    Train,
    /// DICOM to shards against SimpleITK and pydicom; makes its inputs and its Python environment
    Ingest,
    /// Training on two ranks with one thread each against one process with two, by TCP and MPI
    Ranks,
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    process::forward_interrupts()?;
    if args.name.is_none_or(|name| name == Name::Train) {
        train::run()?;
    }
    if args.name.is_none_or(|name| name == Name::Ingest) {
        ingest(args)?;
    }
    if args.name.is_none_or(|name| name == Name::Ranks) {
        ranks::run(args.rounds)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn ingest(args: &Args) -> Result<(), Failure> {
    process::cargo(&["build", "--release", "--locked", "--workspace", "--bins"])?;
    let own = std::env::current_exe().map_err(|err| Failure::new(err, "run through cargo xtask"))?;
    let bench = workspace_root().join("crates/ct-ingest/bench");
    let folder = own.with_file_name("bench-ingest");
    let python = folder.join("venv/bin/python");
    if !python.exists() {
        let system = std::env::var("COVID19_DIAG_PYTHON").unwrap_or_else(|_| "python3".into());
        step(Command::new(system).args(["-m", "venv"]).arg(folder.join("venv")))?;
        let wanted = bench.join("requirements.txt");
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"];
        step(Command::new(&python).args(pip).arg(wanted))?;
    }
    let phantom = folder.join("phantom");
    if !phantom.join("labels.csv").exists() {
        let cohort = ["--cohort", "smoke", "--seed", "1", "--out"];
        step(Command::new(own.with_file_name("ct-phantom")).args(cohort).arg(&phantom))?;
    }
    let (small, large) = (args.slices.to_string(), (10 * args.slices).to_string());
    for (name, n_slices, syntax) in [
        ("small", &small, "native"),
        ("large", &large, "native"),
        ("rle", &small, "rle"),
        ("jpeg-lossless", &small, "jpeg-lossless"),
        ("jpeg-ls", &small, "jpeg-ls"),
        ("jpeg-2000", &small, "jpeg-2000"),
    ] {
        // The label table is written last: with it, a cohort is complete.
        let (cohort, script) = (folder.join(name), bench.join("inputs.py"));
        if !cohort.join("labels.csv").exists() {
            step(Command::new(&python).arg(script).arg(&phantom).arg(&cohort).args([n_slices, syntax]))?;
        }
    }
    let program = own.with_file_name("ct-ingest");
    let rounds = args.rounds.to_string();
    step(Command::new(&python).arg(bench.join("run.py")).arg(program).arg(&folder).arg(rounds))
}

/// Runs one command of a benchmark.
fn step(command: &mut Command) -> Result<(), Failure> {
    let status = process::run(command)?;
    if status.success() {
        return Ok(());
    }
    let remedy = "see its message above; inputs and Python environments are in target/release/bench-*";
    Err(Failure::new(anyhow!("{} failed ({status})", process::shown(command)), remedy))
}
