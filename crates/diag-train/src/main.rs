//! `diag-train`: parses, calls the library, renders.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, Subcommand};
use diag_data::case::Split;
use diag_train::evaluate::{EvaluateJob, Metrics, evaluate};
use diag_train::explain::{ExplainJob, Explained, explain};
use diag_train::fit::{FitJob, FitSummary, fit};
use diag_train::progress::Event;
use diag_train::{DeviceChoice, TrainError};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Trains a deeply supervised network on slice shards.
#[derive(Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Trains a network; leaves a run folder.
    Fit {
        /// Folder of shards, made by ct-ingest.
        #[arg(long)]
        shards: PathBuf,
        /// Recipe in TOML.
        #[arg(long)]
        recipe: PathBuf,
        /// Run folder to make.
        #[arg(long)]
        out: PathBuf,
        /// auto, cpu or cuda:N.
        #[arg(long, default_value = "auto")]
        device: DeviceChoice,
        /// Go on with a run that was stopped; starts it if there is none.
        #[arg(long)]
        resume: bool,
        /// Print one JSON document instead of words.
        #[arg(long)]
        json: bool,
    },
    /// Writes a run's predictions and metrics.
    Evaluate {
        /// Run folder.
        run: PathBuf,
        /// Folder of shards; default: those it was trained on.
        #[arg(long)]
        shards: Option<PathBuf>,
        /// train, validation or test; default: all.
        #[arg(long)]
        split: Option<Split>,
        /// auto, cpu or cuda:N.
        #[arg(long, default_value = "auto")]
        device: DeviceChoice,
        /// Print one JSON document instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Writes maps of where an evaluated run looked.
    Explain {
        /// Run folder.
        run: PathBuf,
        /// Folder of shards; default: those it was trained on.
        #[arg(long)]
        shards: Option<PathBuf>,
        /// train, validation or test.
        #[arg(long, default_value = "test")]
        split: Split,
        /// truth.json of the phantoms behind the shards, to hold the maps against its lesions.
        #[arg(long, value_name = "FILE")]
        truth: Option<PathBuf>,
        /// Most slices of a case, evenly spread over its height.
        #[arg(long, default_value_t = 6, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        slices: u16,
        /// Most slices of a case with an occlusion map, which costs some 200 passes each.
        #[arg(long, default_value_t = 1, value_name = "N")]
        occlusion_slices: u16,
        /// auto, cpu or cuda:N.
        #[arg(long, default_value = "auto")]
        device: DeviceChoice,
        /// Print one JSON document instead of words.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .init();
    match run(args.command) {
        Ok(text) => {
            print_result(&text);
            ExitCode::SUCCESS
        }
        Err(err) => {
            print_error(err);
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "standard output carries the result")]
fn print_result(text: &str) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "errors go to standard error")]
fn print_error(err: TrainError) {
    let remedy = err.remedy();
    eprintln!("error: {:#}\n  fix: {remedy}", anyhow::Error::new(err));
}

fn run(command: Command) -> Result<String, TrainError> {
    let stop = stop_on_signal();
    match command {
        Command::Fit { shards, recipe, out, device, resume, json } => {
            let recipe_name = recipe.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let job = FitJob {
                command: format!("diag-train fit --shards SHARDS --recipe {recipe_name} --out RUN"),
                shards,
                recipe,
                run: out,
                device,
                resume,
            };
            let bar = Bar::new();
            let summary = fit(&job, &stop, &mut |event| bar.show(event))?;
            bar.0.finish_and_clear();
            Ok(if json { fit_json(&summary) } else { fit_words(&summary, &job.run) })
        }
        Command::Evaluate { run, shards, split, device, json } => {
            let metrics = evaluate(&EvaluateJob { run, shards, split, device }, &stop)?;
            Ok(if json { metrics_json(&metrics) } else { metrics_table(&metrics) })
        }
        Command::Explain { run, shards, split, truth, slices, occlusion_slices, device, json } => {
            let with_truth = if truth.is_some() { " --truth TRUTH" } else { "" };
            let job = ExplainJob {
                command: format!(
                    "diag-train explain RUN --split {split} --slices {slices} --occlusion-slices {occlusion_slices}{with_truth}"
                ),
                run,
                shards,
                split,
                truth,
                slices_per_case: slices.into(),
                occlusion_slices_per_case: occlusion_slices.into(),
                device,
            };
            let explained = explain(&job, &stop)?;
            Ok(if json { explained_json(&explained) } else { explained_words(&explained, &job.run) })
        }
    }
}

