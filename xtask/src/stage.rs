//! A stage: a command that is skipped when its inputs did not change.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, anyhow};
use diag_cli::Outcome;
use serde::{Deserialize, Serialize};

use crate::fingerprint::Fingerprint;
use crate::{Failure, process};

/// Exit code of a stage that is done but has set something aside.
const SET_ASIDE: i32 = 3;

/// One command of the pipeline.
pub struct Stage {
    /// Its name on the screen.
    pub name: &'static str,
    /// What is run.
    pub command: Command,
    /// What it reads.
    pub inputs: Vec<Input>,
    /// Files or folders that it alone makes: removed before it runs again.
    pub outputs: Vec<PathBuf>,
    /// The output that is written last; the stage is not done without it.
    pub proof: PathBuf,
    /// Whether the command continues what it left when it was stopped, with the same inputs.
    pub continues: bool,
    /// What it may set aside without a word at the end.
    pub expected: Option<Expected>,
}

/// Entries of a quarantine that say nothing against the result.
pub struct Expected {
    /// The quarantine.
    pub quarantine: PathBuf,
    /// The reason that all its entries must have.
    pub reason: &'static str,
    /// Why that is no fault, for the screen.
    pub why: &'static str,
}

impl Expected {
    fn explains_all(&self) -> bool {
        let Ok(text) = std::fs::read_to_string(&self.quarantine) else { return false };
        let has_reason = |line: &str| {
            let entry = serde_json::from_str::<serde_json::Value>(line);
            entry.is_ok_and(|entry| entry["reason"] == self.reason)
        };
        text.lines().all(has_reason)
    }
}

/// Something that a stage reads.
pub enum Input {
    /// A file, known by its content.
    File(PathBuf),
    /// A folder of many large files, known by names, sizes and times.
    Folder(PathBuf),
}

/// What the last run of each stage read and how it ended.
#[derive(Default, Serialize, Deserialize)]
pub struct Ledger {
    stages: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    inputs_sha256: String,
    set_aside: bool,
    /// Written before the stage starts, so that what it leaves when it is killed is known as ours.
    finished: bool,
}

