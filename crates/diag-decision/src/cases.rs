//! Cases with what the network says of their slices.

use std::collections::BTreeMap;

use diag_data::case::{CaseId, Label, Split};
use diag_data::predictions::{Prediction, Predictions};

use crate::DecisionError;

/// One case as the final head sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// The case.
    pub case_id: CaseId,
    /// Part of the data that it belongs to.
    pub split: Split,
    /// True class.
    pub label: Label,
    /// Probabilities of its slices, lowest slice first, `[n][K]`; every row sums to 1.
    pub slice_nk: Vec<Vec<f64>>,
}

/// Gathers the slices of each case of a split, sorted by `case_id` and slice.
///
/// # Errors
/// When a case has two labels, or a slice occurs twice.
pub fn cases_of(rows: &[Prediction], split: Split) -> Result<Vec<Case>, DecisionError> {
    let mut slices_of: BTreeMap<&CaseId, Vec<&Prediction>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.split == split) {
        slices_of.entry(&row.case_id).or_default().push(row);
    }
    let mut cases = Vec::with_capacity(slices_of.len());
    for (case_id, mut slices) in slices_of {
        slices.sort_by_key(|row| row.slice_index);
        let wrong = |why| DecisionError::Case { case_id: case_id.to_string(), why };
        let label = slices[0].label;
        if slices.iter().any(|row| row.label != label) {
            return Err(wrong("has slices of two classes"));
        }
        if slices.windows(2).any(|pair| pair[0].slice_index == pair[1].slice_index) {
            return Err(wrong("has predictions of one slice twice"));
        }
        let widen = |row: &Prediction| -> Vec<f64> {
            Predictions::final_probabilities(row).iter().map(|&p| f64::from(p)).collect()
        };
        let slice_nk = slices.into_iter().map(widen).collect();
        cases.push(Case { case_id: case_id.clone(), split, label, slice_nk });
    }
    Ok(cases)
}
