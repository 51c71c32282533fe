//! Two small classifiers: regularised logistic regression, and a forest of shallow trees.

use diag_data::trivial::Classifier;
use rand::Rng;
use rayon::prelude::*;

use crate::random::{Domain, stream};

/// Weight of the ridge penalty, as in scikit-learn's default: sum of losses + 1/2 |w|^2.
const RIDGE: f64 = 1.0;
/// Steps of the gradient method.
const N_STEPS: usize = 400;
const N_TREES: usize = 200;
const MAX_DEPTH: usize = 16;
/// Fewest cases of a leaf.
const MIN_LEAF: usize = 1;

/// Cases to learn from: `x_nd` `[N, D]` standardised, `label_n` `[N]` below `n_classes`. Classes
/// weigh the same, however many cases they have.
#[derive(Clone, Copy)]
pub struct Training<'a> {
    pub x_nd: &'a [Vec<f64>],
    pub label_n: &'a [usize],
    pub n_classes: usize,
}

impl Training<'_> {
    /// Weights by class, mean 1 over the cases; 0 for a class without cases.
    fn class_weights(&self) -> Vec<f64> {
        let mut counts = vec![0usize; self.n_classes];
        self.label_n.iter().for_each(|&label| counts[label] += 1);
        let n_present = counts.iter().filter(|count| **count > 0).count().max(1);
        let weight = |&count: &usize| match count {
            0 => 0.0,
            count => self.label_n.len() as f64 / (n_present * count) as f64,
        };
        counts.iter().map(weight).collect()
    }
}

/// Probabilities `[M, K]` of the cases `x_md` after learning; the same seed gives the same bits
/// with any number of threads.
pub fn fit_predict(kind: Classifier, training: Training<'_>, x_md: &[Vec<f64>], seed: u64) -> Vec<Vec<f64>> {
    match kind {
        Classifier::LogisticRegression => logistic_regression(training, x_md),
        Classifier::RandomForest => random_forest(training, x_md, seed),
    }
}

/// Nesterov's gradient method with the step that the largest curvature allows.
fn logistic_regression(training: Training<'_>, x_md: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let n_weights = training.x_nd.first().map_or(0, Vec::len) + 1;
    let class_weights = training.class_weights();
    // Half the trace bounds the largest eigenvalue of softmax's Hessian.
    let curvature: f64 = training
        .x_nd
        .iter()
        .zip(training.label_n)
        .map(|(x, &label)| 0.5 * class_weights[label] * (1.0 + x.iter().map(|x| x * x).sum::<f64>()))
        .sum();
    let step = 1.0 / (curvature + RIDGE);
    let mut w_kd = vec![vec![0.0; n_weights]; training.n_classes];
    let mut ahead = w_kd.clone();
    for i in 0..N_STEPS {
        let mut gradient = vec![vec![0.0; n_weights]; training.n_classes];
        for (x, &label) in training.x_nd.iter().zip(training.label_n) {
            for (class, (p, sums)) in probabilities(&ahead, x).into_iter().zip(&mut gradient).enumerate() {
                let error = class_weights[label] * (p - f64::from(u8::from(class == label)));
                sums[0] += error;
                sums[1..].iter_mut().zip(x).for_each(|(sum, x)| *sum += error * x);
            }
        }
        let momentum = i as f64 / (i as f64 + 3.0);
        for ((w, ahead), gradient) in w_kd.iter_mut().zip(&mut ahead).zip(&gradient) {
            for (d, ((w, ahead), gradient)) in w.iter_mut().zip(ahead.iter_mut()).zip(gradient).enumerate() {
                // The intercept is not penalised.
                let ridge = if d == 0 { 0.0 } else { RIDGE * *ahead };
                let next = *ahead - step * (gradient + ridge);
                *ahead = next + momentum * (next - *w);
                *w = next;
            }
        }
    }
    x_md.iter().map(|x| probabilities(&w_kd, x)).collect()
}

/// Softmax of the linear scores.
fn probabilities(w_kd: &[Vec<f64>], x: &[f64]) -> Vec<f64> {
    let score = |w: &Vec<f64>| w[0] + w[1..].iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
    let scores: Vec<f64> = w_kd.iter().map(score).collect();
    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let odds: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
    let sum: f64 = odds.iter().sum();
    odds.into_iter().map(|odd| odd / sum).collect()
}

enum Node {
    /// Share of each class, `[K]`.
    Leaf(Vec<f64>),
    Split {
        feature: usize,
        threshold: f64,
        /// Up to the threshold, and above it.
        below: Box<Node>,
        above: Box<Node>,
    },
}

impl Node {
    fn predict(&self, x: &[f64]) -> &[f64] {
        match self {
            Self::Leaf(shares) => shares,
            Self::Split { feature, threshold, below, above } => {
                if x[*feature] <= *threshold {
                    below.predict(x)
                } else {
                    above.predict(x)
                }
            }
        }
    }
}

fn random_forest(training: Training<'_>, x_md: &[Vec<f64>], seed: u64) -> Vec<Vec<f64>> {
    let n = training.label_n.len();
    let class_weights = training.class_weights();
    let tree = |i: usize| {
        let mut rng = stream(seed, Domain::TrivialBaseline, 0, i as u32);
        let drawn: Vec<usize> = (0..n).map(|_| rng.random_range(0..n)).collect();
        grow(training, &class_weights, drawn, 0, &mut rng)
    };
    let trees: Vec<Node> = (0..N_TREES).into_par_iter().map(tree).collect();
    let mean = |x: &Vec<f64>| {
        let mut sums = vec![0.0; training.n_classes];
        for tree in &trees {
            sums.iter_mut().zip(tree.predict(x)).for_each(|(sum, share)| *sum += share);
        }
        sums.iter().map(|sum| sum / trees.len() as f64).collect()
    };
    x_md.iter().map(mean).collect()
}

