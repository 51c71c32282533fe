//! A linear probe: ridge regression on class indicators, cross-validated. In its
//! dual form the matrix to be factored does not depend on the labels, so that many
//! labellings cost little more than one.

use std::collections::BTreeSet;

use rand::seq::SliceRandom;

use crate::random::{Domain, stream};

/// Added to the diagonal, per feature: features have variance 1.
const RIDGE_PER_FEATURE: f64 = 0.1;

/// Cases with their features, ready for any labelling.
pub(super) struct Probe {
    folds: Vec<Fold>,
    n_cases: usize,
}

struct Fold {
    training: Vec<usize>,
    held_out: Vec<usize>,
    /// Lower triangle of the Cholesky factor of the training kernel, row by row.
    factor: Vec<Vec<f64>>,
    /// Kernel between held-out and training cases.
    kernel: Vec<Vec<f64>>,
}

impl Probe {
    /// `features`: one row a case, standardised.
    pub fn new(features: &[Vec<f64>], n_folds: usize) -> Self {
        let n_cases = features.len();
        let ridge = RIDGE_PER_FEATURE * features.first().map_or(1, Vec::len) as f64;
        // The 1 takes the place of an intercept.
        let kernel =
            |a: usize, b: usize| 1.0 + features[a].iter().zip(&features[b]).map(|(x, y)| x * y).sum::<f64>();
        let fold = |fold: usize| {
            let (held_out, training): (Vec<usize>, Vec<usize>) =
                (0..n_cases).partition(|case| case % n_folds == fold);
            let n = training.len();
            let mut factor: Vec<Vec<f64>> = Vec::with_capacity(n);
            for i in 0..n {
                let mut row: Vec<f64> = Vec::with_capacity(i + 1);
                for j in 0..=i {
                    let before = if j == i { &row } else { &factor[j] };
                    let known: f64 = row.iter().zip(before).take(j).map(|(x, y)| x * y).sum();
                    let value = kernel(training[i], training[j]) - known;
                    let value = if j == i { (value + ridge).sqrt() } else { value / factor[j][j] };
                    row.push(value);
                }
                factor.push(row);
            }
            let row = |&case: &usize| training.iter().map(|&other| kernel(case, other)).collect();
            let kernel = held_out.iter().map(row).collect();
            Fold { training, held_out, factor, kernel }
        };
        Self { folds: (0..n_folds).map(fold).collect(), n_cases }
    }

    /// Mean sensitivity of the held-out cases over the values.
    pub fn balanced_accuracy(&self, value_n: &[usize], n_values: usize) -> f64 {
        let mut guesses = vec![(f64::NEG_INFINITY, 0); self.n_cases];
        for fold in &self.folds {
            for value in 0..n_values {
                // Indicators around their mean, so that frequent values have no head start.
                let is = |case: &usize| f64::from(u8::from(value_n[*case] == value));
                let share = fold.training.iter().map(is).sum::<f64>() / fold.training.len() as f64;
                let spread = (share * (1.0 - share)).sqrt().max(1e-9);
                let target = fold.training.iter().map(|case| (is(case) - share) / spread).collect();
                let dual = fold.solve(target);
                for (case, kernel) in fold.held_out.iter().zip(&fold.kernel) {
                    let score: f64 = kernel.iter().zip(&dual).map(|(k, a)| k * a).sum();
                    if score > guesses[*case].0 {
                        guesses[*case] = (score, value);
                    }
                }
            }
        }
        let mut sensitivities = Vec::new();
        for value in 0..n_values {
            let of_value: Vec<usize> = (0..self.n_cases).filter(|&case| value_n[case] == value).collect();
            if !of_value.is_empty() {
                let right = of_value.iter().filter(|&&case| guesses[case].1 == value).count();
                sensitivities.push(right as f64 / of_value.len() as f64);
            }
        }
        sensitivities.iter().sum::<f64>() / sensitivities.len().max(1) as f64
    }
}

impl Fold {
    /// Solves for the dual weights by forward and backward substitution.
    fn solve(&self, mut x: Vec<f64>) -> Vec<f64> {
        let n = x.len();
        for i in 0..n {
            let known: f64 = self.factor[i].iter().zip(&x).take(i).map(|(l, x)| l * x).sum();
            x[i] = (x[i] - known) / self.factor[i][i];
        }
        for i in (0..n).rev() {
            let known: f64 = (i + 1..n).map(|j| self.factor[j][i] * x[j]).sum();
            x[i] = (x[i] - known) / self.factor[i][i];
        }
        x
    }
}

/// Features with mean 0 and variance 1 over the cases; those that never vary become 0.
pub(super) fn standardised(mut features: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let n = features.len() as f64;
    for c in 0..features.first().map_or(0, Vec::len) {
        let mean = features.iter().map(|row| row[c]).sum::<f64>() / n;
        let var = features.iter().map(|row| (row[c] - mean).powi(2)).sum::<f64>() / n;
        let scale = if var > 1e-20 { 1.0 / var.sqrt() } else { 0.0 };
        for row in &mut features {
            row[c] = (row[c] - mean) * scale;
        }
    }
    features
}

/// Orders of the values that keep how many of each a group has.
pub(super) fn shuffles_within(
    value_n: &[usize],
    group_n: &[usize],
    groups: &BTreeSet<usize>,
    n_orders: usize,
) -> Vec<Vec<usize>> {
    let order = |index: usize| {
        let mut rng = stream(0, Domain::Probe, index as u32, 0);
        let mut shuffled = value_n.to_vec();
        for group in groups {
            let members: Vec<usize> = (0..group_n.len()).filter(|&i| group_n[i] == *group).collect();
            let mut values: Vec<usize> = members.iter().map(|&i| value_n[i]).collect();
            values.shuffle(&mut rng);
            for (i, value) in members.into_iter().zip(values) {
                shuffled[i] = value;
            }
        }
        shuffled
    };
    (0..n_orders).map(order).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// Balanced accuracy where the second of eight features is `strength` times the value.
    fn accuracy(strength: f64, seed: u64) -> f64 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let values: Vec<usize> = (0..90).map(|_| usize::from(rng.random::<f64>() < 0.3)).collect();
        let row = |value: &usize| -> Vec<f64> {
            let mut row: Vec<f64> = (0..8).map(|_| rng.random_range(-1.0..1.0)).collect();
            row[1] += strength * *value as f64;
            row
        };
        let features = standardised(values.iter().map(row).collect());
        Probe::new(&features, 5).balanced_accuracy(&values, 2)
    }

    #[test]
    fn what_is_there_is_found_and_what_is_not_is_not() {
        assert!(accuracy(3.0, 1) > 0.95);
        let chance: f64 = (0..10).map(|seed| accuracy(0.0, seed)).sum::<f64>() / 10.0;
        assert!((chance - 0.5).abs() < 0.06, "{chance}");
    }

    #[test]
    fn shuffles_keep_the_counts_of_every_group() {
        let (values, groups) = (vec![0, 1, 1, 0, 2, 2], vec![0, 0, 0, 1, 1, 1]);
        let orders = shuffles_within(&values, &groups, &BTreeSet::from([0, 1]), 20);
        assert!(orders.iter().any(|order| *order != values));
        for order in orders {
            let sorted = |part: &[usize]| {
                let mut part = part.to_vec();
                part.sort_unstable();
                part
            };
            assert_eq!(sorted(&order[..3]), sorted(&values[..3]));
            assert_eq!(sorted(&order[3..]), sorted(&values[3..]));
        }
    }
}
