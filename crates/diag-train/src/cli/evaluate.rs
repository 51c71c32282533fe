//! `diag-train evaluate`.

use std::sync::atomic::AtomicBool;

use diag_data::place::WorkingCopy;
use diag_train::TrainError;
use diag_train::evaluate::{EvaluateJob, ExternalJob, evaluate, validate_externally};

use super::args::EvaluateArgs;
use super::output::{Output, UPLOADED_LAST};
use super::render;

pub fn run(args: EvaluateArgs, stop: &AtomicBool) -> Result<Output, TrainError> {
    let EvaluateArgs { run, shards, out, split, device, threads, json } = args;
    let copy = WorkingCopy::of(&run)?;
    let threads = threads.map(usize::from);
    if let (Some(shards), Some(out)) = (shards.clone(), out) {
        let job = ExternalJob { model: copy.path().into(), shards, out, split, device, threads };
        let (metrics, external) = validate_externally(&job, stop)?;
        return Ok(render::external(&metrics, &external, json));
    }
    if copy.path().is_file() {
        return Err(TrainError::NoOwnShards { model: run });
    }
    let job = EvaluateJob { run: copy.path().into(), shards, split, device, threads };
    let metrics = evaluate(&job, stop)?;
    copy.upload(&UPLOADED_LAST)?;
    Ok(Output::complete(if json { render::json(&metrics) } else { render::metrics_table(&metrics) }))
}
