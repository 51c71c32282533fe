//! Ctrl-C and SIGTERM: an error of two lines, nothing half-written, and the same
//! command goes on or starts again.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use covid19_diag_tests::{output, program, smoke_run, stderr, succeed, tiny_cohort, workspace};

/// Sends SIGTERM as soon as `ready` holds, and returns what the program then did.
#[track_caller]
fn interrupted(command: &mut Command, ready: impl Fn() -> bool) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while !ready() {
        assert!(started.elapsed() < Duration::from_secs(120), "{command:?} never got so far");
        std::thread::sleep(Duration::from_millis(2));
    }
    succeed(Command::new("kill").args(["-TERM", &child.id().to_string()]));
    let output = child.wait_with_output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("interrupted") && text.contains("\n  fix: "), "{text}");
    assert!(output.stdout.is_empty(), "an interrupted command has no result");
    output
}

/// Whether a name in the folder contains `part`.
fn holds(folder: &Path, part: &str) -> bool {
    names(folder).iter().any(|name| name.contains(part))
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn an_interrupted_phantom_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = program("ct-phantom");
    command.args(["--cohort", "smoke", "--seed", "1", "--out"]).arg(folder.path().join("dicom"));
    interrupted(&mut command, || holds(folder.path(), "dicom"));
    assert_eq!(names(folder.path()), [""; 0]);
}

#[test]
fn an_interrupted_ingest_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let shards = folder.path().join("shards");
    interrupted(&mut ingest(&shards), || holds(folder.path(), "shards"));
    assert!(!shards.exists());
    succeed(&mut ingest(&shards));
    assert_eq!(names(folder.path()), ["shards"]);
}

#[test]
fn an_interrupted_training_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (shards, run) = (folder.path().join("shards"), folder.path().join("run"));
    succeed(&mut ingest(&shards));
    let recipe = folder.path().join("recipe.toml");
    let text = fs::read_to_string(workspace().join("tests/tiny-recipe.toml")).unwrap();
    fs::write(&recipe, text.replace("epochs = 2\n", "epochs = 8\n")).unwrap();
    let mut fit = program("diag-train");
    fit.arg("fit").arg("--shards").arg(&shards).arg("--recipe").arg(&recipe).arg("--out").arg(&run);
    interrupted(&mut fit, || fs::read(run.join("epochs.jsonl")).is_ok_and(|lines| !lines.is_empty()));
    assert!(!holds(&run, "part"), "{:?}", names(&run));
    succeed(fit.arg("--resume"));
    assert_eq!(fs::read_to_string(run.join("epochs.jsonl")).unwrap().lines().count(), 8);
}

#[test]
fn an_interrupted_batch_of_predictions_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("predictions");
    let (run, studies) = (smoke_run().join("run"), smoke_run().join("dicom"));
    let mut each = program("diag-predict");
    each.arg(run).arg(studies).arg("--each").arg("--out").arg(&out).args(["--jobs", "1"]);
    interrupted(&mut each, || holds(&out.join(".studies"), "json"));
    assert_eq!(names(&out), [".studies"]);
    succeed(&mut each);
    assert_eq!(names(&out), [".studies", "predictions.csv", "predictions.parquet", "quarantine.jsonl"]);
}

#[test]
fn an_interrupted_pipeline_stops_its_stage_and_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let tests = workspace().join("tests");
    let mut pipeline = program("xtask");
    pipeline.arg("pipeline").arg("--out").arg(&out);
    pipeline.arg("--cohort").arg(tests.join("tiny.toml"));
    pipeline.arg("--recipe").arg(tests.join("tiny-recipe.toml"));
    interrupted(&mut pipeline, || holds(&out, "dicom"));
    assert_eq!(names(&out), ["pipeline.json", "pipeline.lock"]);
    let again = output(&mut pipeline);
    assert!(again.status.success(), "{}", stderr(&again));
}

fn ingest(shards: &Path) -> Command {
    let (dicom, mut command) = (tiny_cohort(), program("ct-ingest"));
    command.arg("dicom").arg(dicom).arg("--labels").arg(dicom.join("labels.csv")).arg("--out").arg(shards);
    command.args(["--select", "all"]);
    command
}
