//! How work is divided among ranks.

use std::ops::Range;

/// The share of one rank in everything that the ranks divide among them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RankShare {
    pub rank: usize,
    pub n_ranks: usize,
}

impl RankShare {
    /// All of it, in a single process.
    pub const WHOLE: Self = Self { rank: 0, n_ranks: 1 };

    /// The indices of `0..n` that fall to this rank.
    pub fn range(self, n: usize) -> Range<usize> {
        n * self.rank / self.n_ranks..n * (self.rank + 1) / self.n_ranks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_even_and_leave_nothing_out() {
        for n in 1..10 {
            let shares: Vec<_> = (0..4).map(|rank| RankShare { rank, n_ranks: 4 }.range(n)).collect();
            assert_eq!(shares.iter().cloned().flatten().collect::<Vec<_>>(), (0..n).collect::<Vec<_>>());
            assert!(shares.iter().all(|share| share.len() == n / 4 || share.len() == n / 4 + 1));
        }
    }
}
