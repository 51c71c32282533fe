//! `diag-train`: parses, calls the library, prints.

mod cli;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;
use diag_train::{Ranks, TrainError};

use cli::args::{Args, Command};

/// Exit code of a sweep some of whose runs failed, and of a check that found something.
const SET_ASIDE: u8 = 3;

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .init();
    // Only training runs on several processes; other commands ignore a launcher.
    let ranks = match args.command {
        Command::Fit { .. } => Ranks::from_launcher(),
        _ => Ok(Ranks::alone()),
    };
    let ranks = match ranks {
        Ok(ranks) => Arc::new(ranks),
        Err(err) => {
            print_error("", err);
            return ExitCode::FAILURE;
        }
    };
    match cli::run(args.command, &ranks, &stop_on_signal()) {
        Ok(output) => {
            if ranks.is_first() {
                print_result(&output.text);
            }
            if output.complete { ExitCode::SUCCESS } else { ExitCode::from(SET_ASIDE) }
        }
        Err(err) => {
            let common = err.is_common();
            if ranks.is_first() || !common {
                let prefix =
                    if ranks.n_ranks() > 1 { format!("rank {}: ", ranks.rank()) } else { String::new() };
                print_error(&prefix, err);
            }
            if !common {
                ranks.abort();
            }
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "standard output carries the result")]
fn print_result(text: &str) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "errors go to standard error")]
fn print_error(prefix: &str, err: TrainError) {
    let remedy = err.remedy();
    eprintln!("error: {prefix}{:#}\n  fix: {remedy}", anyhow::Error::new(err));
}

/// A flag that Ctrl-C and SIGTERM set.
fn stop_on_signal() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    // Without a handler a signal ends the process at once; every file is complete even then.
    if let Err(err) = ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)) {
        tracing::warn!("signals are not handled: {err}");
    }
    stop
}
