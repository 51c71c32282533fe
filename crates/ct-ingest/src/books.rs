//! The books of a run: what went in, what was left out, and the loop that reads
//! cases and stores each as soon as it is finished.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::UNIX_EPOCH;

use diag_data::DataError;
use diag_data::case::CaseId;
use diag_data::files;
use diag_data::manifest::{CaseRow, Flow, Level, Quarantined};
use diag_data::shard::Outcome;
use diag_data::shard::staging::{Piece, Staging};
use serde::{Deserialize, Serialize};

use crate::IngestError;
use crate::cards;
use crate::deidentify::{Kind, Pseudonyms};
use crate::fault::Fault;
use crate::leakage::{LeakCheck, Mark};
use crate::listing::Listing;
use crate::part::{Opening, Part, PartFile};
use crate::run::{Control, Event, Quarantine, Summary};
use crate::settings::Settings;
use crate::study::{CaseFault, CaseTask, ReadCase};

/// What is counted before the first case is read, and what reading needs to account for it.
#[derive(Debug)]
pub struct Books<'a> {
    listing: &'a Listing,
    settings: &'a Settings,
    pseudonyms: &'a Pseudonyms,
    /// What is set aside.
    pub quarantine: Quarantine<'a>,
    /// Inclusion and exclusion.
    pub flow: Flow,
}

impl<'a> Books<'a> {
    /// Empty books over a listing.
    pub fn open(listing: &'a Listing, settings: &'a Settings, pseudonyms: &'a Pseudonyms) -> Self {
        let quarantine = Quarantine::new(settings, pseudonyms);
        Self { listing, settings, pseudonyms, quarantine, flow: Flow::default() }
    }

    /// What a case depends on beside the job: a stored one is used again only if
    /// none of this has changed.
    fn fingerprint(&self, task: &CaseTask) -> String {
        let mut text = format!("{} {} {} {:?}", task.case_id, task.label.0, task.split, task.patient_hash);
        for &file in &task.files {
            let listed = &self.listing.files[file];
            let path = self.pseudonyms.hash(Kind::Path, &listed.relative);
            let state = std::fs::metadata(listed.path()).ok().map(|metadata| {
                let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
                (metadata.len(), modified)
            });
            text.push_str(&format!("\n{path} {state:?}"));
        }
        files::sha256_hex(text.as_bytes())
    }
}

/// The account of one case, stored beside its slices.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct CaseAccount {
    /// Absent where the case was set aside.
    row: Option<CaseRow>,
    synthetic: bool,
    flow: Flow,
    quarantined: Vec<Quarantined>,
    marks: Vec<Mark>,
}

impl CaseAccount {
    fn of_read(task: &CaseTask, case: &ReadCase) -> Self {
        let mut flow = Flow::default();
        flow.cases.keep();
        flow.series.keep();
        case.series_aside.iter().for_each(|reason| flow.series.drop_for(*reason));
        case.files_aside.iter().for_each(|(_, reason)| flow.files.drop_for(*reason));
        (case.files_aside.len()..task.files.len()).for_each(|_| flow.files.keep());
        case.slices_aside.iter().for_each(|reason| flow.slices.drop_for(*reason));
        case.slices.iter().for_each(|_| flow.slices.keep());
        Self {
            row: Some(case.row.clone()),
            synthetic: case.synthetic,
            flow,
            quarantined: Vec::new(),
            marks: case.slices.iter().map(Mark::of).collect(),
        }
    }

    fn of_fault(task: &CaseTask, fault: &Fault, line: Quarantined) -> Self {
        let mut flow = Flow::default();
        flow.cases.drop_for(fault.code());
        flow.series.drop_for("its case was set aside");
        add_many(&mut flow.files, task.files.len(), "its case was set aside");
        Self { flow, quarantined: vec![line], ..Self::default() }
    }
}

fn add_many(level: &mut Level, count: usize, reason: &str) {
    for _ in 0..count {
        level.drop_for(reason);
    }
}

/// A run of which every case is stored.
pub struct Stored {
    staging: Staging,
    opening: Opening,
    pieces: Vec<Piece>,
    /// What this is a part of, and all cases of the whole.
    part: Option<(Part, Vec<CaseId>)>,
}

/// Reads cases side by side, and stores each as soon as it is finished. Each task comes with the
/// operator's name for it. No more cases are in memory than there are threads.
///
/// # Errors
/// When something cannot be stored, or the user stops the run.
pub fn store_cases(
    staging: Staging,
    mut tasks: Vec<(CaseTask, String)>,
    mut books: Books<'_>,
    read: &(dyn Fn(&CaseTask) -> Result<ReadCase, CaseFault> + Sync),
    control: &Control<'_>,
) -> Result<Stored, IngestError> {
    tasks.sort_by(|a, b| a.0.case_id.cmp(&b.0.case_id));
    if let Some(pair) = tasks.windows(2).find(|pair| pair[0].0.case_id == pair[1].0.case_id) {
        let why = format!("two cases get the name {}", pair[0].0.case_id);
        return Err(IngestError::Settings { why, fix: "use another --seed or --key-file".into() });
    }
    let opening =
        Opening { flow: std::mem::take(&mut books.flow), quarantined: books.quarantine.take_lines() };
    let part = books.settings.part;
    let part_of_all = part.map(|part| (part, tasks.iter().map(|(task, _)| task.case_id.clone()).collect()));
    tasks.retain(|(task, _)| part.is_none_or(|part| part.holds(&task.case_id)));
    (control.on_event)(Event::Scanned { n_files: books.listing.files.len(), n_cases: tasks.len() });
    let pieces = read_cases(&staging, &tasks, &books, read, control).inspect_err(|err| {
        // After an interruption the next run continues; after an error the disk is given back.
        if !matches!(err, IngestError::Interrupted) {
            staging.discard();
        }
    })?;
    Ok(Stored { staging, opening, pieces, part: part_of_all })
}

