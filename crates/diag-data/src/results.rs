//! `results.parquet` of a sweep: one number a row.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};

use crate::DataError;

/// One number that one run measured, with the settings that tell the runs apart.
#[derive(Clone, Debug, PartialEq)]
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
