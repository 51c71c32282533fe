//! The split by case, and the check that nothing crosses it.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha20Rng;

use crate::DataError;
use crate::case::{CaseId, Label, Split};

/// Shares of training and test, for example 7:3. Invariant: both positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio {
    train: u32,
    test: u32,
}

impl Ratio {
    /// The data card's 7 to 3.
    pub const SEVEN_TO_THREE: Self = Self { train: 7, test: 3 };

    /// Checks the parts.
    ///
    /// # Errors
    /// When a part is zero.
    pub fn new(train: u32, test: u32) -> Result<Self, DataError> {
        if train == 0 || test == 0 {
            return Err(DataError::invalid("split ratio", "both parts must be positive"));
        }
        Ok(Self { train, test })
    }
}

impl std::str::FromStr for Ratio {
    type Err = DataError;

    /// Reads `7:3`.
    fn from_str(text: &str) -> Result<Self, DataError> {
        match text.split_once(':').map(|(a, b)| (a.parse(), b.parse())) {
            Some((Ok(train), Ok(test))) => Self::new(train, test),
            _ => Err(DataError::invalid("split ratio", format!("`{text}` is not like 7:3"))),
        }
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.train, self.test)
    }
}

/// A case to be placed, with what must not be torn apart.
#[derive(Clone, Debug)]
pub struct SplitCase {
    /// The case.
    pub case_id: CaseId,
    /// Its class.
    pub label: Label,
    /// Cases of one group (one patient) stay together; `None` is a group of its own.
    pub group: Option<String>,
}

/// Divides cases at random, class by class, so that each class has the ratio as
/// nearly as whole groups allow, and at least one case in either part where it
/// has two groups. The result depends on the set of cases and the seed, not on
/// their order.
pub fn stratified(cases: &[SplitCase], ratio: Ratio, seed: u64) -> BTreeMap<CaseId, Split> {
    let mut placed = BTreeMap::new();
    for (stream, groups) in grouped(cases).into_values().enumerate() {
        let groups = shuffled(groups, seed, stream);
        let n_cases: usize = groups.iter().map(Vec::len).sum();
        let share = f64::from(ratio.test) / f64::from(ratio.train + ratio.test);
        let mut wanted = (n_cases as f64 * share).round() as usize;
        if groups.len() > 1 {
            wanted = wanted.clamp(1, n_cases - 1);
        }
        let (mut n_test, last) = (0, groups.len() - 1);
        for (i, group) in groups.into_iter().enumerate() {
            // Where every group is larger than the share, the last one is still tested on.
            let only_chance = n_test == 0 && i == last;
            let split = if last > 0 && (n_test + group.len() <= wanted || only_chance) {
                n_test += group.len();
                Split::Test
            } else {
                Split::Train
            };
            placed.extend(group.into_iter().map(|case| (case, split)));
        }
    }
    placed
}

/// Divides cases into `n_folds` parts, class by class; returns the fold of each case.
pub fn k_folds(cases: &[SplitCase], n_folds: usize, seed: u64) -> BTreeMap<CaseId, usize> {
    let mut placed = BTreeMap::new();
    let mut fill = vec![0usize; n_folds.max(1)];
    for (stream, groups) in grouped(cases).into_values().enumerate() {
        for group in shuffled(groups, seed, stream) {
            let fold = (0..fill.len()).min_by_key(|&fold| fill[fold]).unwrap_or(0);
            fill[fold] += group.len();
            placed.extend(group.into_iter().map(|case| (case, fold)));
        }
    }
    placed
}

/// Values (a patient, a pixel hash) that occur in more than one split, each with
/// the cases that share it.
pub fn leaks<'a>(
    rows: impl IntoIterator<Item = (&'a str, &'a CaseId, Split)>,
) -> BTreeMap<String, Vec<CaseId>> {
    let mut seen: BTreeMap<&str, BTreeMap<Split, Vec<&CaseId>>> = BTreeMap::new();
    for (value, case, split) in rows {
        seen.entry(value).or_default().entry(split).or_default().push(case);
    }
    seen.into_iter()
        .filter(|(_, splits)| splits.len() > 1)
        .map(|(value, splits)| {
            let mut cases: Vec<CaseId> = splits.into_values().flatten().cloned().collect();
            cases.sort();
            cases.dedup();
            (value.to_string(), cases)
        })
        .collect()
}

type Groups = BTreeMap<String, Vec<CaseId>>;

