//! How often 95 % intervals hold the true value: the table of `docs/report-numbers.md`.
//!
//!     cargo run --release -p diag-metrics --example interval_coverage
//!
//! Three classes with as many cases each; the scores of a case are normal with one more standard
//! deviation times `skill` for its own class, and probabilities are their softmax. The true value
//! is that of 60,000 cases of each class. No patient is drawn twice, so the unit is the case.

#![expect(clippy::print_stdout, reason = "the table is the result")]

use diag_metrics::{
    Bootstrap, IntervalMethod, Measure, MetricsError, Scores, evaluate, summarise, summarise_units,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const N_CLASSES: usize = 3;
const N_COHORTS: usize = 1000;
const MEASURES: [Measure; 8] = [
    Measure::Accuracy,
    Measure::BalancedAccuracy,
    Measure::MacroF1,
    Measure::Matthews,
    Measure::MacroAuroc,
    Measure::Brier,
    Measure::LogLoss,
    Measure::Sensitivity(0),
];

fn main() -> Result<(), MetricsError> {
    println!(
        "| cases of each class | measure | true value | percentile | BCa | chosen | width: percentile | BCa | chosen |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for n in [7, 20, 100] {
        for skill in [1.5, 2.6] {
            simulate(n, skill)?;
        }
    }
    Ok(())
}

/// How often an interval held the true value, and how wide it was.
#[derive(Clone, Copy, Default)]
struct Tally {
    n_held: usize,
    width: f64,
}

impl Tally {
    fn add(&mut self, truth: f64, bounds: Option<(f64, f64)>) {
        if let Some((low, high)) = bounds {
            // The bounds of a share may be the share itself.
            self.n_held += usize::from(low - 1e-12 <= truth && truth <= high + 1e-12);
            self.width += high - low;
        }
    }
}

fn simulate(n: usize, skill: f64) -> Result<(), MetricsError> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let truth = evaluate(&cohort(60_000, skill, &mut rng)?);
    let mut tallies = [[Tally::default(); 3]; MEASURES.len()];
    let units: Vec<usize> = (0..N_CLASSES * n).collect();
    for _ in 0..N_COHORTS {
        let scores = cohort(n, skill, &mut rng)?;
        let plan = Bootstrap { n_resamples: 1000, ..Bootstrap::default() };
        let percentile = summarise(&scores, &units, &plan)?;
        let bca = summarise(&scores, &units, &Bootstrap { method: IntervalMethod::Bca, ..plan })?;
        let chosen = summarise_units(&scores, &units, plan.level)?;
        for (tally, measure) in tallies.iter_mut().zip(MEASURES) {
            let Some(truth) = truth.get(measure) else { continue };
            let own = chosen.intervals.iter().find(|interval| interval.measure == measure);
            let (a, b) = (percentile.estimate(measure), bca.estimate(measure));
            tally[0].add(truth, a.low.zip(a.high));
            tally[1].add(truth, b.low.zip(b.high));
            tally[2].add(truth, own.and_then(|own| own.low.zip(own.high)));
        }
    }
    for (tally, measure) in tallies.iter().zip(MEASURES) {
        let truth = truth.get(measure).unwrap_or_default();
        let held = tally.map(|t| format!("{:.3}", t.n_held as f64 / N_COHORTS as f64)).join(" | ");
        let width = tally.map(|t| format!("{:.3}", t.width / N_COHORTS as f64)).join(" | ");
        println!("| {n} | {} | {truth:.3} | {held} | {width} |", measure.title());
    }
    Ok(())
}

fn cohort(n: usize, skill: f64, rng: &mut ChaCha8Rng) -> Result<Scores, MetricsError> {
    let labels: Vec<usize> = (0..N_CLASSES * n).map(|case| case / n).collect();
    let mut probs = Vec::with_capacity(labels.len() * N_CLASSES);
    for &label in &labels {
        let score = |class: usize, rng: &mut ChaCha8Rng| {
            let own = if class == label { skill } else { 0.0 };
            (0.6 * skill * (normal(rng) + own)).exp()
        };
        let row: Vec<f64> = (0..N_CLASSES).map(|class| score(class, rng)).collect();
        let sum: f64 = row.iter().sum();
        probs.extend(row.iter().map(|p| p / sum));
    }
    Scores::new(&probs, N_CLASSES, &labels)
}

/// A standard normal number (Box and Muller).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (rng.random_range(f64::MIN_POSITIVE..1.0), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}
