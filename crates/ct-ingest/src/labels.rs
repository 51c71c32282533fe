//! The label table, `case_id,label[,split][,patient_id]`, and the split file.

use std::collections::BTreeMap;
use std::path::Path;

use diag_data::case::{Label, LabelSet, Split};
use serde::Deserialize;

use crate::IngestError;

/// A checked label table. Invariant: at least one row, no case twice.
#[derive(Clone, Debug)]
pub struct LabelTable {
    /// Class names in their order.
    pub labels: LabelSet,
    /// The cases, sorted by name.
    pub rows: Vec<LabelRow>,
}

/// One case of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelRow {
    /// Folder, PatientID or SeriesInstanceUID: may name somebody.
    pub case: String,
    /// Its class.
    pub label: Label,
    /// Its part, where the table says so.
    pub split: Option<Split>,
    /// Its patient, where the table says so.
    pub patient: Option<String>,
    /// Its line in the table, from 1; the header is line 1.
    pub line: u64,
}

/// What is said of a split that is none. No message repeats a cell: it may name somebody.
const NO_SPLIT: &str = "the split is not train, validation or test";

#[derive(Deserialize)]
struct RawRow {
    case_id: String,
    label: String,
    #[serde(default)]
    split: Option<String>,
    #[serde(default)]
    patient_id: Option<String>,
}

#[derive(Deserialize)]
struct RawSplit {
    case_id: String,
    split: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLabelSet {
    names: Vec<String>,
}

/// Reads a label-set file: TOML with `names = ["...", ...]`.
///
/// # Errors
/// When it cannot be read or is not of that form.
pub fn read_label_set(path: &Path) -> Result<LabelSet, IngestError> {
    let bytes = diag_data::files::read(path)?;
    let wrong = |why: String| IngestError::File { path: path.into(), why };
    let text = String::from_utf8(bytes).map_err(|_| wrong("the label set is not UTF-8 text".into()))?;
    let raw: RawLabelSet = toml::from_str(&text)
        .map_err(|err| wrong(format!("the label set is not `names = [...]` ({})", err.message())))?;
    Ok(LabelSet::new(raw.names)?)
}

impl LabelTable {
    /// Reads a table. Without a label set, its names are the classes; but a
    /// table that mixes the data card's names with others has a typing error.
    ///
    /// # Errors
    /// When it cannot be read, is empty, or a row breaks a rule; the error names the line.
    pub fn read(path: &Path, known: Option<LabelSet>) -> Result<Self, IngestError> {
        Self::parse(&diag_data::files::read(path)?, path, known)
    }

    /// Reads a table from its bytes; `path` names it in errors.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn parse(bytes: &[u8], path: &Path, known: Option<LabelSet>) -> Result<Self, IngestError> {
        let raw: Vec<(u64, RawRow)> = read_rows(bytes, path)?;
        let names = || raw.iter().map(|(_, row)| row.label.as_str());
        let paper = LabelSet::paper();
        let labels = match known {
            Some(labels) => labels,
            None if names().any(|name| paper.find(name).is_some()) => paper,
            None => LabelSet::of_table(names().filter(|name| !name.is_empty()))?,
        };
        let mut rows = BTreeMap::new();
        for (line, row) in &raw {
            let wrong = |why: String| IngestError::TableRow { path: path.into(), line: *line, why };
            let label = labels
                .find(&row.label)
                .ok_or_else(|| wrong(format!("the label is not one of {}", labels.names().join(", "))))?;
            let split = row.split.as_deref().filter(|text| !text.is_empty()).map(str::parse).transpose();
            let split = split.map_err(|_| wrong(NO_SPLIT.into()))?;
            let case = row.case_id.trim_end_matches('/').to_string();
            if case.is_empty() {
                return Err(wrong("the case_id is empty".into()));
            }
            let patient = row.patient_id.clone().filter(|text| !text.is_empty());
            let checked = LabelRow { case: case.clone(), label, split, patient, line: *line };
            if rows.insert(case, checked).is_some() {
                return Err(wrong("the case_id occurs twice".into()));
            }
        }
        let n_split = rows.values().filter(|row| row.split.is_some()).count();
        if n_split != 0 && n_split != rows.len() {
            let why = format!("{n_split} of {} cases have a split, the others have none", rows.len());
            return Err(IngestError::File { path: path.into(), why });
        }
        if rows.is_empty() {
            return Err(IngestError::File { path: path.into(), why: "the label table has no rows".into() });
        }
        Ok(Self { labels, rows: rows.into_values().collect() })
    }

    /// Takes the split of every case from a file `case_id,split`.
    ///
    /// # Errors
    /// When it cannot be read, names a case twice, or leaves one out.
    pub fn set_splits(&mut self, path: &Path) -> Result<(), IngestError> {
        let splits = read_split_file(path)?;
        for row in &mut self.rows {
            row.split = splits.get(&row.case).copied();
        }
        let n_without = self.rows.iter().filter(|row| row.split.is_none()).count();
        if n_without > 0 {
            let why = format!("{n_without} of {} cases of the label table have no split", self.rows.len());
            return Err(IngestError::File { path: path.into(), why });
        }
        Ok(())
    }
}

/// Reads a split file, `case_id,split`.
///
/// # Errors
/// When it cannot be read, or a row breaks a rule; the error names the line.
pub fn read_split_file(path: &Path) -> Result<BTreeMap<String, Split>, IngestError> {
    let mut splits = BTreeMap::new();
    for (line, row) in read_rows::<RawSplit>(&diag_data::files::read(path)?, path)? {
        let wrong = |why: String| IngestError::TableRow { path: path.into(), line, why };
        let split = row.split.parse().map_err(|_| wrong(NO_SPLIT.into()))?;
        if splits.insert(row.case_id, split).is_some() {
            return Err(wrong("the case_id occurs twice".into()));
        }
    }
    Ok(splits)
}

/// Rows with their line numbers.
fn read_rows<T: serde::de::DeserializeOwned>(
    bytes: &[u8],
    path: &Path,
) -> Result<Vec<(u64, T)>, IngestError> {
    let table = |source| IngestError::Table { path: path.into(), source };
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(bytes);
    let headers = reader.headers().map_err(table)?.clone();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(table)?;
        let line = record.position().map_or(0, csv::Position::line);
        rows.push((line, record.deserialize(Some(&headers)).map_err(table)?));
    }
    Ok(rows)
}
