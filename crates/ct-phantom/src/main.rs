//! `ct-phantom`: parses, calls the library, renders.

use clap::Parser;
use ct_phantom::{CohortSpec, Options, PhantomError, Progress, Summary, generate};
use diag_cli::Outcome;
use std::{ops::ControlFlow, path::PathBuf, process::ExitCode, sync::atomic::Ordering, time::Duration};

/// Makes a synthetic chest CT cohort: DICOM series, labels.csv, truth.json.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// smoke, middling, paper, or a cohort file (see data/cohorts/README.md)
    #[arg(long)]
    cohort: String,
    /// Same cohort and seed: same bytes
    #[arg(long)]
    seed: u64,
    /// Folder to make; must be new or empty
    #[arg(long)]
    out: PathBuf,
    /// Threads; 0 is one a core
    #[arg(long, default_value_t = 0)]
    jobs: usize,
    /// Replace a cohort that ct-phantom made in the output folder before
    #[arg(long)]
    force: bool,
    /// Print the summary as one JSON document
    #[arg(long)]
    json: bool,
}

/// How long a slice may take after Ctrl-C or SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let args = Args::parse();
    let started = std::time::Instant::now();
    match run(&args) {
        Ok(summary) => {
            let seconds = started.elapsed().as_secs_f64();
            diag_cli::say(&format!(
                "{} slices in {seconds:.1} s: {:.0} a second",
                summary.slices,
                summary.slices as f64 / seconds
            ));
            let text = if args.json { serde_json::json!(summary).to_string() } else { table(&summary) };
            diag_cli::finish(text.trim_end(), Outcome::Done)
        }
        Err(err) => {
            let usage = err.downcast_ref::<PhantomError>().is_some_and(PhantomError::is_usage);
            let remedy = err
                .downcast_ref::<PhantomError>()
                .map_or("try again with --jobs 1".into(), PhantomError::remedy);
            let code = diag_cli::fail(err.as_ref(), &remedy);
            if usage { ExitCode::from(2) } else { code }
        }
    }
}

fn run(args: &Args) -> anyhow::Result<Summary> {
    let spec = CohortSpec::load(&args.cohort)?;
    let stop = diag_cli::signal::stop_flag(GRACE);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.jobs).build()?;
    let bar = diag_cli::bar::styled(
        u64::from(spec.n_cases()),
        "{bar:30} {pos}/{len} cases, {msg} slices, {eta} left",
    );
    let progress = |state: Progress| {
        bar.set_position(state.cases_done as u64);
        bar.set_message(state.slices_done.to_string());
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let options = Options { force: args.force };
    let summary = pool.install(|| generate(&spec, args.seed, &args.out, options, &progress));
    bar.finish_and_clear();
    Ok(summary?)
}

fn table(summary: &Summary) -> String {
    let mut text =
        format!("{:<22}{:>7}{:>9}{:>13}{:>12}\n", "class", "cases", "slices", "with lesion", "mislabelled");
    for class in &summary.classes {
        text += &format!(
            "{:<22}{:>7}{:>9}{:>13}{:>12}\n",
            class.label.name(),
            class.cases,
            class.slices,
            class.slices_with_lesion,
            class.mislabelled
        );
    }
    text + &format!(
        "synthetic cohort {} (seed {}) in {}\n",
        summary.cohort,
        summary.seed,
        summary.out.display()
    )
}
