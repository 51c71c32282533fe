//! The same classifier on parts of the cases: scanner, kernel, slice thickness,
//! sex, age, and lesion load where it is known.

use std::collections::BTreeMap;

use diag_data::manifest::CaseRow;
use diag_metrics::{ConfusionMatrix, MetricsError, wilson_interval};
use serde::Serialize;

use crate::load::Run;
use crate::numbers::CaseResult;

/// Cases that share a property. Unit of analysis: case.
#[derive(Debug, Serialize)]
pub struct Subgroup {
    /// The property: "manufacturer", "model", "kernel", "slice thickness", "sex",
    /// "age" or "lesion load".
    pub property: &'static str,
    /// Its value.
    pub value: String,
    /// Cases of each class.
    pub cases_per_class: Vec<u64>,
    /// Number of cases called right.
    pub n_right: u64,
    /// Share of cases called right.
    pub accuracy: Option<f64>,
    /// Lower Wilson bound of the accuracy.
    pub low: Option<f64>,
    /// Upper Wilson bound of the accuracy.
    pub high: Option<f64>,
    /// Mean sensitivity of the classes that occur in the subgroup.
    pub balanced_accuracy: Option<f64>,
}

/// Empty when the shards, which hold the properties, are not at hand.
pub(crate) fn subgroups(
    run: &Run,
    results: &[CaseResult],
    level: f64,
) -> Result<Vec<Subgroup>, MetricsError> {
    let Ok(shards) = &run.shards else { return Ok(Vec::new()) };
    let rows: BTreeMap<&str, &CaseRow> = shards.cases.iter().map(|row| (row.case_id.as_str(), row)).collect();
    type Property = (&'static str, fn(&CaseRow) -> Option<String>);
    let properties: [Property; 6] = [
        ("manufacturer", |row| row.manufacturer.clone()),
        ("model", |row| row.model.clone()),
        ("kernel", |row| row.kernel.clone()),
        ("slice thickness", |row| row.slice_thickness_mm.map(|mm| format!("{mm} mm"))),
        ("sex", |row| row.patient_sex.clone()),
        ("age", |row| row.patient_age_years.map(age_group)),
    ];
    let mut subgroups = Vec::new();
    for (property, value_of) in properties {
        let mut groups: BTreeMap<String, Vec<&CaseResult>> = BTreeMap::new();
        for result in results {
            let value = rows.get(result.case_id.as_str()).and_then(|row| value_of(row));
            groups.entry(value.unwrap_or_else(|| NOT_STATED.into())).or_default().push(result);
        }
        // A property that no case states divides nothing.
        if groups.len() == 1 && groups.contains_key(NOT_STATED) {
            continue;
        }
        for (value, members) in groups {
            subgroups.push(subgroup(property, value, &members, run.info.labels.len(), level)?);
        }
    }
    let Ok(maps) = &run.maps else { return Ok(subgroups) };
    let mut loads: BTreeMap<usize, Vec<&CaseResult>> = BTreeMap::new();
    for result in results {
        let share = maps.how.lesion_share.iter().find(|(case, _)| case.as_str() == result.case_id);
        if let Some((_, share)) = share {
            loads.entry(load_group(*share)).or_default().push(result);
        }
    }
    for (group, members) in loads {
        let value = LOAD_GROUPS[group].to_string();
        subgroups.push(subgroup("lesion load", value, &members, run.info.labels.len(), level)?);
    }
    Ok(subgroups)
}

const NOT_STATED: &str = "not stated";

/// Share of the lungs that is lesion, from the truth that the maps were held against.
const LOAD_GROUPS: [&str; 4] =
    ["no lesion", "up to 5 % of the lungs", "5 to 15 % of the lungs", "over 15 % of the lungs"];

fn load_group(share: f64) -> usize {
    [0.0, 0.05, 0.15].iter().filter(|limit| share > **limit).count()
}

fn age_group(years: i32) -> String {
    match years {
        ..40 => "under 40",
        40..65 => "40 to 64",
        _ => "65 and over",
    }
    .into()
}

fn subgroup(
    property: &'static str,
    value: String,
    members: &[&CaseResult],
    n_classes: usize,
    level: f64,
) -> Result<Subgroup, MetricsError> {
    let labels: Vec<usize> = members.iter().map(|r| r.label).collect();
    let predicted: Vec<usize> = members.iter().map(|r| r.predicted).collect();
    let matrix = ConfusionMatrix::new(&labels, &predicted, n_classes)?;
    let n_right = (0..n_classes).map(|k| matrix.of_class(k).true_positive).sum();
    let bounds = wilson_interval(n_right, matrix.total(), level);
    Ok(Subgroup {
        property,
        value,
        cases_per_class: matrix.support(),
        n_right,
        accuracy: matrix.accuracy(),
        low: bounds.map(|b| b.0),
        high: bounds.map(|b| b.1),
        balanced_accuracy: matrix.balanced_accuracy(),
    })
}
