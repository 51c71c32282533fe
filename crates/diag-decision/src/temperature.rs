//! One temperature for all probabilities, kept near 1 by a prior.

use diag_metrics::PROBABILITY_FLOOR;

/// Bounds of ln T in the search. With the prior of [`Demands`](crate::Demands) only
/// hundreds of badly calibrated cases lead there, and the rule then says so.
const LOG_BOUND: f64 = 3.0;
/// Width of a cell of the first, coarse search.
const CELL: f64 = 0.125;

/// Probabilities to the power 1/T, scaled to sum to 1 again: softmax of the logits over T
/// (Guo et al., ICML 2017). T = 1 changes nothing.
pub(crate) fn calibrate(prob_k: &[f64], temperature: f64) -> Vec<f64> {
    if temperature == 1.0 {
        return prob_k.to_vec();
    }
    let logit_k: Vec<f64> = prob_k.iter().map(|p| log(*p) / temperature).collect();
    let highest = logit_k.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let odds_k: Vec<f64> = logit_k.iter().map(|logit| (logit - highest).exp()).collect();
    let sum: f64 = odds_k.iter().sum();
    odds_k.into_iter().map(|odds| odds / sum).collect()
}

/// Log probabilities of cases with their true classes.
pub(crate) struct Logs {
    pub log_nk: Vec<Vec<f64>>,
    pub label_n: Vec<usize>,
}

impl Logs {
    pub fn new(prob_nk: &[Vec<f64>], label_n: &[usize]) -> Self {
        let log_nk = prob_nk.iter().map(|prob_k| prob_k.iter().map(|p| log(*p)).collect()).collect();
        Self { log_nk, label_n: label_n.to_vec() }
    }

    /// Negative log likelihood of one case in nats.
    pub fn loss(&self, row: usize, temperature: f64) -> f64 {
        let (log_k, label) = (&self.log_nk[row], self.label_n[row]);
        let highest = log_k.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = log_k.iter().map(|l| ((l - highest) / temperature).exp()).sum();
        sum.ln() - (log_k[label] - highest) / temperature
    }
}

fn log(prob: f64) -> f64 {
    prob.max(PROBABILITY_FLOOR).ln()
}

/// A fitted temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Fitted {
    pub temperature: f64,
    pub at_bound: bool,
}

/// The most probable temperature given the rows, where ln T is a priori normal around 0
/// with standard deviation `log_sd`.
pub(crate) fn fit(logs: &Logs, rows: &[usize], log_sd: f64) -> Fitted {
    let cost = |log_t: f64| {
        let prior = 0.5 * (log_t / log_sd).powi(2);
        prior + rows.iter().map(|&row| logs.loss(row, log_t.exp())).sum::<f64>()
    };
    // The sum of the two terms may have more than one minimum, so that the cells are
    // searched first and the best one is narrowed down.
    let n_cells = (LOG_BOUND / CELL).round() as i32;
    let mut best = (f64::INFINITY, 0.0);
    for cell in -n_cells..=n_cells {
        let log_t = f64::from(cell) * CELL;
        let cost = cost(log_t);
        if cost < best.0 {
            best = (cost, log_t);
        }
    }
    let (mut low, mut high) = ((best.1 - CELL).max(-LOG_BOUND), (best.1 + CELL).min(LOG_BOUND));
    let golden = (5f64.sqrt() - 1.0) / 2.0;
    let (mut left, mut right) = (high - golden * (high - low), low + golden * (high - low));
    let (mut at_left, mut at_right) = (cost(left), cost(right));
    for _ in 0..48 {
        if at_left <= at_right {
            (high, right, at_right) = (right, left, at_left);
            left = high - golden * (high - low);
            at_left = cost(left);
        } else {
            (low, left, at_left) = (left, right, at_right);
            right = low + golden * (high - low);
            at_right = cost(right);
        }
    }
    let log_t = 0.5 * (low + high);
    Fitted { temperature: log_t.exp(), at_bound: log_t.abs() > LOG_BOUND - 1e-3 }
}
