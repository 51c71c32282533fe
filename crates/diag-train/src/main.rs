//! `diag-train`: parses, calls the library, renders.

mod render;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, Subcommand};
use diag_data::case::Split;
use diag_data::files;
use diag_data::place::WorkingCopy;
use diag_train::audit::{self, Attribute, AuditJob};
use diag_train::evaluate::{EvaluateJob, evaluate};
use diag_train::explain::{ExplainJob, explain};
use diag_train::find_rate::{FindRateJob, find_rate};
use diag_train::fit::{FitJob, fit_on};
use diag_train::progress::Event;
use diag_train::sweep::{SweepEvent, SweepJob, SweepSpec, fill_tables, sweep, this_program};
use diag_train::{DeviceChoice, Ranks, TrainError};
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
    /// Trains a network; leaves a run folder. Started by mpirun, torchrun or srun, all
    /// processes train it together.
    Fit {
        /// Folder of shards, made by ct-ingest; or, with the feature `cloud`, a URL.
        #[arg(long)]
        shards: PathBuf,
        /// Recipe in TOML.
        #[arg(long)]
        recipe: PathBuf,
        /// Run folder to make, or a URL: worked on here, written there after every epoch.
        #[arg(long)]
        out: PathBuf,
        /// auto, cpu, cuda or cuda:N.
        #[arg(long, default_value = "auto")]
        device: DeviceChoice,
        /// Go on with a run that was stopped; starts it if there is none.
        #[arg(long)]
        resume: bool,
        /// Seconds between checkpoints inside an epoch.
        #[arg(long, default_value_t = 120.0)]
        checkpoint_seconds: f64,
        /// Threads; default: as the recipe says. The result does not depend on it.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        threads: Option<u16>,
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
        /// auto, cpu, cuda or cuda:N.
        #[arg(long, default_value = "auto")]
        device: DeviceChoice,
        /// Threads; default: as the recipe says. The result does not depend on it.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        threads: Option<u16>,
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
        /// auto, cpu, cuda or cuda:N.
        #[arg(long, default_value = "auto")]
        device: DeviceChoice,
        /// Print one JSON document instead of words.
        #[arg(long)]
        json: bool,
    },
    /// Raises the learning rate step by step and watches the loss; writes nothing.
    FindRate {
        /// Folder of shards.
        #[arg(long)]
        shards: PathBuf,
        /// Recipe in TOML.
        #[arg(long)]
        recipe: PathBuf,
        /// Steps from 1e-6 to 1.
        #[arg(long, default_value_t = 100)]
        steps: u32,
        /// Print one JSON document instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Looks for wrong labels, shortcuts and leakage.
    Audit {
        #[command(subcommand)]
        audit: Audit,
    },
    /// Trains and evaluates a grid of recipes; goes on where it was stopped.
    Sweep {
        /// The grid in TOML.
        file: PathBuf,
        /// Folder of the sweep to make.
        #[arg(long)]
        out: PathBuf,
        /// auto, cpu, cuda or cuda:N; all runs share it.
        #[arg(long, default_value = "auto")]
        device: DeviceChoice,
        /// Start nothing; sum up the runs that are finished.
        #[arg(long)]
        finished: bool,
        /// Print one JSON document instead of tables.
        #[arg(long)]
        json: bool,
    },
    /// Makes the marked tables of a Markdown document anew from the results of sweeps.
    Tables {
        /// The document.
        document: PathBuf,
        /// Change nothing; exit code 3 where a table is not what its results make.
        #[arg(long)]
        check: bool,
    },
}

