//! `ct-ingest dicom` and `ct-ingest nifti`: a folder of CT volumes and a label table to shards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use ct_read::case::{self, CaseFault, CaseFiles, ReadCase, Reader};
use ct_read::pseudonyms::Kind;
use ct_read::scan::{Format, Scan, scan_file};
use ct_read::source::Listing;
use diag_data::files;
use diag_data::manifest::ShardSpec;
use diag_data::shard::Job;
use rayon::prelude::*;

use crate::IngestError;
use crate::accounting::{Accounting, CaseTask, Origin};
use crate::fault::Fault;
use crate::labels::{self, LabelTable};
use crate::matching::{self, Assigned};
use crate::run::{self, Control, Event, Summary};
use crate::settings::{Match, Settings};
use crate::splitting::{self, Placeable};
use crate::store;

/// A run over DICOM files or volumes.
#[derive(Clone, Debug)]
pub struct DicomRun {
    /// What the files are; others are only counted.
    pub format: Format,
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
    run::with_threads(run.settings.jobs, || ingest_in_pool(run, control))
}

fn ingest_in_pool(run: &DicomRun, control: &Control<'_>) -> Result<Summary, IngestError> {
    let settings = &run.settings;
    case::check_volume_settings(&settings.reader)?;
    let known = settings.label_set.as_deref().map(labels::read_label_set).transpose()?;
    let mut table = LabelTable::read(&run.labels, known)?;
    if let Some(path) = &settings.split_file {
        table.set_splits(path)?;
    }
    table.notes.iter().for_each(|note| (control.on_event)(Event::Note(note)));
    let split_given = table.rows.iter().any(|row| row.split.is_some());
    // Known before the work begins, and again when the folder is made.
    files::refuse_occupied(&run.out)?;
    let listing = Listing::of(&run.root)?;
    if listing.files.is_empty() {
        return Err(IngestError::Empty { what: "files", path: run.root.clone() });
    }
    let (command, wanted) = match run.format {
        Format::Dicom => ("dicom", "CT images in DICOM files"),
        Format::Nifti => ("nifti", "volumes (NIfTI, MetaImage, NRRD)"),
    };
    let mut assigned = matching::assign(&listing, run.format, &table, run.matching);
    control.check()?;
    let unmatched = matching::unmatched(&assigned, &listing, &table, run.matching, settings.keep_paths);
    for note in unmatched.into_iter().chain(matching::several_studies(&assigned)) {
        (control.on_event)(Event::Note(&note));
    }
    if !assigned.holds_any(&listing, run.format) {
        return Err(IngestError::Empty { what: wanted, path: run.root.clone() });
    }
    let first = first_image(&listing, run.format, &assigned);
    let synthetic = first.is_some_and(|(_, synthetic)| synthetic);
    let pseudonyms = settings.pseudonyms(synthetic, control)?;
    let spec = ShardSpec {
        labels: table.labels.clone(),
        reader: settings.reader.clone(),
        layout: settings.layout,
        with_hu: settings.with_hu,
        split_seed: (!split_given).then_some(settings.seed),
    };
    let mut config = settings.to_json(command, split_given, &pseudonyms)?;
    config["match"] = serde_json::json!(run.matching);
    if let Some(folder) = &settings.preview {
        let refused = |source| IngestError::Folder { path: folder.clone(), source };
        std::fs::create_dir_all(folder).map_err(refused)?;
    }
    let writer =
        run::create_writer(&run.out, Job { spec, key: pseudonyms.info(), tool: run::TOOL.into(), config })?;
    let reader = Reader::new(&listing, &settings.reader, &pseudonyms, settings.with_hu)?;
    let mut accounting = Accounting::open(&listing, settings, &pseudonyms);
    if let Some((row, synthetic)) = first {
        let case = settings.shown_id(&table.rows[row].case, &pseudonyms)?;
        accounting.origin = Some(Origin { case, synthetic });
    }
    enter_unassigned(&listing, &assigned, &mut accounting, control);
    let tasks = tasks(run, &table, &mut assigned, &reader, &mut accounting, control)?;
    drop(assigned);
    let read = |task: &CaseTask| read_case(task, &reader, run);
    let stored = store::store_cases(writer, tasks, accounting, &read, control)?;
    // The encoder needs their room.
    drop(reader);
    drop(listing);
    stored.finish(control)
}

/// The row of the table whose image is read first, and whether it is synthetic: this decides
/// for the cohort.
fn first_image(listing: &Listing, format: Format, assigned: &Assigned) -> Option<(usize, bool)> {
    let files = assigned
        .cases
        .iter()
        .enumerate()
        .flat_map(|(row, files)| files.iter().flatten().map(move |&file| (row, file)));
    files.into_iter().find_map(|(row, file)| match scan_file(&listing.files[file], format) {
        Scan::Ct(header) => Some((row, header.identity.synthetic)),
        Scan::Volume(header) => Some((row, header.synthetic)),
        Scan::Other(_) | Scan::Broken { .. } => None,
    })
}

fn read_case(task: &CaseTask, reader: &Reader<'_>, run: &DicomRun) -> Result<ReadCase, CaseFault> {
    let preview = run.settings.preview.as_ref();
    let preview = preview.map(|folder| folder.join(format!("{}.png", task.case_id)));
    let files = CaseFiles { files: task.files.clone(), name: Some(task.name.clone()), preview };
    case::read_volume(&files, run.format, reader)
}

