//! Ties the stages together. It calls the same binaries that a user types, so
//! whatever it does can be repeated by hand: every command is printed first.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program")]

mod bench;
mod ci;
mod confirm;
mod emulator;
mod fingerprint;
mod lints;
mod pipeline;
mod process;
mod stage;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs the whole way, the checks, or the benchmarks.
#[derive(Parser)]
#[command(name = "cargo xtask", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// From DICOM series to an opened report: phantom, ingest, train, evaluate, report
    Pipeline(Box<pipeline::Args>),
    /// Everything that continuous integration checks
    Ci(ci::Args),
    /// Side-by-side benchmarks
    Bench(bench::Args),
    /// The primary table of docs/protocol-cxr.md on other persons
    Confirm(confirm::Args),
    /// The shards of docs/protocol-cxr.md
    StudyShards(confirm::ShardArgs),
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Pipeline(args) => pipeline::run(&args),
        Command::Ci(args) => ci::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Confirm(args) => confirm::run(&args),
        Command::StudyShards(args) => confirm::shards(&args),
    };
    match result {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("error: {:#}\n  fix: {}", failure.error, failure.remedy);
            ExitCode::FAILURE
        }
    }
}

/// An error together with what the user can do about it.
struct Failure {
    error: anyhow::Error,
    remedy: String,
}

impl Failure {
    fn new(error: impl Into<anyhow::Error>, remedy: impl Into<String>) -> Self {
        Self { error: error.into(), remedy: remedy.into() }
    }
}

/// The workspace that this program was built from.
fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}
