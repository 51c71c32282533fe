//! `ct-ingest`: parse, call, render.

mod args;
mod console;
mod report;

use std::process::ExitCode;

use clap::Parser;
use ct_ingest::IngestError;
use ct_ingest::dicom_run::{self, DicomRun};
use ct_ingest::images_run::{self, ImagesRun};
use ct_ingest::{inspect, verify};

use crate::args::{Cli, Command, DicomArgs, ImagesArgs, TableArgs};
use crate::console::Console;

fn main() -> ExitCode {
    let cli = Cli::parse();
    console::start_log();
    let done = match cli.command {
        Command::Dicom(args) => dicom(&args),
        Command::Images(args) => images(&args),
        Command::Inspect(args) => {
            inspect::inspect(&args.dir, args.keep_paths).map(|found| report::inspection(&found, args.json))
        }
        Command::Verify(args) => {
            verify::verify(&args.shards).map(|verified| report::verified(&verified, args.json))
        }
        Command::Table(args) => table(&args),
    };
    done.unwrap_or_else(console::fail)
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

fn table(args: &TableArgs) -> Result<ExitCode, IngestError> {
    let declared = args.expect.as_deref().map(ct_ingest::table::read_declared).transpose()?;
    let comparison = ct_ingest::table::compare(&args.shards, declared.as_ref())?;
    Ok(report::comparison(&comparison, args.json))
}
