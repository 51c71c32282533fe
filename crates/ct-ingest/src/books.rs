//! The books of a run: what went in, what was left out, and the loop that
//! writes cases while the next ones are read.

use diag_data::manifest::{Flow, Level};
use diag_data::shard::{Outcome, ShardWriter};
use rayon::prelude::*;

use crate::IngestError;
use crate::leakage::LeakCheck;
use crate::listing::Listing;
use crate::run::{self, Control, Event, Quarantine, Summary};
use crate::study::{CaseFault, CaseTask, ReadCase};

/// Cases in memory at a time, for each thread: enough to keep every thread
/// busy, few enough that memory does not grow with the cohort.
const CASES_PER_THREAD: usize = 2;

/// What is counted while cases pass by.
#[derive(Debug)]
pub struct Books<'a> {
    listing: &'a Listing,
    /// What is set aside.
    pub quarantine: Quarantine<'a>,
    /// Inclusion and exclusion.
    pub flow: Flow,
    leaks: LeakCheck,
    outcome: Outcome,
    n_slices: usize,
}

impl<'a> Books<'a> {
    /// Empty books over a listing.
    pub fn open(listing: &'a Listing, quarantine: Quarantine<'a>) -> Self {
        Self {
            listing,
            quarantine,
            flow: Flow::default(),
            leaks: LeakCheck::default(),
            outcome: Outcome::default(),
            n_slices: 0,
        }
    }

    fn enter(&mut self, task: &CaseTask, case: &ReadCase) {
        self.flow.cases.keep();
        self.flow.series.keep();
        case.series_aside.iter().for_each(|reason| self.flow.series.drop_for(*reason));
        for (_, reason) in &case.files_aside {
            self.flow.files.drop_for(*reason);
        }
        for _ in case.files_aside.len()..task.files.len() {
            self.flow.files.keep();
        }
        case.slices_aside.iter().for_each(|reason| self.flow.slices.drop_for(*reason));
        case.slices.iter().for_each(|slice| {
            self.flow.slices.keep();
            self.leaks.add_slice(slice);
        });
        self.leaks.add_case(&case.row);
        self.outcome.synthetic |= case.synthetic;
        self.outcome.cases.push(case.row.clone());
        self.n_slices += case.slices.len();
    }

    fn set_aside(&mut self, task: &CaseTask, name: &str, (file, fault): CaseFault, control: &Control<'_>) {
        self.flow.cases.drop_for(fault.code());
        self.flow.series.drop_for("its case was set aside");
        add_many(&mut self.flow.files, task.files.len(), "its case was set aside");
        match file {
            Some(file) => {
                let source = &self.listing.files[file].relative;
                self.quarantine.add_path(source, &fault, control);
            }
            None => self.quarantine.add_case(name, task.case_id.as_str(), &fault, control),
        }
    }
}

fn add_many(level: &mut Level, count: usize, reason: &str) {
    for _ in 0..count {
        level.drop_for(reason);
    }
}

/// Reads a few cases at a time in parallel and writes them in order, each batch
/// while the next one is read. Each task comes with the operator's name for it.
///
/// # Errors
/// When a shard cannot be written, the user stops the run, or no case is left.
pub fn write_cases(
    mut writer: ShardWriter,
    mut tasks: Vec<(CaseTask, String)>,
    mut books: Books<'_>,
    read: &(dyn Fn(&CaseTask) -> Result<ReadCase, CaseFault> + Sync),
    control: &Control<'_>,
) -> Result<Summary, IngestError> {
    tasks.sort_by(|a, b| a.0.case_id.cmp(&b.0.case_id));
    if let Some(pair) = tasks.windows(2).find(|pair| pair[0].0.case_id == pair[1].0.case_id) {
        let why = format!("two cases get the name {}", pair[0].0.case_id);
        return Err(IngestError::Settings { why, fix: "use another --seed or --key-file".into() });
    }
    (control.on_event)(Event::Scanned { n_files: books.listing.files.len(), n_cases: tasks.len() });
    let read_batch = |batch: &[(CaseTask, String)]| -> Vec<Result<ReadCase, CaseFault>> {
        batch.par_iter().map(|(task, _)| read(task)).collect()
    };
    let n_cases = tasks.len();
    let batches: Vec<&[(CaseTask, String)]> =
        tasks.chunks(CASES_PER_THREAD * rayon::current_num_threads()).collect();
    let mut n_done = 0;
    let mut ready = batches.first().map(|batch| read_batch(batch)).unwrap_or_default();
    for (i, batch) in batches.iter().enumerate() {
        control.check()?;
        let finished = std::mem::take(&mut ready);
        let write = || -> Result<(), IngestError> {
            for ((task, name), result) in batch.iter().zip(finished) {
                match result {
                    Ok(case) => {
                        books.enter(task, &case);
                        writer.append(case.slices)?;
                    }
                    Err(fault) => books.set_aside(task, name, fault, control),
                }
            }
            Ok(())
        };
        let next = batches.get(i + 1);
        // The batch is written on this thread, in order; only reading is shared.
        let (written, read) = rayon::join(write, || next.map(|next| read_batch(next)));
        written?;
        ready = read.unwrap_or_default();
        n_done += batch.len();
        (control.on_event)(Event::Advanced { n_done, n_slices: books.n_slices });
    }
    control.check()?;
    if books.outcome.cases.is_empty() {
        return Err(IngestError::NothingUsable { n_cases });
    }
    let Books { quarantine, flow, leaks, mut outcome, .. } = books;
    outcome.flow = flow;
    run::finish(writer, outcome, quarantine, &leaks, control)
}
