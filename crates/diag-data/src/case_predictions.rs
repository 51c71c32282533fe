//! Predictions by case: `case_predictions.parquet` and `case_predictions.csv` of a run, and
//! what a batch prediction writes. Both forms have the same columns in the same order.
//!
//! | column | holds |
//! | --- | --- |
//! | `case_id` | name of the case |
//! | `split`, `label` | part of the data and true class; empty where unknown |
//! | `predicted` | class that the decided rule names |
//! | `p_<class>` | probability by the decided rule, joined and calibrated; f64 |
//! | `mean_p_<class>` | plain mean of the slices' probabilities; f64 |
//! | `set` | classes of the conformal set, joined by `\|`; empty where the rule has no sets |
//! | `call` | `positive` or `negative`; empty where no threshold is fixed |
//! | `n_slices` | slices that were predicted |
//! | `warnings` | joined by `\|` |
//! | `model_sha256`, `decision_sha256` | weights and rule |

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::{Float64Type, UInt32Type};

use crate::case::{Label, LabelSet, Split};
use crate::{DataError, files};

/// Between the classes of a set, and between warnings.
const SEPARATOR: char = '|';

/// What the decided rule says of one case.
#[derive(Clone, Debug, PartialEq)]
pub struct CasePrediction {
    /// Name of the case: a pseudonym, or a folder's name where the user asked for that.
    pub case_id: String,
    /// Part of the data that it belongs to; absent where unknown.
    pub split: Option<Split>,
    /// True class; absent where unknown.
    pub label: Option<Label>,
    /// Class that the rule names.
    pub predicted: Label,
    /// Probability by the decided rule, `[K]`.
    pub probability_k: Vec<f64>,
    /// Plain mean over the slices, `[K]`.
    pub mean_probability_k: Vec<f64>,
    /// Classes of the conformal set, at least one, in the order of the label set; absent where
    /// the rule has no sets.
    pub set: Option<Vec<Label>>,
    /// Which side of the threshold it is on; absent where none is fixed.
    pub call: Option<Call>,
    /// Slices that were predicted.
    pub n_slices: u32,
    /// What was odd about the case; a `|` in one is written as `/`.
    pub warnings: Vec<String>,
    /// SHA-256 of the weights.
    pub model_sha256: String,
    /// SHA-256 of the decision file.
    pub decision_sha256: String,
}

/// Side of an operating threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Call {
    /// The probability of the positive class reaches the threshold.
    Positive,
    /// It does not.
    Negative,
}

impl Call {
    /// The name in files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Positive => "positive",
            Self::Negative => "negative",
        }
    }
}

/// Columns that hold text, before and after the probabilities.
const BEFORE: [&str; 4] = ["case_id", "split", "label", "predicted"];
const AFTER: [&str; 6] = ["set", "call", "n_slices", "warnings", "model_sha256", "decision_sha256"];

/// Names of the columns in order.
pub fn columns(labels: &LabelSet) -> Vec<String> {
    let of_classes = |prefix: &'static str| labels.names().iter().map(move |name| format!("{prefix}{name}"));
    let before = BEFORE.into_iter().map(String::from);
    before
        .chain(of_classes("p_"))
        .chain(of_classes("mean_p_"))
        .chain(AFTER.into_iter().map(String::from))
        .collect()
}

/// Writes the table as text, with all digits.
///
/// # Errors
/// A row of other classes, a class name with `|`, or a disk that refuses.
pub fn write_csv(path: &Path, labels: &LabelSet, rows: &[CasePrediction]) -> Result<(), DataError> {
    let texts = rows.iter().map(|row| Texts::of(row, labels)).collect::<Result<Vec<_>, _>>()?;
    let malformed = |err: csv::Error| DataError::malformed(path, err);
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(columns(labels)).map_err(malformed)?;
    for (row, texts) in rows.iter().zip(texts) {
        let Texts { split, label, predicted, set, call, warnings } = texts;
        let probabilities = row.probability_k.iter().chain(&row.mean_probability_k).map(f64::to_string);
        let before = [row.case_id.clone(), split, label, predicted].into_iter();
        let after = [
            set,
            call,
            row.n_slices.to_string(),
            warnings,
            row.model_sha256.clone(),
            row.decision_sha256.clone(),
        ];
        writer.write_record(before.chain(probabilities).chain(after)).map_err(malformed)?;
    }
    let bytes = writer.into_inner().map_err(|err| DataError::malformed(path, err))?;
    files::write_atomic(path, &bytes)
}

