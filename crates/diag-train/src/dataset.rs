//! The slices of a shard folder in memory, one byte a pixel.

use std::collections::{BTreeMap, BTreeSet};

use diag_data::case::{CaseId, Label, LabelSet, Split};
use diag_data::shard::ShardSet;
use diag_data::split::{Ratio, SplitCase, k_folds, stratified};
use rand::seq::SliceRandom;

use crate::TrainError;
use crate::random::{Domain, stream};
use crate::recipe::FoldSpec;

/// One slice.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub case_id: CaseId,
    pub slice_index: i32,
    /// Label that is trained on: experiments may change it.
    pub label: Label,
    /// Label that the shards give.
    pub stored_label: Label,
    pub split: Split,
    pixels: std::ops::Range<usize>,
}

/// All slices of some splits, in stored order.
#[derive(Clone, Debug)]
pub(crate) struct Dataset {
    pub labels: LabelSet,
    pub height: usize,
    pub width: usize,
    pub items: Vec<Item>,
    pixels: Vec<u8>,
}

impl Dataset {
    /// Reads the slices of `splits`.
    pub fn read(shards: &ShardSet, splits: &[Split]) -> Result<Self, TrainError> {
        let spec = &shards.manifest().spec;
        let (height, width) = (spec.height as usize, spec.width as usize);
        let (mut items, mut pixels) = (Vec::new(), Vec::new());
        for &split in splits {
            for slice in shards.slices(split) {
                let slice = slice?;
                let start = pixels.len();
                pixels.extend_from_slice(&slice.pixels);
                items.push(Item {
                    case_id: slice.case_id,
                    slice_index: slice.slice_index,
                    label: slice.label,
                    stored_label: slice.label,
                    split,
                    pixels: start..pixels.len(),
                });
            }
        }
        Ok(Self { labels: spec.labels.clone(), height, width, items, pixels })
    }

    /// Grey levels of one slice, `height * width`.
    pub fn pixels(&self, item: usize) -> &[u8] {
        &self.pixels[self.items[item].pixels.clone()]
    }

    /// Numbers of the slices of a split, in stored order.
    pub fn of_split(&self, split: Split) -> Vec<usize> {
        (0..self.items.len()).filter(|&i| self.items[i].split == split).collect()
    }

    /// Slices of each class in a split.
    pub fn slices_per_class(&self, split: Split) -> Vec<u64> {
        let mut counts = vec![0; self.labels.len()];
        for item in self.items.iter().filter(|item| item.split == split) {
            counts[item.label.index()] += 1;
        }
        counts
    }

    /// Cases by split name and class name.
    pub fn cases(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        let distinct: BTreeSet<_> = self.items.iter().map(|i| (i.split, i.label, &i.case_id)).collect();
        let mut counts: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        for (split, label, _) in distinct {
            let name = self.labels.name(label).unwrap_or_default().to_owned();
            *counts.entry(split.to_string()).or_default().entry(name).or_default() += 1;
        }
        counts
    }

    /// Moves the cases named to the validation part.
    pub fn set_aside(&mut self, validation_cases: &BTreeSet<CaseId>) {
        for item in &mut self.items {
            if item.split == Split::Train && validation_cases.contains(&item.case_id) {
                item.split = Split::Validation;
            }
        }
    }

    /// Drops training slices of the cases named.
    pub fn leave_out(&mut self, cases: &[CaseId]) {
        self.items.retain(|item| item.split != Split::Train || cases.binary_search(&item.case_id).is_err());
    }

    /// Makes all validation slices training slices.
    pub fn join_validation(&mut self) {
        for item in self.items.iter_mut().filter(|item| item.split == Split::Validation) {
            item.split = Split::Train;
        }
    }

    /// The cases of one fold of the training and validation cases, which all
    /// become training cases first; cases of one patient stay together.
    pub fn draw_fold(
        &mut self,
        shards: &ShardSet,
        fold: FoldSpec,
        seed: u64,
    ) -> Result<BTreeSet<CaseId>, TrainError> {
        self.join_validation();
        let placed = k_folds(&self.split_cases(shards)?, fold.of, seed);
        Ok(placed.into_iter().filter(|(_, index)| *index == fold.index).map(|(case, _)| case).collect())
    }

    /// Draws the validation cases from the training cases, class by class; cases
    /// of one patient stay together.
    pub fn draw_validation(
        &self,
        shards: &ShardSet,
        share: f64,
        seed: u64,
    ) -> Result<BTreeSet<CaseId>, TrainError> {
        let per_mille = (share * 1000.0).round() as u32;
        if per_mille == 0 {
            return Ok(BTreeSet::new());
        }
        let cases = self.split_cases(shards)?;
        let placed = stratified(&cases, Ratio::new(1000 - per_mille, per_mille)?, seed);
        Ok(placed.into_iter().filter(|(_, split)| *split == Split::Test).map(|(case, _)| case).collect())
    }

    /// The training cases with the patients that they are of.
    fn split_cases(&self, shards: &ShardSet) -> Result<Vec<SplitCase>, TrainError> {
        let patients: BTreeMap<CaseId, Option<String>> =
            shards.cases()?.into_iter().map(|row| (row.case_id, row.patient_hash)).collect();
        let case = |(case_id, label): (CaseId, Label)| SplitCase {
            group: patients.get(&case_id).cloned().flatten(),
            case_id,
            label,
        };
        Ok(self.cases_where(|split| split == Split::Train).into_iter().map(case).collect())
    }

    /// Gives the training and validation cases each other's labels: as many cases of each label
    /// as before, and within each true class the labels in the same proportions,
    /// so that the label given says nothing about the true one.
    pub fn shuffle_labels(&mut self, seed: u64) {
        let mut rng = stream(seed, Domain::LabelShuffle, 0, 0);
        let mut by_class: BTreeMap<Label, Vec<CaseId>> = BTreeMap::new();
        for (case_id, label) in self.cases_where(|split| split != Split::Test) {
            by_class.entry(label).or_default().push(case_id);
        }
        // Each label at even distances over the cases in order of their true class.
        let mut given: Vec<(f64, Label)> = Vec::new();
        for (&label, cases) in &by_class {
            let step = 1.0 / cases.len() as f64;
            given.extend((0..cases.len()).map(|i| ((i as f64 + 0.5) * step, label)));
        }
        given.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
        let mut new_label = BTreeMap::new();
        let mut given = given.into_iter().map(|(_, label)| label);
        for mut cases in by_class.into_values() {
            cases.shuffle(&mut rng);
            new_label.extend(cases.into_iter().zip(given.by_ref()));
        }
        for item in self.items.iter_mut().filter(|item| item.split != Split::Test) {
            if let Some(&label) = new_label.get(&item.case_id) {
                item.label = label;
            }
        }
    }

    /// The cases of some parts, with their labels.
    pub fn cases_where(&self, keep: impl Fn(Split) -> bool) -> BTreeMap<CaseId, Label> {
        let kept = self.items.iter().filter(|item| keep(item.split));
        kept.map(|item| (item.case_id.clone(), item.label)).collect()
    }
}