/// The cases to be read, with the names that the operator knows. Takes the files of each.
fn tasks(
    run: &DicomRun,
    table: &LabelTable,
    assigned: &mut Assigned,
    reader: &Reader<'_>,
    accounting: &mut Accounting<'_>,
    control: &Control<'_>,
) -> Result<Vec<(CaseTask, String)>, IngestError> {
    let settings = &run.settings;
    let patients: Vec<Option<String>> = patients(run.format, table, assigned, reader, control);
    let placeable = table.rows.iter().zip(&patients).map(|(row, patient)| Placeable {
        name: &row.case,
        label: row.label,
        given: row.split,
        patient: patient.as_deref(),
    });
    let splits = splitting::place(&placeable.collect::<Vec<_>>(), settings)?;
    let mut tasks = Vec::new();
    for (row, entry) in table.rows.iter().enumerate() {
        let case_id = settings.shown_id(&entry.case, reader.pseudonyms)?;
        let name = match run.matching {
            Match::Folder => entry.case.clone(),
            // An identifier is not shown, not even to the operator: logs are kept.
            Match::PatientId | Match::SeriesUid => format!("line {} of the label table", entry.line),
        };
        match &mut assigned.cases[row] {
            Ok(files) => {
                let task = CaseTask {
                    case_id,
                    name: entry.case.clone(),
                    label: entry.label,
                    split: splits[row],
                    patient_hash: patients[row]
                        .as_deref()
                        .map(|id| reader.pseudonyms.hash(Kind::Patient, id)),
                    files: std::mem::take(files),
                };
                tasks.push((task, name));
            }
            Err(fault) => {
                accounting.flow.cases.drop_for(fault.code());
                accounting.quarantine.add_case(&name, case_id.as_str(), fault, control);
            }
        }
    }
    Ok(tasks)
}

/// The patient of each case: as the table says, else as the headers say.
fn patients(
    format: Format,
    table: &LabelTable,
    assigned: &Assigned,
    reader: &Reader<'_>,
    control: &Control<'_>,
) -> Vec<Option<String>> {
    let of_headers = |row: usize| {
        let files = assigned.cases[row].as_ref().ok().filter(|_| format == Format::Dicom)?;
        files.iter().find_map(|&file| match scan_file(&reader.listing.files[file], format) {
            Scan::Ct(header) => header.identity.patient_id.clone(),
            _ => None,
        })
    };
    let rows = table.rows.par_iter().enumerate();
    let of_headers: Vec<Option<String>> = rows.map(|(row, _)| of_headers(row)).collect();
    let of_table = || table.rows.iter().map(|row| row.patient.clone());
    let from_table = table.rows.iter().any(|row| row.patient.is_some());
    if from_table && let Some(note) = disagreement(&of_table().collect::<Vec<_>>(), &of_headers) {
        (control.on_event)(Event::Note(&note));
    }
    let mut patients: Vec<Option<String>> =
        of_table().zip(of_headers).map(|(of_table, of_headers)| of_table.or(of_headers)).collect();
    // One PatientID in every case is what anonymisers leave behind, not a patient.
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

/// Whether the patients of the table and of the headers group the cases differently. The
/// identifiers themselves are not shown.
fn disagreement(of_table: &[Option<String>], of_headers: &[Option<String>]) -> Option<String> {
    let known: Vec<(&String, &String)> =
        of_table.iter().zip(of_headers).filter_map(|(a, b)| Some((a.as_ref()?, b.as_ref()?))).collect();
    let several = |pairs: &mut dyn Iterator<Item = (&String, &String)>| {
        let mut others: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (key, other) in pairs {
            others.entry(key.clone()).or_default().insert(other.clone());
        }
        others.values().filter(|others| others.len() > 1).count()
    };
    let n_split = several(&mut known.iter().map(|(table, header)| (*header, *table)));
    let n_joined = several(&mut known.iter().copied());
    // One PatientID for everybody is a placeholder.
    let n_headers = known.iter().map(|(_, header)| *header).collect::<BTreeSet<_>>().len();
    match (if n_headers > 1 { n_split } else { 0 }, n_joined) {
        (0, 0) => None,
        (n, 0) => Some(format!(
            "{n} PatientIDs of the headers are several patients in the label table; the table holds"
        )),
        (0, n) => Some(format!(
            "{n} patients of the label table have several PatientIDs in the headers; the table holds"
        )),
        (n, m) => Some(format!(
            "patient_id of the label table and PatientID of the headers group the cases differently ({n} and {m} \
             of them); the table holds"
        )),
    }
}

/// Enters the files that belong to no case.
fn enter_unassigned(
    listing: &Listing,
    assigned: &Assigned,
    accounting: &mut Accounting<'_>,
    control: &Control<'_>,
) {
    for (path, fault) in &listing.closed {
        accounting.quarantine.add_path(path, &fault.clone().into(), control);
        accounting.flow.files.drop_for(fault.code());
    }
    for (source, group) in &assigned.unlabelled {
        let fault = Fault::NoLabel { count: group.len() };
        accounting.quarantine.add_path(source, &fault, control);
        accounting.flow.series.drop_for(fault.code());
        group.iter().for_each(|_| accounting.flow.files.drop_for(fault.code()));
    }
    for (file, why) in &assigned.others {
        match why {
            Ok(reason) => accounting.flow.files.drop_for(*reason),
            Err(fault) => {
                accounting.flow.files.drop_for(fault.code());
                accounting.quarantine.add_path(
                    &listing.files[*file].relative,
                    &fault.clone().into(),
                    control,
                );
            }
        }
    }
}