impl Stored {
    /// Writes the shards, or the part that the settings ask for.
    ///
    /// # Errors
    /// When something cannot be written, or no case is left.
    pub fn finish(self, control: &Control<'_>) -> Result<Summary, IngestError> {
        let Self { staging, opening, pieces, part } = self;
        let Some((part, all_cases)) = part else {
            return close(staging, opening, &pieces, control);
        };
        let file = PartFile::new(part, staging.job(), opening, all_cases);
        let (outcome, _) = account(Opening::default(), &pieces)?;
        let n_quarantined = outcome.quarantined.len();
        Ok(Summary { manifest: staging.finish_part(&file, &outcome)?, n_quarantined })
    }
}

fn read_cases(
    staging: &Staging,
    tasks: &[(CaseTask, String)],
    books: &Books<'_>,
    read: &(dyn Fn(&CaseTask) -> Result<ReadCase, CaseFault> + Sync),
    control: &Control<'_>,
) -> Result<Vec<Piece>, IngestError> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let done: Mutex<(Vec<(usize, Piece)>, usize)> = Mutex::new((Vec::with_capacity(tasks.len()), 0));
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some((task, name)) = tasks.get(i) else { return };
            let piece = control.check().and_then(|()| read_case(staging, task, name, books, read, control));
            match (piece, done.lock(), failed.lock()) {
                (Ok(piece), Ok(mut done), Ok(_)) => {
                    done.1 += piece.n_rows();
                    done.0.push((i, piece));
                    let (n_done, n_slices) = (done.0.len(), done.1);
                    (control.on_event)(Event::Advanced { n_done, n_slices });
                }
                (Err(err), _, Ok(mut failed)) => {
                    failed.get_or_insert(err);
                    next.store(tasks.len(), Ordering::Relaxed);
                }
                // Another worker broke off; the run ends with its panic.
                _ => return,
            }
        }
    };
    // A thread that waits for slices of its case may take up other work, but never
    // another case: there are as many loops over cases as threads, and no more.
    rayon::scope(|scope| {
        for _ in 0..rayon::current_num_threads() {
            scope.spawn(|_| work());
        }
    });
    if let Some(err) = failed.into_inner().unwrap_or_default() {
        return Err(err);
    }
    control.check()?;
    let (mut done, _) = done.into_inner().unwrap_or_default();
    done.sort_by_key(|(i, _)| *i);
    Ok(done.into_iter().map(|(_, piece)| piece).collect())
}

fn read_case(
    staging: &Staging,
    task: &CaseTask,
    name: &str,
    books: &Books<'_>,
    read: &(dyn Fn(&CaseTask) -> Result<ReadCase, CaseFault> + Sync),
    control: &Control<'_>,
) -> Result<Piece, IngestError> {
    let (case_id, fingerprint) = (task.case_id.as_str(), books.fingerprint(task));
    if let Some(piece) = staging.find(case_id, &fingerprint) {
        return Ok(piece);
    }
    let (account, slices) = match read(task) {
        Ok(case) => (CaseAccount::of_read(task, &case), case.slices),
        Err((file, fault)) => {
            let line = match file {
                Some(file) => {
                    books.quarantine.path_line(&books.listing.files[file].relative, &fault, control)
                }
                None => books.quarantine.case_line(name, case_id, &fault, control),
            };
            (CaseAccount::of_fault(task, &fault, line), Vec::new())
        }
    };
    let content = serde_json::to_string(&account)
        .map_err(|err| DataError::Invalid { what: "account of a case", why: err.to_string() })?;
    Ok(staging.put(case_id, &fingerprint, content, task.split, &slices)?)
}

/// Adds up the accounts of all cases.
fn account(opening: Opening, pieces: &[Piece]) -> Result<(Outcome, LeakCheck), IngestError> {
    let mut leaks = LeakCheck::default();
    let Opening { flow, quarantined } = opening;
    let mut outcome = Outcome { flow, quarantined, ..Outcome::default() };
    for piece in pieces {
        let account: CaseAccount = serde_json::from_str(&piece.content()?)
            .map_err(|err| DataError::Invalid { what: "account of a case", why: err.to_string() })?;
        outcome.flow.add(&account.flow);
        outcome.quarantined.extend(account.quarantined);
        outcome.synthetic |= account.synthetic;
        if let Some(row) = account.row {
            leaks.add_case(&row, &account.marks);
            outcome.cases.push(row);
        }
    }
    Ok((outcome, leaks))
}

/// Adds up the accounts, adds the leaks between the parts of the split to the
/// quarantine, and writes the shard folder.
///
/// # Errors
/// When no case is left, or a shard cannot be written.
pub fn close(
    staging: Staging,
    opening: Opening,
    pieces: &[Piece],
    control: &Control<'_>,
) -> Result<Summary, IngestError> {
    let (mut outcome, leaks) = account(opening, pieces)?;
    if outcome.cases.is_empty() {
        staging.discard();
        return Err(IngestError::NothingUsable { n_cases: pieces.len() });
    }
    // The encoder needs the room of the marks.
    for leak in leaks.into_leaks() {
        let names: Vec<&str> = leak.cases.iter().map(|case| case.as_str()).collect();
        let fault = leak.fault();
        (control.on_event)(Event::SetAside { source: &names.join(" "), fault: &fault });
        outcome.quarantined.push(fault.line(names.join(" ")));
    }
    let (n_quarantined, synthetic) = (outcome.quarantined.len(), outcome.synthetic);
    let manifest = staging.finish(pieces, outcome, |manifest| cards::all(manifest, synthetic))?;
    Ok(Summary { manifest, n_quarantined })
}
