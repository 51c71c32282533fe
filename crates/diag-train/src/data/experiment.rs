//! Interventions of an experiment on the data before training: see [`DataSpec`].

use std::collections::{BTreeMap, BTreeSet};

use diag_data::case::{CaseId, Label, Split};
use diag_data::shard::ShardSet;
use rand::Rng;
use rand::seq::SliceRandom;

use super::dataset::Dataset;
use crate::error::TrainError;
use crate::random::{Domain, stream};
use crate::recipe::{DataSpec, NoiseUnit, SplitUnit};

/// The splits of the shards that have to be read to build `wanted` splits of the experiment.
pub(crate) fn splits_to_read(spec: &DataSpec, wanted: &[Split]) -> Vec<Split> {
    let moves = spec.split_by == SplitUnit::Slice || spec.leave_out_manufacturer.is_some();
    if moves { Split::ALL.to_vec() } else { wanted.to_vec() }
}

/// Moves slices between splits; the data set must hold all splits where it moves any.
pub(crate) fn reassign_splits(
    dataset: &mut Dataset,
    shards: &ShardSet,
    spec: &DataSpec,
    seed: u64,
) -> Result<(), TrainError> {
    if spec.split_by == SplitUnit::Slice {
        split_by_slice(dataset, seed);
    }
    if let Some(manufacturer) = &spec.leave_out_manufacturer {
        let of_manufacturer: BTreeSet<CaseId> = shards
            .cases()?
            .into_iter()
            .filter(|row| row.manufacturer.as_ref() == Some(manufacturer))
            .map(|row| row.case_id)
            .collect();
        if of_manufacturer.is_empty() {
            return Err(TrainError::NoSlices { what: format!("`{manufacturer}`") });
        }
        dataset.items.retain(|item| item.split != Split::Test || of_manufacturer.contains(&item.case_id));
        for item in dataset.items.iter_mut().filter(|item| of_manufacturer.contains(&item.case_id)) {
            item.split = Split::Test;
        }
    }
    Ok(())
}

/// Draws the split of every slice again; each split keeps its number of slices of each class.
fn split_by_slice(dataset: &mut Dataset, seed: u64) {
    let mut by_class: BTreeMap<Label, Vec<usize>> = BTreeMap::new();
    for (i, item) in dataset.items.iter().enumerate() {
        by_class.entry(item.label).or_default().push(i);
    }
    for (label, items) in by_class {
        let mut splits: Vec<Split> = items.iter().map(|&i| dataset.items[i].split).collect();
        splits.shuffle(&mut stream(seed, Domain::SliceSplit, u32::from(label.0), 0));
        for (i, split) in items.into_iter().zip(splits) {
            dataset.items[i].split = split;
        }
    }
}

/// Leaves out training cases until the classes have the wanted ratio; returns
/// those left out. A larger ratio of one seed keeps the cases of a smaller one.
pub(crate) fn subsample_classes(
    dataset: &mut Dataset,
    spec: &DataSpec,
    seed: u64,
) -> Result<Vec<CaseId>, TrainError> {
    let Some(ratio) = &spec.class_ratio else {
        return Ok(Vec::new());
    };
    let refuse = |value: String, expected| TrainError::Setting { key: "data.class_ratio", value, expected };
    if ratio.len() != dataset.labels.len() || ratio.contains(&0) {
        return Err(refuse(format!("{ratio:?}"), "a number of at least 1 for every class"));
    }
    let mut cases: BTreeMap<Label, Vec<CaseId>> = BTreeMap::new();
    for (case, label) in dataset.cases_where(|split| split == Split::Train) {
        cases.entry(label).or_default().push(case);
    }
    let available = |class: usize| cases.get(&Label(class as u8)).map_or(0, Vec::len);
    let parts: f64 = ratio.iter().map(|&part| f64::from(part)).sum();
    let most = |(class, &part): (usize, &u32)| (available(class) as f64 * parts / f64::from(part)) as usize;
    let n_cases = spec.n_cases.or_else(|| ratio.iter().enumerate().map(most).min()).unwrap_or_default();
    let mut left_out = Vec::new();
    for (class, &part) in ratio.iter().enumerate() {
        let wanted = ((n_cases as f64 * f64::from(part) / parts).round() as usize).max(1);
        if wanted > available(class) {
            let value = format!("{ratio:?} of {n_cases} cases needs {wanted} of class {class}");
            return Err(refuse(value, "no more training cases than there are"));
        }
        let mut of_class = cases.get(&Label(class as u8)).cloned().unwrap_or_default();
        of_class.shuffle(&mut stream(seed, Domain::Subsampling, class as u32, 0));
        left_out.extend(of_class.split_off(wanted));
    }
    left_out.sort();
    dataset.exclude_from_training(&left_out);
    Ok(left_out)
}

/// Gives a share of the training cases or slices the label of another class, each
/// other class with the same chance; returns how many.
pub(crate) fn add_label_noise(dataset: &mut Dataset, spec: &DataSpec, seed: u64) -> usize {
    if spec.label_noise == 0.0 {
        return 0;
    }
    let n_classes = dataset.labels.len() as u8;
    // A unit is named by its case, and by its slice where slices are the unit.
    let mut units: BTreeMap<(CaseId, i32), Vec<usize>> = BTreeMap::new();
    for i in dataset.of_split(Split::Train) {
        let item = &dataset.items[i];
        let slice = if spec.label_noise_unit == NoiseUnit::Slice { item.slice_index } else { 0 };
        units.entry((item.case_id.clone(), slice)).or_default().push(i);
    }
    let mut units: Vec<Vec<usize>> = units.into_values().collect();
    let mut rng = stream(seed, Domain::LabelNoise, 0, 0);
    units.shuffle(&mut rng);
    units.truncate((units.len() as f64 * spec.label_noise).round() as usize);
    for unit in &units {
        let step = rng.random_range(1..n_classes);
        for &i in unit {
            let label = &mut dataset.items[i].label;
            *label = Label((label.0 + step) % n_classes);
        }
    }
    units.len()
}
