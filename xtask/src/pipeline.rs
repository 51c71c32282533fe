//! `cargo xtask pipeline`: the whole way, from DICOM series to a report.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, anyhow};

use crate::stage::{Expected, Input, Ledger, Stage};
use crate::{Failure, process, workspace_root};

/// Seed of the synthetic cohort and of the split.
const SEED: &str = "1";

#[derive(clap::Args)]
pub struct Args {
    /// Folder for everything that is made
    #[arg(long, default_value = "runs/demo")]
    out: PathBuf,
    /// Synthetic cohort: smoke, paper or a TOML file
    #[arg(long, default_value = "smoke", conflicts_with = "dicom")]
    cohort: String,
    /// Your own DICOM folder, instead of a synthetic cohort
    #[arg(long, requires = "labels")]
    dicom: Option<PathBuf>,
    /// Label table of --dicom: CSV with the header case_id,label
    #[arg(long, requires = "dicom")]
    labels: Option<PathBuf>,
    /// What a case_id of --labels names: folder, patient-id or series-uid
    #[arg(long = "match", requires = "dicom", value_name = "WHAT")]
    matching: Option<String>,
    /// Which slices of --dicom are kept: lung or all
    #[arg(long, requires = "dicom", value_name = "WHICH")]
    select: Option<String>,
    /// File that fixes the classes of --labels and their order
    #[arg(long, requires = "dicom", value_name = "FILE.toml")]
    label_set: Option<PathBuf>,
    /// Secret key of the pseudonyms, as for ct-ingest
    #[arg(long, requires = "dicom", value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Training recipe; default: data/recipes/smoke.toml for the smoke cohort, else default.toml
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// Forget what an earlier run made in --out
    #[arg(long)]
    fresh: bool,
}

pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    process::forward_interrupts()?;
    let bin = build()?;
    let out = &args.out;
    let ledger_path = out.join("pipeline.json");
    std::fs::create_dir_all(out)
        .with_context(|| format!("cannot create {}", out.display()))
        .map_err(|err| Failure::new(err, "choose another --out"))?;
    let _lock = lock(out)?;
    if args.fresh {
        forget(out, &ledger_path)?;
    }
    let mut ledger = Ledger::load(&ledger_path);
    let recipe = recipe(args);
    let (shards, run) = (out.join("shards"), out.join("run"));

    let (dicom, labels) = match (&args.dicom, &args.labels) {
        (Some(dicom), Some(labels)) => (dicom.clone(), labels.clone()),
        _ => {
            let dicom = out.join("dicom");
            ledger.run(&ledger_path, &mut phantom(&bin, &args.cohort, &dicom))?;
            (dicom.clone(), dicom.join("labels.csv"))
        }
    };
    ledger.run(&ledger_path, &mut ingest(&bin, args, &dicom, &labels, &shards))?;
    check_size(&shards)?;
    ledger.run(&ledger_path, &mut train(&bin, args, &shards, &recipe, &run))?;
    ledger.run(&ledger_path, &mut evaluate(&bin, &shards, &run))?;
    ledger.run(&ledger_path, &mut trivial(&bin, &shards, &run))?;
    let truth = dicom.join("truth.json");
    let truth = args.dicom.is_none().then_some(truth.as_path());
    ledger.run(&ledger_path, &mut explain(&bin, &shards, &run, truth))?;
    ledger.run(&ledger_path, &mut report(&bin, &shards, &run))?;

    let report = run.join("report.html");
    let shown = std::path::absolute(&report).unwrap_or(report);
    Ok(diag_cli::finish(&shown.display().to_string(), ledger.outcome()))
}

/// Whether the stages that follow have something to work on.
fn check_size(shards: &Path) -> Result<(), Failure> {
    let path = shards.join("manifest.json");
    let read =
        || -> anyhow::Result<serde_json::Value> { Ok(serde_json::from_slice(&std::fs::read(&path)?)?) };
    let manifest = read()
        .with_context(|| format!("cannot read {}", path.display()))
        .map_err(|err| Failure::new(err, "run again with --fresh"))?;
    match missing(&manifest["table"]) {
        None => Ok(()),
        Some(missing) => {
            let error = anyhow!("the cohort is too small to be trained and tested on: {missing}");
            let fix = "label more cases: with two patients of a class, one is trained and one tested on; \
                       a cohort to test another network on needs `ct-ingest --split 0:1` alone";
            Err(Failure::new(error, fix))
        }
    }
}

