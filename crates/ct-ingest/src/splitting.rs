//! The part of each case: as given, or drawn.

use std::collections::BTreeMap;

use diag_data::case::{CaseId, Label, Split};
use diag_data::files;
use diag_data::split::{self, SplitCase};

use crate::IngestError;
use crate::settings::Settings;

/// A case to be placed.
#[derive(Clone, Copy, Debug)]
pub struct Placeable<'a> {
    /// Its name in the input.
    pub name: &'a str,
    /// Its class.
    pub label: Label,
    /// Its part, where it is given.
    pub given: Option<Split>,
    /// Its patient, where that is known.
    pub patient: Option<&'a str>,
}

/// The part of each case. A drawn split depends on the named cases, the seed and
/// shared patients alone: a broken file never moves another case to the other side.
///
/// # Errors
/// Never in practice: the names are hashed to a valid form.
pub fn place(cases: &[Placeable<'_>], settings: &Settings) -> Result<Vec<Split>, IngestError> {
    let given: Option<Vec<Split>> = cases.iter().map(|case| case.given).collect();
    if let Some(given) = given {
        return Ok(given);
    }
    let mut n_cases: BTreeMap<&str, usize> = BTreeMap::new();
    cases
        .iter()
        .filter_map(|case| case.patient)
        .for_each(|patient| *n_cases.entry(patient).or_default() += 1);
    // The names in the split are hashes, since names of the input need not be case ids.
    let hashed = |text: &str| CaseId::new(&files::sha256_hex(text.as_bytes())[..32]);
    let mut placeable = Vec::with_capacity(cases.len());
    for case in cases {
        let shared = case.patient.filter(|patient| n_cases.get(patient).is_some_and(|n| *n > 1));
        let case_id = hashed(case.name)?;
        placeable.push(SplitCase { case_id, label: case.label, group: shared.map(String::from) });
    }
    let placed = split::stratified(&placeable, settings.ratio, settings.seed);
    Ok(placeable.iter().map(|case| placed.get(&case.case_id).copied().unwrap_or(Split::Train)).collect())
}