/// A flag that Ctrl-C and SIGTERM set.
fn stop_on_signal() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    // Where no handler can be set, a signal ends the process at once; every file is whole even then.
    if let Err(err) = ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)) {
        tracing::warn!("signals are not handled: {err}");
    }
    stop
}

/// A bar on a terminal, else one line an epoch.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(
            "{prefix} [{bar:30}] {pos}/{len} slices, {per_sec}, {eta} left, {msg}",
        ) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self(bar)
    }

    #[expect(clippy::print_stderr, reason = "progress goes to standard error")]
    fn line(&self, text: &str) {
        if std::io::stderr().is_terminal() {
            self.0.println(text);
        } else {
            eprintln!("{text}");
        }
    }

    fn show(&self, event: Event<'_>) {
        match event {
            Event::EpochStarts { epoch, n_epochs, n_slices } => {
                self.0.set_length(n_slices * u64::from(n_epochs));
                self.0.set_position(n_slices * u64::from(epoch - 1));
                self.0.set_prefix(format!("epoch {epoch}/{n_epochs}"));
                self.0.reset_eta();
            }
            Event::Step { n_slices, loss } => {
                self.0.inc(n_slices);
                self.0.set_message(format!("loss {loss:.3}"));
            }
            Event::EpochEnds { epoch, best, seconds } => {
                let validation = epoch.validation.as_ref().map_or(String::new(), |validation| {
                    format!(
                        ", validation loss {:.4}, case macro-F1 {:.3}",
                        validation.loss.total, validation.case_macro_f1
                    )
                });
                let mark = if best { " (best so far)" } else { "" };
                self.line(&format!(
                    "epoch {}: loss {:.4}{validation}, {seconds:.1} s{mark}",
                    epoch.epoch, epoch.train.total
                ));
            }
            Event::Note(text) => self.line(text),
        }
    }
}

fn fit_words(summary: &FitSummary, run: &std::path::Path) -> String {
    format!(
        "trained {} epochs in {:.1} s, kept epoch {}: {}",
        summary.epochs.len(),
        summary.train_seconds,
        summary.best_epoch,
        run.display()
    )
}

fn fit_json(summary: &FitSummary) -> String {
    serde_json::json!({
        "epochs": summary.epochs.len(),
        "best_epoch": summary.best_epoch,
        "train_seconds": summary.train_seconds,
    })
    .to_string()
}

fn explained_words(explained: &Explained, run: &std::path::Path) -> String {
    format!(
        "wrote {} maps of {} slices in {} cases ({} slices held against a known lesion): {}",
        explained.n_maps,
        explained.n_slices,
        explained.n_cases,
        explained.n_with_lesion,
        run.join("heatmaps.parquet").display()
    )
}

fn explained_json(explained: &Explained) -> String {
    serde_json::json!({
        "maps": explained.n_maps,
        "slices": explained.n_slices,
        "cases": explained.n_cases,
        "slices_with_lesion": explained.n_with_lesion,
    })
    .to_string()
}

fn metrics_json(metrics: &Metrics) -> String {
    serde_json::to_string_pretty(metrics).unwrap_or_default()
}

fn metrics_table(metrics: &Metrics) -> String {
    let mut lines = vec![format!(
        "{:<12}{:<18}{:>6}{:>10}{:>10}{:>10}{:>10}",
        "split", "unit", "n", "accuracy", "balanced", "macro-F1", "AUROC"
    )];
    for (split, of_split) in &metrics.splits {
        let cases = of_split.case.iter().map(|(how, measures)| (format!("case, {how}"), measures));
        for (unit, measures) in cases.chain([("slice".to_owned(), &of_split.slice)]) {
            let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
            lines.push(format!(
                "{split:<12}{unit:<18}{:>6}{:>10}{:>10}{:>10}{:>10}",
                measures.n,
                number(measures.accuracy),
                number(measures.balanced_accuracy),
                number(measures.macro_f1),
                number(measures.macro_auroc)
            ));
        }
    }
    lines.join("\n")
}