impl Ledger {
    /// Reads the ledger of an output folder; a damaged one counts as none.
    pub fn load(path: &Path) -> Self {
        std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    fn save(&self, path: &Path) -> anyhow::Result<()> {
        let staged = path.with_extension("part");
        std::fs::write(&staged, serde_json::to_vec_pretty(self)?)?;
        Ok(std::fs::rename(&staged, path)?)
    }

    /// Runs a stage, or says that it was skipped.
    pub fn run(&mut self, path: &Path, stage: &mut Stage) -> Result<(), Failure> {
        let hash =
            inputs_sha256(stage).map_err(|err| Failure::new(err, "check the path and its permissions"))?;
        let before = self.stages.get(stage.name);
        let same = before.filter(|entry| entry.inputs_sha256 == hash);
        if stage.proof.exists() && same.is_some_and(|entry| entry.finished) {
            eprintln!("{:>9}  skipped, inputs unchanged", stage.name);
            return Ok(());
        }
        let continued = stage.continues && same.is_some_and(|entry| !entry.finished);
        let ours = before.is_some();
        if !continued {
            for output in &stage.outputs {
                remove(output, ours)?;
            }
        }
        self.enter(
            stage.name,
            Entry { inputs_sha256: hash.clone(), set_aside: false, finished: false },
            path,
        )?;
        if continued && stage.outputs.iter().any(|output| output.exists()) {
            eprintln!("{:>9}  continues where it was stopped", stage.name);
        }
        eprintln!("{:>9}  {}", stage.name, process::shown(&stage.command));
        let started = Instant::now();
        // What a stage answers is progress here: standard output is for the report's path.
        let status = process::run(stage.command.stdout(std::io::stderr()))?;
        let mut set_aside = status.code() == Some(SET_ASIDE);
        if !(status.success() || set_aside) || !stage.proof.exists() {
            let error = anyhow!("stage {} failed ({status})", stage.name);
            return Err(Failure::new(error, "see its message above; finished stages are kept"));
        }
        eprintln!("{:>9}  done in {:.1} s", stage.name, started.elapsed().as_secs_f64());
        if let Some(expected) =
            stage.expected.as_ref().filter(|expected| set_aside && expected.explains_all())
        {
            eprintln!("{:>9}  {}", stage.name, expected.why);
            set_aside = false;
        }
        self.enter(stage.name, Entry { inputs_sha256: hash, set_aside, finished: true }, path)
    }

    fn enter(&mut self, name: &str, entry: Entry, path: &Path) -> Result<(), Failure> {
        self.stages.insert(name.into(), entry);
        self.save(path).map_err(|err| Failure::new(err, "check that the output folder can be written"))
    }

    /// How the whole ended: something was set aside when any stage did so.
    pub fn outcome(&self) -> Outcome {
        let set_aside = self.stages.iter().filter(|(_, entry)| entry.set_aside);
        let names: Vec<_> = set_aside.map(|(name, _)| name.as_str()).collect();
        if names.is_empty() {
            return Outcome::Done;
        }
        eprintln!("something was set aside in: {} (see quarantine.jsonl in the shards)", names.join(", "));
        Outcome::SetAside
    }
}

/// A stage depends on its program, its arguments and what it reads.
fn inputs_sha256(stage: &Stage) -> anyhow::Result<String> {
    let mut hash = Fingerprint::default();
    hash.file(Path::new(stage.command.get_program()))?;
    for word in stage.command.get_args() {
        hash.text(&word.to_string_lossy());
    }
    for input in &stage.inputs {
        match input {
            Input::File(path) => hash.file(path)?,
            Input::Folder(path) => hash.listing(path)?,
        }
    }
    Ok(hash.hex())
}

/// Clears the way for a stage. What the pipeline did not write, it does not remove.
fn remove(output: &Path, ours: bool) -> Result<(), Failure> {
    if !output.exists() {
        return Ok(());
    }
    if !ours {
        let error = anyhow!("{} exists and is not from this pipeline", output.display());
        return Err(Failure::new(error, "choose another --out, or pass --fresh to replace it"));
    }
    let removed =
        if output.is_dir() { std::fs::remove_dir_all(output) } else { std::fs::remove_file(output) };
    removed
        .with_context(|| format!("cannot remove {}", output.display()))
        .map_err(|err| Failure::new(err, "check its permissions"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A stage that appends a line to its output, so that runs can be counted.
    fn stage(root: &Path) -> Stage {
        let output = root.join("output");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "cat \"$0\" > \"$1\"; echo ran >> \"$2\""]);
        command.arg(root.join("input")).arg(&output).arg(root.join("log"));
        Stage {
            name: "copy",
            command,
            inputs: vec![Input::File(root.join("input"))],
            outputs: vec![output.clone()],
            proof: output,
            continues: false,
            expected: None,
        }
    }

    #[track_caller]
    fn check_runs(root: &Path, want: usize) {
        let path = root.join("pipeline.json");
        assert!(Ledger::load(&path).run(&path, &mut stage(root)).is_ok());
        assert_eq!(fs::read_to_string(root.join("log")).unwrap().lines().count(), want);
    }

    #[test]
    fn a_stage_runs_again_only_when_something_changed() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("input"), "a").unwrap();
        check_runs(root.path(), 1);
        check_runs(root.path(), 1);
        fs::write(root.path().join("input"), "b").unwrap();
        check_runs(root.path(), 2);
        fs::remove_file(root.path().join("output")).unwrap();
        check_runs(root.path(), 3);
    }

    #[test]
    fn a_file_of_somebody_else_is_not_removed() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("input"), "a").unwrap();
        fs::write(root.path().join("output"), "precious").unwrap();
        let path = root.path().join("pipeline.json");
        assert!(Ledger::load(&path).run(&path, &mut stage(root.path())).is_err());
        assert_eq!(fs::read_to_string(root.path().join("output")).unwrap(), "precious");
    }

    #[test]
    fn only_what_is_expected_may_be_set_aside() {
        let root = tempfile::tempdir().unwrap();
        let quarantine = root.path().join("quarantine.jsonl");
        let expected = Expected { quarantine: quarantine.clone(), reason: "near-duplicates", why: "" };
        assert!(!expected.explains_all(), "no quarantine explains nothing");
        fs::write(&quarantine, "{\"reason\":\"near-duplicates\"}\n").unwrap();
        assert!(expected.explains_all());
        fs::write(&quarantine, "{\"reason\":\"near-duplicates\"}\n{\"reason\":\"truncated\"}\n").unwrap();
        assert!(!expected.explains_all());
    }

    #[test]
    fn what_a_killed_stage_left_is_continued_or_removed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("pipeline.json");
        fs::write(root.path().join("input"), "a").unwrap();
        for (continues, input, want) in [(true, "a", "half\na"), (false, "a", "a"), (true, "b", "b")] {
            fs::write(root.path().join("input"), "a").unwrap();
            let _ = fs::remove_file(root.path().join("output"));
            let _ = fs::remove_file(&path);
            // It leaves a half, and ends as a kill would end it.
            let mut killed = Stage { continues, ..stage(root.path()) };
            let script = "echo half >> \"$1\"; exit 1";
            let at = root.path();
            let arguments = [at.join("input"), at.join("output"), at.join("log")];
            killed.command = Command::new("/bin/sh");
            let script_of = |stage: &mut Stage, first: &str| {
                let text = format!("if [ -e \"$2.first\" ]; then cat \"$0\" >> \"$1\"; else {first}; fi");
                stage.command.args(["-c", &text]).args(&arguments);
            };
            script_of(&mut killed, &format!("touch \"$2.first\"; {script}"));
            let _ = fs::remove_file(at.join("log.first"));
            assert!(Ledger::load(&path).run(&path, &mut killed).is_err());
            fs::write(at.join("input"), input).unwrap();
            let mut again = Stage { continues, ..stage(at) };
            again.command = Command::new("/bin/sh");
            script_of(&mut again, &format!("touch \"$2.first\"; {script}"));
            assert!(Ledger::load(&path).run(&path, &mut again).is_ok());
            assert_eq!(fs::read_to_string(at.join("output")).unwrap(), want, "{continues} {input}");
        }
    }

    #[test]
    fn a_failed_stage_is_tried_again() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("pipeline.json");
        assert!(Ledger::load(&path).run(&path, &mut stage(root.path())).is_err(), "its input is missing");
        fs::write(root.path().join("input"), "a").unwrap();
        check_runs(root.path(), 1);
    }
}
