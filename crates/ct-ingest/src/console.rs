//! What the terminal shows: progress and faults on standard error, the result
//! on standard output.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ct_ingest::IngestError;
use ct_ingest::run::{Control, Event, Summary};
use diag_cli::{Outcome, printable, printable_json};
use diag_data::manifest::{Level, SelectionRow};
use indicatif::ProgressBar;
use serde_json::json;

/// How long the cases at hand may take after Ctrl-C or SIGTERM; the next run reads them again.
const GRACE: Duration = Duration::from_secs(2);

/// Shows an error in two lines.
pub fn fail(err: &IngestError) -> ExitCode {
    diag_cli::fail(err, &err.remedy())
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
        let stop = diag_cli::signal::stop_flag(GRACE);
        let bar = diag_cli::bar::of(0, "cases");
        let shown = bar.clone();
        Self { bar, stop, on_event: Box::new(move |event| show(&shown, event)) }
    }

    /// What the library reports to.
    pub fn control(&self) -> Control<'_> {
        Control { on_event: &*self.on_event, stop: &self.stop }
    }

    /// Prints the result.
    pub fn finish(&self, summary: &Summary, out: &Path, as_json: bool) -> ExitCode {
        self.bar.finish_and_clear();
        let manifest = &summary.manifest;
        let mut lines = Vec::new();
        if as_json {
            let document = json!({
                "shards": out,
                "synthetic": manifest.synthetic,
                "table": manifest.table,
                "selection": manifest.selection,
                "flow": manifest.flow,
                "n_quarantined": summary.n_quarantined,
            });
            lines.push(printable_json(&format!("{document:#}")));
        } else {
            let flow = &manifest.flow;
            lines.push(printable(&out.display().to_string()));
            for (name, level) in [
                ("files", &flow.files),
                ("series", &flow.series),
                ("cases", &flow.cases),
                ("slices", &flow.slices),
            ] {
                lines.push(format!("  {name:<7} {}", account(level)));
            }
            for row in &manifest.table {
                lines.push(format!(
                    "  {:<22} {:<10} {:>5} cases {:>7} slices",
                    printable(&row.label),
                    row.split,
                    row.n_cases,
                    row.n_slices
                ));
            }
            manifest.selection.iter().filter_map(selection).for_each(|line| lines.push(format!("  {line}")));
            if summary.n_quarantined > 0 {
                lines.push(format!(
                    "  {} entries in quarantine.jsonl (--keep-paths names files; they may name patients)",
                    summary.n_quarantined
                ));
            }
        }
        let outcome = if summary.n_quarantined > 0 { Outcome::SetAside } else { Outcome::Done };
        diag_cli::finish(&lines.join("\n"), outcome)
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

fn show(bar: &ProgressBar, event: Event<'_>) {
    match event {
        Event::Scanned { n_files, n_cases } => {
            bar.set_length(n_cases as u64);
            bar.suspend(|| diag_cli::say(&format!("{n_files} files, {n_cases} cases")));
        }
        Event::Advanced { n_done, .. } => bar.set_position(n_done as u64),
        Event::SetAside { source, fault } => {
            let (source, why) = (printable(source), printable(&fault.to_string()));
            bar.suspend(|| diag_cli::say(&format!("set aside: {source}: {why}\n  fix: {}", fault.remedy())));
        }
        Event::Note(text) => bar.suspend(|| diag_cli::note(&printable(text))),
    }
}
