//! `diag-predict`: parses, calls the library, renders.

mod args;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use diag_cli::{Outcome, printable, printable_json};
use diag_predict::{
    BatchControl, BatchEvent, BatchJob, KeySource, PredictError, PredictJob, predict, predict_each,
};
use serde::Serialize;

use crate::args::Args;

/// Nothing is written of one study but the result: a signal ends it where it is.
const GRACE_OF_ONE: Duration = Duration::ZERO;
/// How long the studies at hand may take after Ctrl-C or SIGTERM; the next run reads them again.
const GRACE_OF_MANY: Duration = Duration::from_secs(2);

/// What to do after a signal.
const AGAIN: &str = "run the same command again";

fn main() -> ExitCode {
    let args = Args::parse();
    diag_cli::log::start();
    let done = match args.out.clone() {
        Some(out) => many(args, out),
        None => one(args),
    };
    done.unwrap_or_else(|err| diag_cli::fail(&err, &err.remedy()))
}

fn one(args: Args) -> Result<ExitCode, PredictError> {
    diag_cli::signal::stop_flag_with(GRACE_OF_ONE, AGAIN);
    let job = PredictJob { model: args.model, study: args.study, keep_paths: args.keep_paths };
    let report = predict(&job)?;
    let text = if args.json { json(&report) } else { words(&report.table()) };
    Ok(diag_cli::finish(&text, Outcome::Done))
}

fn many(args: Args, out: PathBuf) -> Result<ExitCode, PredictError> {
    let stop = diag_cli::signal::stop_flag_with(GRACE_OF_MANY, AGAIN);
    let bar = diag_cli::bar::of(0, "studies");
    let job = BatchJob {
        model: args.model,
        root: args.study,
        out,
        jobs: args.jobs.map(usize::from),
        key: KeySource::of_user(args.key_file),
        keep_case_ids: args.keep_case_ids,
    };
    let on_event = |event: BatchEvent<'_>| match event {
        BatchEvent::Found { n_studies } => {
            bar.set_length(n_studies as u64);
            bar.suspend(|| diag_cli::say(&format!("{n_studies} studies")));
        }
        BatchEvent::Advanced { n_done } => bar.set_position(n_done as u64),
        BatchEvent::SetAside { line } => {
            let (source, why) = (printable(&line.source), printable(&line.detail));
            bar.suspend(|| diag_cli::say(&format!("set aside: {source}: {why}\n  fix: {}", line.remedy)));
        }
        BatchEvent::Note(text) => bar.suspend(|| diag_cli::note(&printable(text))),
    };
    let report = predict_each(&job, &BatchControl { on_event: &on_event, stop: &stop })?;
    bar.finish_and_clear();
    let outcome = if report.n_set_aside > 0 { Outcome::SetAside } else { Outcome::Done };
    let text = if args.json { json(&report) } else { words(&report.words()) };
    Ok(diag_cli::finish(&text, outcome))
}

fn json(report: &impl Serialize) -> String {
    printable_json(&format!("{:#}", serde_json::json!(report)))
}

/// Lines for a terminal: names of classes and folders come from outside.
fn words(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}
