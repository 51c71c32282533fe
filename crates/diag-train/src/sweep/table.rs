//! The numbers of finished runs as rows of the results table.

use diag_data::DataError;
use diag_data::case::{LabelSet, Split};
use diag_data::files;
use diag_data::predictions::Predictions;
use diag_data::results::ResultRow;
use diag_data::run::RunDir;
use diag_metrics::{Aggregation, Bootstrap, aggregate, summarise};

use super::spec::{Cell, SummarySpec, join};
use crate::error::TrainError;
use crate::evaluate::inference::{case_numbers, scores};
use crate::run::plan::TrainPlan;

/// Every number of a run's `metrics.json`, and the bounds of its intervals where the summary
/// asks for them.
pub(super) fn rows_of(
    cell: &Cell,
    run: &RunDir,
    summary: &SummarySpec,
) -> Result<Vec<ResultRow>, TrainError> {
    let metrics: serde_json::Value = files::read_json(&run.metrics())?;
    let labels: LabelSet = serde_json::from_value(metrics["labels"].clone())
        .map_err(|err| DataError::Malformed { path: run.metrics(), why: format!("`labels`: {err}") })?;
    let info = run.read_info()?;
    let recipe = &TrainPlan::read(&run.plan())?.recipe;
    let row = |split: &str, unit: &str, aggregation: Option<&str>, measure: &str, value: f64| ResultRow {
        run: cell.name.clone(),
        variant: cell.variant.clone(),
        loss: info.loss.clone(),
        seed: recipe.seed as i64,
        fold: recipe.fold.map(|fold| fold.index as i64),
        class_ratio: recipe.data.class_ratio.as_ref().map(|ratio| join(ratio, ":")),
        label_noise: recipe.data.label_noise,
        best_epoch: info.best_epoch.unwrap_or_default().into(),
        split: split.to_owned(),
        unit: unit.to_owned(),
        aggregation: aggregation.map(str::to_owned),
        measure: measure.to_owned(),
        value,
    };
    let mut rows = Vec::new();
    let mut add = |split: &str, unit: &str, aggregation: Option<&str>, measures: &serde_json::Value| {
        let mut of_table = |measures: &serde_json::Value, ending: &str| {
            for (name, value) in measures.as_object().into_iter().flatten() {
                if let Some(value) = value.as_f64() {
                    rows.push(row(split, unit, aggregation, &format!("{name}{ending}"), value));
                }
            }
        };
        of_table(measures, "");
        for (name, of_class) in
            labels.names().iter().zip(measures["classes"].as_array().into_iter().flatten())
        {
            of_table(of_class, &format!("/{name}"));
        }
    };
    for (split, of_split) in metrics["splits"].as_object().into_iter().flatten() {
        add(split, "slice", None, &of_split["slice"]);
        for (aggregation, measures) in of_split["case"].as_object().into_iter().flatten() {
            add(split, "case", Some(aggregation), measures);
        }
        add(split, "case", Some("decision"), &of_split["decision"]["case"]);
        add(split, "case", Some("decision"), &of_split["decision"]["sets"]);
        add(split, "case", Some("decision"), &of_split["decision"]["at_threshold"]);
    }
    if summary.intervals {
        for (measure, value) in bounds(run, &labels, summary)? {
            rows.push(row(&summary.split, "case", Some("mean"), &measure, value));
        }
    }
    Ok(rows)
}

/// 95 % bootstrap bounds by case of the summary's measures, under the names
/// `MEASURE:low` and `MEASURE:high`.
fn bounds(run: &RunDir, labels: &LabelSet, summary: &SummarySpec) -> Result<Vec<(String, f64)>, TrainError> {
    let mut predictions = Predictions::read(&run.predictions(), labels)?;
    let split: Split = summary.split.parse()?;
    predictions.rows.retain(|row| row.split == split);
    let slices = scores(&predictions.rows, predictions.heads.len().saturating_sub(1), labels.len())?;
    let cases = aggregate(&slices, &case_numbers(&predictions.rows), Aggregation::Mean)?.scores;
    let numbers: Vec<usize> = (0..cases.len()).collect();
    let summarised = summarise(&cases, &numbers, &Bootstrap::default())?;
    let mut bounds = Vec::new();
    for &(measure, estimate) in summarised.estimates() {
        let name = match measure.class() {
            None => measure.key().to_owned(),
            Some(class) => format!("{}/{}", measure.key(), labels.names()[class]),
        };
        if summary.measures.contains(&name) {
            let ends = [("low", estimate.low), ("high", estimate.high)];
            bounds
                .extend(ends.into_iter().filter_map(|(end, value)| Some((format!("{name}:{end}"), value?))));
        }
    }
    Ok(bounds)
}
