//! `ct-ingest`: parse, call, render.

mod args;
mod console;
mod inspection_text;
mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use ct_ingest::IngestError;
use ct_ingest::delivery::{self, Delivery};
use ct_ingest::dicom_run::{self, DicomRun};
use ct_ingest::images_run::{self, ImagesRun};
use ct_ingest::settings::Match;
use ct_ingest::{assemble, inspect, run, verify};
use ct_read::picture::HuLine;
use ct_read::scan::Format;
use diag_data::place::WorkingCopy;

use crate::args::{Cli, Command, ImagesArgs, InspectArgs, MergeArgs, TableArgs, VolumeArgs};
use crate::console::Console;

fn main() -> ExitCode {
    let cli = Cli::parse();
    diag_cli::log::start();
    let done = match cli.command {
        Command::Dicom(args) => volumes(Format::Dicom, &args.dir, args.matching, &args.volume),
        Command::Nifti(args) => volumes(Format::Nifti, &args.dir, Match::Folder, &args.volume),
        Command::Images(args) => images(&args),
        Command::Merge(args) => merge(&args),
        Command::Inspect(args) => inspect(&args),
        Command::Copy(args) => {
            delivery::copy(&args.from, &args.out).map(|n_files| report::copied(n_files, &args.out))
        }
        Command::Verify(args) => {
            verify::verify(&args.shards).map(|verified| report::verified(&verified, args.json))
        }
        Command::Table(args) => table(&args),
    };
    done.unwrap_or_else(|err| console::fail(&err))
}

fn volumes(format: Format, dir: &Path, matching: Match, args: &VolumeArgs) -> Result<ExitCode, IngestError> {
    let delivery = Delivery::to(&args.shared.out)?;
    let run = DicomRun {
        format,
        root: dir.into(),
        labels: args.labels.clone(),
        out: delivery.folder().into(),
        matching,
        settings: args.settings(),
    };
    let console = Console::start();
    let summary = dicom_run::ingest(&run, &console.control())?;
    delivery.deliver()?;
    Ok(console.finish(&summary, &args.shared.out, args.shared.json))
}

fn inspect(args: &InspectArgs) -> Result<ExitCode, IngestError> {
    let found = inspect::inspect(&args.dir, args.keep_paths, args.allow_values.as_deref())?;
    if let Some(path) = &args.labels_template {
        diag_data::files::write_atomic(path, found.labels_template().as_bytes())?;
    }
    Ok(report::inspection(&found, args.json))
}

fn images(args: &ImagesArgs) -> Result<ExitCode, IngestError> {
    let delivery = Delivery::to(&args.shared.out)?;
    let run = ImagesRun {
        root: args.dir.clone(),
        labels: args.labels.clone(),
        split_lists: args.split_lists.clone(),
        out: delivery.folder().into(),
        hu_line: args.hu_slope.zip(args.hu_intercept).map(|(slope, intercept)| HuLine { slope, intercept }),
        window: args.window,
        settings: args.shared.settings(),
    };
    let console = Console::start();
    let summary = images_run::ingest(&run, &console.control())?;
    delivery.deliver()?;
    Ok(console.finish(&summary, &args.shared.out, args.shared.json))
}

fn merge(args: &MergeArgs) -> Result<ExitCode, IngestError> {
    let console = Console::start();
    let delivery = Delivery::to(&args.out)?;
    let copies: Vec<WorkingCopy> =
        args.partitions.iter().map(|partition| WorkingCopy::of(partition)).collect::<Result<_, _>>()?;
    let partitions: Vec<PathBuf> = copies.iter().map(|copy| copy.path().to_path_buf()).collect();
    let joined = || assemble::merge(&partitions, delivery.folder(), &console.control());
    let summary = run::with_threads(args.jobs.map(usize::from), joined)?;
    delivery.deliver()?;
    Ok(console.finish(&summary, &args.out, args.json))
}

fn table(args: &TableArgs) -> Result<ExitCode, IngestError> {
    let declared = args.expect.as_deref().map(ct_ingest::table::read_declared).transpose()?;
    let comparison = ct_ingest::table::compare(&args.shards, declared.as_ref())?;
    Ok(report::comparison(&comparison, args.json))
}
