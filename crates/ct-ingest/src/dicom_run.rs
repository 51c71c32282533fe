//! `ct-ingest dicom`: a folder of DICOM files and a label table to shards.

use std::collections::BTreeMap;
use std::path::PathBuf;

use diag_data::case::{CaseId, Split};
use diag_data::files;
use diag_data::manifest::{Flow, Level, ShardSpec};
use diag_data::shard::{Job, Outcome, ShardWriter};
use diag_data::split::{self, SplitCase};
use rayon::prelude::*;

use crate::IngestError;
use crate::deidentify::{Kind, Pseudonyms};
use crate::fault::Fault;
use crate::intake::{self, Assigned, Scan};
use crate::labels::{self, LabelTable};
use crate::leakage::LeakCheck;
use crate::listing::Listing;
use crate::render;
use crate::run::{self, Control, Event, Quarantine, Summary};
use crate::settings::{Match, Settings};
use crate::study::{self, CaseFault, CaseTask, ReadCase, Reading};

/// Cases in memory at a time, for each thread: enough to keep every thread
/// busy, few enough that memory does not grow with the cohort.
const CASES_PER_THREAD: usize = 2;

/// A run over DICOM files.
#[derive(Clone, Debug)]
pub struct DicomRun {
    /// Folder with the files.
    pub root: PathBuf,
    /// The label table.
    pub labels: PathBuf,
    /// Where the shard folder goes.
    pub out: PathBuf,
    /// What a `case_id` names.
    pub matching: Match,
    /// Everything else.
    pub settings: Settings,
}

/// Reads all cases of the label table and writes the shard folder. It appears
/// whole or not at all, and its bytes depend on input and settings only.
///
/// # Errors
/// [`IngestError`] when there is no result. Broken files and cases are no
/// errors: they are set aside, and the rest goes on.
pub fn ingest(run: &DicomRun, control: &Control<'_>) -> Result<Summary, IngestError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(run.settings.jobs.unwrap_or(0)).build();
    let pool = pool.map_err(|err| IngestError::Settings {
        why: format!("cannot start the worker threads: {err}"),
        fix: "use fewer with --jobs".into(),
    })?;
    pool.install(|| ingest_in_pool(run, control))
}

fn ingest_in_pool(run: &DicomRun, control: &Control<'_>) -> Result<Summary, IngestError> {
    let settings = &run.settings;
    let known = settings.label_set.as_deref().map(labels::read_label_set).transpose()?;
    let mut table = LabelTable::read(&run.labels, known)?;
    if let Some(path) = &settings.split_file {
        table.set_splits(path)?;
    }
    let split_given = table.rows.iter().any(|row| row.split.is_some());
    let pseudonyms = match &settings.key_file {
        Some(path) => Pseudonyms::of_file(path)?,
        None => Pseudonyms::of_seed(settings.seed)?,
    };
    let spec = ShardSpec {
        labels: table.labels.clone(),
        height: settings.size,
        width: settings.size,
        window: Some(settings.window),
        resize: render::RESIZE_FILTER.into(),
        layout: settings.layout,
        with_hu: settings.with_hu,
        split_seed: (!split_given).then_some(settings.seed),
    };
    let mut config = settings.to_json("dicom", split_given);
    config["match"] = match run.matching {
        Match::Folder => "folder",
        Match::PatientId => "patient-id",
        Match::SeriesUid => "series-uid",
    }
    .into();
    let writer = run::create_writer(&run.out, Job { spec, tool: run::TOOL.into(), config })?;

    let listing = Listing::of(&run.root)?;
    if listing.files.is_empty() {
        return Err(IngestError::Empty { what: "files", path: run.root.clone() });
    }
    let scans = intake::scan(&listing);
    control.check()?;
    if !scans.iter().any(|scan| matches!(scan, Scan::Ct(_) | Scan::Broken(_))) {
        return Err(IngestError::Empty { what: "CT images in DICOM files", path: run.root.clone() });
    }
    let assigned = intake::assign(&listing, &scans, &table, run.matching);
    let reading = Reading { listing: &listing, scans: &scans, settings, pseudonyms: &pseudonyms };
    let mut books = Books::open(reading, Quarantine::new(settings, &pseudonyms));
    books.unassigned(&listing, &assigned, control);
    let tasks = tasks(&table, &assigned, reading, &mut books, control)?;
    (control.on_event)(Event::Scanned { n_files: listing.files.len(), n_cases: tasks.len() });
    write_cases(writer, tasks, books, control)
}

/// The cases to be read, in the order of their names in the shards.
fn tasks(
    table: &LabelTable,
    assigned: &Assigned,
    reading: Reading<'_>,
    books: &mut Books<'_>,
    control: &Control<'_>,
) -> Result<Vec<(CaseTask, String)>, IngestError> {
    let patients: Vec<Option<String>> = patients(table, assigned, reading, control);
    let splits = splits(table, &patients, reading.settings)?;
    let mut tasks = Vec::new();
    for (row, entry) in table.rows.iter().enumerate() {
        let case_id = if reading.settings.keep_case_ids {
            CaseId::new(entry.case.as_str()).map_err(|_| IngestError::Settings {
                why: "--keep-case-ids needs case ids of 1 to 64 characters of A-Z a-z 0-9 . _ -".into(),
                fix: "rename the cases, or leave the flag out to get pseudonyms".into(),
            })?
        } else {
            reading.pseudonyms.case_id(&entry.case)?
        };
        match &assigned.cases[row] {
            Ok(files) => {
                let task = CaseTask {
                    case_id,
                    label: entry.label,
                    split: splits[row],
                    patient_hash: patients[row]
                        .as_deref()
                        .map(|id| reading.pseudonyms.hash(Kind::Patient, id)),
                    files: files.clone(),
                };
                tasks.push((task, entry.case.clone()));
            }
            Err(fault) => {
                books.flow.cases.drop_for(fault.code());
                books.quarantine.add_case(&entry.case, case_id.as_str(), fault, control);
            }
        }
    }
    tasks.sort_by(|a, b| a.0.case_id.cmp(&b.0.case_id));
    if let Some(pair) = tasks.windows(2).find(|pair| pair[0].0.case_id == pair[1].0.case_id) {
        let why = format!("two cases get the name {}", pair[0].0.case_id);
        return Err(IngestError::Settings { why, fix: "use another --seed or --key-file".into() });
    }
    Ok(tasks)
}