/// Reads a table that [`write_csv`] wrote.
///
/// # Errors
/// When the file cannot be read, or does not have the columns of these classes in order.
pub fn read_csv(path: &Path, labels: &LabelSet) -> Result<Vec<CasePrediction>, DataError> {
    let bytes = files::read(path)?;
    let mut reader = csv::Reader::from_reader(bytes.as_slice());
    let malformed = |err: csv::Error| DataError::malformed(path, err);
    let header = reader.headers().map_err(malformed)?;
    let want = columns(labels);
    if header.iter().ne(want.iter().map(String::as_str)) {
        let why = format!("its columns are not {}", want.join(", "));
        return Err(DataError::malformed(path, why));
    }
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(malformed)?;
        let cell = |i: usize| record.get(i).unwrap_or_default();
        let number = |i: usize| {
            cell(i).parse().map_err(|_| DataError::malformed(path, format!("`{}` is no number", want[i])))
        };
        let (k, first) = (labels.len(), BEFORE.len());
        let probability_k = (first..first + k).map(number).collect::<Result<_, _>>()?;
        let mean_probability_k = (first + k..first + 2 * k).map(number).collect::<Result<_, _>>()?;
        let after = first + 2 * k;
        let n_slices =
            cell(after + 2).parse().map_err(|_| DataError::malformed(path, "`n_slices` is no number"))?;
        let texts = Texts {
            split: cell(1).into(),
            label: cell(2).into(),
            predicted: cell(3).into(),
            set: cell(after).into(),
            call: cell(after + 1).into(),
            warnings: cell(after + 3).into(),
        };
        let row = CasePrediction {
            case_id: cell(0).into(),
            probability_k,
            mean_probability_k,
            n_slices,
            model_sha256: cell(after + 4).into(),
            decision_sha256: cell(after + 5).into(),
            ..texts.parsed(labels).map_err(|what| wrong_cell(path, what))?
        };
        rows.push(row);
    }
    Ok(rows)
}

/// Writes the table as Parquet; what is empty in the text form is null.
///
/// # Errors
/// As [`write_csv`].
pub fn write_parquet(path: &Path, labels: &LabelSet, rows: &[CasePrediction]) -> Result<(), DataError> {
    let texts = rows.iter().map(|row| Texts::of(row, labels)).collect::<Result<Vec<_>, _>>()?;
    let of_row = |value: fn(&CasePrediction) -> &String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(value)))
    };
    let of_text = |value: fn(&Texts) -> &String| -> ArrayRef {
        let values = texts.iter().map(|text| Some(value(text)).filter(|text| !text.is_empty()));
        Arc::new(StringArray::from_iter(values))
    };
    let numbers = |value: fn(&CasePrediction) -> &Vec<f64>, k: usize| -> ArrayRef {
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| value(row)[k])))
    };
    let mut arrays = vec![
        of_row(|row| &row.case_id),
        of_text(|text| &text.split),
        of_text(|text| &text.label),
        of_text(|text| &text.predicted),
    ];
    arrays.extend((0..labels.len()).map(|k| numbers(|row| &row.probability_k, k)));
    arrays.extend((0..labels.len()).map(|k| numbers(|row| &row.mean_probability_k, k)));
    arrays.extend([
        of_text(|text| &text.set),
        of_text(|text| &text.call),
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|row| row.n_slices))) as ArrayRef,
        of_text(|text| &text.warnings),
        of_row(|row| &row.model_sha256),
        of_row(|row| &row.decision_sha256),
    ]);
    // What may be empty says so, whether or not any is.
    let columns = columns(labels).into_iter().zip(arrays).map(|(name, array)| {
        let nullable = ["split", "label", "set", "call", "warnings"].contains(&name.as_str());
        (name, array, nullable)
    });
    let batch =
        RecordBatch::try_from_iter_with_nullable(columns).map_err(|err| DataError::malformed(path, err))?;
    crate::shard::write_table(path, &batch)
}

