//! Simulated cohorts and networks, and what a rule does on them.
//!
//! A run draws a cohort, lets the validation cases choose among 12 epochs by log loss, as
//! training does, fits the rule on them, and applies it to test cases of the same kind.
//!
//! A case of class y has normal noise of its own on every class. A share `shown` of its slices
//! has `signal` more at y, the others at class 1; every slice adds normal noise. What the
//! network says are these logits times `scale` (above 1: overconfident). An epoch moves the
//! scale a little and adds an error of its own to every case, which is what lets a choice of
//! epoch flatter the validation cases.

use diag_data::case::{CaseId, Label, LabelSet, Split};
use diag_decision::{Aggregation, Case, Decision, DecisionMetrics, Demands, FitSpec, fit};
use diag_metrics::{Scores, evaluate, join_slices, log_loss};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// Epochs among which the validation cases choose.
const N_EPOCHS: usize = 12;
/// Standard deviation of an epoch's error on a case, in logits before the scale.
const EPOCH_NOISE: f64 = 0.7;

/// A kind of cohort and network.
#[derive(Clone, Copy)]
pub struct World {
    /// For people.
    pub name: &'static str,
    /// Validation cases by class.
    pub n_validation: &'static [usize],
    /// Test cases by class.
    pub n_test: &'static [usize],
    /// Fewest and most slices of a case.
    pub n_slices: (usize, usize),
    /// Logits that the true class has more.
    pub signal: f64,
    /// Share of the slices of a case that show its class.
    pub shown: f64,
    /// What the network makes of a logit.
    pub scale: f64,
    /// How the signal of the test cases is changed: below 1, they are harder.
    pub shift: f64,
}

/// What a run gave on its test cases.
#[derive(Clone, Copy)]
pub struct Outcome {
    /// Log loss of the plain mean.
    pub plain_loss: f64,
    /// That of the rule less that of the plain mean.
    pub loss_change: f64,
    /// The same for balanced accuracy.
    pub balanced_accuracy_change: f64,
    /// Temperature of the rule.
    pub temperature: f64,
    /// Whether the rule is the plain mean.
    pub is_plain: bool,
    /// At the threshold.
    pub sensitivity: Option<f64>,
    /// Of the sets.
    pub coverage: Option<f64>,
}

/// All kinds, in the sizes that are reported.
pub fn worlds() -> Vec<World> {
    let calm = World {
        name: "calibrated",
        n_validation: &[10, 10, 10],
        n_test: &[15, 15, 15],
        n_slices: (6, 12),
        signal: 2.5,
        shown: 1.0,
        scale: 1.0,
        shift: 1.0,
    };
    let of_size = |n: &'static [usize], n_test: &'static [usize], world: World| World {
        n_validation: n,
        n_test,
        ..world
    };
    let (tiny, scant, small) = (&[3, 3, 3][..], &[5, 5, 5][..], &[10, 10, 10][..]);
    let (few, some) = (&[20, 20, 20][..], &[50, 50, 50][..]);
    let (seven, fifteen, fifty) = (&[7, 7, 7][..], &[15, 15, 15][..], &[50, 50, 50][..]);
    let mut worlds = Vec::new();
    let kinds = [
        calm,
        World { name: "separable", signal: 5.0, ..calm },
        World { name: "overconfident x2", scale: 2.0, signal: 1.5, ..calm },
        World { name: "overconfident x4", scale: 4.0, signal: 1.5, ..calm },
        World { name: "timid x0.5", scale: 0.5, ..calm },
        World { name: "focal disease, 30 % of slices", shown: 0.3, ..calm },
        World { name: "test harder", shift: 0.7, ..calm },
        World { name: "separable, test harder", signal: 5.0, shift: 0.5, ..calm },
        World { name: "one picture a case", n_slices: (1, 1), ..calm },
    ];
    for kind in kinds {
        let sizes = [(tiny, seven), (scant, fifteen), (small, fifteen), (few, fifteen), (some, fifty)];
        worlds.extend(sizes.map(|(n, n_test)| of_size(n, n_test, kind)));
    }
    for (n, n_test) in [(&[10, 50, 10][..], &[15, 75, 15][..]), (&[10, 200, 10][..], &[15, 300, 15][..])] {
        worlds.push(World { name: "uneven", ..of_size(n, n_test, calm) });
    }
    worlds
}

/// Many runs, seeds 0 and up.
pub fn runs(world: World, demands: Demands, n_runs: u64) -> Vec<Outcome> {
    (0..n_runs).into_par_iter().map(|seed| run(world, demands, seed)).collect()
}

