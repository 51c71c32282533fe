//! `cargo xtask bench train`: ResNet-18 by our operations, by PyTorch and by
//! onnxruntime, in one interleaved run.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::anyhow;

use crate::{Failure, process, workspace_root};

/// Rounds of the interleaved run: the machine's speed drifts, so each round times both.
const ROUNDS: usize = 3;

/// Multiplications and additions of a training step of 16 images.
const STEP_GFLOP: f64 = 165.0;

/// What both sides keep so that neither is timed faulting freed memory in again.
const TUNED: [(&str, &str); 2] = [("MALLOC_MMAP_MAX_", "0"), ("MALLOC_TRIM_THRESHOLD_", "8589934592")];

/// The work of one table row, and who does it beside us.
struct Contest {
    work: &'static str,
    peer: &'static str,
    script: &'static str,
}

const CONTESTS: [Contest; 4] = [
    Contest { work: "train", peer: "PyTorch channels_last", script: "step_torch.py" },
    Contest { work: "train-bf16", peer: "PyTorch bf16 autocast", script: "step_torch.py" },
    Contest { work: "infer", peer: "onnxruntime", script: "infer_onnx.py" },
    Contest { work: "infer-bf16", peer: "PyTorch bf16 autocast", script: "step_torch.py" },
];

/// The best of several runs: wall and CPU milliseconds a step, peak MiB.
#[derive(Clone, Copy)]
struct Best([f64; 3]);

impl Best {
    fn better(self, other: Self) -> Self {
        Self([0, 1, 2].map(|i| self.0[i].min(other.0[i])))
    }
}

pub fn run() -> Result<(), Failure> {
    process::cargo(&["build", "--release", "--locked", "--workspace", "--example", "step_bench"])?;
    let own = std::env::current_exe().map_err(|err| Failure::new(err, "run through cargo xtask"))?;
    let ours = own.with_file_name("examples").join("step_bench");
    let bench = workspace_root().join("crates/candle-train-ops/bench");
    let python = python(&own.with_file_name("bench-train"), &bench)?;
    println!(
        "| work | threads | allocator | peer | CPU ms, ours | theirs | ratio | wall ms, ours | theirs | ratio \
         | MiB, ours | theirs | ratio |"
    );
    println!("|{}", " --- |".repeat(13));
    let mut step_cpu_ms = f64::INFINITY;
    for Contest { work, peer, script } in &CONTESTS {
        if work.ends_with("bf16") && !multiplies_bf16() {
            println!("| {work}: not run, this processor does not multiply bf16 |");
            continue;
        }
        for threads in ["1", "2"] {
            for tuned in [true, false] {
                let measure = |program: &Path, arguments: &[&str]| {
                    let mut command = Command::new(program);
                    command.args(arguments).args([threads, "5"]).env("RAYON_NUM_THREADS", threads);
                    if tuned {
                        command.envs(TUNED);
                    }
                    measure(&mut command)
                };
                let script = bench.join(script).display().to_string();
                let peer_args = if *peer == "onnxruntime" { vec![&*script] } else { vec![&*script, work] };
                let mut best: Option<[Best; 2]> = None;
                for _ in 0..ROUNDS {
                    let round = [measure(&ours, &[work])?, measure(&python, &peer_args)?];
                    best = Some(match best {
                        Some([a, b]) => [a.better(round[0]), b.better(round[1])],
                        None => round,
                    });
                }
                let Some([Best(a), Best(b)]) = best else { continue };
                let cell = |i: usize| format!("{:.0} | {:.0} | {:.2}", a[i], b[i], a[i] / b[i]);
                let allocator = if tuned { "keeps" } else { "default" };
                println!(
                    "| {work} | {threads} | {allocator} | {peer} | {} | {} | {} |",
                    cell(1),
                    cell(0),
                    cell(2)
                );
                if *work == "train" && threads == "1" {
                    step_cpu_ms = step_cpu_ms.min(a[1]);
                }
            }
        }
    }
    floor(&ours, step_cpu_ms)?;
    scaling(&ours)
}

