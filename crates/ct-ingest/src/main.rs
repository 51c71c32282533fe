//! `ct-ingest`: parse, call, render.

mod args;
mod console;
mod inspection_text;
mod report;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use ct_ingest::IngestError;
use ct_ingest::dicom_run::{self, DicomRun};
use ct_ingest::images_run::{self, ImagesRun};
use ct_ingest::settings::{Format, Match};
use ct_ingest::{inspect, part, run, verify};

use crate::args::{Cli, Command, ImagesArgs, MergeArgs, TableArgs, VolumeArgs};
use crate::console::Console;

fn main() -> ExitCode {
    let cli = Cli::parse();
    console::start_log();
    let done = match cli.command {
        Command::Dicom(args) => volumes(Format::Dicom, &args.dir, args.matching.into(), &args.volume),
        Command::Nifti(args) => volumes(Format::Nifti, &args.dir, Match::Folder, &args.volume),
        Command::Images(args) => images(&args),
        Command::Merge(args) => merge(&args),
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

fn volumes(format: Format, dir: &Path, matching: Match, args: &VolumeArgs) -> Result<ExitCode, IngestError> {
    let run = DicomRun {
        format,
        root: dir.into(),
        labels: args.labels.clone(),
        out: args.shared.out.clone(),
        matching,
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

fn merge(args: &MergeArgs) -> Result<ExitCode, IngestError> {
    let console = Console::start();
    let joined = || part::merge(&args.parts, &args.out, &console.control());
    let summary = run::with_threads(args.jobs.map(usize::from), joined)?;
    Ok(console.finish(&summary, &args.out, args.json))
}

fn table(args: &TableArgs) -> Result<ExitCode, IngestError> {
    let declared = args.expect.as_deref().map(ct_ingest::table::read_declared).transpose()?;
    let comparison = ct_ingest::table::compare(&args.shards, declared.as_ref())?;
    Ok(report::comparison(&comparison, args.json))
}
