//! `diag-train find-rate`.

use std::sync::atomic::AtomicBool;

use diag_train::TrainError;
use diag_train::find_rate::{FindRateJob, find_rate};

use super::args::FindRateArgs;
use super::output::Output;
use super::render;

pub fn run(args: FindRateArgs, stop: &AtomicBool) -> Result<Output, TrainError> {
    let FindRateArgs { shards, recipe, steps, json } = args;
    let found = find_rate(&FindRateJob { shards, recipe, n_steps: steps }, stop)?;
    Ok(Output::complete(if json { render::json(&found) } else { render::rate_table(&found) }))
}
