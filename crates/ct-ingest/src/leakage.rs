//! The gate between the parts: the same patient, study, series or pixels in
//! two parts of the split make every test figure too good.

use std::collections::{BTreeMap, BTreeSet};

use diag_data::case::{CaseId, Split};
use diag_data::manifest::CaseRow;
use diag_data::slice::CtSlice;
use diag_data::split;

/// Something that two parts of the split share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leak {
    /// "patient", "study", "series" or "pixels".
    pub what: &'static str,
    /// The cases that share it, sorted.
    pub cases: Vec<CaseId>,
    /// How many patients, studies, series or images are shared.
    pub count: usize,
}

/// Collects what identifies cases and slices while they pass by.
#[derive(Clone, Debug, Default)]
pub struct LeakCheck {
    seen: BTreeMap<&'static str, BTreeSet<(String, CaseId, Split)>>,
}

impl LeakCheck {
    /// Notes a slice. One without any contrast is left out: empty images are equal everywhere.
    pub fn add_slice(&mut self, slice: &CtSlice) {
        let is_flat = slice.pixels.iter().all(|grey| Some(grey) == slice.pixels.first());
        if !is_flat {
            self.add("pixels", Some(&slice.provenance.pixel_sha256), &slice.case_id, slice.split);
        }
    }

    /// Notes a case.
    pub fn add_case(&mut self, case: &CaseRow) {
        self.add("patient", case.patient_hash.as_ref(), &case.case_id, case.split);
        self.add("study", case.study_uid_hash.as_ref(), &case.case_id, case.split);
        self.add("series", case.series_uid_hash.as_ref(), &case.case_id, case.split);
    }

    fn add(&mut self, what: &'static str, value: Option<&String>, case: &CaseId, split: Split) {
        if let Some(value) = value {
            self.seen.entry(what).or_default().insert((value.clone(), case.clone(), split));
        }
    }

    /// All leaks, by kind and cases.
    pub fn leaks(&self) -> Vec<Leak> {
        let mut found = Vec::new();
        for (&what, values) in &self.seen {
            let rows = values.iter().map(|(value, case, split)| (value.as_str(), case, *split));
            let mut by_cases: BTreeMap<Vec<CaseId>, usize> = BTreeMap::new();
            for cases in split::leaks(rows).into_values() {
                *by_cases.entry(cases).or_default() += 1;
            }
            found.extend(by_cases.into_iter().map(|(cases, count)| Leak { what, cases, count }));
        }
        found
    }
}
