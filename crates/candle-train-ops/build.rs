//! Compiles the CUDA kernels to PTX where the feature `cuda` is on; does nothing otherwise.

use std::env;
use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = "src/cuda/kernels.cu";

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-changed={SOURCE}");
    for name in ["NVCC", "CUDA_COMPUTE_CAP"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    let compiler = env::var("NVCC").unwrap_or_else(|_| "nvcc".to_owned());
    // PTX for 8.0, the first generation with bf16, runs on every newer card.
    let capability = env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "80".to_owned());
    let folder = env::var_os("OUT_DIR").map(PathBuf::from).ok_or("cargo sets no OUT_DIR")?;
    let status = Command::new(&compiler)
        .args(["--ptx", "-O3", &format!("-arch=compute_{capability}"), SOURCE, "-o"])
        .arg(folder.join("kernels.ptx"))
        .status()
        .map_err(|err| format!("{compiler} cannot be started: {err}; set NVCC to CUDA's compiler"))?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{compiler} refuses {SOURCE}: {status}")),
    }
}
