//! `cargo xtask ci`: everything that continuous integration checks.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use crate::lints::LINTS_OF_TESTS;
use crate::{Failure, emulator, process};

/// The other architecture that has vector kernels.
const ARM: &str = "aarch64-unknown-linux-gnu";

#[derive(clap::Args)]
pub struct Args {
    /// Only the checks that take seconds: format, lints, unit tests; no whole-pipeline tests
    #[arg(long)]
    quick: bool,
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    process::forward_interrupts()?;
    let mut steps = vec![
        ("format", vec!["fmt", "--all", "--check"]),
        ("build", vec!["build", "--release", "--locked", "--workspace", "--bins"]),
        ("lints", vec!["clippy", "--release", "--locked", "--workspace", "--", "-D", "warnings"]),
        (
            "lints of tests",
            [&["clippy", "--release", "--locked", "--workspace", "--all-targets", "--"][..], &LINTS_OF_TESTS]
                .concat(),
        ),
    ];
    // One test at a time in the whole-pipeline crate: its tests measure time.
    if args.quick {
        steps.push((
            "tests",
            vec!["test", "--release", "--locked", "--workspace", "--exclude", "covid19-diag-tests"],
        ));
    } else {
        steps.push(("tests", vec!["test", "--release", "--locked", "--workspace", "--no-fail-fast"]));
    }
    if !args.quick {
        // Against a server on this machine that fails on purpose; unoptimised, since it waits more than it works.
        let cloud = ["--locked", "-p", "diag-data", "--features", "cloud"];
        steps.push(("object store client", [&["build", "--example", "place"], &cloud[..]].concat()));
        steps.push(("object store", [&["test", "--test", "cloud"], &cloud[..]].concat()));
    }
    if !args.quick && arm_is_here()? {
        // Other kernels, which nothing here can run: emulation would take most of the time there is.
        let check = ["check", "--release", "--locked", "--target", ARM, "-p", "candle-train-ops", "--tests"];
        steps.push(("types on AArch64", check.to_vec()));
    }
    if !args.quick && mpi_is_here()? {
        steps.push((
            "training under mpirun",
            vec![
                "test",
                "--release",
                "--locked",
                "--workspace",
                "--features",
                "diag-train/mpi",
                "--test",
                "ranks",
                "--",
                "mpi::",
            ],
        ));
    }
    let mut summary = Vec::new();
    for (name, arguments) in steps {
        eprintln!("== {name}: cargo {}", arguments.join(" "));
        let started = Instant::now();
        process::cargo(&arguments)?;
        summary.push(format!("{name} {:.0} s", started.elapsed().as_secs_f64()));
    }
    if !args.quick {
        let started = Instant::now();
        let name = emulator::check()?;
        summary.push(format!("{name} {:.0} s", started.elapsed().as_secs_f64()));
        // Some steps left programs behind that need an MPI library, or NVIDIA's.
        process::cargo(&["build", "--release", "--locked", "--workspace", "--bins"])?;
    }
    println!("all checks passed: {}", summary.join(", "));
    Ok(ExitCode::SUCCESS)
}

/// Whether code for AArch64 can be checked: its standard library is there. Without, it prints that it skips.
fn arm_is_here() -> Result<bool, Failure> {
    let printed = Command::new("rustc").args(["--print", "target-libdir", "--target", ARM]).output();
    let printed = printed.map_err(|err| Failure::new(err, "install Rust: https://rustup.rs"))?;
    let here = Path::new(String::from_utf8_lossy(&printed.stdout).trim()).is_dir();
    if !here {
        eprintln!("SKIPPED: types on AArch64 need its standard library: rustup target add {ARM}");
    }
    Ok(here)
}

/// Whether the feature `mpi` can be built and run: Open MPI with its headers. Without, a
/// loud word; a failure where nothing may be missing.
fn mpi_is_here() -> Result<bool, Failure> {
    let here = process::is_here("mpirun") && process::is_here("mpicc");
    if !here && std::env::var_os("COVID19_DIAG_REQUIRE_TOOLS").is_some() {
        let err = anyhow::anyhow!("mpirun and mpicc are required here and missing");
        return Err(Failure::new(err, "apt-get install libopenmpi-dev openmpi-bin libclang-dev"));
    }
    if !here {
        eprintln!("SKIPPED: training under mpirun needs mpirun and mpicc");
    }
    Ok(here)
}
