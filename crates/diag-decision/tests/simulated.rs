//! The rule against the plain mean on simulated cohorts whose test cases are like their
//! validation cases: it may cost little and must gain where there is something to gain.

#![expect(clippy::unwrap_used, reason = "in a test, a failed unwrap is a failed test")]

#[path = "../examples/simulate/world.rs"]
mod world;

use diag_decision::Demands;
use world::{World, mean, runs, worlds};

const N_RUNS: u64 = 40;

/// Worlds with at most 20 validation cases of each class and an unchanged test part.
fn small() -> impl Iterator<Item = World> {
    worlds().into_iter().filter(|world| world.shift == 1.0 && world.n_validation.iter().all(|n| *n <= 20))
}

/// The world of that name with so many validation cases of each class.
fn named(name: &str, n: usize) -> World {
    worlds().into_iter().find(|world| world.name == name && world.n_validation == [n; 3]).unwrap()
}

#[test]
fn it_costs_little_where_there_are_few_cases() {
    for world in small() {
        let outcomes = runs(world, Demands::default(), N_RUNS);
        let change = mean(&outcomes, |o| o.loss_change);
        assert!(change <= 0.01, "{} {:?}: {change}", world.name, world.n_validation);
        let largest = outcomes.iter().map(|o| o.loss_change).fold(f64::MIN, f64::max);
        assert!(largest <= 0.1, "{} {:?}: {largest}", world.name, world.n_validation);
        let accuracy = mean(&outcomes, |o| o.balanced_accuracy_change);
        assert!(accuracy >= -0.01, "{} {:?}: {accuracy}", world.name, world.n_validation);
    }
}

#[test]
fn without_a_prior_it_would_cost_much() {
    let demands = Demands { log_temperature_sd: 100.0, ..Demands::default() };
    let outcomes = runs(named("separable, test harder", 10), demands, N_RUNS);
    assert!(mean(&outcomes, |o| o.loss_change) > 0.1);
}

#[test]
fn it_gains_where_probabilities_are_too_timid_or_the_disease_is_focal() {
    for (name, gain) in [("timid x0.5", 0.05), ("focal disease, 30 % of slices", 0.05)] {
        let change = mean(&runs(named(name, 20), Demands::default(), N_RUNS), |o| o.loss_change);
        assert!(change < -gain, "{name}: {change}");
    }
}

#[test]
fn three_cases_of_a_class_leave_the_plain_mean() {
    for outcome in runs(named("separable", 3), Demands::default(), N_RUNS) {
        assert!(outcome.is_plain && outcome.temperature == 1.0 && outcome.loss_change == 0.0);
        assert!(outcome.plain_loss.is_finite());
    }
}

#[test]
fn nominal_levels_come_near_what_they_name() {
    let outcomes = runs(named("calibrated", 20), Demands::default(), N_RUNS);
    for level in [|o: &world::Outcome| o.sensitivity, |o: &world::Outcome| o.coverage] {
        let values: Vec<f64> = outcomes.iter().filter_map(level).collect();
        assert_eq!(values.len() as u64, N_RUNS);
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        assert!((0.87..0.97).contains(&mean), "{mean}");
    }
}
