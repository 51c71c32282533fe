//! What `dicom` and `images` have in common: events, the stop flag, the written result.

use std::path::Path;

use ct_read::pseudonyms::{Kind, Pseudonyms};
use diag_data::manifest::{Manifest, Quarantined};
use diag_data::shard::Job;
use diag_data::shard::staging::Staging;

use crate::IngestError;
pub use crate::control::{Control, Event};
use crate::fault::Fault;
use crate::settings::Settings;

/// Name and version of this program, as the manifest states them.
pub const TOOL: &str = concat!("ct-ingest ", env!("CARGO_PKG_VERSION"));

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The manifest as written.
    pub manifest: Manifest,
    /// Number of lines in `quarantine.jsonl`.
    pub n_quarantined: usize,
}

/// Collects what is set aside, in the order of its discovery.
#[derive(Debug)]
pub struct Quarantine<'a> {
    pseudonyms: &'a Pseudonyms,
    keep_paths: bool,
    lines: Vec<Quarantined>,
}

impl<'a> Quarantine<'a> {
    /// An empty one.
    pub fn new(settings: &Settings, pseudonyms: &'a Pseudonyms) -> Self {
        Self { pseudonyms, keep_paths: settings.keep_paths, lines: Vec::new() }
    }

    /// Notes a file or folder by its path below the root.
    pub fn add_path(&mut self, path: &str, fault: &Fault, control: &Control<'_>) {
        self.lines.push(self.path_line(path, fault, control));
    }

    /// Notes a case: `name` for the operator, `pseudonym` for the line.
    pub fn add_case(&mut self, name: &str, pseudonym: &str, fault: &Fault, control: &Control<'_>) {
        self.lines.push(self.case_line(name, pseudonym, fault, control));
    }

    /// The line of a file or folder. It holds the path only on request, else its keyed hash.
    pub fn path_line(&self, path: &str, fault: &Fault, control: &Control<'_>) -> Quarantined {
        let source = if self.keep_paths {
            path.to_string()
        } else {
            format!("path-{}", &self.pseudonyms.hash(Kind::Path, path)[..10])
        };
        (control.on_event)(Event::SetAside { source: &source, fault });
        fault.line(source)
    }

    /// The line of a case. It is told by `name` where paths are asked for, else by `pseudonym`.
    pub fn case_line(
        &self,
        name: &str,
        pseudonym: &str,
        fault: &Fault,
        control: &Control<'_>,
    ) -> Quarantined {
        let source = if self.keep_paths { name } else { pseudonym };
        (control.on_event)(Event::SetAside { source, fault });
        fault.line(pseudonym.into())
    }

    /// Takes out what was collected.
    pub fn take_lines(&mut self) -> Vec<Quarantined> {
        std::mem::take(&mut self.lines)
    }
}

/// Runs `work` on a number of threads of its own; `None` is one a core.
///
/// # Errors
/// When the threads cannot be started, and whatever `work` returns.
pub fn with_threads<T: Send>(
    n_threads: Option<usize>,
    work: impl FnOnce() -> Result<T, IngestError> + Send,
) -> Result<T, IngestError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads.unwrap_or(0)).build();
    let pool = pool.map_err(|err| IngestError::Settings {
        why: format!("cannot start the worker threads: {err}"),
        fix: "use fewer with --jobs".into(),
    })?;
    pool.install(work)
}

/// Starts a shard folder, or continues the one that an earlier run of the same job left unfinished.
///
/// # Errors
/// As [`Staging::resume`].
pub fn create_writer(target: &Path, job: Job) -> Result<Staging, IngestError> {
    Ok(Staging::resume(target, job)?)
}
