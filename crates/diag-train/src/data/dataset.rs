//! The slices of a shard folder: what names all of them, and the pixels of those that
//! this rank holds, one byte a pixel.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use diag_data::case::{CaseId, Label, LabelSet, Split};
use diag_data::shard::ShardSet;
use diag_data::split::{Ratio, SplitCase, k_folds, stratified};
use rand::Rng;
use rand::seq::SliceRandom;

use crate::error::TrainError;
use crate::random::{Domain, stream};
use crate::recipe::FoldSpec;
use crate::sync::share::RankShare;

/// Slices of one forward pass of inference, enough to keep two threads busy. A rank holds
/// whole passes, so that a slice is in the same pass on any number of ranks.
pub(crate) const INFERENCE_BATCH: usize = 16;

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
    /// Where the shards store it: split and row.
    stored: (Split, usize),
    /// The rank that holds its pixels.
    pub owner: usize,
    /// Empty where another rank holds them.
    pixels: Vec<u8>,
}

/// All slices of some splits, in stored order.
#[derive(Clone, Debug)]
pub(crate) struct Dataset {
    pub labels: LabelSet,
    pub height: usize,
    pub width: usize,
    pub items: Vec<Item>,
}

impl Dataset {
    /// Lists the slices of `splits`, without their pixels.
    pub fn list(shards: &ShardSet, splits: &[Split]) -> Result<Self, TrainError> {
        let spec = &shards.manifest().spec;
        let mut items = Vec::new();
        for &split in splits {
            let keys = shards.keys(split)?.into_iter().enumerate();
            items.extend(keys.map(|(row, key)| Item {
                case_id: key.case_id,
                slice_index: key.slice_index,
                label: key.label,
                stored_label: key.label,
                split,
                stored: (split, row),
                owner: 0,
                pixels: Vec::new(),
            }));
        }
        let (height, width) = (spec.reader.size as usize, spec.reader.size as usize);
        Ok(Self { labels: spec.labels.clone(), height, width, items })
    }

    /// Divides the slices of each split among the ranks, and reads the pixels of those that
    /// fall to this one.
    pub fn load(&mut self, shards: &ShardSet, share: RankShare) -> Result<(), TrainError> {
        let mut own: BTreeMap<(Split, usize), usize> = BTreeMap::new();
        for split in Split::ALL {
            let items = self.of_split(split);
            for rank in 0..share.n_ranks {
                for &item in &items[owned(RankShare { rank, ..share }, items.len())] {
                    self.items[item].owner = rank;
                    if rank == share.rank {
                        own.insert(self.items[item].stored, item);
                    }
                }
            }
        }
        for split in Split::ALL {
            let wanted = |row| own.contains_key(&(split, row));
            shards.pixels(split, &wanted, &mut |row, pixels| {
                if let Some(&item) = own.get(&(split, row)) {
                    self.items[item].pixels = pixels;
                }
            })?;
        }
        Ok(())
    }

