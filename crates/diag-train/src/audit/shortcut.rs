//! Whether the features of a network encode the scanner or the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::atomic::AtomicBool;

use diag_data::case::{CaseId, Split};
use serde::Serialize;

use super::probe::{Probe, standardised};
use super::run::{AuditJob, AuditedRun};
use crate::error::TrainError;

/// Parts of the cross-validation of the probe.
const N_FOLDS: usize = 5;
/// Orders of the attribute that stand for chance.
const N_PERMUTATIONS: usize = 199;

/// An attribute that the features should not encode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Attribute {
    /// Manufacturer of the scanner.
    Manufacturer,
    /// Reconstruction kernel.
    Kernel,
}

impl FromStr for Attribute {
    type Err = String;

    /// Reads `manufacturer` or `kernel`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "manufacturer" => Ok(Self::Manufacturer),
            "kernel" => Ok(Self::Kernel),
            _ => Err(format!("`{text}` is not manufacturer or kernel")),
        }
    }
}

/// What a linear probe finds in the features.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShortcutAudit {
    /// What was looked for.
    pub attribute: Attribute,
    /// Cases by value of the attribute and class.
    pub cases: BTreeMap<String, BTreeMap<String, u64>>,
    /// Cases that do not state the attribute.
    pub n_unknown: usize,
    /// Balanced accuracy of the probe, cross-validated by case.
    pub balanced_accuracy: f64,
    /// 1 / number of values.
    pub chance: f64,
    /// Mean over random orders of the attribute among cases of one class: what the
    /// class alone gives away.
    pub shuffled: f64,
    /// Share of these orders, and the true one, that do at least as well.
    pub p_value: f64,
}

/// Tries to tell an attribute of the test cases from their mean features by ridge
/// regression. That it can does not prove that the network uses it; that it cannot
/// is good news. Shuffling within classes keeps what the diagnosis itself tells.
///
/// # Errors
/// A folder without a finished run, other shards, fewer than two values of the
/// attribute with at least two cases each.
pub fn shortcut(
    job: &AuditJob,
    attribute: Attribute,
    stop: &AtomicBool,
) -> Result<ShortcutAudit, TrainError> {
    let audited = AuditedRun::read(job)?;
    let (dataset, inference) = audited.infer(Split::Test, stop)?;
    let values: BTreeMap<CaseId, Option<String>> = audited
        .shards
        .cases()?
        .into_iter()
        .map(|row| match attribute {
            Attribute::Manufacturer => (row.case_id, row.manufacturer),
            Attribute::Kernel => (row.case_id, row.kernel),
        })
        .collect();
    let mut of_case: BTreeMap<&CaseId, (usize, Vec<f64>, f64)> = BTreeMap::new();
    for (item, features) in dataset.items.iter().zip(&inference.features) {
        let sums = of_case
            .entry(&item.case_id)
            .or_insert_with(|| (item.label.index(), vec![0.0; features.len()], 0.0));
        for (sum, feature) in sums.1.iter_mut().zip(features) {
            *sum += f64::from(*feature);
        }
        sums.2 += 1.0;
    }
    let value_of = |case: &CaseId| values.get(case).cloned().flatten();
    let mut frequent: BTreeMap<String, usize> = BTreeMap::new();
    for case in of_case.keys() {
        if let Some(value) = value_of(case) {
            *frequent.entry(value).or_default() += 1;
        }
    }
    frequent.retain(|_, n| *n > 1);
    let names: Vec<String> = frequent.into_keys().collect();
    if names.len() < 2 {
        return Err(TrainError::NoSlices { what: "differing test (two values, two cases each)".to_owned() });
    }
    let (mut features, mut given, mut classes) = (Vec::new(), Vec::new(), Vec::new());
    let mut cases: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    let mut n_unknown = 0;
    for (case, (class, sums, n)) in &of_case {
        let Some((index, value)) =
            value_of(case).and_then(|value| Some((names.iter().position(|name| *name == value)?, value)))
        else {
            n_unknown += 1;
            continue;
        };
        features.push(sums.iter().map(|sum| sum / n).collect::<Vec<f64>>());
        given.push(index);
        classes.push(*class);
        let class_name = dataset.labels.names().get(*class).cloned().unwrap_or_default();
        *cases.entry(value).or_default().entry(class_name).or_default() += 1;
    }
    let probe = Probe::new(&standardised(features), N_FOLDS);
    let balanced_accuracy = probe.balanced_accuracy(&given, names.len());
    let groups: BTreeSet<usize> = classes.iter().copied().collect();
    let shuffles = super::probe::shuffles_within(&given, &classes, &groups, N_PERMUTATIONS);
    let shuffled: Vec<f64> =
        shuffles.iter().map(|order| probe.balanced_accuracy(order, names.len())).collect();
    let as_good = shuffled.iter().filter(|value| **value >= balanced_accuracy).count();
    Ok(ShortcutAudit {
        attribute,
        cases,
        n_unknown,
        balanced_accuracy,
        chance: 1.0 / names.len() as f64,
        shuffled: shuffled.iter().sum::<f64>() / shuffled.len() as f64,
        p_value: (as_good + 1) as f64 / (shuffled.len() + 1) as f64,
    })
}
