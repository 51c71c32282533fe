//! The slices of an epoch in their order.

use std::collections::BTreeMap;

use rand::seq::SliceRandom;

use super::dataset::Dataset;
use crate::random::{Domain, stream};
use crate::recipe::Sampling;

/// As many slices as `items`, in the order of one epoch.
pub(crate) fn order(
    dataset: &Dataset,
    items: &[usize],
    sampling: Sampling,
    seed: u64,
    epoch: u32,
) -> Vec<usize> {
    let mut rng = stream(seed, Domain::Shuffle, epoch, 0);
    let mut order = match sampling {
        Sampling::Uniform => items.to_vec(),
        Sampling::ClassBalanced => balanced(items, seed, epoch, |i| dataset.items[i].label.0.to_string()),
        Sampling::CaseBalanced => balanced(items, seed, epoch, |i| dataset.items[i].case_id.to_string()),
    };
    order.shuffle(&mut rng);
    order
}

/// The same number of items from every group, plus one for some where it does not
/// divide; a group is gone through in random order, again and again.
fn balanced(items: &[usize], seed: u64, epoch: u32, group: impl Fn(usize) -> String) -> Vec<usize> {
    let mut groups: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for &item in items {
        groups.entry(group(item)).or_default().push(item);
    }
    let n_groups = groups.len().max(1);
    let mut drawn = Vec::with_capacity(items.len());
    for (g, mut members) in groups.into_values().enumerate() {
        // Another group gets the odd item in every epoch.
        let odd = (g + epoch as usize) % n_groups < items.len() % n_groups;
        let mut wanted = items.len() / n_groups + usize::from(odd);
        let mut rng = stream(seed, Domain::Balance, epoch, g as u32);
        while wanted > 0 {
            members.shuffle(&mut rng);
            let n = wanted.min(members.len());
            drawn.extend_from_slice(&members[..n]);
            wanted -= n;
        }
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_gives_the_same_and_its_members_take_turns() {
        // Group 0: one item, group 1: two, group 2: seven.
        let items: Vec<usize> = (0..10).collect();
        let group = |i: usize| [0, 1, 1, 2, 2, 2, 2, 2, 2, 2][i].to_string();
        for epoch in 1..=3 {
            let drawn = balanced(&items, 5, epoch, group);
            assert_eq!(drawn.len(), 10);
            let times = |i: usize| drawn.iter().filter(|&&d| d == i).count();
            assert!((3..=4).contains(&times(0)), "{drawn:?}");
            assert!(times(1).abs_diff(times(2)) <= 1, "{drawn:?}");
            assert!((3..10).all(|i| times(i) <= 1), "{drawn:?}");
        }
        assert_ne!(balanced(&items, 5, 1, group), balanced(&items, 5, 2, group));
    }
}
