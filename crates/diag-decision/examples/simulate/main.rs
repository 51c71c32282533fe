//! What the rule costs and gains against the plain mean, on simulated cases ([`world`]).
//!
//! ```sh
//! cargo run --release -p diag-decision --example simulate -- [RUNS]           # the table of docs/method.md
//! cargo run --release -p diag-decision --example simulate -- [RUNS] constants # the choice of the constants
//! ```

#![expect(clippy::print_stdout, reason = "an example shows its result")]

mod world;

use diag_decision::Demands;
use world::{Outcome, mean, runs, worlds};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let n_runs = args.first().and_then(|n| n.parse().ok()).unwrap_or(400);
    if args.get(1).is_some_and(|word| word == "constants") {
        constants(n_runs);
    } else {
        table(n_runs, Demands::default());
    }
}

/// How the constants fare over the worlds with few cases, so that each can be chosen.
fn constants(n_runs: u64) {
    println!(
        "| cases a class | sd of ln T | standard errors | worst mean change of a world | share of runs more than 0.1 worse | mean change | mean change of balanced accuracy |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for cases_per_class in [5, 10, 20] {
        for log_temperature_sd in [0.1, 0.2, 0.3, 0.5, 100.0] {
            for standard_errors in [0.0, 1.0] {
                let demands = Demands { cases_per_class, log_temperature_sd, standard_errors };
                let (mut worst, mut far, mut sum, mut accuracy, mut n) = (f64::MIN, 0.0, 0.0, 0.0, 0.0);
                for world in
                    worlds().into_iter().filter(|world| world.n_validation.iter().sum::<usize>() <= 75)
                {
                    let outcomes = runs(world, demands, n_runs);
                    worst = worst.max(mean(&outcomes, |o| o.loss_change));
                    far += outcomes.iter().filter(|o| o.loss_change > 0.1).count() as f64;
                    sum += outcomes.iter().map(|o| o.loss_change).sum::<f64>();
                    accuracy += outcomes.iter().map(|o| o.balanced_accuracy_change).sum::<f64>();
                    n += outcomes.len() as f64;
                }
                println!(
                    "| {cases_per_class} | {log_temperature_sd} | {standard_errors} | {worst:+.4} | {:.4} | {:+.4} | {:+.4} |",
                    far / n,
                    sum / n,
                    accuracy / n
                );
            }
        }
    }
}

fn table(n_runs: u64, demands: Demands) {
    println!(
        "| world | validation cases | log loss of the plain mean | change: mean | largest | balanced accuracy: change | plain mean kept | temperature (10 to 90 %) | sensitivity | coverage |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for world in worlds() {
        let outcomes = runs(world, demands, n_runs);
        let mut temperatures: Vec<f64> = outcomes.iter().map(|o| o.temperature).collect();
        temperatures.sort_by(f64::total_cmp);
        let at = |share: f64| temperatures[(share * (temperatures.len() - 1) as f64) as usize];
        let known = |value: fn(&Outcome) -> Option<f64>| {
            let values: Vec<f64> = outcomes.iter().filter_map(value).collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            if values.is_empty() { "-".to_owned() } else { format!("{mean:.3}") }
        };
        let largest = outcomes.iter().map(|o| o.loss_change).fold(f64::MIN, f64::max);
        let counts: Vec<String> = world.n_validation.iter().map(usize::to_string).collect();
        println!(
            "| {} | {} | {:.3} | {:+.4} | {largest:+.3} | {:+.4} | {:.2} | {:.2} to {:.2} | {} | {} |",
            world.name,
            counts.join(":"),
            mean(&outcomes, |o| o.plain_loss),
            mean(&outcomes, |o| o.loss_change),
            mean(&outcomes, |o| o.balanced_accuracy_change),
            mean(&outcomes, |o| f64::from(u8::from(o.is_plain))),
            at(0.1),
            at(0.9),
            known(|o| o.sensitivity),
            known(|o| o.coverage),
        );
    }
}
