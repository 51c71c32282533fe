//! The results of a sweep, one number a row: `results.parquet`, and `results.csv` for a
//! choice of them.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use serde::{Deserialize, Serialize};

use crate::DataError;

/// One number that one run measured, with the settings that tell the runs apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResultRow {
    /// Folder of the run.
    pub run: String,
    /// Name of the variant of the recipe.
    pub variant: String,
    /// Loss by name.
    pub loss: String,
    /// Seed of the run.
    pub seed: i64,
    /// Fold that validates; absent without folds.
    pub fold: Option<i64>,
    /// Ratio of the classes' training cases, such as "1:5:1"; absent where all were used.
    pub class_ratio: Option<String>,
    /// Share of wrong training labels.
    pub label_noise: f64,
    /// Epoch that was kept.
    pub best_epoch: i64,
    /// Part of the data.
    pub split: String,
    /// What was counted: `slice` or `case`.
    pub unit: String,
    /// How slices were joined: `mean`, `top_k_mean`, `decision`; absent for slices.
    pub aggregation: Option<String>,
    /// Name of the measure, as in `metrics.json`.
    pub measure: String,
    /// The number.
    pub value: f64,
}

/// Writes the table, rows in the order given.
///
/// # Errors
/// When the disk refuses.
pub fn write(path: &Path, rows: &[ResultRow]) -> Result<(), DataError> {
    let text = |value: fn(&ResultRow) -> Option<&str>| -> ArrayRef {
        Arc::new(rows.iter().map(value).collect::<StringArray>())
    };
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("run", text(|row| Some(&row.run))),
        ("variant", text(|row| Some(&row.variant))),
        ("loss", text(|row| Some(&row.loss))),
        ("seed", Arc::new(rows.iter().map(|row| Some(row.seed)).collect::<Int64Array>())),
        ("fold", Arc::new(rows.iter().map(|row| row.fold).collect::<Int64Array>())),
        ("class_ratio", text(|row| row.class_ratio.as_deref())),
        ("label_noise", Arc::new(rows.iter().map(|row| Some(row.label_noise)).collect::<Float64Array>())),
        ("best_epoch", Arc::new(rows.iter().map(|row| Some(row.best_epoch)).collect::<Int64Array>())),
        ("split", text(|row| Some(&row.split))),
        ("unit", text(|row| Some(&row.unit))),
        ("aggregation", text(|row| row.aggregation.as_deref())),
        ("measure", text(|row| Some(&row.measure))),
        ("value", Arc::new(rows.iter().map(|row| Some(row.value)).collect::<Float64Array>())),
    ];
    // Names that may be absent say so, whether or not any is.
    let columns = columns.into_iter().map(|(name, column)| {
        let nullable = ["fold", "class_ratio", "aggregation"].contains(&name);
        (name, column, nullable)
    });
    let batch =
        RecordBatch::try_from_iter_with_nullable(columns).map_err(|err| DataError::malformed(path, err))?;
    crate::shard::write_table(path, &batch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{read_csv, write_csv};

    #[test]
    fn rows_survive_the_text_file() {
        let row = |fold: Option<i64>, value: f64| ResultRow {
            run: "saal_ratio-1-5-1_seed-1".into(),
            variant: "saal".into(),
            loss: "saal".into(),
            seed: 1,
            fold,
            class_ratio: fold.map(|_| "1:5:1".into()),
            label_noise: 0.1,
            best_epoch: 12,
            split: "test".into(),
            unit: "case".into(),
            aggregation: Some("mean".into()),
            measure: "f1/covid-19".into(),
            value,
        };
        let rows = [row(None, 0.1 + 0.2), row(Some(3), 1.0 / 3.0)];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.csv");
        write_csv(&path, &rows).unwrap();
        assert_eq!(read_csv::<ResultRow>(&path).unwrap(), rows);
        std::fs::write(&path, "run,value\nsaal,high\n").unwrap();
        assert!(read_csv::<ResultRow>(&path).is_err());
    }
}