/// What a table of cases by class and part lacks; `None` where training and evaluation can begin.
fn missing(table: &serde_json::Value) -> Option<String> {
    let classes = |part: &str| {
        let rows = table.as_array().into_iter().flatten();
        let rows = rows.filter(|row| row["split"] == part && row["n_cases"].as_u64() > Some(0));
        rows.filter_map(|row| row["label"].as_str()).collect::<std::collections::BTreeSet<_>>()
    };
    let (trained, tested) = (classes("train"), classes("test"));
    let mut missing = Vec::new();
    if trained.len() < 2 {
        missing.push(format!("the training part has cases of {} classes, and needs 2", trained.len()));
    }
    if tested.is_empty() {
        missing.push("the test part has no case".into());
    }
    (!missing.is_empty()).then(|| missing.join("; "))
}

/// Holds the output folder for this pipeline alone, until the file is dropped.
fn lock(out: &Path) -> Result<std::fs::File, Failure> {
    let path = out.join("pipeline.lock");
    let file = std::fs::File::create(&path)
        .with_context(|| format!("cannot create {}", path.display()))
        .map_err(|err| Failure::new(err, "choose another --out"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            let error = anyhow!("another pipeline works in {}", out.display());
            Err(Failure::new(error, "wait for it to end, or choose another --out"))
        }
        Err(std::fs::TryLockError::Error(err)) => Err(Failure::new(err, "choose another --out")),
    }
}

/// Builds the binaries beside this one and returns their folder.
fn build() -> Result<PathBuf, Failure> {
    process::cargo(&["build", "--quiet", "--release", "--locked", "--workspace", "--bins"])?;
    let own = std::env::current_exe().map_err(|err| Failure::new(err, "run through cargo xtask"))?;
    let folder = own.parent().map(Path::to_path_buf);
    folder.ok_or_else(|| Failure::new(anyhow!("no folder of binaries"), "run through cargo xtask"))
}

fn recipe(args: &Args) -> PathBuf {
    let smoke = args.dicom.is_none() && args.cohort == "smoke";
    let name = if smoke { "smoke.toml" } else { "default.toml" };
    args.recipe.clone().unwrap_or_else(|| workspace_root().join("data/recipes").join(name))
}

fn phantom(bin: &Path, cohort: &str, dicom: &Path) -> Stage {
    let mut command = Command::new(bin.join("ct-phantom"));
    command.args(["--cohort", cohort, "--seed", SEED, "--out"]).arg(dicom);
    let own_cohort = Path::new(cohort).is_file().then(|| Input::File(cohort.into()));
    Stage {
        name: "phantom",
        command,
        inputs: own_cohort.into_iter().collect(),
        outputs: vec![dicom.into()],
        proof: dicom.join("truth.json"),
        continues: false,
        expected: None,
    }
}

fn ingest(bin: &Path, args: &Args, dicom: &Path, labels: &Path, shards: &Path) -> Stage {
    let mut command = Command::new(bin.join("ct-ingest"));
    command
        .arg("dicom")
        .arg(dicom)
        .arg("--labels")
        .arg(labels)
        .arg("--out")
        .arg(shards)
        .args(["--seed", SEED]);
    for (flag, value) in [("--match", &args.matching), ("--select", &args.select)] {
        if let Some(value) = value {
            command.args([flag, value]);
        }
    }
    for (flag, file) in [("--label-set", &args.label_set), ("--key-file", &args.key_file)] {
        if let Some(file) = file {
            command.arg(flag).arg(file);
        }
    }
    if args.dicom.is_none() {
        // Nobody can be found behind a phantom's name, and truth.json uses it.
        command.arg("--keep-case-ids");
        if args.cohort == "paper" {
            // Its series hold exactly the slices that Table 1 counts.
            command.args(["--select", "all"]);
        }
    }
    Stage {
        name: "ingest",
        command,
        inputs: [Input::Folder(dicom.into()), Input::File(labels.into())]
            .into_iter()
            .chain([&args.label_set, &args.key_file].into_iter().flatten().cloned().map(Input::File))
            .collect(),
        outputs: vec![shards.into()],
        proof: shards.join("SHA256SUMS"),
        // Phantoms are drawn from one anatomy and look alike without being copies;
        // in a hospital's data the same finding is a reason to stop.
        continues: false,
        expected: args.dicom.is_none().then(|| Expected {
            quarantine: shards.join("quarantine.jsonl"),
            reason: "near-duplicates",
            why: "phantoms of one anatomy look alike; no two are of one patient",
        }),
    }
}

fn train(bin: &Path, args: &Args, shards: &Path, recipe: &Path, run: &Path) -> Stage {
    let mut command = Command::new(bin.join("diag-train"));
    command.arg("fit").arg("--shards").arg(shards).arg("--recipe").arg(recipe).arg("--out").arg(run);
    // What an interruption left is continued; the ledger removes what other inputs left.
    command.args(["--resume", "--device", &args.device]);
    Stage {
        name: "train",
        command,
        inputs: vec![Input::File(shards.join("SHA256SUMS")), Input::File(recipe.into())],
        outputs: vec![run.into()],
        proof: run.join("model.json"),
        continues: true,
        expected: None,
    }
}

