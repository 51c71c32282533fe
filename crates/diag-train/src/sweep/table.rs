//! The numbers of finished runs as rows of the results table.

use std::collections::BTreeMap;

use diag_data::DataError;
use diag_data::case::{CaseId, LabelSet, Split};
use diag_data::files;
use diag_data::predictions::Predictions;
use diag_data::results::ResultRow;
use diag_data::run::RunDir;
use diag_decision::PriorCorrection;
use diag_metrics::{Aggregation, Bootstrap, aggregate, summarise, summarise_by_patient};

use super::calls::{Calls, MeanCases};
use super::spec::{Cell, SummarySpec, SweepSpec, ratio_of};
use crate::error::TrainError;
use crate::evaluate::inference::scores;
use crate::run::plan::TrainPlan;

/// Every number of a run's `metrics.json`, the bounds of its intervals where the summary
/// asks for them, and what the run becomes by prior correction; adds its predicted classes to
/// `calls`.
pub(super) fn rows_of(
    cell: &Cell,
    run: &RunDir,
    spec: &SweepSpec,
    calls: &mut Calls,
) -> Result<Vec<ResultRow>, TrainError> {
    let summary = &spec.summary;
    let metrics: serde_json::Value = files::read_json(&run.metrics())?;
    let labels: LabelSet = serde_json::from_value(metrics["labels"].clone())
        .map_err(|err| DataError::Malformed { path: run.metrics(), why: format!("`labels`: {err}") })?;
    let info = run.read_info()?;
    let recipe = &TrainPlan::read(&run.plan())?.recipe;
    let own = (cell.name.as_str(), cell.variant.as_str());
    let row = |(name, variant): (&str, &str),
               split: &str,
               unit: &str,
               aggregation: Option<&str>,
               measure: &str,
               value: f64| ResultRow {
        run: name.to_owned(),
        variant: variant.to_owned(),
        loss: info.loss.clone(),
        seed: recipe.seed as i64,
        fold: recipe.fold.map(|fold| fold.index as i64),
        class_ratio: ratio_of(recipe),
        label_noise: recipe.data.label_noise,
        best_epoch: info.best_epoch.unwrap_or_default().into(),
        split: split.to_owned(),
        unit: unit.to_owned(),
        aggregation: aggregation.map(str::to_owned),
        measure: measure.to_owned(),
        value,
    };
    let mut rows = Vec::new();
    let mut add = |names: (&str, &str),
                   split: &str,
                   unit: &str,
                   aggregation: Option<&str>,
                   measures: &serde_json::Value| {
        let mut of_table = |measures: &serde_json::Value, ending: &str| {
            for (name, value) in measures.as_object().into_iter().flatten() {
                if let Some(value) = value.as_f64() {
                    rows.push(row(names, split, unit, aggregation, &format!("{name}{ending}"), value));
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
        let mut add = |unit: &str, aggregation: Option<&str>, measures: &serde_json::Value| {
            add(own, split, unit, aggregation, measures);
        };
        add("slice", None, &of_split["slice"]);
        for (aggregation, measures) in of_split["case"].as_object().into_iter().flatten() {
            add("case", Some(aggregation), measures);
        }
        add("case", Some("decision"), &of_split["decision"]["case"]);
        add("case", Some("decision"), &of_split["decision"]["sets"]);
        add("case", Some("decision"), &of_split["decision"]["at_threshold"]);
    }
    let cases = MeanCases::read(run, &labels)?;
    for (name, variant) in spec.names_of(cell) {
        if name == cell.name {
            calls.add(&name, &variant, cell, &cases, &PriorCorrection::None);
            continue;
        }
        let correction = cases.correction()?;
        for split in Split::ALL {
            if let Some(measures) = cases.measures(split, &correction)? {
                let measures = serde_json::to_value(measures)
                    .map_err(|err| DataError::Malformed { path: run.metrics(), why: err.to_string() })?;
                add((&name, &variant), split.as_str(), "case", Some("mean"), &measures);
            }
        }
        calls.add(&name, &variant, cell, &cases, &correction);
    }
    if summary.intervals {
        for (measure, value) in bounds(run, &labels, summary, calls)? {
            rows.push(row(own, &summary.split, "case", Some("mean"), &measure, value));
        }
    }
    Ok(rows)
}

/// 95 % bootstrap bounds, by patient where all are known and else by case, of the summary's measures, under the names
/// `MEASURE:low` and `MEASURE:high`.
fn bounds(
    run: &RunDir,
    labels: &LabelSet,
    summary: &SummarySpec,
    calls: &Calls,
) -> Result<Vec<(String, f64)>, TrainError> {
    let mut predictions = Predictions::read(&run.predictions(), labels)?;
    let split: Split = summary.split.parse()?;
    predictions.rows.retain(|row| row.split == split);
    let slices = scores(&predictions.rows, predictions.heads.len().saturating_sub(1), labels.len())?;
    let case_ids: Vec<&CaseId> = predictions.rows.iter().map(|row| &row.case_id).collect();
    let (case_n, of_case) = numbered(&case_ids);
    let cases = aggregate(&slices, &case_n, Aggregation::Mean)?.scores;
    let patients: Option<Vec<&str>> = of_case.iter().map(|case| calls.patient(case)).collect();
    let summarised = match patients {
        Some(patients) => summarise_by_patient(&cases, &numbered(&patients).0, &Bootstrap::default())?,
        None => summarise(&cases, &(0..cases.len()).collect::<Vec<_>>(), &Bootstrap::default())?,
    };
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

/// The number of each item, in order of first appearance, and the items without repetition.
fn numbered<T: Ord + Copy>(items: &[T]) -> (Vec<usize>, Vec<T>) {
    let (mut number_of, mut distinct) = (BTreeMap::new(), Vec::new());
    let number = |&item: &T| {
        *number_of.entry(item).or_insert_with(|| {
            distinct.push(item);
            distinct.len() - 1
        })
    };
    (items.iter().map(number).collect(), distinct)
}
