//! What a user meets when something is wrong: two lines, the right exit code,
//! nothing half-written.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

use covid19_diag_tests::{
    output, program, smoke_run, stderr, succeed, test_data, tiny_cohort, tiny_cohort_copy, workspace,
};

/// Exit code, and an error of two lines: what and where, how to fix it.
#[track_caller]
fn check_refused(output: &Output, code: i32, what: &str) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    let mut lines = text.lines().skip_while(|line| !line.starts_with("error: "));
    let (error, fix) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    assert!(error.starts_with("error: ") && error.contains(what), "no `{what}` in: {text}");
    assert!(fix.trim_start().starts_with("fix: "), "{text}");
    assert!(!text.contains("panicked"), "{text}");
}

#[track_caller]
fn check_nothing_left(folder: &Path) {
    let left: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

fn ingest(dicom: &Path, labels: &Path, shards: &Path) -> Command {
    let mut command = program("ct-ingest");
    command
        .arg("dicom")
        .arg(dicom)
        .arg("--labels")
        .arg(labels)
        .arg("--out")
        .arg(shards)
        .args(["--select", "all"]);
    command
}

#[test]
fn an_empty_folder_is_refused() {
    let (empty, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let refused =
        output(&mut ingest(empty.path(), &tiny_cohort().join("labels.csv"), &out.path().join("shards")));
    check_refused(&refused, 1, "");
    check_nothing_left(out.path());
}

#[test]
fn a_missing_label_table_is_named() {
    let out = tempfile::tempdir().unwrap();
    let refused =
        output(&mut ingest(tiny_cohort(), Path::new("no-such-labels.csv"), &out.path().join("shards")));
    check_refused(&refused, 1, "no-such-labels.csv");
    check_nothing_left(out.path());
}

#[test]
fn an_unknown_label_of_a_declared_set_is_named() {
    let (out, tables) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let labels = tables.path().join("labels.csv");
    let table = fs::read_to_string(tiny_cohort().join("labels.csv")).unwrap();
    fs::write(&labels, table.replacen(",normal", ",", 1)).unwrap();
    let refused = output(&mut ingest(tiny_cohort(), &labels, &out.path().join("shards")));
    check_refused(&refused, 1, "label");
    check_nothing_left(out.path());
}

#[test]
fn a_damaged_file_costs_its_case_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let dicom = folder.path().join("dicom");
    tiny_cohort_copy(&dicom);
    let case = fs::read_dir(&dicom).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).min().unwrap();
    let slice = fs::read_dir(&case).unwrap().map(|e| e.unwrap().path()).min().unwrap();
    fs::write(&slice, &fs::read(&slice).unwrap()[..1000]).unwrap();
    let shards = folder.path().join("shards");
    let output = output(&mut ingest(&dicom, &dicom.join("labels.csv"), &shards));
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(!fs::read_to_string(shards.join("quarantine.jsonl")).unwrap().is_empty());
    succeed(program("ct-ingest").arg("verify").arg(&shards));
}

#[test]
fn an_unreadable_file_is_an_error_of_its_case() {
    let folder = tempfile::tempdir().unwrap();
    let dicom = folder.path().join("dicom");
    tiny_cohort_copy(&dicom);
    let case = fs::read_dir(&dicom).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).min().unwrap();
    // A link to itself cannot be read by anybody, not even by the superuser.
    std::os::unix::fs::symlink("loop.dcm", case.join("loop.dcm")).unwrap();
    let shards = folder.path().join("shards");
    let output = output(&mut ingest(&dicom, &dicom.join("labels.csv"), &shards));
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(fs::read_to_string(shards.join("quarantine.jsonl")).unwrap().contains("\"unreadable\""));
    succeed(program("ct-ingest").arg("verify").arg(&shards));
}

#[test]
fn a_full_disk_leaves_nothing() {
    let mount = tempfile::tempdir().unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(mount.path()).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: mounting a small disk needs the superuser");
        return;
    }
    let refused =
        output(&mut ingest(tiny_cohort(), &tiny_cohort().join("labels.csv"), &mount.path().join("shards")));
    let left = fs::read_dir(mount.path()).unwrap().count();
    succeed(Command::new("umount").arg(mount.path()));
    check_refused(&refused, 1, "");
    assert_eq!(left, 0, "half-written files on a full disk");
}

#[test]
fn an_existing_output_is_not_overwritten() {
    let out = tempfile::tempdir().unwrap();
    fs::write(out.path().join("precious"), b"x").unwrap();
    let refused = output(&mut ingest(tiny_cohort(), &tiny_cohort().join("labels.csv"), out.path()));
    check_refused(&refused, 1, "exists");
    assert_eq!(fs::read(out.path().join("precious")).unwrap(), b"x");
}