#[derive(Subcommand)]
enum Audit {
    /// Ranks training slices by how wrong their labels look.
    Noise {
        /// Run folder.
        run: PathBuf,
        /// Folder of shards; default: those it was trained on.
        #[arg(long)]
        shards: Option<PathBuf>,
        /// Print all slices as one JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Tries to tell manufacturer or kernel from the features of the test cases.
    Shortcut {
        /// Run folder.
        run: PathBuf,
        /// Folder of shards; default: those it was trained on.
        #[arg(long)]
        shards: Option<PathBuf>,
        /// manufacturer or kernel.
        #[arg(long, default_value = "manufacturer")]
        attribute: Attribute,
        /// Print one JSON document instead of words.
        #[arg(long)]
        json: bool,
    },
    /// Measures how much a split by slice inflates the results of a recipe.
    Leakage {
        /// Folder of shards.
        #[arg(long)]
        shards: PathBuf,
        /// Recipe in TOML.
        #[arg(long)]
        recipe: PathBuf,
        /// Seeds, separated by commas.
        #[arg(long, value_delimiter = ',', default_value = "1,2,3")]
        seeds: Vec<u64>,
        /// Folder of the sweep to make.
        #[arg(long)]
        out: PathBuf,
        /// Print one JSON document instead of tables.
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
    // Training alone is done by several processes; anything else does not ask who started it.
    let ranks = match args.command {
        Command::Fit { .. } => Ranks::join(),
        _ => Ok(Ranks::alone()),
    };
    let ranks = match ranks {
        Ok(ranks) => Arc::new(ranks),
        Err(err) => {
            print_error("", err);
            return ExitCode::FAILURE;
        }
    };
    match run(args.command, &ranks) {
        Ok(told) => {
            if ranks.is_first() {
                print_result(&told.result);
            }
            if told.whole { ExitCode::SUCCESS } else { ExitCode::from(SET_ASIDE) }
        }
        Err(err) => {
            let common = err.is_common();
            if ranks.is_first() || !common {
                let place =
                    if ranks.n_ranks() > 1 { format!("rank {}: ", ranks.rank()) } else { String::new() };
                print_error(&place, err);
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
fn print_error(place: &str, err: TrainError) {
    let remedy = err.remedy();
    eprintln!("error: {place}{:#}\n  fix: {remedy}", anyhow::Error::new(err));
}

/// What goes to standard output, and whether everything was done.
struct Told {
    result: String,
    whole: bool,
}

impl Told {
    fn whole(result: String) -> Self {
        Self { result, whole: true }
    }
}

/// Files of a run that a store gets last: a checkpoint is older than the trail
/// beside it, which a resume cuts back, and never newer.
const RUN_LAST: [&str; 3] = ["epochs.jsonl", "steps.jsonl", "run.json"];

/// Exit code of a sweep some of whose runs failed, and of a check that found something.
const SET_ASIDE: u8 = 3;

fn run(command: Command, ranks: &Arc<Ranks>) -> Result<Told, TrainError> {
    let stop = stop_on_signal();
    match command {
        Command::Fit { shards, recipe, out, device, resume, checkpoint_seconds, threads, json } => {
            let recipe_name = recipe.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let copy = WorkingCopy::of(&out)?;
            let job = FitJob {
                command: format!("diag-train fit --shards SHARDS --recipe {recipe_name} --out RUN"),
                shards,
                recipe,
                run: copy.path().into(),
                device,
                resume,
                checkpoint_seconds,
                threads: threads.map(usize::from),
            };
            let bar = Bar::new();
            let fitted = fit_on(ranks, &job, &stop, &mut |event| {
                let epoch_ends = matches!(event, Event::EpochEnds { .. });
                bar.show(event);
                // Another try follows after the next epoch, and the last one counts.
                if epoch_ends
                    && ranks.is_first()
                    && let Err(err) = copy.hand_in(&RUN_LAST)
                {
                    tracing::warn!("the run is not in {} yet: {err}", out.display());
                }
            });
            bar.0.finish_and_clear();
            if ranks.is_first() && matches!(fitted, Ok(_) | Err(TrainError::Interrupted { .. })) {
                copy.hand_in(&RUN_LAST)?;
            }
            let summary = fitted?;
            Ok(Told::whole(if json { render::fit_json(&summary) } else { render::fit_words(&summary, &out) }))
        }
        Command::Evaluate { run, shards, split, device, threads, json } => {
            let threads = threads.map(usize::from);
            let copy = WorkingCopy::of(&run)?;
            let job = EvaluateJob { run: copy.path().into(), shards, split, device, threads };
            let metrics = evaluate(&job, &stop)?;
            copy.hand_in(&RUN_LAST)?;
            Ok(Told::whole(if json { render::json(&metrics) } else { render::metrics_table(&metrics) }))
        }
        Command::Explain { run, shards, split, truth, slices, occlusion_slices, device, json } => {
            let copy = WorkingCopy::of(&run)?;
            let with_truth = if truth.is_some() { " --truth TRUTH" } else { "" };
            let job = ExplainJob {
                command: format!(
                    "diag-train explain RUN --split {split} --slices {slices} --occlusion-slices {occlusion_slices}{with_truth}"
                ),
                run: copy.path().into(),
                shards,
                split,
                truth,
                slices_per_case: slices.into(),
                occlusion_slices_per_case: occlusion_slices.into(),
                device,
            };
            let explained = explain(&job, &stop)?;
            copy.hand_in(&RUN_LAST)?;
            Ok(Told::whole(if json {
                render::explained_json(&explained)
            } else {
                render::explained_words(&explained, &run)
            }))
        }
        Command::Sweep { file, out, device, finished, json } => {
            run_sweep(SweepSpec::read(&file)?, out, device, finished, json, &stop)
        }
        Command::Tables { document, check } => {
            let filled = fill_tables(&document)?;
            let same = files::read(&document)? == filled.as_bytes();
            let result = if same {
                "every table is what its results make"
            } else if check {
                "a table is not what its results make"
            } else {
                files::write_atomic(&document, filled.as_bytes())?;
                "tables written"
            };
            Ok(Told { result: result.to_owned(), whole: same || !check })
        }
        Command::FindRate { shards, recipe, steps, json } => {
            let found = find_rate(&FindRateJob { shards, recipe, n_steps: steps }, &stop)?;
            Ok(Told::whole(if json { render::json(&found) } else { render::rate_table(&found) }))
        }
        Command::Audit { audit: Audit::Noise { run, shards, json } } => {
            let copy = WorkingCopy::of(&run)?;
            let found = audit::label_noise(&AuditJob { run: copy.path().into(), shards }, &stop)?;
            Ok(Told::whole(if json { render::json(&found) } else { render::noise_table(&found) }))
        }
        Command::Audit { audit: Audit::Shortcut { run, shards, attribute, json } } => {
            let copy = WorkingCopy::of(&run)?;
            let job = AuditJob { run: copy.path().into(), shards };
            let found = audit::shortcut(&job, attribute, &stop)?;
            Ok(Told::whole(if json { render::json(&found) } else { render::shortcut_words(&found) }))
        }
        Command::Audit { audit: Audit::Leakage { shards, recipe, seeds, out, json } } => {
            run_sweep(audit::leakage(&shards, &recipe, seeds), out, DeviceChoice::Auto, false, json, &stop)
        }
    }
}

fn run_sweep(
    spec: SweepSpec,
    out: PathBuf,
    device: DeviceChoice,
    finished_only: bool,
    json: bool,
    stop: &AtomicBool,
) -> Result<Told, TrainError> {
    // What is only summed up needs no device.
    let device = if finished_only { device } else { device.settled()? };
    let job = SweepJob { spec, out, program: this_program()?, device, finished_only };
    let summary = sweep(&job, stop, &mut sweep_line)?;
    let result = if json { render::json(&summary) } else { summary.markdown() };
    Ok(Told { result, whole: summary.failed.is_empty() })
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

#[expect(clippy::print_stderr, reason = "progress goes to standard error")]
fn sweep_line(event: SweepEvent) {
    match event {
        SweepEvent::Kept(run) => eprintln!("{run}: done before"),
        SweepEvent::Starts(run) => eprintln!("{run}: starts"),
        SweepEvent::Done(run) => eprintln!("{run}: done"),
        SweepEvent::Failed(run) => eprintln!("{run}: failed; logs/{run}.txt says why"),
    }
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