/// Reads a table that [`write_parquet`] wrote.
///
/// # Errors
/// When the file cannot be read, or does not have the columns of these classes.
pub fn read_parquet(path: &Path, labels: &LabelSet) -> Result<Vec<CasePrediction>, DataError> {
    let mut rows = Vec::new();
    for batch in crate::shard::read_table(path)? {
        let batch = batch?;
        let column = |name: &str| batch.column_by_name(name).ok_or_else(|| wrong_cell(path, name));
        let text = |name: &str| column(name)?.as_string_opt::<i32>().ok_or_else(|| wrong_cell(path, name));
        let numbers = |prefix: &str| -> Result<Vec<&Float64Array>, DataError> {
            let of_class = |class: &String| {
                let name = format!("{prefix}{class}");
                column(&name)?.as_primitive_opt::<Float64Type>().ok_or_else(|| wrong_cell(path, &name))
            };
            labels.names().iter().map(of_class).collect()
        };
        let (probability, mean) = (numbers("p_")?, numbers("mean_p_")?);
        let n_slices = column("n_slices")?
            .as_primitive_opt::<UInt32Type>()
            .ok_or_else(|| wrong_cell(path, "n_slices"))?;
        let [case_id, split, label, predicted] =
            [text("case_id")?, text("split")?, text("label")?, text("predicted")?];
        let [set, call, warnings] = [text("set")?, text("call")?, text("warnings")?];
        let (model_sha256, decision_sha256) = (text("model_sha256")?, text("decision_sha256")?);
        for i in 0..batch.num_rows() {
            let cell = |array: &StringArray| {
                if array.is_null(i) { String::new() } else { array.value(i).to_owned() }
            };
            let texts = Texts {
                split: cell(split),
                label: cell(label),
                predicted: cell(predicted),
                set: cell(set),
                call: cell(call),
                warnings: cell(warnings),
            };
            rows.push(CasePrediction {
                case_id: cell(case_id),
                probability_k: probability.iter().map(|class| class.value(i)).collect(),
                mean_probability_k: mean.iter().map(|class| class.value(i)).collect(),
                n_slices: n_slices.value(i),
                model_sha256: cell(model_sha256),
                decision_sha256: cell(decision_sha256),
                ..texts.parsed(labels).map_err(|what| wrong_cell(path, what))?
            });
        }
    }
    Ok(rows)
}

fn wrong_cell(path: &Path, column: &str) -> DataError {
    DataError::malformed(path, format!("column `{column}` is missing, of another type or of other classes"))
}

/// The cells of a row that are words.
struct Texts {
    split: String,
    label: String,
    predicted: String,
    set: String,
    call: String,
    warnings: String,
}

impl Texts {
    fn of(row: &CasePrediction, labels: &LabelSet) -> Result<Self, DataError> {
        let invalid = |why: &str| DataError::invalid("case prediction", why);
        if row.probability_k.len() != labels.len() || row.mean_probability_k.len() != labels.len() {
            return Err(invalid("a row lacks a class"));
        }
        let name = |label: Label| {
            let name = labels.name(label).ok_or_else(|| invalid("a row names a class that is not there"))?;
            if name.contains(SEPARATOR) {
                return Err(DataError::invalid(
                    "class name",
                    "has a `|`, which separates the classes of a set",
                ));
            }
            Ok(name.to_owned())
        };
        let set: Vec<String> =
            row.set.iter().flatten().map(|label| name(*label)).collect::<Result<_, _>>()?;
        let warnings: Vec<String> = row.warnings.iter().map(|text| text.replace(SEPARATOR, "/")).collect();
        Ok(Self {
            split: row.split.map(|split| split.to_string()).unwrap_or_default(),
            label: row.label.map(name).transpose()?.unwrap_or_default(),
            predicted: name(row.predicted)?,
            set: set.join("|"),
            call: row.call.map(|call| call.as_str().to_owned()).unwrap_or_default(),
            warnings: warnings.join("|"),
        })
    }

