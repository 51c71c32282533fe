//! `diag-report`: one run, or several side by side, to one HTML file.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use diag_cli::Outcome;
use diag_data::case::Split;
use diag_data::files;
use diag_report::{Card, Options, ReportError, RunDir};

/// Makes one offline HTML report from one or more run folders.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Run folders that `diag-train` made; later ones are compared with the first
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Where to write the page [default: report.html in the first run folder]
    #[arg(long, value_name = "FILE.html")]
    out: Option<PathBuf>,
    /// Part of the data to report on
    #[arg(long, default_value = "test", value_name = "SPLIT")]
    split: Split,
    /// Authors' text for the reporting checklist
    #[arg(long, value_name = "FILE.toml")]
    card: Option<PathBuf>,
    /// Number of bootstrap resamples, at least 100
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = clap::value_parser!(u32).range(100..))]
    resamples: u32,
    /// Seed of the bootstrap
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Folder for every table of the page as CSV, in full precision
    #[arg(long, value_name = "DIR")]
    csv: Option<PathBuf>,
    /// Print the page's numbers as one JSON document instead of its path
    #[arg(long)]
    json: bool,
}

/// The page is drawn in one go: a signal ends it where it is, and the old page stays.
const GRACE: Duration = Duration::from_secs(0);

fn main() -> ExitCode {
    let args = Args::parse();
    diag_cli::log::start();
    diag_cli::signal::stop_flag(GRACE);
    match run(&args) {
        Ok(answer) => diag_cli::finish(&answer, Outcome::Done),
        Err((error, remedy)) => diag_cli::fail(error.as_ref(), &remedy),
    }
}

type Failure = (anyhow::Error, String);

fn run(args: &Args) -> Result<String, Failure> {
    let of_report = |err: ReportError| (err.remedy(), anyhow::Error::new(err));
    let of_data = |err: diag_data::DataError| (err.remedy(), anyhow::Error::new(err));
    let swap = |(remedy, err)| (err, remedy);
    let mut options = Options { split: args.split, ..Options::default() };
    options.n_resamples = args.resamples as usize;
    options.seed = args.seed;
    if let Some(path) = &args.card {
        let bytes = files::read(path).map_err(of_data).map_err(swap)?;
        let text = String::from_utf8_lossy(&bytes);
        options.card = Card::from_toml(&text).map_err(of_report).map_err(swap)?;
    }
    let runs: Vec<RunDir> = args.runs.iter().map(RunDir::new).collect();
    let out = args.out.clone().unwrap_or_else(|| runs[0].report());
    let (page, numbers) =
        diag_report::render_with_numbers(&runs, &options).map_err(of_report).map_err(swap)?;
    if let Some(folder) = &args.csv {
        let tables = diag_report::csv_tables(&runs, &numbers, &options).map_err(of_report).map_err(swap)?;
        std::fs::create_dir_all(folder).map_err(|err| {
            (anyhow::anyhow!("cannot create {}: {err}", folder.display()), "choose another --csv".into())
        })?;
        for (name, bytes) in tables {
            files::write_atomic(&folder.join(name), &bytes).map_err(of_data).map_err(swap)?;
        }
    }
    files::write_atomic(&out, page.as_bytes()).map_err(of_data).map_err(swap)?;
    if args.json {
        return serde_json::to_string_pretty(&numbers)
            .map_err(|err| (err.into(), "report this as a bug".to_string()));
    }
    Ok(out.display().to_string())
}
