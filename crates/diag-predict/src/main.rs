//! `diag-predict`: parses, calls the library, renders.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use diag_predict::{PredictError, PredictJob, StudyReport, predict};

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

fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    match predict(&PredictJob { run: args.run, study: args.dicom_dir, keep_paths: args.keep_paths }) {
        Ok(report) => {
            print_report(&report, args.json);
            ExitCode::SUCCESS
        }
        Err(err) => {
            print_error(err);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "standard output carries the result")]
fn print_report(report: &StudyReport, json: bool) {
    if json {
        println!("{}", serde_json::to_string_pretty(report).unwrap_or_default());
    } else {
        println!("{}", report.table());
    }
}

#[expect(clippy::print_stderr, reason = "errors go to standard error")]
fn print_error(err: PredictError) {
    let remedy = err.remedy();
    eprintln!("error: {:#}\n  fix: {remedy}", anyhow::Error::new(err));
}
