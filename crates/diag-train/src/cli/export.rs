//! `diag-train export`.

use diag_data::place::WorkingCopy;
use diag_train::TrainError;
use diag_train::export::{ExportJob, export};

use super::args::ExportArgs;
use super::output::Output;
use super::render;

pub fn run(args: ExportArgs) -> Result<Output, TrainError> {
    let ExportArgs { run, out, without_seen, json } = args;
    let copy = WorkingCopy::of(&run)?;
    let exported = export(&ExportJob { run: copy.path().into(), out: out.clone(), without_seen })?;
    let text =
        if json { render::exported_json(&exported, &out) } else { render::exported_words(&exported, &out) };
    Ok(Output::complete(text))
}
