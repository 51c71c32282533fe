//! What the terminal shows: progress and faults on standard error, the result
//! on standard output.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ct_ingest::IngestError;
use ct_ingest::run::{Control, Event, Summary};
use diag_data::manifest::{Level, SelectionRow};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use crate::printable::{json_text, printable};

/// Exit code when something was set aside or a gate failed.
pub const SET_ASIDE: u8 = 3;

/// Sends logs to standard error, as `RUST_LOG` says; by default errors only.
pub fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    let colour = std::env::var_os("NO_COLOR").is_none() && std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour).init();
}

/// Shows an error in two lines.
#[expect(clippy::print_stderr, reason = "errors of a command go to standard error")]
pub fn fail(err: IngestError) -> ExitCode {
    let remedy = err.remedy();
    let text = format!("{:#}", anyhow::Error::new(err));
    eprintln!("error: {}\n  fix: {}", printable(&text), printable(&remedy));
    ExitCode::FAILURE
}

/// The running command's connection to its terminal.
pub struct Console {
    bar: ProgressBar,
    stop: Arc<AtomicBool>,
    on_event: Box<dyn Fn(Event<'_>) + Sync>,
}

impl Console {
    /// Shows a bar where there is a terminal, and lets Ctrl-C and SIGTERM end
    /// the run in order.
    pub fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        // Without a handler the signal ends the process at once: the staged
        // folder then stays hidden and the next run removes it.
        if let Err(err) = ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed)) {
            tracing::warn!("signals are not handled: {err}");
        }
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} cases, {per_sec}, {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let shown = bar.clone();
        Self { bar, stop, on_event: Box::new(move |event| show(&shown, event)) }
    }

    /// What the library reports to.
    pub fn control(&self) -> Control<'_> {
        Control { on_event: &*self.on_event, stop: &self.stop }
    }

    /// Prints the result.
    #[expect(clippy::print_stdout, reason = "the result of a command goes to standard output")]
    pub fn finish(&self, summary: &Summary, out: &Path, as_json: bool) -> ExitCode {
        self.bar.finish_and_clear();
        let manifest = &summary.manifest;
        if as_json {
            let document = json!({
                "shards": out,
                "synthetic": manifest.synthetic,
                "table": manifest.table,
                "selection": manifest.selection,
                "flow": manifest.flow,
                "n_quarantined": summary.n_quarantined,
            });
            println!("{}", json_text(&document));
        } else {
            let flow = &manifest.flow;
            println!("{}", printable(&out.display().to_string()));
            for (name, level) in [
                ("files", &flow.files),
                ("series", &flow.series),
                ("cases", &flow.cases),
                ("slices", &flow.slices),
            ] {
                println!("  {name:<7} {}", account(level));
            }
            for row in &manifest.table {
                println!(
                    "  {:<22} {:<10} {:>5} cases {:>7} slices",
                    printable(&row.label),
                    row.split,
                    row.n_cases,
                    row.n_slices
                );
            }
            manifest.selection.iter().filter_map(selection).for_each(|line| println!("  {line}"));
            if summary.n_quarantined > 0 {
                println!(
                    "  {} entries in quarantine.jsonl (--keep-paths names files; they may name patients)",
                    summary.n_quarantined
                );
            }
        }
        if summary.n_quarantined > 0 { ExitCode::from(SET_ASIDE) } else { ExitCode::SUCCESS }
    }
}

/// What was kept of a class; `None` where lungs were not measured.
fn selection(row: &SelectionRow) -> Option<String> {
    Some(format!(
        "{:<22} kept {} of {} slices, mean lung fraction {:.3} (of all {:.3})",
        printable(&row.label),
        row.n_slices,
        row.n_source_slices,
        row.lung_fraction?,
        row.lung_fraction_source?
    ))
}

fn account(level: &Level) -> String {
    let mut text = format!("{} seen, {} used", level.seen, level.used);
    for (reason, count) in &level.set_aside {
        text.push_str(&format!(", {count} {reason}"));
    }
    text
}

#[expect(clippy::print_stderr, reason = "progress and faults go to standard error")]
fn show(bar: &ProgressBar, event: Event<'_>) {
    match event {
        Event::Scanned { n_files, n_cases } => {
            bar.set_length(n_cases as u64);
            bar.suspend(|| eprintln!("{n_files} files, {n_cases} cases"));
        }
        Event::Advanced { n_done, .. } => bar.set_position(n_done as u64),
        Event::SetAside { source, fault } => {
            let (source, why) = (printable(source), printable(&fault.to_string()));
            bar.suspend(|| eprintln!("set aside: {source}: {why}\n  fix: {}", fault.remedy()));
        }
        Event::Note(text) => bar.suspend(|| eprintln!("note: {}", printable(text))),
    }
}
