//! What `dicom` and `images` have in common: events, the stop flag, the written result.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use diag_data::manifest::{Manifest, Quarantined};
use diag_data::shard::{Job, Outcome, ShardWriter};

use crate::IngestError;
use crate::cards;
use crate::deidentify::{Kind, Pseudonyms};
use crate::fault::Fault;
use crate::leakage::LeakCheck;
use crate::settings::Settings;

/// Name and version of this program, as the manifest states them.
pub const TOOL: &str = concat!("ct-ingest ", env!("CARGO_PKG_VERSION"));

/// What happens during a run. Paths are those below the root: they may name
/// somebody, so they are for the operator's eyes and never for a file.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The listing is complete and its headers are read.
    Scanned {
        /// Number of files.
        n_files: usize,
        /// Number of cases to be read.
        n_cases: usize,
    },
    /// Cases were read and written.
    Advanced {
        /// Cases finished so far.
        n_done: usize,
        /// Slices written so far.
        n_slices: usize,
    },
    /// A file or case was set aside.
    SetAside {
        /// The file or case, as the input names it.
        source: &'a str,
        /// Why.
        fault: &'a Fault,
    },
    /// Something the operator should know.
    Note(&'a str),
}

/// What a run reports to and is stopped by.
pub struct Control<'a> {
    /// Called from the thread that runs the command.
    pub on_event: &'a (dyn Fn(Event<'_>) + Sync),
    /// Set from outside to end the run after the cases at hand.
    pub stop: &'a AtomicBool,
}

impl Control<'_> {
    /// Whether the run shall end.
    pub fn check(&self) -> Result<(), IngestError> {
        if self.stop.load(Ordering::Relaxed) { Err(IngestError::Interrupted) } else { Ok(()) }
    }
}

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

    /// Notes a file or folder by its path below the root. The line holds the
    /// path only on request, else its keyed hash.
    pub fn add_path(&mut self, path: &str, fault: &Fault, control: &Control<'_>) {
        (control.on_event)(Event::SetAside { source: path, fault });
        let source = if self.keep_paths {
            path.to_string()
        } else {
            format!("path-{}", &self.pseudonyms.hash(Kind::Path, path)[..10])
        };
        self.push(source, fault);
    }

    /// Notes a case: `name` for the operator, `pseudonym` for the line.
    pub fn add_case(&mut self, name: &str, pseudonym: &str, fault: &Fault, control: &Control<'_>) {
        (control.on_event)(Event::SetAside { source: name, fault });
        self.push(pseudonym.into(), fault);
    }

    fn push(&mut self, source: String, fault: &Fault) {
        self.lines.push(Quarantined {
            source,
            reason: fault.code().into(),
            detail: fault.to_string(),
            remedy: fault.remedy(),
        });
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

/// Starts a shard folder.
///
/// # Errors
/// As [`ShardWriter::create`].
pub fn create_writer(target: &Path, job: Job) -> Result<ShardWriter, IngestError> {
    Ok(ShardWriter::create(target, job)?)
}

/// Adds the leaks to the quarantine and closes the folder.
///
/// # Errors
/// As [`ShardWriter::finish`].
pub fn finish(
    writer: ShardWriter,
    mut outcome: Outcome,
    mut quarantine: Quarantine<'_>,
    leaks: &LeakCheck,
    control: &Control<'_>,
) -> Result<Summary, IngestError> {
    for leak in leaks.leaks() {
        let names: Vec<&str> = leak.cases.iter().map(|case| case.as_str()).collect();
        let fault = Fault::Leak { what: leak.what, n_cases: leak.cases.len() };
        quarantine.add_case(&names.join(" "), &names.join(" "), &fault, control);
    }
    outcome.quarantined = quarantine.lines;
    let n_quarantined = outcome.quarantined.len();
    let synthetic = outcome.synthetic;
    let manifest = writer.finish(outcome, |manifest| cards::all(manifest, synthetic))?;
    Ok(Summary { manifest, n_quarantined })
}