    /// Grey levels of one slice, `height * width`; none where another rank holds it.
    pub fn pixels(&self, item: usize) -> &[u8] {
        &self.items[item].pixels
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

    /// Moves training cases to the validation split.
    pub fn move_to_validation(&mut self, validation_cases: &BTreeSet<CaseId>) {
        for item in &mut self.items {
            if item.split == Split::Train && validation_cases.contains(&item.case_id) {
                item.split = Split::Validation;
            }
        }
    }

    /// Drops the training slices of some cases, which are sorted.
    pub fn exclude_from_training(&mut self, cases: &[CaseId]) {
        self.items.retain(|item| item.split != Split::Train || cases.binary_search(&item.case_id).is_err());
    }

    /// Moves all validation slices to the training split.
    pub fn merge_validation_into_training(&mut self) {
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
        self.merge_validation_into_training();
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

    /// Permutes the labels of the training and validation cases: as many cases of each label
    /// as before, and within each true class the labels in the same proportions, so that the
    /// permuted label is independent of the true one.
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
        // A class whose cases do not divide evenly gets some labels once more than others: from a
        // fixed start its own label would always be among them.
        let start = stream(seed, Domain::LabelShuffle, 1, 0).random_range(0..given.len().max(1));
        given.rotate_left(start);
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

    /// The cases of some splits, with their labels.
    pub fn cases_where(&self, keep: impl Fn(Split) -> bool) -> BTreeMap<CaseId, Label> {
        let kept = self.items.iter().filter(|item| keep(item.split));
        kept.map(|item| (item.case_id.clone(), item.label)).collect()
    }

    /// The cases that training or the choice of an epoch looks at, each with its first split.
    pub fn seen_cases(&self) -> BTreeMap<CaseId, Split> {
        let seen = self.items.iter().filter(|item| item.split != Split::Test);
        let mut cases = BTreeMap::new();
        for item in seen {
            let split = cases.entry(item.case_id.clone()).or_insert(item.split);
            *split = item.split.min(*split);
        }
        cases
    }
}

/// Which of the `n` slices of a split a rank holds.
pub(crate) fn owned(share: RankShare, n: usize) -> Range<usize> {
    let passes = share.range(n.div_ceil(INFERENCE_BATCH));
    (passes.start * INFERENCE_BATCH).min(n)..(passes.end * INFERENCE_BATCH).min(n)
}

#[cfg(test)]
pub(crate) mod tests {
    use diag_data::manifest::{KeyInfo, KeyKind, Layout, ShardSpec};
    use diag_data::reader::ReaderSettings;
    use diag_data::shard::{Job, Outcome, ShardWriter};
    use diag_data::slice::{Acquisition, CtSlice, Geometry, Provenance, Selection};

    use super::*;

    /// Shards of so many slices of 8 x 8 pixels in cases of 10, every fifth case for
    /// validation; every grey level of slice `i` is `i`.
    pub(crate) fn shards(folder: &std::path::Path, n_slices: u8) -> ShardSet {
        let spec = ShardSpec {
            labels: LabelSet::paper(),
            reader: ReaderSettings { size: 8, ..ReaderSettings::IMAGES },
            layout: Layout::Raw,
            with_hu: false,
            split_seed: None,
        };
        let key = KeyInfo { kind: KeyKind::Public, id: "0123abcd".into() };
        let job = Job { spec, key, tool: "test".into(), config: serde_json::Value::Null };
        let target = folder.join("shards");
        let mut writer = ShardWriter::create(&target, job).unwrap();
        for i in 0..n_slices {
            let slice = CtSlice {
                case_id: CaseId::new(format!("case-{:02}", i / 10)).unwrap(),
                slice_index: (i % 10).into(),
                label: Label(i / 10 % 3),
                split: if i / 10 % 5 == 4 { Split::Validation } else { Split::Train },
                pixels: vec![i; 64],
                hu: None,
                geometry: Geometry::default(),
                acquisition: Acquisition::default(),
                selection: Selection::default(),
                provenance: Provenance::default(),
            };
            writer.append(vec![slice]).unwrap();
        }
        writer.finish(Outcome::default(), |_| BTreeMap::new()).unwrap();
        ShardSet::open(&target).unwrap()
    }

    #[test]
    fn every_rank_holds_an_even_part_and_together_they_hold_all() {
        let folder = tempfile::tempdir().unwrap();
        let shards = shards(folder.path(), 250);
        for n_ranks in 1..=4 {
            let mut n_owners = vec![0; 250];
            for rank in 0..n_ranks {
                let mut dataset = Dataset::list(&shards, &[Split::Train, Split::Validation]).unwrap();
                // Places among the items are no longer those of the shards.
                dataset.exclude_from_training(&[CaseId::new("case-01").unwrap()]);
                dataset.load(&shards, RankShare { rank, n_ranks }).unwrap();
                let mut n_held = 0;
                for (i, item) in dataset.items.iter().enumerate() {
                    let number = item.case_id.as_str()[5..].parse::<u8>().unwrap() * 10;
                    let grey = number + item.slice_index as u8;
                    let held = if item.owner == rank { vec![grey; 64] } else { Vec::new() };
                    assert_eq!(dataset.pixels(i), held, "{rank} of {n_ranks}, slice {grey}");
                    n_owners[usize::from(grey)] += usize::from(item.owner == rank);
                    n_held += usize::from(item.owner == rank);
                }
                assert!(
                    n_held.abs_diff(240 / n_ranks) <= 2 * INFERENCE_BATCH,
                    "{n_held} in {rank} of {n_ranks}"
                );
            }
            let left_out = |i: usize| i / 10 == 1;
            assert!((0..250).all(|i| n_owners[i] == usize::from(!left_out(i))), "{n_owners:?}");
        }
    }

    /// 25 cases of three classes do not divide evenly: some labels are given once more.
    #[test]
    fn shuffled_labels_do_not_favour_the_true_one() {
        let folder = tempfile::tempdir().unwrap();
        let shards = shards(folder.path(), 250);
        let n_kept = |seed: u64| {
            let mut dataset = Dataset::list(&shards, &[Split::Train, Split::Validation]).unwrap();
            dataset.shuffle_labels(seed);
            dataset.items.iter().filter(|item| item.label == item.stored_label).count() / 10
        };
        let kept: Vec<usize> = (0..60).map(n_kept).collect();
        let mean = kept.iter().sum::<usize>() as f64 / 60.0;
        assert!((mean - 25.0 / 3.0).abs() < 0.3, "{mean} of 25 cases keep their label: {kept:?}");
    }
}
