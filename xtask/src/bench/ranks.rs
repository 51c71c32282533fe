//! `cargo xtask bench ranks`: two ranks with one thread each beside one process with two.

use std::process::Command;

use super::step;
use crate::{Failure, process, workspace_root};

pub fn run(rounds: usize) -> Result<(), Failure> {
    const BUILD: [&str; 4] = ["build", "--release", "--locked", "--workspace"];
    process::cargo(&[&BUILD[..], &["--bins"]].concat())?;
    let own = std::env::current_exe().map_err(|err| Failure::new(err, "run through cargo xtask"))?;
    let bench = workspace_root().join("crates/diag-train/bench");
    let folder = own.with_file_name("bench-ranks");
    let (phantom, shards) = (folder.join("phantom"), folder.join("shards"));
    if !phantom.join("labels.csv").exists() {
        let mut command = Command::new(own.with_file_name("ct-phantom"));
        command.arg("--cohort").arg(bench.join("cohort.toml")).args(["--seed", "1", "--force", "--out"]);
        step(command.arg(&phantom))?;
    }
    if !shards.join("manifest.json").exists() {
        let mut command = Command::new(own.with_file_name("ct-ingest"));
        command.arg("dicom").arg(&phantom).arg("--labels").arg(phantom.join("labels.csv"));
        // Phantoms that look alike are named, which is no success; the shards are whole all the same.
        process::run(command.arg("--out").arg(&shards))?;
    }
    // The program with MPI trains alone and by TCP too, so all sides run the same one; it is
    // put aside, because whoever builds next gets one without.
    let with_mpi = process::is_here("mpirun") && process::is_here("mpicc");
    let program = folder.join("diag-train");
    if with_mpi {
        process::cargo(&[&BUILD[..], &["--bin", "diag-train", "--features", "diag-train/mpi"]].concat())?;
    } else {
        eprintln!("SKIPPED: MPI needs mpirun and mpicc; TCP alone is timed");
    }
    std::fs::copy(own.with_file_name("diag-train"), &program)
        .map_err(|err| Failure::new(err, "check that target/release can be written"))?;
    let mut command = Command::new("python3");
    command.arg(bench.join("ranks.py")).arg(program).arg(shards);
    command.arg(workspace_root().join("data/recipes/default.toml")).arg(folder).arg(rounds.to_string());
    if with_mpi {
        // Nothing is bound to a core, as on the other sides; a container's superuser may run it too.
        command.args(["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]);
    }
    step(&mut command)
}
