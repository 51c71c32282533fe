//! Writes drawn, openly synthetic run folders, to look at a report without training:
//! `cargo run --release -p diag-report --example draw_run -- DIR`, then
//! `diag-report DIR/plain DIR/better`.

use std::path::PathBuf;
use std::process::ExitCode;

#[path = "../tests/common/mod.rs"]
mod common;

fn main() -> ExitCode {
    let Some(root) = std::env::args_os().nth(1).map(PathBuf::from) else { return ExitCode::from(2) };
    let plain = common::Fixture {
        test_cases: vec![12, 14, 7],
        n_slices: 18,
        side: 224,
        skill: 1.0,
        ..common::Fixture::small()
    };
    let better = common::Fixture { skill: 1.8, seed: 2, ..plain.clone() };
    let both = common::write(&root, "plain", &plain).and_then(|_| common::write(&root, "better", &better));
    if both.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
