//! The code for GPUs, on machines that have none: compiled by NVIDIA's compiler, run on an emulated GPU.

use std::{ffi::OsString, fs, path::Path, process::Command};

use anyhow::Context;

use crate::lints::LINTS_OF_TESTS;
use crate::{Failure, process, workspace_root};

/// The libraries that the emulator stands in for.
const LIBRARIES: [&str; 5] =
    ["libcuda.so.1", "libcudnn.so.9", "libcublas.so.13", "libcurand.so.10", "libnccl.so.2"];

/// Where the emulator is built.
const EMULATOR_TARGET: &str = "target/cuda-emulator";

/// The features that the default build leaves out for want of GPUs.
const FEATURES: &str = "diag-train/nccl,diag-predict/cuda";

/// Lints the code for GPUs and runs its tests on the emulator; where NVIDIA's compiler cannot be
/// had, only lints it. Returns what was done.
pub fn check() -> Result<&'static str, Failure> {
    let cuda = workspace_root().join("crates/candle-train-ops/cuda");
    let toolchain = workspace_root().join("target/cuda-toolchain");
    let mut fetch = Command::new(cuda.join("setup-toolchain.sh"));
    fetch.arg(&toolchain).current_dir(workspace_root());
    eprintln!("== NVIDIA's compiler: {}", process::shown(&fetch));
    if !process::run(&mut fetch)?.success() {
        eprintln!(
            "SKIPPED: NOTHING RUNS ON AN EMULATED GPU: NVIDIA's compiler is not here, its messages stand above"
        );
        let mut environment = compiler(&cuda.join("stand-in-nvcc"));
        // In a folder of its own: what the stand-in makes is empty.
        environment.push(("CARGO_TARGET_DIR", workspace_root().join("target/cuda-types").into()));
        lint(&environment)?;
        return Ok("lints of the CUDA code");
    }
    let mut environment = compiler(&toolchain.join("cuda/bin/nvcc-slim"));
    let root = toolchain.join("cuda").into_os_string();
    environment.extend([("CUDA_HOME", root.clone()), ("CUDA_PATH", root)]);
    if was_built_by_stand_in() {
        process::cargo(&["clean", "--release", "-p", "candle-kernels"])?;
    }
    lint(&environment)?;
    build_emulator()?;
    environment.push(("LD_LIBRARY_PATH", libraries().map_err(|err| Failure::new(err, "build again"))?));
    // A function that the emulator does not have is named.
    environment.push(("CUDA_SHIM_DEBUG", "1".into()));
    let test = ["test", "--release", "--locked", "--workspace", "--features", FEATURES];
    environment.push(("CUDA_EMULATOR_DEVICES", "2".into()));
    environment.push(("COVID19_DIAG_REQUIRE_GPU", "1".into()));
    let other_order = [&environment[..], &[("CUDA_EMULATOR_OTHER_ORDER", "1".into())]].concat();
    for (tests, environment) in [
        (&["--test", "cuda", "--test", "gpu"][..], &environment),
        (&["--test", "together", "--test", "ranks", "--", "gpu::"], &environment),
        (&["--test", "cuda", "--test", "together"], &other_order),
    ] {
        let arguments = [&test[..], tests].concat();
        eprintln!("== CUDA code on emulated GPUs: cargo {}", arguments.join(" "));
        process::cargo_with(&arguments, environment)?;
    }
    Ok("CUDA code on emulated GPUs")
}

/// Checks, tests and builds the emulator, a workspace of its own.
fn build_emulator() -> Result<(), Failure> {
    let own = ["--manifest-path", "tools/cuda-emulator/Cargo.toml"];
    process::cargo(&[&["fmt", "--check"][..], &own].concat())?;
    let own = [&own[..], &["--release", "--locked", "--target-dir", EMULATOR_TARGET]].concat();
    process::cargo(&[&["clippy"][..], &own, &["--all-targets", "--"], &LINTS_OF_TESTS].concat())?;
    process::cargo(&[&["test"][..], &own].concat())?;
    process::cargo(&[&["build"][..], &own].concat())
}

fn lint(environment: &[(&str, OsString)]) -> Result<(), Failure> {
    let what = ["clippy", "--release", "--locked", "--workspace", "--all-targets", "--features", FEATURES];
    let arguments = [&what[..], &["--"], &LINTS_OF_TESTS].concat();
    eprintln!("== lints of the CUDA code: cargo {}", arguments.join(" "));
    process::cargo_with(&arguments, environment)
}

/// What the build scripts of cudarc, candle and our own kernels read.
fn compiler(nvcc: &Path) -> Vec<(&'static str, OsString)> {
    vec![("NVCC", nvcc.into()), ("CUDA_COMPUTE_CAP", "80".into()), ("CUDARC_CUDA_VERSION", "13000".into())]
}

/// Whether a stand-in's empty kernels lie in the target folder, from a check that was not told to keep
/// out of it: candle's build script would take them for NVIDIA's.
fn was_built_by_stand_in() -> bool {
    let built = fs::read_dir(workspace_root().join("target/release/build")).into_iter().flatten().flatten();
    built.filter(|entry| entry.file_name().to_string_lossy().starts_with("candle-kernels-")).any(|entry| {
        fs::metadata(entry.path().join("out/affine.ptx")).is_ok_and(|kernels| kernels.len() == 0)
    })
}

/// A folder with the emulator under the names by which programs look for NVIDIA's libraries. One
/// file, so that it is loaded once.
fn libraries() -> anyhow::Result<OsString> {
    let built = workspace_root().join(EMULATOR_TARGET).join("release");
    let folder = built.join("libraries");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for name in LIBRARIES {
        let library = folder.join(name);
        let _ = fs::remove_file(&library);
        fs::hard_link(built.join("libcuda_emulator.so"), &library)
            .with_context(|| format!("cannot make {}", library.display()))?;
    }
    Ok(folder.into_os_string())
}
