//! `ct-ingest`: parse, call, render.

mod args;
mod console;

use std::process::ExitCode;

use clap::Parser;
use ct_ingest::IngestError;
use ct_ingest::dicom_run::{self, DicomRun};
use ct_ingest::images_run::{self, ImagesRun};

use crate::args::{Cli, Command, DicomArgs, ImagesArgs};
use crate::console::Console;

fn main() -> ExitCode {
    let cli = Cli::parse();
    console::start_log();
    let done = match cli.command {
        Command::Dicom(args) => dicom(&args),
        Command::Images(args) => images(&args),
    };
    done.unwrap_or_else(|err| console::fail(err))
}

fn dicom(args: &DicomArgs) -> Result<ExitCode, IngestError> {
    let run = DicomRun {
        root: args.dir.clone(),
        labels: args.labels.clone(),
        out: args.shared.out.clone(),
        matching: args.matching.into(),
        settings: args.settings(),
    };
    let console = Console::start();
    let summary = dicom_run::ingest(&run, &console.control())?;
    Ok(console.finish(&summary, &args.shared.out, args.shared.json))
}

fn images(args: &ImagesArgs) -> Result<ExitCode, IngestError> {
    let run = ImagesRun {
        root: args.dir.clone(),
        labels: args.labels.clone(),
        split_lists: args.split_lists.clone(),
        out: args.shared.out.clone(),
        settings: args.shared.settings(),
    };
    let console = Console::start();
    let summary = images_run::ingest(&run, &console.control())?;
    Ok(console.finish(&summary, &args.shared.out, args.shared.json))
}