/// The patient of each case: as the table says, else as the headers say.
fn patients(
    table: &LabelTable,
    assigned: &Assigned,
    reading: Reading<'_>,
    control: &Control<'_>,
) -> Vec<Option<String>> {
    let of_headers = |row: usize| {
        let files = assigned.cases[row].as_ref().ok()?;
        files.iter().find_map(|&file| match &reading.scans[file] {
            Scan::Ct(header) => header.identity.patient_id.clone(),
            _ => None,
        })
    };
    let rows = table.rows.iter().enumerate();
    let mut patients: Vec<Option<String>> =
        rows.map(|(row, entry)| entry.patient.clone().or_else(|| of_headers(row))).collect();
    // One PatientID in every case is what anonymisers leave behind, not a patient.
    let from_table = table.rows.iter().any(|row| row.patient.is_some());
    let n_known = patients.iter().flatten().count();
    let mut distinct: Vec<&String> = patients.iter().flatten().collect();
    distinct.dedup();
    if !from_table && n_known > 2 && distinct.len() == 1 {
        (control.on_event)(Event::Note(
            "every case has the same PatientID: taken as a placeholder; give a patient_id column to group cases",
        ));
        patients.fill(None);
    }
    patients
}

/// The part of each case. A drawn split depends on the label table, the seed and
/// shared patients alone: a broken file never moves another case to the other side.
fn splits(
    table: &LabelTable,
    patients: &[Option<String>],
    settings: &Settings,
) -> Result<Vec<Split>, IngestError> {
    let given: Option<Vec<Split>> = table.rows.iter().map(|row| row.split).collect();
    if let Some(given) = given {
        return Ok(given);
    }
    let mut n_cases: BTreeMap<&str, usize> = BTreeMap::new();
    patients.iter().flatten().for_each(|id| *n_cases.entry(id.as_str()).or_default() += 1);
    // The names in the split are hashes too, since table names need not be case ids.
    let name = |text: &str| CaseId::new(&files::sha256_hex(text.as_bytes())[..32]);
    let mut cases = Vec::new();
    for (row, patient) in table.rows.iter().zip(patients) {
        let shared = patient.as_ref().filter(|id| n_cases.get(id.as_str()).is_some_and(|n| *n > 1));
        cases.push(SplitCase { case_id: name(&row.case)?, label: row.label, group: shared.cloned() });
    }
    let placed = split::stratified(&cases, settings.ratio, settings.seed);
    Ok(cases.iter().map(|case| placed.get(&case.case_id).copied().unwrap_or(Split::Train)).collect())
}

/// What is counted while cases pass by.
struct Books<'a> {
    reading: Reading<'a>,
    quarantine: Quarantine<'a>,
    flow: Flow,
    leaks: LeakCheck,
    outcome: Outcome,
    n_slices: usize,
}

impl<'a> Books<'a> {
    fn open(reading: Reading<'a>, quarantine: Quarantine<'a>) -> Self {
        Self {
            reading,
            quarantine,
            flow: Flow::default(),
            leaks: LeakCheck::default(),
            outcome: Outcome::default(),
            n_slices: 0,
        }
    }

    /// Enters the files that belong to no case.
    fn unassigned(&mut self, listing: &Listing, assigned: &Assigned, control: &Control<'_>) {
        for (path, fault) in &listing.closed {
            self.quarantine.add_path(path, fault, control);
            self.flow.files.drop_for(fault.code());
        }
        let mut assigned_files = vec![false; listing.files.len()];
        assigned.cases.iter().flatten().flatten().for_each(|&file| assigned_files[file] = true);
        for (source, group) in &assigned.unlabelled {
            let fault = Fault::NoLabel { count: group.len() };
            self.quarantine.add_path(source, &fault, control);
            self.flow.series.drop_for(fault.code());
            for &file in group {
                assigned_files[file] = true;
                self.flow.files.drop_for(fault.code());
            }
        }
        for (file, _) in assigned_files.iter().enumerate().filter(|(_, assigned)| !**assigned) {
            match &self.reading.scans[file] {
                Scan::Other(reason) => self.flow.files.drop_for(*reason),
                Scan::Broken(fault) => {
                    self.flow.files.drop_for(fault.code());
                    self.quarantine.add_path(&listing.files[file].relative, fault, control);
                }
                Scan::Ct(_) => self.flow.files.drop_for("no case"),
            }
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
                let source = &self.reading.listing.files[file].relative;
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
/// while the next one is read.
fn write_cases(
    mut writer: ShardWriter,
    tasks: Vec<(CaseTask, String)>,
    mut books: Books<'_>,
    control: &Control<'_>,
) -> Result<Summary, IngestError> {
    let reading = books.reading;
    let read_batch = |batch: &[(CaseTask, String)]| -> Vec<Result<ReadCase, CaseFault>> {
        batch.par_iter().map(|(task, _)| study::read(task, &reading)).collect()
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