#[test]
fn an_unknown_key_of_a_recipe_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = folder.path().join("recipe.toml");
    let text = fs::read_to_string(workspace().join("tests/tiny-recipe.toml")).unwrap();
    fs::write(&recipe, format!("learning_rat = 0.1\n{text}")).unwrap();
    let refused = output(
        program("diag-train")
            .args(["fit", "--shards"])
            .arg(smoke_run().join("shards"))
            .arg("--recipe")
            .arg(&recipe)
            .arg("--out")
            .arg(folder.path().join("run")),
    );
    check_refused(&refused, 1, "learning_rat");
    assert!(!folder.path().join("run").exists());
}

#[test]
fn an_unknown_key_of_a_cohort_is_named_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let cohort = folder.path().join("cohort.toml");
    let text = fs::read_to_string(workspace().join("tests/tiny.toml")).unwrap();
    fs::write(&cohort, text.replace("siemens", "siemans")).unwrap();
    let out = folder.path().join("dicom");
    let refused =
        output(program("ct-phantom").arg("--cohort").arg(&cohort).args(["--seed", "1", "--out"]).arg(&out));
    check_refused(&refused, 2, "line 9: unknown field `siemans`");
    assert!(!out.exists());
}

#[test]
fn a_missing_input_is_named_by_every_program() {
    for arguments in [
        vec!["ct-ingest", "verify", "nowhere"],
        vec!["ct-ingest", "table", "nowhere"],
        vec!["ct-ingest", "inspect", "nowhere"],
        vec!["diag-train", "evaluate", "nowhere"],
        vec!["diag-train", "explain", "nowhere"],
        vec!["diag-report", "nowhere"],
        vec!["diag-predict", "nowhere", "nowhere"],
        vec!["diag-predict", "nowhere", "nowhere", "--each", "--out", "never"],
        vec!["diag-train", "export", "nowhere", "--out", "never"],
        vec!["ct-phantom", "--cohort", "nowhere.toml", "--seed", "1", "--out", "never"],
    ] {
        check_refused(&output(program(arguments[0]).args(&arguments[1..])), 1, "nowhere");
    }
}

#[test]
fn wrong_usage_is_exit_code_two() {
    for name in ["ct-phantom", "ct-ingest", "diag-train", "diag-predict", "diag-report"] {
        assert_eq!(output(program(name).arg("--no-such-flag")).status.code(), Some(2), "{name}");
        succeed(program(name).arg("--help"));
        succeed(program(name).arg("--version"));
    }
}

#[test]
fn no_broken_file_stops_an_inspection() {
    let Some(broken) = test_data("bad-dicom") else { return };
    let output = output(program("ct-ingest").arg("inspect").arg(broken));
    assert!(matches!(output.status.code(), Some(0 | 3)), "{}", stderr(&output));
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
}

/// `audit trivial` writes into the run that all tests share: one test at a time.
static WRITES_INTO_THE_RUN: Mutex<()> = Mutex::new(());

/// Commands with a result on standard output, of each program; what they write goes to `folder`.
fn answering(folder: &Path) -> Vec<Command> {
    let (out, cohort) = (smoke_run(), tiny_cohort());
    let (run, page) = (out.join("run"), folder.join("again.html"));
    let case = fs::read_dir(out.join("dicom")).unwrap();
    let case = case.map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    let with = |name: &str, arguments: &[&std::ffi::OsStr]| {
        let mut command = program(name);
        command.args(arguments);
        command
    };
    let root = folder.join("studies");
    fs::create_dir(&root).unwrap();
    std::os::unix::fs::symlink(&case, root.join("one")).unwrap();
    let (tables, model) = (folder.join("tables"), folder.join("model.safetensors"));
    let (run, cohort, case) = (run.as_os_str(), cohort.as_os_str(), case.as_os_str());
    vec![
        with("ct-ingest", &["inspect".as_ref(), cohort]),
        with("diag-train", &["audit".as_ref(), "trivial".as_ref(), run]),
        with("diag-train", &["export".as_ref(), run, "--out".as_ref(), model.as_os_str()]),
        with("diag-predict", &[run, case, "--json".as_ref()]),
        with(
            "diag-predict",
            &[run, root.as_os_str(), "--each".as_ref(), "--out".as_ref(), tables.as_os_str()],
        ),
        with("diag-report", &[run, "--json".as_ref(), "--out".as_ref(), page.as_os_str()]),
    ]
}

#[test]
fn a_closed_pipe_ends_every_program_quietly() {
    let _alone = WRITES_INTO_THE_RUN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    for mut command in answering(folder.path()) {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let text = stderr(&output);
        assert!(!text.contains("panicked") && !text.contains("error: "), "{command:?}: {text}");
        assert!(matches!(output.status.code(), Some(0 | 3)), "{command:?}: {:?}", output.status);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_standard_output_is_an_error() {
    let _alone = WRITES_INTO_THE_RUN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    for mut command in answering(folder.path()) {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = command.stdout(full).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        check_refused(&output, 1, "standard output");
    }
}
