//! Progress on standard error.

use std::io::IsTerminal;

use diag_train::progress::{Event, RunState};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar on a terminal, else one line an epoch.
pub struct Bar(ProgressBar);

impl Bar {
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(
            "{prefix} [{bar:30}] {pos}/{len} slices, {per_sec}, {eta} left, {msg}",
        ) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self(bar)
    }

    pub fn finish(&self) {
        self.0.finish_and_clear();
    }

    fn line(&self, text: &str) {
        if std::io::stderr().is_terminal() {
            self.0.println(text);
        } else {
            diag_cli::say(text);
        }
    }

    pub fn show(&self, event: Event) {
        match event {
            Event::EpochStarts { epoch, n_epochs, n_slices } => {
                self.0.set_length(n_slices * u64::from(n_epochs));
                self.0.set_position(n_slices * u64::from(epoch - 1));
                self.0.set_prefix(format!("epoch {epoch}/{n_epochs}"));
                self.0.reset_eta();
            }
            Event::Batch { n_slices, loss } => {
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
            Event::Note(text) => self.line(&text),
            Event::SweepRun { name, state } => self.line(&match state {
                RunState::AlreadyDone => format!("{name}: done before"),
                RunState::Started => format!("{name}: starts"),
                RunState::Done => format!("{name}: done"),
                RunState::Failed => format!("{name}: failed; logs/{name}.txt says why"),
            }),
        }
    }
}
