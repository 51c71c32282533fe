//! `diag-predict`: parses, calls the library, renders.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use diag_cli::Outcome;
use diag_predict::{PredictJob, predict};

/// Class probabilities of one CT study. Research software, not for clinical use.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Run folder of diag-train.
    run: PathBuf,
    /// Folder with the DICOM files of one study.
    dicom_dir: PathBuf,
    /// Name files below that folder in errors; their paths may name patients.
    #[arg(long)]
    keep_paths: bool,
    /// Print one JSON document instead of a table.
    #[arg(long)]
    json: bool,
}

/// Nothing is written but the result: a signal ends it where it is.
const GRACE: Duration = Duration::ZERO;

fn main() -> ExitCode {
    let args = Args::parse();
    diag_cli::log::start();
    diag_cli::signal::stop_flag(GRACE);
    match predict(&PredictJob { run: args.run, study: args.dicom_dir, keep_paths: args.keep_paths }) {
        Ok(report) if args.json => {
            diag_cli::finish(&format!("{:#}", serde_json::json!(report)), Outcome::Done)
        }
        Ok(report) => diag_cli::finish(&report.table(), Outcome::Done),
        Err(err) => diag_cli::fail(&err, &err.remedy()),
    }
}
