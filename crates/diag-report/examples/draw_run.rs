//! Writes drawn, openly synthetic run folders, to look at a report without training:
//! `cargo run --release -p diag-report --example draw_run -- DIR`, then
//! `diag-report DIR/plain DIR/better`. A number after DIR draws a large cohort: so many
//! test cases of each class, up to 45 slices each.

use std::path::PathBuf;
use std::process::ExitCode;

#[path = "../tests/common/mod.rs"]
mod common;

fn main() -> ExitCode {
    let Some(root) = std::env::args_os().nth(1).map(PathBuf::from) else { return ExitCode::from(2) };
    let n_cases = std::env::args().nth(2).and_then(|text| text.parse().ok());
    let plain = common::Fixture {
        test_cases: n_cases.map_or(vec![12, 14, 7], |n| vec![n; 3]),
        n_slices: if n_cases.is_some() { 45 } else { 18 },
        side: 224,
        skill: 1.0,
        ..common::Fixture::small()
    };
    let better = common::Fixture { skill: 1.8, seed: 2, ..plain.clone() };
    let both = common::write(&root, "plain", &plain)
        .and_then(|run| common::write_maps(&run, &plain))
        .and_then(|()| common::write(&root, "better", &better));
    if both.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
