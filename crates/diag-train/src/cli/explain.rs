//! `diag-train explain`.

use std::sync::atomic::AtomicBool;

use diag_data::place::WorkingCopy;
use diag_train::TrainError;
use diag_train::explain::{ExplainJob, explain};

use super::args::ExplainArgs;
use super::output::{Output, UPLOADED_LAST};
use super::render;

pub fn run(args: ExplainArgs, stop: &AtomicBool) -> Result<Output, TrainError> {
    let ExplainArgs { run, shards, out, split, truth, slices, occlusion_slices, device, json } = args;
    let copy = WorkingCopy::of(&run)?;
    let with_truth = if truth.is_some() { " --truth TRUTH" } else { "" };
    let job = ExplainJob {
        command: format!(
            "diag-train explain RUN --split {split} --slices {slices} --occlusion-slices {occlusion_slices}{with_truth}"
        ),
        run: copy.path().into(),
        shards,
        external: out.clone(),
        split,
        truth,
        slices_per_case: slices.into(),
        occlusion_slices_per_case: occlusion_slices.into(),
        device,
    };
    let explained = explain(&job, stop)?;
    copy.upload(&UPLOADED_LAST)?;
    Ok(Output::complete(if json {
        render::explained_json(&explained)
    } else {
        render::explained_words(&explained, out.as_deref().unwrap_or(&run))
    }))
}