fn run(world: World, demands: Demands, seed: u64) -> Outcome {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let n_classes = world.n_validation.len();
    let labels =
        LabelSet::new((0..n_classes).map(|k| format!("class-{k}")).collect()).expect("two classes or more");
    let validation = cohort(world.n_validation, world, world.signal, &mut rng);
    let test = cohort(world.n_test, world, world.signal * world.shift, &mut rng);
    let mut best: Option<(f64, Vec<Case>, Vec<Case>)> = None;
    for _ in 0..N_EPOCHS {
        let factor = world.scale * (0.15 * normal(&mut rng)).exp();
        let seen = look(&validation, factor, Split::Validation, &mut rng);
        let unseen = look(&test, factor, Split::Test, &mut rng);
        let loss = log_loss(&plain(&seen, n_classes));
        if best.as_ref().is_none_or(|(lowest, ..)| loss < *lowest) {
            best = Some((loss, seen, unseen));
        }
    }
    let (_, seen, unseen) = best.expect("an epoch");
    let spec = FitSpec { sensitivity: 0.9, demands, ..FitSpec::new(labels, "weights") };
    let decision = fit(&seen, &spec).expect("a rule");
    outcome(&decision, &unseen, n_classes)
}

fn outcome(decision: &Decision, cases: &[Case], n_classes: usize) -> Outcome {
    let rows: Vec<_> = cases.iter().map(|case| decision.predict(case).expect("a decision")).collect();
    let metrics = DecisionMetrics::of(decision.terms(), &rows).expect("cases with labels");
    let plain = plain(cases, n_classes);
    let before = evaluate(&plain);
    let terms = decision.terms();
    Outcome {
        plain_loss: log_loss(&plain),
        loss_change: metrics.case.log_loss.unwrap_or_default() - log_loss(&plain),
        balanced_accuracy_change: metrics.case.balanced_accuracy.unwrap_or_default()
            - before.balanced_accuracy.unwrap_or_default(),
        temperature: terms.temperature,
        is_plain: terms.temperature == 1.0 && terms.aggregation == Aggregation::Mean,
        sensitivity: metrics.at_threshold.and_then(|at| at.sensitivity),
        coverage: metrics.sets.map(|sets| sets.coverage),
    }
}

fn plain(cases: &[Case], n_classes: usize) -> Scores {
    let mut probs = Vec::new();
    for case in cases {
        let slice_nk: Vec<&[f64]> = case.slice_nk.iter().map(Vec::as_slice).collect();
        probs.extend(join_slices(&slice_nk, Aggregation::Mean));
    }
    let label_n: Vec<usize> = cases.iter().map(|case| case.label.index()).collect();
    Scores::new(&probs, n_classes, &label_n).expect("probabilities")
}

/// A case before any network looks at it: logits of its slices.
struct Truth {
    label: usize,
    logit_nk: Vec<Vec<f64>>,
}

fn cohort(n_k: &[usize], world: World, signal: f64, rng: &mut ChaCha8Rng) -> Vec<Truth> {
    let n_classes = n_k.len();
    let mut truths = Vec::new();
    for (label, &n) in n_k.iter().enumerate() {
        for _ in 0..n {
            let of_case: Vec<f64> = (0..n_classes).map(|_| normal(rng)).collect();
            let n_slices = rng.random_range(world.n_slices.0..=world.n_slices.1);
            let slice = |rng: &mut ChaCha8Rng| {
                let shows = if rng.random_bool(world.shown) { label } else { 1 };
                let logit = |k: usize| {
                    let mean = if k == shows { signal } else { 0.0 };
                    mean + of_case[k] + normal(rng)
                };
                (0..n_classes).map(logit).collect()
            };
            let logit_nk = (0..n_slices).map(|_| slice(rng)).collect();
            truths.push(Truth { label, logit_nk });
        }
    }
    truths
}

/// What one epoch's network says.
fn look(truths: &[Truth], factor: f64, split: Split, rng: &mut ChaCha8Rng) -> Vec<Case> {
    let mut cases = Vec::new();
    for (number, truth) in truths.iter().enumerate() {
        let error_k: Vec<f64> = truth.logit_nk[0].iter().map(|_| EPOCH_NOISE * normal(rng)).collect();
        let softmax = |logit_k: &Vec<f64>| {
            let logit_k: Vec<f64> = logit_k.iter().zip(&error_k).map(|(l, e)| factor * (l + e)).collect();
            let highest = logit_k.iter().copied().fold(f64::MIN, f64::max);
            let odds_k: Vec<f64> = logit_k.iter().map(|l| (l - highest).exp()).collect();
            let sum: f64 = odds_k.iter().sum();
            odds_k.into_iter().map(|odds| odds / sum).collect()
        };
        cases.push(Case {
            case_id: CaseId::new(format!("case-{number:05}")).expect("a name"),
            split,
            label: Label(truth.label as u8),
            slice_nk: truth.logit_nk.iter().map(softmax).collect(),
        });
    }
    cases
}

/// A standard normal number (Box and Muller 1958).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Mean of a value over runs.
pub fn mean(outcomes: &[Outcome], value: fn(&Outcome) -> f64) -> f64 {
    outcomes.iter().map(value).sum::<f64>() / outcomes.len() as f64
}