fn grow(
    training: Training<'_>,
    class_weights: &[f64],
    rows: Vec<usize>,
    depth: usize,
    rng: &mut impl Rng,
) -> Node {
    let mut whole = vec![0.0; training.n_classes];
    rows.iter().for_each(|&row| {
        let label = training.label_n[row];
        whole[label] += class_weights[label];
    });
    let leaf = || {
        let sum: f64 = whole.iter().sum();
        Node::Leaf(whole.iter().map(|weight| weight / sum.max(f64::MIN_POSITIVE)).collect())
    };
    let n_features = training.x_nd.first().map_or(0, Vec::len);
    let is_pure = whole.iter().filter(|weight| **weight > 0.0).count() < 2;
    if depth == MAX_DEPTH || is_pure || rows.len() < 2 * MIN_LEAF || n_features == 0 {
        return leaf();
    }
    let n_tried = (n_features as f64).sqrt().ceil() as usize;
    let mut best: Option<(f64, usize, f64)> = None;
    for _ in 0..n_tried {
        let feature = rng.random_range(0..n_features);
        if let Some((impurity, threshold)) = best_split(training, class_weights, &rows, &whole, feature)
            && best.is_none_or(|best| impurity < best.0)
        {
            best = Some((impurity, feature, threshold));
        }
    }
    let Some((_, feature, threshold)) = best else { return leaf() };
    let (below, above): (Vec<usize>, Vec<usize>) =
        rows.into_iter().partition(|&row| training.x_nd[row][feature] <= threshold);
    Node::Split {
        feature,
        threshold,
        below: Box::new(grow(training, class_weights, below, depth + 1, rng)),
        above: Box::new(grow(training, class_weights, above, depth + 1, rng)),
    }
}

/// The threshold of the lowest Gini impurity; `None` where no threshold leaves two leaves large enough.
fn best_split(
    training: Training<'_>,
    class_weights: &[f64],
    rows: &[usize],
    whole: &[f64],
    feature: usize,
) -> Option<(f64, f64)> {
    let mut sorted: Vec<(f64, usize)> =
        rows.iter().map(|&row| (training.x_nd[row][feature], training.label_n[row])).collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut below = vec![0.0; whole.len()];
    let impurity = |side: &[f64]| {
        let sum: f64 = side.iter().sum();
        if sum > 0.0 { sum - side.iter().map(|weight| weight * weight).sum::<f64>() / sum } else { 0.0 }
    };
    let mut best: Option<(f64, f64)> = None;
    for (i, pair) in sorted.windows(2).enumerate() {
        below[pair[0].1] += class_weights[pair[0].1];
        let (n_below, n_above) = (i + 1, sorted.len() - i - 1);
        if pair[0].0 == pair[1].0 || n_below < MIN_LEAF || n_above < MIN_LEAF {
            continue;
        }
        let above: Vec<f64> = whole.iter().zip(&below).map(|(whole, below)| whole - below).collect();
        let total = impurity(&below) + impurity(&above);
        if best.is_none_or(|best| total < best.0) {
            best = Some((total, 0.5 * (pair[0].0 + pair[1].0)));
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Class = sign pattern of two features: a line for logistic regression, or a checkerboard.
    fn grid(label: impl Fn(f64, f64) -> usize) -> (Vec<Vec<f64>>, Vec<usize>) {
        let points = (0..400).map(|i| ((i % 20) as f64 / 9.5 - 1.0, (i / 20) as f64 / 9.5 - 1.0));
        points.map(|(a, b)| (vec![a, b], label(a, b))).unzip()
    }

    fn accuracy(kind: Classifier, x_nd: &[Vec<f64>], label_n: &[usize]) -> f64 {
        let rows = fit_predict(kind, Training { x_nd, label_n, n_classes: 2 }, x_nd, 1);
        let right = |(p, &label): (&Vec<f64>, &usize)| p[label] > 0.5;
        rows.iter().zip(label_n).filter(|pair| right(*pair)).count() as f64 / label_n.len() as f64
    }

    #[test]
    fn a_line_is_learnt_by_both_and_a_checkerboard_by_trees_alone() {
        let (x, label) = grid(|a, b| usize::from(a + b > 0.0));
        assert!(accuracy(Classifier::LogisticRegression, &x, &label) > 0.97);
        assert!(accuracy(Classifier::RandomForest, &x, &label) > 0.95);
        let (x, label) = grid(|a, b| usize::from(a * b > 0.0));
        assert!(accuracy(Classifier::LogisticRegression, &x, &label) < 0.6);
        assert!(accuracy(Classifier::RandomForest, &x, &label) > 0.95);
    }

    #[test]
    fn logistic_regression_finds_the_penalised_optimum() {
        // At the optimum the gradient vanishes: checked by the stationarity of the intercepts,
        // which are not penalised: weighted residuals of each class sum to 0.
        let (x, label) = grid(|a, _| usize::from(a > 0.4));
        let training = Training { x_nd: &x, label_n: &label, n_classes: 2 };
        let p = fit_predict(Classifier::LogisticRegression, training, &x, 0);
        let weights = training.class_weights();
        let residual: f64 =
            p.iter().zip(&label).map(|(p, &l)| weights[l] * (p[1] - l as f64)).sum::<f64>() / x.len() as f64;
        assert!(residual.abs() < 1e-3, "{residual}");
    }
}
