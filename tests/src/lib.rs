//! What the whole-pipeline tests have in common: finding the built programs,
//! the outside tools and the test data.
//!
//! Build the programs first (`cargo build --release --workspace --bins`);
//! `cargo xtask ci` does.

pub mod chrome;
pub mod imports;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// Root of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// A program of this workspace, as built beside the running test. What it keeps for its user
/// is kept for the tests.
pub fn program(name: &str) -> Command {
    let folder = folder_of_programs();
    let mut command = Command::new(folder.join(name));
    command.env("XDG_CONFIG_HOME", folder.join("test-config")).env_remove("COVID19_DIAG_KEY_FILE");
    command
}

/// Where the programs of this workspace are.
pub fn folder_of_programs() -> PathBuf {
    // target/release/deps/test-hash: the programs lie one folder up.
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().and_then(Path::parent).unwrap().to_path_buf();
    assert!(
        folder.join("xtask").is_file(),
        "build the programs first: cargo build --release --workspace --bins"
    );
    folder
}

/// Runs a command and returns what it printed, whatever its exit code.
pub fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|err| panic!("cannot start {command:?}: {err}"))
}

/// Runs a command that must exit with 0.
#[track_caller]
pub fn succeed(command: &mut Command) -> Output {
    let output = output(command);
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, stderr(&output));
    output
}

/// Standard error as text.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The real test data, or `None` with a printed warning when the variable is not set.
/// Set, but without the file: a failure.
pub fn test_data(below: &str) -> Option<PathBuf> {
    let Some(root) = std::env::var_os("COVID19_DIAG_TEST_DATA") else {
        eprintln!("SKIPPED: needs {below}: COVID19_DIAG_TEST_DATA is not set");
        return None;
    };
    let path = Path::new(&root).join(below);
    assert!(path.exists(), "COVID19_DIAG_TEST_DATA is set, but {} is missing", path.display());
    Some(path)
}

/// A Python with the packages of `tests/requirements.txt`.
pub fn python() -> Option<PathBuf> {
    python_with("datasets, duckdb, mlcroissant, polars, pyarrow, sklearn")
}

/// A Python with some of them.
pub fn python_with(modules: &str) -> Option<PathBuf> {
    let own = workspace().join(".venv/bin/python");
    let python = std::env::var_os("COVID19_DIAG_PYTHON").map_or(own, PathBuf::from);
    let check = Command::new(&python).arg("-c").arg(format!("import {modules}")).output();
    let works = check.is_ok_and(|output| output.status.success());
    tool(works.then_some(python), "a Python with tests/requirements.txt (set COVID19_DIAG_PYTHON)")
}

/// Headless Chromium.
pub fn chromium() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let found = names.iter().find(|name| Command::new(name).arg("--version").output().is_ok());
    tool(found.map(PathBuf::from), "Chromium")
}

/// Whether a program is installed.
pub fn installed(program: &str, what: &str) -> Option<()> {
    let works = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    tool(works.then(|| PathBuf::from(program)), what).map(drop)
}

fn tool(found: Option<PathBuf>, what: &str) -> Option<PathBuf> {
    if found.is_none() {
        assert!(
            std::env::var_os("COVID19_DIAG_REQUIRE_TOOLS").is_none(),
            "{what} is required here and missing"
        );
        eprintln!("SKIPPED: needs {what}");
    }
    found
}

/// The output folder of the smoke pipeline, run once for all tests: a second
/// call, in this process or another, finds every stage done.
pub fn smoke_run() -> &'static Path {
    static DONE: OnceLock<PathBuf> = OnceLock::new();
    DONE.get_or_init(|| {
        let out = smoke_folder();
        succeed(program("xtask").args(["pipeline", "--out"]).arg(&out));
        out
    })
}

/// Where [`smoke_run`] puts its output.
pub fn smoke_folder() -> PathBuf {
    folder_of_programs().join("smoke-run")
}

/// A number of `metrics.json`, by its path of keys.
#[track_caller]
pub fn metric(run: &Path, keys: &[&str]) -> f64 {
    let text = std::fs::read(run.join("metrics.json")).unwrap();
    let metrics: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let value = keys.iter().fold(&metrics, |value, key| &value[*key]);
    value.as_f64().unwrap_or_else(|| panic!("metrics.json has no number at {keys:?}"))
}

/// A synthetic cohort of a few small cases, made once.
pub fn tiny_cohort() -> &'static Path {
    static DONE: OnceLock<PathBuf> = OnceLock::new();
    DONE.get_or_init(|| {
        let folder = folder_of_programs();
        let out = folder.join(format!("tiny-cohort-{}", std::process::id()));
        let cohort = workspace().join("tests/tiny.toml");
        succeed(program("ct-phantom").arg("--cohort").arg(cohort).args(["--seed", "3", "--out"]).arg(&out));
        out
    })
}

/// A copy of [`tiny_cohort`] that a test may damage.
pub fn tiny_cohort_copy(target: &Path) {
    succeed(Command::new("cp").arg("-r").arg(tiny_cohort()).arg(target));
}
