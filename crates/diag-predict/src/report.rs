//! What is said of a study.

use std::collections::BTreeMap;

use ct_read::case::ReadCase;
use serde::Serialize;

/// Stands above every result.
pub const INTENDED_USE: &str = "Research software. Not for clinical use.";

/// Class probabilities of one study.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StudyReport {
    /// [`INTENDED_USE`].
    pub intended_use: &'static str,
    /// Hash of the weights.
    pub model_sha256: String,
    /// Class names in the order of every list.
    pub labels: Vec<String>,
    /// Mean probability over the slices, by class.
    pub case_probabilities: Vec<f32>,
    /// The slices, lowest first.
    pub slices: Vec<SliceReport>,
    /// Slices of the series that was read.
    pub n_source_slices: i32,
    /// Files that were not used, by reason.
    pub files_set_aside: BTreeMap<String, u64>,
    /// What was odd about the series.
    pub warnings: Vec<String>,
}

/// Class probabilities of one slice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SliceReport {
    /// Position among the slices that were used, from 0 at the lowest.
    pub slice_index: i32,
    /// Position along the normal in mm.
    pub z_mm: Option<f64>,
    /// Probability by class; they sum to 1.
    pub probabilities: Vec<f32>,
}

impl StudyReport {
    /// Joins the slices. Invariant of the caller: at least one slice.
    pub(crate) fn new(
        model_sha256: String,
        labels: Vec<String>,
        slices: Vec<SliceReport>,
        case: &ReadCase,
    ) -> Self {
        let mean = |class: usize| {
            let sum: f64 = slices.iter().map(|slice| f64::from(slice.probabilities[class])).sum();
            (sum / slices.len().max(1) as f64) as f32
        };
        let mut files_set_aside = BTreeMap::new();
        for (_, reason) in &case.files_aside {
            *files_set_aside.entry((*reason).to_owned()).or_default() += 1;
        }
        Self {
            intended_use: INTENDED_USE,
            model_sha256,
            case_probabilities: (0..labels.len()).map(mean).collect(),
            labels,
            n_source_slices: case.n_source_slices as i32,
            files_set_aside,
            warnings: case.warnings.clone(),
            slices,
        }
    }

    /// The report as a table in words.
    pub fn table(&self) -> String {
        let row = |name: &str, probabilities: &[f32]| {
            let numbers = self.labels.iter().zip(probabilities);
            let cells: Vec<String> =
                numbers.map(|(label, p)| format!("{p:>width$.3}", width = label.len().max(6))).collect();
            format!("{name:<16}{}", cells.join("  "))
        };
        let header: Vec<String> = self.labels.iter().map(|label| format!("{label:>6}")).collect();
        let mut lines = vec![self.intended_use.to_owned(), format!("{:<16}{}", "", header.join("  "))];
        lines.push(row("case", &self.case_probabilities));
        for slice in &self.slices {
            let place = slice.z_mm.map_or(String::new(), |z| format!(" {z:.1} mm"));
            lines.push(row(&format!("slice {}{place}", slice.slice_index), &slice.probabilities));
        }
        lines.extend(self.warnings.iter().map(|warning| format!("note: {warning}")));
        lines.extend(self.files_set_aside.iter().map(|(why, n)| format!("not used: {n} files: {why}")));
        lines.join("\n")
    }
}
