//! The loop that reads cases and stores each as soon as it is finished.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use ct_read::case::{CaseFault, ReadCase};
use diag_data::DataError;
use diag_data::case::CaseId;
use diag_data::shard::staging::{Piece, Staging};

use crate::IngestError;
use crate::accounting::{Accounting, CaseAccount, CaseTask, Opening};
use crate::assemble::{self, PartitionFile};
use crate::fault::Fault;
use crate::partition::Partition;
use crate::run::{Control, Event, Summary};

/// A run of which every case is stored.
pub struct Stored {
    staging: Staging,
    opening: Opening,
    pieces: Vec<Piece>,
    /// What this is a partition of, and all cases of the whole.
    partition: Option<(Partition, Vec<CaseId>)>,
}

/// Reads cases side by side, and stores each as soon as it is finished. Each task comes with the
/// operator's name for it. No more cases are in memory than there are threads.
///
/// # Errors
/// When something cannot be stored, or the user stops the run.
pub fn store_cases(
    staging: Staging,
    mut tasks: Vec<(CaseTask, String)>,
    mut accounting: Accounting<'_>,
    read: &(dyn Fn(&CaseTask) -> Result<ReadCase, CaseFault> + Sync),
    control: &Control<'_>,
) -> Result<Stored, IngestError> {
    tasks.sort_by(|a, b| a.0.case_id.cmp(&b.0.case_id));
    if let Some(pair) = tasks.windows(2).find(|pair| pair[0].0.case_id == pair[1].0.case_id) {
        let why = format!("two cases get the name {}", pair[0].0.case_id);
        return Err(IngestError::Settings {
            why,
            fix: "give the cohort a --cohort NAME, or another --key-file".into(),
        });
    }
    let opening = Opening {
        flow: std::mem::take(&mut accounting.flow),
        quarantined: accounting.quarantine.take_lines(),
    };
    let partition = accounting.settings.partition;
    let all_cases = || tasks.iter().map(|(task, _)| task.case_id.clone()).collect();
    let of_all = partition.map(|partition| (partition, all_cases()));
    tasks.retain(|(task, _)| partition.is_none_or(|partition| partition.holds(&task.case_id)));
    (control.on_event)(Event::Scanned { n_files: accounting.listing.files.len(), n_cases: tasks.len() });
    let pieces = read_cases(&staging, &tasks, &accounting, read, control).inspect_err(|err| {
        // After an interruption the next run continues; after an error the disk is given back.
        if !matches!(err, IngestError::Interrupted) {
            staging.discard();
        }
    })?;
    Ok(Stored { staging, opening, pieces, partition: of_all })
}

impl Stored {
    /// Writes the shards, or the partition that the settings ask for.
    ///
    /// # Errors
    /// When something cannot be written, or no case is left.
    pub fn finish(self, control: &Control<'_>) -> Result<Summary, IngestError> {
        let Self { staging, opening, pieces, partition } = self;
        let Some((partition, all_cases)) = partition else {
            return assemble::close(staging, opening, &pieces, control);
        };
        let file = PartitionFile::new(partition, staging.job(), opening, all_cases);
        let (outcome, _) = assemble::account(Opening::default(), &pieces)?;
        let n_quarantined = outcome.quarantined.len();
        Ok(Summary { manifest: staging.finish_part(&file, &outcome)?, n_quarantined })
    }
}

fn read_cases(
    staging: &Staging,
    tasks: &[(CaseTask, String)],
    accounting: &Accounting<'_>,
    read: &(dyn Fn(&CaseTask) -> Result<ReadCase, CaseFault> + Sync),
    control: &Control<'_>,
) -> Result<Vec<Piece>, IngestError> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None));
    let done: Mutex<(Vec<(usize, Piece)>, usize)> = Mutex::new((Vec::with_capacity(tasks.len()), 0));
    let work = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some((task, name)) = tasks.get(i) else { return };
            let piece =
                control.check().and_then(|()| read_case(staging, task, name, accounting, read, control));
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
    accounting: &Accounting<'_>,
    read: &(dyn Fn(&CaseTask) -> Result<ReadCase, CaseFault> + Sync),
    control: &Control<'_>,
) -> Result<Piece, IngestError> {
    let (case_id, fingerprint) = (task.case_id.as_str(), accounting.fingerprint(task));
    if let Some(piece) = staging.find(case_id, &fingerprint) {
        return Ok(piece);
    }
    let (account, slices) = match read(task) {
        Ok(case) => {
            if let Some(origin) = &accounting.origin {
                origin.check(&task.case_id, case.synthetic)?;
            }
            CaseAccount::of_read(task, case)
        }
        Err((file, fault)) => {
            let fault = Fault::from(fault);
            let line = match file {
                Some(file) => {
                    accounting.quarantine.path_line(&accounting.listing.files[file].relative, &fault, control)
                }
                None => accounting.quarantine.case_line(name, case_id, &fault, control),
            };
            (CaseAccount::of_fault(task, &fault, line), Vec::new())
        }
    };
    let content = serde_json::to_string(&account)
        .map_err(|err| DataError::Invalid { what: "account of a case", why: err.to_string() })?;
    Ok(staging.put(case_id, &fingerprint, content, task.split, &slices)?)
}
