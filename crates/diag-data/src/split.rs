//! The split by case, and the check that nothing crosses it.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha20Rng;

use crate::DataError;
use crate::case::{CaseId, Label, Split};

/// Shares of training, validation and test: 7:3 without validation, 7:2:1 with it, 0:1 for a cohort
/// that is only tested on. Invariant: a positive test share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio {
    train: u32,
    validation: u32,
    test: u32,
}

impl Ratio {
    /// The data card's 7 to 3.
    pub const SEVEN_TO_THREE: Self = Self { train: 7, validation: 0, test: 3 };

    /// Checks the shares of training and test.
    ///
    /// # Errors
    /// When the test share is zero, or the shares add up beyond what they are counted in.
    pub fn new(train: u32, test: u32) -> Result<Self, DataError> {
        Self::with_validation(train, 0, test)
    }

    /// Checks three shares.
    ///
    /// # Errors
    /// As [`new`](Self::new), and where there is a validation share without a training share.
    pub fn with_validation(train: u32, validation: u32, test: u32) -> Result<Self, DataError> {
        let wrong = |why: &str| Err(DataError::invalid("split ratio", why));
        if test == 0 {
            return wrong("the test part must be positive");
        }
        if train == 0 && validation > 0 {
            return wrong("a validation part needs a training part");
        }
        if train.checked_add(validation).and_then(|sum| sum.checked_add(test)).is_none() {
            return wrong("its numbers are too large");
        }
        Ok(Self { train, validation, test })
    }

    /// How many of `n_cases` in `n_groups` groups are for validation and for test: at least one group
    /// each where there are enough for all parts.
    fn wanted(self, n_cases: usize, n_groups: usize) -> (usize, usize) {
        let total = f64::from(self.train + self.validation + self.test);
        let share = |part: u32| (n_cases as f64 * f64::from(part) / total).round() as usize;
        if self.train == 0 {
            return (0, n_cases);
        }
        let mut test = share(self.test);
        if n_groups > 1 {
            test = test.clamp(1, n_cases - 1);
        }
        let mut validation = share(self.validation);
        if self.validation > 0 && n_groups > 2 {
            test = test.min(n_cases - 2);
            validation = validation.clamp(1, n_cases - test - 1);
        } else if n_groups < 3 {
            validation = 0;
        }
        (validation, test)
    }
}

impl std::str::FromStr for Ratio {
    type Err = DataError;

    /// Reads `7:3`, `7:2:1` or `0:1`.
    fn from_str(text: &str) -> Result<Self, DataError> {
        let shares: Result<Vec<u32>, _> = text.split(':').map(str::parse).collect();
        match shares.as_deref() {
            Ok(&[train, test]) => Self::new(train, test),
            Ok(&[train, validation, test]) => Self::with_validation(train, validation, test),
            _ => Err(DataError::invalid("split ratio", format!("`{text}` is not like 7:3 or 7:2:1"))),
        }
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.validation {
            0 => write!(f, "{}:{}", self.train, self.test),
            validation => write!(f, "{}:{validation}:{}", self.train, self.test),
        }
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
/// nearly as whole groups allow, and at least one case in every part where it
/// has as many groups. The result depends on the set of cases and the seed, not on
/// their order.
pub fn stratified(cases: &[SplitCase], ratio: Ratio, seed: u64) -> BTreeMap<CaseId, Split> {
    let mut placed = BTreeMap::new();
    for (stream, groups) in grouped(cases).into_values().enumerate() {
        let groups = shuffled(groups, seed, stream);
        let n_cases: usize = groups.iter().map(Vec::len).sum();
        let (validation, test) = ratio.wanted(n_cases, groups.len());
        if ratio.train == 0 {
            placed.extend(groups.into_iter().flatten().map(|case| (case, Split::Test)));
            continue;
        }
        let (mut n_test, mut n_validation, last) = (0, 0, groups.len() - 1);
        for (i, group) in groups.into_iter().enumerate() {
            // Where every group is larger than the share, the last one is still tested on.
            let only_chance = n_test == 0 && i == last;
            let split = if last > 0 && (n_test + group.len() <= test || only_chance) {
                n_test += group.len();
                Split::Test
            } else if n_validation + group.len() <= validation {
                n_validation += group.len();
                Split::Validation
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

    #[track_caller]
    fn check_three(ratio: &str, n_cases: usize, want: [usize; 3]) {
        let placed = stratified(&cohort(&[n_cases]), ratio.parse().unwrap(), 1);
        let counts = Split::ALL.map(|part| placed.values().filter(|split| **split == part).count());
        assert_eq!(counts, want, "{ratio} of {n_cases}");
    }

    #[test]
    fn a_validation_part_and_no_training_part_can_be_asked_for() {
        check_three("7:2:1", 100, [70, 20, 10]);
        check_three("7:2:1", 3, [1, 1, 1]);
        check_three("7:2:1", 2, [1, 0, 1]);
        check_three("7:2:1", 1, [1, 0, 0]);
        check_three("7:0:3", 10, [7, 0, 3]);
        check_three("1:1:8", 3, [1, 1, 1]);
        check_three("0:1", 5, [0, 0, 5]);
        check_three("0:1", 1, [0, 0, 1]);
        for wrong in ["1:0", "0:1:1", "0:0", "7", "7:2:1:1", "7:-3", "4000000000:4000000000", "a:b", ""] {
            assert!(wrong.parse::<Ratio>().is_err(), "{wrong}");
        }
        for text in ["7:3", "7:2:1", "0:1"] {
            assert_eq!(text.parse::<Ratio>().unwrap().to_string(), text);
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
