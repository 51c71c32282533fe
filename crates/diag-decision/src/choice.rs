//! Which aggregation, and whether a temperature: the simplest one that the cases do not
//! speak against.

use diag_metrics::{Aggregation, join_slices};

use crate::Case;
use crate::demands::Demands;
use crate::temperature::{self, Fitted, Logs};
use crate::terms::{Candidate, PriorCorrection};

/// Parts of the cross-fitting.
const N_FOLDS: usize = 5;

/// What was chosen.
pub(crate) struct Choice {
    pub aggregation: Aggregation,
    pub temperature: f64,
    pub at_bound: bool,
    /// Simplest first.
    pub candidates: Vec<Candidate>,
}

impl Choice {
    /// The mean as it is.
    pub fn plain() -> Self {
        Self { aggregation: Aggregation::Mean, temperature: 1.0, at_bound: false, candidates: Vec::new() }
    }
}

/// A candidate with its log loss on every case, and its temperature.
struct Tried {
    aggregation: Aggregation,
    loss_n: Vec<f64>,
    fitted: Fitted,
}

/// Chooses by cross-fitted log loss with the one-standard-error rule (Breiman et al. 1984):
/// the simplest candidate whose loss is above the lowest by no more than `standard_errors` of
/// the difference. Simple is, in this order: the mean as it is, the mean with a temperature, the
/// mean over more, then over fewer of the highest slices.
///
/// `cases` are sorted by name and not empty, so that equal sets of cases give equal choices.
pub(crate) fn choose(
    cases: &[Case],
    top_ks: &[usize],
    correction: &PriorCorrection,
    demands: &Demands,
) -> Choice {
    let label_n: Vec<usize> = cases.iter().map(|case| case.label.index()).collect();
    let fold_n = folds(&label_n);
    let joined = |aggregation| {
        let of_case = |case: &Case| {
            let slice_nk: Vec<&[f64]> = case.slice_nk.iter().map(Vec::as_slice).collect();
            correction.apply(&join_slices(&slice_nk, aggregation))
        };
        Logs::new(&cases.iter().map(of_case).collect::<Vec<_>>(), &label_n)
    };
    let mean = joined(Aggregation::Mean);
    let plain = Fitted { temperature: 1.0, at_bound: false };
    let loss_n = (0..cases.len()).map(|row| mean.loss(row, 1.0)).collect();
    let mut tried = vec![Tried { aggregation: Aggregation::Mean, loss_n, fitted: plain }];
    tried.push(cross_fit(Aggregation::Mean, &mean, &fold_n, demands));
    let mut top_ks = top_ks.to_vec();
    top_ks.sort_unstable_by(|a, b| b.cmp(a));
    top_ks.dedup();
    // A top-k mean over all slices is the mean.
    let most_slices = cases.iter().map(|case| case.slice_nk.len()).max().unwrap_or_default();
    for k in top_ks.into_iter().filter(|k| (1..most_slices).contains(k)) {
        let aggregation = Aggregation::TopKMean { k };
        tried.push(cross_fit(aggregation, &joined(aggregation), &fold_n, demands));
    }
    pick(&tried, demands.standard_errors)
}

fn pick(tried: &[Tried], standard_errors: f64) -> Choice {
    let n = tried[0].loss_n.len() as f64;
    let total = |candidate: &Tried| candidate.loss_n.iter().sum::<f64>();
    let mut best = &tried[0];
    for candidate in &tried[1..] {
        if total(candidate) < total(best) {
            best = candidate;
        }
    }
    let compared = tried.iter().map(|candidate| {
        let pairs = candidate.loss_n.iter().zip(&best.loss_n);
        let difference_n: Vec<f64> = pairs.map(|(own, best)| own - best).collect();
        let difference = difference_n.iter().sum::<f64>() / n;
        let spread: f64 = difference_n.iter().map(|d| (d - difference).powi(2)).sum();
        Candidate {
            aggregation: candidate.aggregation,
            temperature: candidate.fitted.temperature,
            log_loss: total(candidate) / n,
            difference,
            standard_error: (spread / (n - 1.0).max(1.0) / n).sqrt(),
        }
    });
    let candidates: Vec<Candidate> = compared.collect();
    let near = |c: &Candidate| c.difference <= standard_errors * c.standard_error;
    // The best one is near itself.
    let chosen = candidates.iter().position(near).unwrap_or_default();
    let Tried { aggregation, fitted, .. } = &tried[chosen];
    Choice {
        aggregation: *aggregation,
        temperature: fitted.temperature,
        at_bound: fitted.at_bound,
        candidates,
    }
}

/// The loss of every case at the temperature of the other folds.
fn cross_fit(aggregation: Aggregation, logs: &Logs, fold_n: &[usize], demands: &Demands) -> Tried {
    let log_sd = demands.log_temperature_sd;
    let all: Vec<usize> = (0..fold_n.len()).collect();
    let mut loss_n = vec![0.0; fold_n.len()];
    for fold in 0..N_FOLDS {
        let others: Vec<usize> = all.iter().copied().filter(|&row| fold_n[row] != fold).collect();
        let temperature = temperature::fit(logs, &others, log_sd).temperature;
        for row in (0..fold_n.len()).filter(|&row| fold_n[row] == fold) {
            loss_n[row] = logs.loss(row, temperature);
        }
    }
    Tried { aggregation, loss_n, fitted: temperature::fit(logs, &all, log_sd) }
}

/// Deals the cases of each class in turn, so that every fold has of every class.
fn folds(label_n: &[usize]) -> Vec<usize> {
    let mut seen_k = vec![0; label_n.iter().max().map_or(0, |max| max + 1)];
    let deal = |&label: &usize| {
        seen_k[label] += 1;
        (seen_k[label] - 1) % N_FOLDS
    };
    label_n.iter().map(deal).collect()
}
