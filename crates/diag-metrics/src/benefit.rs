//! Decision curve analysis (Vickers and Elkin 2006).

use serde::Serialize;

/// Worth of acting on a prediction at one threshold, per item, in units of true
/// positives.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct NetBenefitPoint {
    /// Probability from which one would act, 0 to 1.
    pub threshold: f64,
    /// Of acting where the model says so.
    pub model: f64,
    /// Of acting on everybody. Acting on nobody is worth 0.
    pub everybody: f64,
}

/// Net benefit, TP/n - FP/n * t/(1-t), at each threshold t. Thresholds outside
/// [0, 1) are left out; `None` without items or when the lengths differ.
pub fn net_benefit_curve(
    prob_n: &[f64],
    event_n: &[bool],
    thresholds: &[f64],
) -> Option<Vec<NetBenefitPoint>> {
    if prob_n.is_empty() || prob_n.len() != event_n.len() {
        return None;
    }
    let n = prob_n.len() as f64;
    let prevalence = event_n.iter().filter(|e| **e).count() as f64 / n;
    let allowed = thresholds.iter().filter(|t| (0.0..1.0).contains(*t));
    let curve = allowed.map(|&threshold| {
        let odds = threshold / (1.0 - threshold);
        let count = |event: bool| {
            let called = prob_n.iter().zip(event_n).filter(|(p, e)| **p >= threshold && **e == event);
            called.count() as f64
        };
        NetBenefitPoint {
            threshold,
            model: count(true) / n - count(false) / n * odds,
            everybody: prevalence - (1.0 - prevalence) * odds,
        }
    });
    Some(curve.collect())
}