#[cfg(target_arch = "x86_64")]
fn multiplies_bf16() -> bool {
    is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn multiplies_bf16() -> bool {
    false
}

/// What a step would take if it were the plain multiplications alone, at the speed of
/// the `gemm` crate's largest products on the same core.
fn floor(ours: &Path, step_cpu_ms: f64) -> Result<(), Failure> {
    let Best([_, product_ms, _]) = measure(Command::new(ours).args(["gemm", "1", "10"]).envs(TUNED))?;
    // Two 1024 x 1024 matrices.
    let gflops = 2.0 * 1024f64.powi(3) / 1e9 / (product_ms / 1e3);
    let floor_ms = STEP_GFLOP / gflops * 1e3;
    println!();
    println!(
        "One core multiplies matrices at {gflops:.0} GFLOP/s, so the {STEP_GFLOP} GFLOP of a step take {floor_ms:.0} ms; \
         the step takes {step_cpu_ms:.0} ms, {:.2} of that.",
        step_cpu_ms / floor_ms
    );
    Ok(())
}

/// Time a sample over batch sizes.
fn scaling(ours: &Path) -> Result<(), Failure> {
    println!("\n| batch | CPU ms a sample |\n| --- | --- |");
    for batch in ["1", "8", "16", "32", "64"] {
        let mut command = Command::new(ours);
        command.args(["train", "1", "3", batch]).env("RAYON_NUM_THREADS", "1").envs(TUNED);
        let Best([_, cpu_ms, _]) = measure(&mut command)?;
        println!("| {batch} | {:.1} |", cpu_ms / batch.parse::<f64>().unwrap_or(f64::NAN));
    }
    Ok(())
}

/// The Python of `COVID19_DIAG_PYTHON`, or one of our own with the peers installed.
fn python(folder: &Path, bench: &Path) -> Result<PathBuf, Failure> {
    if let Ok(python) = std::env::var("COVID19_DIAG_PYTHON") {
        return Ok(python.into());
    }
    let python = folder.join("venv/bin/python");
    if !python.exists() {
        step(Command::new("python3").args(["-m", "venv"]).arg(folder.join("venv")))?;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"];
        step(Command::new(&python).args(pip).arg(bench.join("requirements.txt")))?;
    }
    Ok(python)
}

fn step(command: &mut Command) -> Result<(), Failure> {
    let status = process::run(command)?;
    if status.success() {
        return Ok(());
    }
    let remedy = "set COVID19_DIAG_PYTHON to a Python that has torch and onnxruntime";
    Err(Failure::new(anyhow!("{} failed ({status})", process::shown(command)), remedy))
}

/// Runs one side and reads `wall W ms, cpu C ms, peak P MiB` from its line.
fn measure(command: &mut Command) -> Result<Best, Failure> {
    let shown = process::shown(command);
    let failed = |reason: String| {
        let remedy = "set COVID19_DIAG_PYTHON to a Python that has torch and onnxruntime";
        Failure::new(anyhow!("{shown}: {reason}"), remedy)
    };
    let output = command.stderr(Stdio::inherit()).output().map_err(|err| failure_to_start(err, &shown))?;
    let line = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() {
        return Err(failed(output.status.to_string()));
    }
    let number = |name: &str| {
        let mut words = line.split([' ', ',']).skip_while(|word| *word != name);
        words.nth(1)?.parse::<f64>().ok()
    };
    match (number("wall"), number("cpu"), number("peak")) {
        (Some(wall), Some(cpu), Some(peak)) => Ok(Best([wall, cpu, peak])),
        _ => Err(failed(format!("printed `{line}`"))),
    }
}

fn failure_to_start(err: std::io::Error, shown: &str) -> Failure {
    Failure::new(anyhow!("cannot start {shown}: {err}"), "set COVID19_DIAG_PYTHON to a Python that has torch")
}
