//! The account of a run: what went in, what was left out and why, case by case.

use std::time::UNIX_EPOCH;

use ct_read::case::ReadCase;
use ct_read::pseudonyms::{Kind, Pseudonyms};
use ct_read::source::Listing;
use diag_data::case::{CaseId, Label, Split};
use diag_data::files;
use diag_data::manifest::{CaseRow, Flow, Level, Quarantined};
use diag_data::slice::CtSlice;
use serde::{Deserialize, Serialize};

use crate::IngestError;
use crate::fault::Fault;
use crate::leakage::Mark;
use crate::run::Quarantine;
use crate::settings::Settings;

/// A case to be read.
#[derive(Clone, Debug)]
pub struct CaseTask {
    /// Its name in the shards.
    pub case_id: CaseId,
    /// Its name in the input, which may be somebody's.
    pub name: String,
    /// Its class.
    pub label: Label,
    /// Its side of the split.
    pub split: Split,
    /// Keyed hash of its patient.
    pub patient_hash: Option<String>,
    /// Its files, by index in the listing.
    pub files: Vec<usize>,
}

impl CaseTask {
    /// The row of `cases.parquet`.
    pub fn row(&self, case: &ReadCase) -> CaseRow {
        let series = case.series.clone();
        CaseRow {
            case_id: self.case_id.clone(),
            label: self.label,
            split: self.split,
            n_slices: case.slices.len() as i32,
            n_source_slices: case.n_source_slices as i32,
            lung_fraction_source: case.lung_fraction_source,
            lung_fraction: case.lung_fraction,
            patient_hash: self.patient_hash.clone(),
            study_uid_hash: series.study_uid_hash,
            series_uid_hash: series.series_uid_hash,
            manufacturer: series.manufacturer,
            model: series.model,
            kernel: series.kernel,
            slice_thickness_mm: series.slice_thickness_mm,
            patient_sex: series.patient_sex,
            patient_age_years: series.patient_age_years,
            warnings: case.warnings.clone(),
        }
    }

    /// The rows of the shards.
    pub fn slices(&self, case: ReadCase) -> Vec<CtSlice> {
        let slice = |(index, slice): (usize, ct_read::case::CaseSlice)| CtSlice {
            case_id: self.case_id.clone(),
            slice_index: index as i32,
            label: self.label,
            split: self.split,
            pixels: slice.pixels,
            hu: slice.hu,
            geometry: slice.geometry,
            acquisition: slice.acquisition,
            selection: slice.selection,
            provenance: slice.provenance,
        };
        case.slices.into_iter().enumerate().map(slice).collect()
    }
}

/// Whether the images of a cohort are synthetic, and the case by which that is known.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The case.
    pub case: CaseId,
    /// Whether its images bear the mark of synthetic ones.
    pub synthetic: bool,
}

impl Origin {
    /// Whether another case is of the same origin.
    ///
    /// # Errors
    /// [`IngestError::Mixture`] when it is not.
    pub fn check(&self, case: &CaseId, synthetic: bool) -> Result<(), IngestError> {
        let (one, other) = (self.case.clone(), case.clone());
        match (self.synthetic, synthetic) {
            (true, false) => Err(IngestError::Mixture { synthetic: one, other }),
            (false, true) => Err(IngestError::Mixture { synthetic: other, other: one }),
            _ => Ok(()),
        }
    }
}

/// What is counted before the first case is read, and what reading needs to account for it.
#[derive(Debug)]
pub struct Accounting<'a> {
    pub(crate) listing: &'a Listing,
    pub(crate) settings: &'a Settings,
    pseudonyms: &'a Pseudonyms,
    /// What is set aside.
    pub quarantine: Quarantine<'a>,
    /// What the first case decides for the cohort; absent where no case can be synthetic.
    pub origin: Option<Origin>,
    /// Inclusion and exclusion.
    pub flow: Flow,
}

impl<'a> Accounting<'a> {
    /// An empty account over a listing.
    pub fn open(listing: &'a Listing, settings: &'a Settings, pseudonyms: &'a Pseudonyms) -> Self {
        let quarantine = Quarantine::new(settings, pseudonyms);
        Self { listing, settings, pseudonyms, quarantine, origin: None, flow: Flow::default() }
    }

    /// What a case depends on beside the job: a stored one is used again only if
    /// none of this has changed.
    pub(crate) fn fingerprint(&self, task: &CaseTask) -> String {
        // What depends on the name of the case depends on its pseudonym, too.
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

/// What a run knows before it reads the first case; equal for all partitions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Opening {
    /// Inclusion and exclusion so far.
    pub flow: Flow,
    /// What was set aside so far.
    pub quarantined: Vec<Quarantined>,
}

/// The account of one case, stored beside its slices.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct CaseAccount {
    /// Absent where the case was set aside.
    pub(crate) row: Option<CaseRow>,
    pub(crate) synthetic: bool,
    pub(crate) burned_in_unknown: bool,
    pub(crate) flow: Flow,
    pub(crate) quarantined: Vec<Quarantined>,
    pub(crate) marks: Vec<Mark>,
}

impl CaseAccount {
    /// Of a case that was read, with its slices.
    pub(crate) fn of_read(task: &CaseTask, case: ReadCase) -> (Self, Vec<CtSlice>) {
        let mut flow = Flow::default();
        flow.cases.keep();
        flow.series.keep();
        case.series_aside.iter().for_each(|reason| flow.series.drop_for(*reason));
        case.files_aside.iter().for_each(|(_, reason)| flow.files.drop_for(*reason));
        (case.files_aside.len()..task.files.len()).for_each(|_| flow.files.keep());
        case.slices_aside.iter().for_each(|reason| flow.slices.drop_for(*reason));
        case.slices.iter().for_each(|_| flow.slices.keep());
        let row = task.row(&case);
        let (synthetic, burned_in_unknown) = (case.synthetic, case.burned_in_unknown);
        let slices = task.slices(case);
        let marks = slices.iter().map(Mark::of).collect();
        let account =
            Self { row: Some(row), synthetic, burned_in_unknown, flow, quarantined: Vec::new(), marks };
        (account, slices)
    }

    /// Of a case that was set aside.
    pub(crate) fn of_fault(task: &CaseTask, fault: &Fault, line: Quarantined) -> Self {
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