/// Groups by the class of their first case, in an order of their own.
fn grouped(cases: &[SplitCase]) -> BTreeMap<Label, Groups> {
    let mut sorted: Vec<&SplitCase> = cases.iter().collect();
    sorted.sort_by(|a, b| a.case_id.cmp(&b.case_id));
    let mut class_of: BTreeMap<String, Label> = BTreeMap::new();
    let mut by_class: BTreeMap<Label, Groups> = BTreeMap::new();
    for case in sorted {
        // A lone case gets a key that no patient can have.
        let key = match &case.group {
            Some(group) => format!("group {group}"),
            None => format!("case {}", case.case_id),
        };
        let label = *class_of.entry(key.clone()).or_insert(case.label);
        by_class.entry(label).or_default().entry(key).or_default().push(case.case_id.clone());
    }
    by_class
}

fn shuffled(groups: Groups, seed: u64, stream: usize) -> Vec<Vec<CaseId>> {
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    rng.set_stream(stream as u64);
    let mut groups: Vec<Vec<CaseId>> = groups.into_values().collect();
    groups.shuffle(&mut rng);
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cohort(counts: &[usize]) -> Vec<SplitCase> {
        let case = |label: usize, i: usize| SplitCase {
            case_id: CaseId::new(format!("c{label}-{i:03}")).unwrap(),
            label: Label(label as u8),
            group: None,
        };
        counts.iter().enumerate().flat_map(|(l, &n)| (0..n).map(move |i| case(l, i))).collect()
    }

    fn n_test(placed: &BTreeMap<CaseId, Split>, prefix: &str) -> usize {
        placed.iter().filter(|(c, s)| c.as_str().starts_with(prefix) && **s == Split::Test).count()
    }

    #[track_caller]
    fn check(counts: &[usize], want_test: &[usize]) {
        let placed = stratified(&cohort(counts), Ratio::SEVEN_TO_THREE, 1);
        assert_eq!(placed.len(), counts.iter().sum::<usize>());
        for (label, want) in want_test.iter().enumerate() {
            assert_eq!(n_test(&placed, &format!("c{label}-")), *want, "class {label} of {counts:?}");
        }
    }

    #[test]
    fn every_class_keeps_the_ratio() {
        check(&[10, 20, 100], &[3, 6, 30]);
    }

    #[test]
    fn the_card_s_volumes_come_near_its_table() {
        check(&[69, 95, 62], &[21, 29, 19]);
    }

    #[test]
    fn two_cases_fall_on_either_side() {
        check(&[2, 2], &[1, 1]);
    }

    #[test]
    fn a_single_case_is_trained_on() {
        check(&[1, 10], &[0, 3]);
    }

    #[test]
    fn the_order_of_cases_does_not_matter_but_the_seed_does() {
        let mut cases = cohort(&[20, 20]);
        let first = stratified(&cases, Ratio::SEVEN_TO_THREE, 7);
        cases.reverse();
        assert_eq!(first, stratified(&cases, Ratio::SEVEN_TO_THREE, 7));
        assert_ne!(first, stratified(&cases, Ratio::SEVEN_TO_THREE, 8));
    }

    #[test]
    fn a_patient_is_never_torn_apart() {
        let mut cases = cohort(&[30, 30]);
        for (i, case) in cases.iter_mut().enumerate() {
            case.group = Some(format!("p{}", i / 3));
        }
        let group_of: BTreeMap<_, _> = cases.iter().map(|c| (c.case_id.clone(), c.group.clone())).collect();
        for seed in 0..20 {
            let placed = stratified(&cases, Ratio::SEVEN_TO_THREE, seed);
            let rows = placed.iter().map(|(c, s)| (group_of[c].as_deref().unwrap(), c, *s));
            assert_eq!(leaks(rows), BTreeMap::new());
        }
    }

    #[test]
    fn a_shared_value_is_found_with_its_cases() {
        let ids: Vec<CaseId> = ["a", "b", "c"].map(|s| CaseId::new(s).unwrap()).to_vec();
        let found =
            leaks([("x", &ids[0], Split::Train), ("x", &ids[1], Split::Test), ("y", &ids[2], Split::Test)]);
        assert_eq!(found, BTreeMap::from([("x".to_string(), ids[..2].to_vec())]));
    }

    #[test]
    fn folds_are_even_and_complete() {
        let folds = k_folds(&cohort(&[10, 5]), 5, 3);
        for fold in 0..5 {
            assert_eq!(folds.values().filter(|f| **f == fold).count(), 3);
        }
    }
}
