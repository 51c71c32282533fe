//! `diag-train`: parses, calls the library, prints.

mod cli;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use diag_cli::Outcome;
use diag_train::Ranks;

use cli::args::{Args, Command};

/// How long the step at hand and its checkpoint may take after Ctrl-C or SIGTERM. Whatever
/// takes longer loses the steps since the last checkpoint.
const GRACE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let args = Args::parse();
    diag_cli::log::start();
    // Only training runs on several processes; other commands ignore a launcher.
    let ranks = match args.command {
        Command::Fit { .. } => Ranks::from_launcher(),
        _ => Ok(Ranks::alone()),
    };
    let ranks = match ranks {
        Ok(ranks) => Arc::new(ranks),
        Err(err) => {
            return diag_cli::fail(&err, &err.remedy());
        }
    };
    match cli::run(args.command, &ranks, &diag_cli::signal::stop_flag(GRACE)) {
        Ok(output) => {
            let outcome = if output.complete { Outcome::Done } else { Outcome::SetAside };
            if ranks.is_first() { diag_cli::finish(&output.text, outcome) } else { outcome.into() }
        }
        Err(err) => {
            let common = err.is_common();
            if ranks.is_first() || !common {
                let place =
                    if ranks.n_ranks() > 1 { format!("rank {}: ", ranks.rank()) } else { String::new() };
                diag_cli::fail_in(&place, &err, &err.remedy());
            }
            if !common {
                ranks.abort();
            }
            ExitCode::FAILURE
        }
    }
}