fn evaluate(bin: &Path, shards: &Path, run: &Path) -> Stage {
    let mut command = Command::new(bin.join("diag-train"));
    command.arg("evaluate").arg(run).arg("--shards").arg(shards);
    Stage {
        name: "evaluate",
        command,
        inputs: vec![Input::File(shards.join("SHA256SUMS")), Input::File(run.join("model.safetensors"))],
        // The rule too: it belongs to these weights.
        outputs: [
            "decision.json",
            "predictions.parquet",
            "case_predictions.parquet",
            "case_predictions.csv",
            "metrics.json",
        ]
        .map(|name| run.join(name))
        .to_vec(),
        proof: run.join("metrics.json"),
        continues: false,
        expected: None,
    }
}

/// What a classifier gets that never looks at the lung, beside the network's result.
fn trivial(bin: &Path, shards: &Path, run: &Path) -> Stage {
    let mut command = Command::new(bin.join("diag-train"));
    command.args(["audit", "trivial"]).arg(run).arg("--shards").arg(shards);
    Stage {
        name: "baseline",
        command,
        inputs: vec![
            Input::File(shards.join("SHA256SUMS")),
            Input::File(run.join("predictions.parquet")),
            Input::File(run.join("case_predictions.parquet")),
        ],
        outputs: vec![run.join("trivial.json")],
        proof: run.join("trivial.json"),
        continues: false,
        expected: None,
    }
}

fn explain(bin: &Path, shards: &Path, run: &Path, truth: Option<&Path>) -> Stage {
    let mut command = Command::new(bin.join("diag-train"));
    command.arg("explain").arg(run).arg("--shards").arg(shards);
    let mut inputs = vec![
        Input::File(shards.join("SHA256SUMS")),
        Input::File(run.join("model.safetensors")),
        Input::File(run.join("predictions.parquet")),
    ];
    if let Some(truth) = truth {
        // The phantoms know where their lesions are: the maps are held against them.
        command.arg("--truth").arg(truth);
        inputs.push(Input::File(truth.into()));
    }
    Stage {
        name: "explain",
        command,
        inputs,
        outputs: vec![run.join("heatmaps.parquet"), run.join("explanations.json")],
        proof: run.join("explanations.json"),
        continues: false,
        expected: None,
    }
}

fn report(bin: &Path, shards: &Path, run: &Path) -> Stage {
    let mut command = Command::new(bin.join("diag-report"));
    command.arg(run);
    Stage {
        name: "report",
        command,
        inputs: vec![
            Input::File(shards.join("SHA256SUMS")),
            Input::File(run.join("run.json")),
            Input::File(run.join("epochs.jsonl")),
            Input::File(run.join("predictions.parquet")),
            Input::File(run.join("metrics.json")),
            Input::File(run.join("decision.json")),
            Input::File(run.join("explanations.json")),
            Input::File(run.join("trivial.json")),
        ],
        outputs: vec![run.join("report.html")],
        proof: run.join("report.html"),
        continues: false,
        expected: None,
    }
}

/// `--fresh` removes what a pipeline makes, and nothing else in the folder.
fn forget(out: &Path, ledger: &Path) -> Result<(), Failure> {
    for name in ["dicom", "shards", "run"] {
        let path = out.join(name);
        if path.is_dir() {
            std::fs::remove_dir_all(&path)
                .with_context(|| format!("cannot remove {}", path.display()))
                .map_err(|err| Failure::new(err, "check its permissions"))?;
        }
    }
    if ledger.is_file() {
        std::fs::remove_file(ledger).map_err(|err| Failure::new(err, "check its permissions"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rows: &[(&str, &str, u64)], want: Option<&str>) {
        let row = |(label, split, n_cases): &(&str, &str, u64)| serde_json::json!({"label": label, "split": split, "n_cases": n_cases});
        let table = serde_json::Value::Array(rows.iter().map(row).collect());
        assert_eq!(missing(&table).as_deref(), want);
    }

    #[test]
    fn a_cohort_needs_two_classes_to_train_on_and_a_case_to_test_on() {
        check(&[("a", "train", 1), ("b", "train", 1), ("b", "test", 1)], None);
        check(&[("a", "train", 1), ("b", "train", 1)], Some("the test part has no case"));
        let one = "the training part has cases of 1 classes, and needs 2";
        check(&[("a", "train", 3), ("b", "train", 0), ("b", "test", 1)], Some(one));
        let none = "the training part has cases of 0 classes, and needs 2";
        check(&[("a", "test", 3), ("b", "test", 1)], Some(none));
    }
}
