//! `diag-train sweep` and `diag-train tables`.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use diag_data::files;
use diag_train::sweep::{SweepJob, SweepSpec, fill_tables, sweep, this_program};
use diag_train::{DeviceChoice, TrainError};

use super::args::{SweepArgs, TablesArgs};
use super::bar::Bar;
use super::output::Output;
use super::render;

pub fn run(args: SweepArgs, stop: &AtomicBool) -> Result<Output, TrainError> {
    let SweepArgs { file, out, device, finished, have, json } = args;
    let chosen = Chosen { out, device, finished_only: finished, have };
    run_spec(SweepSpec::read(&file)?, chosen, json, stop)
}

/// How a sweep is run, beside its grid.
pub struct Chosen {
    pub out: PathBuf,
    pub device: DeviceChoice,
    pub finished_only: bool,
    pub have: Option<PathBuf>,
}

/// Runs a sweep that was read or made.
pub fn run_spec(
    spec: SweepSpec,
    chosen: Chosen,
    json: bool,
    stop: &AtomicBool,
) -> Result<Output, TrainError> {
    let Chosen { out, device, finished_only, have } = chosen;
    // A summary of finished runs needs no device.
    let device = if finished_only { device } else { device.resolved()? };
    let job = SweepJob { spec, out, program: this_program()?, device, finished_only, have };
    let bar = Bar::new();
    let summary = sweep(&job, stop, &mut |event| bar.show(event))?;
    let text = if json { render::json(&summary) } else { summary.markdown() };
    Ok(Output { text, complete: summary.failed.is_empty() })
}

pub fn tables(args: &TablesArgs) -> Result<Output, TrainError> {
    let TablesArgs { document, check } = args;
    let filled = fill_tables(document)?;
    let same = files::read(document)? == filled.as_bytes();
    let text = if same {
        "every table agrees with its results"
    } else if *check {
        "a table differs from its results"
    } else {
        files::write_atomic(document, filled.as_bytes())?;
        "tables written"
    };
    Ok(Output { text: text.to_owned(), complete: same || !check })
}
