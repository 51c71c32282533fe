//! `predictions.parquet` of a run: what every head said of every slice.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float32Array, Int8Array, Int32Array, RecordBatch, StringArray};
use arrow::datatypes::{Float32Type, Int8Type, Int32Type};

use crate::DataError;
use crate::case::{CaseId, Label, LabelSet, Split};

/// What the network said of one slice.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// Case of the slice.
    pub case_id: CaseId,
    /// Position among the kept slices of its case.
    pub slice_index: i32,
    /// Part of the data that it belongs to.
    pub split: Split,
    /// Class of its case.
    pub label: Label,
    /// Probability per head (in the order of [`Predictions::heads`]) and class; each sums to 1.
    pub head_probabilities: Vec<Vec<f32>>,
}

/// Predictions of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Predictions {
    /// Class names.
    pub labels: LabelSet,
    /// Names of the heads, shallowest first; the last one is the final output.
    pub heads: Vec<String>,
    /// One row a slice.
    pub rows: Vec<Prediction>,
}

impl Predictions {
    /// Probabilities of the final head for a row.
    pub fn final_probabilities(row: &Prediction) -> &[f32] {
        row.head_probabilities.last().map_or(&[], Vec::as_slice)
    }

    /// Writes the table: `case_id`, `slice_index`, `split`, `label`,
    /// `label_name`, and a column `HEAD/CLASS` for every head and class.
    ///
    /// # Errors
    /// When a row has another number of heads or classes, or the disk refuses.
    pub fn write(&self, path: &Path) -> Result<(), DataError> {
        let n_classes = self.labels.len();
        let whole = |row: &Prediction| {
            row.head_probabilities.len() == self.heads.len()
                && row.head_probabilities.iter().all(|classes| classes.len() == n_classes)
        };
        if self.heads.is_empty() || !self.rows.iter().all(whole) {
            return Err(DataError::invalid("prediction", "a row lacks a head or a class"));
        }
        let names = |value: fn(&Prediction) -> &str| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(self.rows.iter().map(value)))
        };
        let label_names = self.rows.iter().map(|row| self.labels.name(row.label));
        let mut columns: Vec<(String, ArrayRef)> = vec![
            ("case_id".into(), names(|row| row.case_id.as_str())),
            (
                "slice_index".into(),
                Arc::new(Int32Array::from_iter_values(self.rows.iter().map(|r| r.slice_index))),
            ),
            ("split".into(), names(|row| row.split.as_str())),
            (
                "label".into(),
                Arc::new(Int8Array::from_iter_values(self.rows.iter().map(|r| r.label.0 as i8))),
            ),
            ("label_name".into(), Arc::new(StringArray::from_iter(label_names))),
        ];
        for (h, head) in self.heads.iter().enumerate() {
            for (c, class) in self.labels.names().iter().enumerate() {
                let values = self.rows.iter().map(|row| row.head_probabilities[h][c]);
                columns.push((format!("{head}/{class}"), Arc::new(Float32Array::from_iter_values(values))));
            }
        }
        let batch = RecordBatch::try_from_iter(columns).map_err(|err| DataError::malformed(path, err))?;
        crate::shard::write_table(path, &batch)
    }

    /// Reads a table that [`write`](Self::write) made.
    ///
    /// # Errors
    /// When the file cannot be read or lacks a column.
    pub fn read(path: &Path, labels: &LabelSet) -> Result<Self, DataError> {
        let bad =
            |name: &str| DataError::malformed(path, format!("column `{name}` is missing or of another type"));
        let (mut heads, mut rows) = (Vec::<String>::new(), Vec::new());
        for batch in crate::shard::read_table(path)? {
            let batch = batch?;
            let column = |name: &str| batch.column_by_name(name).ok_or_else(|| bad(name));
            let text = |name| column(name)?.as_string_opt::<i32>().ok_or_else(|| bad(name));
            heads.clear();
            for field in batch.schema().fields() {
                if let Some((head, _)) = field.name().split_once('/')
                    && heads.last().is_none_or(|last| last != head)
                {
                    heads.push(head.to_string());
                }
            }
            let (cases, splits) = (text("case_id")?, text("split")?);
            let index =
                column("slice_index")?.as_primitive_opt::<Int32Type>().ok_or_else(|| bad("slice_index"))?;
            let label = column("label")?.as_primitive_opt::<Int8Type>().ok_or_else(|| bad("label"))?;
            let mut probabilities = Vec::new();
            for head in &heads {
                let mut of_head = Vec::new();
                for class in labels.names() {
                    let name = format!("{head}/{class}");
                    let values =
                        column(&name)?.as_primitive_opt::<Float32Type>().ok_or_else(|| bad(&name))?;
                    of_head.push(values.clone());
                }
                probabilities.push(of_head);
            }
            for i in 0..batch.num_rows() {
                let label = u8::try_from(label.value(i)).map(Label).map_err(|_| bad("label"))?;
                if labels.name(label).is_none() {
                    return Err(bad("label"));
                }
                rows.push(Prediction {
                    case_id: CaseId::new(cases.value(i))?,
                    slice_index: index.value(i),
                    split: splits.value(i).parse()?,
                    label,
                    head_probabilities: probabilities
                        .iter()
                        .map(|head| head.iter().map(|class| class.value(i)).collect())
                        .collect(),
                });
            }
        }
        Ok(Self { labels: labels.clone(), heads, rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_survive_the_file() {
        let row = |case: &str, label: u8| Prediction {
            case_id: CaseId::new(case).unwrap(),
            slice_index: 3,
            split: Split::Test,
            label: Label(label),
            head_probabilities: vec![vec![0.5, 0.25, 0.25], vec![0.1, 0.2, 0.7]],
        };
        let table = Predictions {
            labels: LabelSet::paper(),
            heads: vec!["stage1".into(), "final".into()],
            rows: vec![row("a", 0), row("b", 2)],
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("predictions.parquet");
        table.write(&path).unwrap();
        assert_eq!(Predictions::read(&path, &table.labels).unwrap(), table);
        assert_eq!(Predictions::final_probabilities(&table.rows[0]), [0.1, 0.2, 0.7]);
    }

    #[test]
    fn a_row_without_a_head_is_refused() {
        let table = Predictions {
            labels: LabelSet::paper(),
            heads: vec!["final".into()],
            rows: vec![Prediction {
                case_id: CaseId::new("a").unwrap(),
                slice_index: 0,
                split: Split::Test,
                label: Label(0),
                head_probabilities: vec![],
            }],
        };
        let folder = tempfile::tempdir().unwrap();
        assert!(table.write(&folder.path().join("p.parquet")).is_err());
    }
}