    /// A row with these cells, the others empty; else the name of the column at fault.
    fn parsed(self, labels: &LabelSet) -> Result<CasePrediction, &'static str> {
        let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let class = |column: &'static str, name: &str| labels.find(name).ok_or(column);
        let set = given(&self.set)
            .map(|set| set.split(SEPARATOR).map(|name| class("set", name)).collect::<Result<Vec<_>, _>>());
        let call = match self.call.as_str() {
            "" => None,
            "positive" => Some(Call::Positive),
            "negative" => Some(Call::Negative),
            _ => return Err("call"),
        };
        Ok(CasePrediction {
            case_id: String::new(),
            split: given(&self.split).map(|split| split.parse().map_err(|_| "split")).transpose()?,
            label: given(&self.label).map(|name| class("label", &name)).transpose()?,
            predicted: class("predicted", &self.predicted)?,
            probability_k: Vec::new(),
            mean_probability_k: Vec::new(),
            set: set.transpose()?,
            call,
            n_slices: 0,
            warnings: given(&self.warnings)
                .map(|text| text.split(SEPARATOR).map(String::from).collect())
                .unwrap_or_default(),
            model_sha256: String::new(),
            decision_sha256: String::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<CasePrediction> {
        let full = CasePrediction {
            case_id: "a, \"quoted\"".into(),
            split: Some(Split::Test),
            label: Some(Label(2)),
            predicted: Label(0),
            probability_k: vec![0.1 + 0.2, 1.0 / 3.0, 1e-9],
            mean_probability_k: vec![1.0, 0.0, f64::MIN_POSITIVE],
            set: Some(vec![Label(0), Label(2)]),
            call: Some(Call::Negative),
            n_slices: 17,
            warnings: vec!["one, with a comma".into(), "two".into()],
            model_sha256: "m".into(),
            decision_sha256: "d".into(),
        };
        let bare = CasePrediction {
            case_id: "b".into(),
            split: None,
            label: None,
            set: None,
            call: None,
            warnings: Vec::new(),
            ..full.clone()
        };
        vec![full, bare]
    }

    type Write = fn(&Path, &LabelSet, &[CasePrediction]) -> Result<(), DataError>;
    type Read = fn(&Path, &LabelSet) -> Result<Vec<CasePrediction>, DataError>;
    const FORMS: [(Write, Read); 2] = [(write_csv, read_csv), (write_parquet, read_parquet)];

    #[test]
    fn rows_survive_both_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("case_predictions");
        for (write, read) in FORMS {
            write(&path, &LabelSet::paper(), &rows()).unwrap();
            assert_eq!(read(&path, &LabelSet::paper()).unwrap(), rows());
            write(&path, &LabelSet::paper(), &[]).unwrap();
            assert_eq!(read(&path, &LabelSet::paper()).unwrap(), []);
        }
    }

    #[test]
    fn the_columns_are_those_of_the_document() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("case_predictions.csv");
        let labels = LabelSet::new(vec!["sick".into(), "well".into()]).unwrap();
        write_csv(&path, &labels, &[]).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "case_id,split,label,predicted,p_sick,p_well,mean_p_sick,mean_p_well,set,call,n_slices,warnings,model_sha256,decision_sha256\n"
        );
    }

    #[test]
    fn rows_of_other_classes_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("case_predictions");
        let other = LabelSet::new(vec!["sick".into(), "well".into()]).unwrap();
        let barred = LabelSet::new(vec!["a|b".into(), "c".into(), "d".into()]).unwrap();
        for (write, read) in FORMS {
            assert!(write(&path, &other, &rows()).is_err());
            assert!(write(&path, &barred, &rows()).is_err());
            write(&path, &LabelSet::paper(), &rows()).unwrap();
            assert!(matches!(read(&path, &other), Err(DataError::Malformed { .. })));
        }
    }

    #[test]
    fn a_call_that_is_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("case_predictions.csv");
        write_csv(&path, &LabelSet::paper(), &rows()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap().replace("negative", "maybe");
        std::fs::write(&path, text).unwrap();
        assert!(read_csv(&path, &LabelSet::paper()).is_err());
    }
}
