//! The command line of `diag-train`: arguments to library calls, results to text.

pub mod args;
mod audit;
mod bar;
mod evaluate;
mod explain;
mod export;
mod find_rate;
mod fit;
pub mod output;
mod render;
mod sweep;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use diag_train::{Ranks, TrainError};

use args::Command;
use output::Output;

/// Runs a command.
pub fn run(command: Command, ranks: &Arc<Ranks>, stop: &AtomicBool) -> Result<Output, TrainError> {
    match command {
        Command::Fit(args) => fit::run(args, ranks, stop),
        Command::Evaluate(args) => evaluate::run(args, stop),
        Command::Explain(args) => explain::run(args, stop),
        Command::Export(args) => export::run(args),
        Command::FindRate(args) => find_rate::run(args, stop),
        Command::Audit { audit } => audit::run(audit, stop),
        Command::Sweep(args) => sweep::run(args, stop),
        Command::Tables(args) => sweep::tables(&args),
    }
}
