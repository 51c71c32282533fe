//! Shards and runs in an object store that fails, against an S3 server on loopback
//! with a proxy before it (tests/object_store.py of the workspace). That server is also
//! spoken to as Google's store is, whose XML interface is much the same; Microsoft's is
//! its own emulator (tests/azure_store.py), where one is installed.
//!
//! The store is found by the environment, so the work is done by a program of its
//! own: the example `place`.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use diag_data::case::{CaseId, Label, LabelSet, Split};
use diag_data::manifest::{KeyInfo, KeyKind, Layout, ShardSpec};
use diag_data::reader::ReaderSettings;
use diag_data::shard::{Job, Outcome, ShardWriter};
use diag_data::slice::{Acquisition, CtSlice, Geometry, Provenance, Selection};
use serde_json::{Value, json};

const SHARDS: &str = "s3://bucket/some/shards";

/// The server and the proxy before it.
struct Store {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    port: u16,
    /// Where working copies are made.
    scratch: tempfile::TempDir,
}

impl Store {
    /// `None`, with a printed warning, where Python or moto is missing.
    fn start() -> Option<Self> {
        let python = python();
        let check = Command::new(&python).args(["-c", "import moto.server"]).output();
        if !check.is_ok_and(|output| output.status.success()) {
            assert!(
                std::env::var_os("COVID19_DIAG_REQUIRE_TOOLS").is_none(),
                "a Python with moto is required here and missing"
            );
            eprintln!("SKIPPED: needs a Python with tests/requirements.txt (set COVID19_DIAG_PYTHON)");
            return None;
        }
        let mut child = Command::new(python)
            .arg(workspace().join("tests/object_store.py"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (commands, mut answers) =
            (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut port = String::new();
        answers.read_line(&mut port).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        Some(Self { child, commands, answers, port: port.trim().parse().unwrap(), scratch })
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer
    }

    /// The next `count` requests that hold `of` fail.
    fn fault(&mut self, kind: &str, count: usize, of: &str) {
        assert_eq!(self.ask(&format!("fault {kind} {count} {of}")).trim(), "ok");
    }

    /// Method, path, range, status and fault of what was asked for since the last call.
    fn requests(&mut self) -> Vec<Value> {
        serde_json::from_str(&self.ask("requests")).unwrap()
    }

    fn place(&self, arguments: &[&str]) -> Output {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        place(
            arguments,
            self.scratch.path(),
            &[
                ("AWS_ENDPOINT_URL", endpoint.as_str()),
                ("AWS_ALLOW_HTTP", "true"),
                ("AWS_REGION", "us-east-1"),
                ("AWS_ACCESS_KEY_ID", "test"),
                ("AWS_SECRET_ACCESS_KEY", "test"),
                ("GOOGLE_BASE_URL", endpoint.as_str()),
                ("GOOGLE_ALLOW_HTTP", "true"),
                ("GOOGLE_BEARER_TOKEN", "test"),
            ],
        )
    }

    #[track_caller]
    fn succeed(&self, arguments: &[&str]) -> String {
        succeeded(arguments, self.place(arguments))
    }

    #[track_caller]
    fn fail(&self, arguments: &[&str]) -> String {
        let output = self.place(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", stderr(&output));
        stderr(&output)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn python() -> PathBuf {
    std::env::var_os("COVID19_DIAG_PYTHON").map_or(workspace().join(".venv/bin/python"), PathBuf::from)
}

/// Runs the example with the environment of a store.
fn place(arguments: &[&str], scratch: &Path, store: &[(&str, &str)]) -> Output {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join("examples/place");
    let mut command = Command::new(program);
    command.args(arguments).env("TMPDIR", scratch).envs(store.iter().copied()).output().unwrap()
}

#[track_caller]
fn succeeded(arguments: &[&str], output: Output) -> String {
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// 420 slices that do not compress: two row groups of training slices in a file of
/// more than 8 MiB, which is uploaded in parts, and one small file.
fn make_shards(target: &Path) {
    const SIDE: u32 = 160;
    let spec = ShardSpec {
        labels: LabelSet::paper(),
        reader: ReaderSettings { size: SIDE, ..ReaderSettings::IMAGES },
        layout: Layout::Raw,
        with_hu: false,
        split_seed: None,
    };
    let key = KeyInfo { kind: KeyKind::Public, id: "0123abcd".into() };
    let job = Job { spec, key, tool: "test 0".into(), config: json!({}) };
    let mut writer = ShardWriter::create(target, job).unwrap();
    let mut state = 1u64;
    let mut grey = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    for i in 0..420 {
        let slice = CtSlice {
            case_id: CaseId::new(format!("case-{i:04}")).unwrap(),
            slice_index: 0,
            label: Label((i % 3) as u8),
            split: if i < 400 { Split::Train } else { Split::Test },
            pixels: (0..SIDE * SIDE).map(|_| grey()).collect(),
            hu: None,
            geometry: Geometry::default(),
            acquisition: Acquisition::default(),
            selection: Selection::default(),
            provenance: Provenance::default(),
        };
        writer.append(vec![slice]).unwrap();
    }
    writer.finish(Outcome::default(), |_| BTreeMap::from([("README.md".into(), b"card".to_vec())])).unwrap();
}

/// One test, because a fault is for whoever asks next.
#[test]
fn a_store_that_fails() {
    let Some(mut store) = Store::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let local = folder.path().join("shards");
    make_shards(&local);
    let local = local.to_str().unwrap();
    let want = store.succeed(&["verify", local]);

    // A copy that broke off is not taken for a whole one; the token is told to nobody.
    store.fault("expired", 1000, "SHA256SUMS");
    let said = store.fail(&["copy", local, SHARDS]);
    assert!(said.contains("ExpiredToken: The provided token has expired."), "{said}");
    assert!(said.contains("fix: renew the credential"), "{said}");
    assert!(!said.contains("secret-of-the-test"), "the token is in the message: {said}");
    store.fault("500", 0, "");
    let said = store.fail(&["verify", SHARDS]);
    assert!(said.contains("s3://bucket/some/shards/manifest.json"), "{said}");

    // Repeated, also over 500s, it is whole; what makes it so came last.
    store.requests();
    store.fault("500", 3, "PUT /bucket/some/shards/data/train");
    store.succeed(&["copy", local, SHARDS]);
    let asked = store.requests();
    assert_eq!(count(&asked, "500"), 3);
    let wrote = asked.iter().filter(|request| request[0] == "PUT" && request[3] == 200);
    assert_eq!(wrote.last().unwrap()[1], "/bucket/some/shards/manifest.json");
    assert!(
        asked.iter().any(|request| request[1].as_str().unwrap().contains("partNumber=2")),
        "no file was written in parts"
    );

    // Read there, by range only: the same rows and hashes.
    assert_eq!(store.succeed(&["verify", SHARDS]), want);
    let asked = store.requests();
    let of_data: Vec<&Value> = asked
        .iter()
        .filter(|request| request[0] == "GET" && request[1].as_str().unwrap().contains("/data/"))
        .collect();
    assert!(of_data.len() > 5, "{of_data:?}");
    assert!(of_data.iter().all(|request| request[2].is_string()), "a whole file was asked for: {of_data:?}");

    // A part of it: 256 of 400 training slices lie in a row group that is left out.
    let part = store.succeed(&["part", local, "256"]);
    assert!(part.starts_with("400 keys"), "{part}");
    assert_eq!(store.succeed(&["part", SHARDS, "256"]), part);
    let n_bytes: u64 = store.requests().iter().filter_map(|request| length(request[2].as_str()?)).sum();
    let pixels = 144 * 160 * 160;
    assert!((pixels..pixels + (1 << 18)).contains(&n_bytes), "{n_bytes} bytes for {pixels} of pixels");

    // Faults that pass.
    for (kind, n_faults, of) in [
        ("500", 3, "GET /bucket/some/shards"),
        ("500", 2, "HEAD /bucket/some/shards"),
        ("truncated", 3, "GET /bucket/some/shards/data"),
        ("slow", 1, "GET /bucket/some/shards/data"),
    ] {
        store.fault(kind, n_faults, of);
        assert_eq!(store.succeed(&["verify", SHARDS]), want, "{kind} {of}");
        let asked = store.requests();
        assert_eq!(count(&asked, kind), n_faults, "{kind} {of}");
    }

    // Faults that stay.
    store.fault("500", 1000, "GET /bucket/some/shards/data");
    let said = store.fail(&["verify", SHARDS]);
    assert!(said.contains("s3://bucket/some/shards/data/") && said.contains("fix: check the URL"), "{said}");
    store.fault("truncated", 1000, "GET /bucket/some/shards/data");
    let said = store.fail(&["verify", SHARDS]);
    assert!(said.contains("s3://bucket/some/shards/data/"), "{said}");
    store.fault("500", 0, "");

    // As Google's store, over faults too.
    store.requests();
    store.fault("500", 2, "PUT /bucket/google");
    check_store("gs://bucket/google", local, &want, |arguments| store.place(arguments));
    assert_eq!(count(&store.requests(), "500"), 2);
    store.fault("truncated", 2, "GET /bucket/google");
    assert_eq!(store.succeed(&["verify", "gs://bucket/google/shards"]), want);
    assert_eq!(count(&store.requests(), "truncated"), 2);

    // Back to a folder: the same bytes.
    let back = folder.path().join("back");
    store.succeed(&["copy", SHARDS, back.to_str().unwrap()]);
    let same = Command::new("diff").args(["-r", local]).arg(&back).status().unwrap();
    assert!(same.success());

    // A run is worked on in a copy, which a second program finds again, and which goes.
    check_run("s3://bucket/runs/one", |arguments| store.place(arguments));
    assert_eq!(std::fs::read_dir(store.scratch.path()).unwrap().count(), 0);
}

/// A run is found again by the next program that opens it.
#[track_caller]
fn check_run(run: &str, place: impl Fn(&[&str]) -> Output) {
    let work = |file: &str| {
        let arguments = ["work", run, file];
        succeeded(&arguments, place(&arguments)).trim().to_owned()
    };
    assert_eq!(work("run.json"), "run.json");
    assert_eq!(work("metrics.json"), "metrics.json run.json");
}

/// Shards go into another kind of store, are read there and come back; `want` is what
/// `verify` says of them. So does a run; what is not there is said to be missing.
#[track_caller]
fn check_store(root: &str, local: &str, want: &str, place: impl Fn(&[&str]) -> Output) {
    let folder = tempfile::tempdir().unwrap();
    let (shards, back) = (format!("{root}/shards"), folder.path().join("back"));
    let run = |arguments: &[&str]| succeeded(arguments, place(arguments));
    run(&["copy", local, &shards]);
    assert_eq!(run(&["verify", &shards]), want);
    assert_eq!(run(&["part", &shards, "256"]), run(&["part", local, "256"]));
    run(&["copy", &shards, back.to_str().unwrap()]);
    assert!(Command::new("diff").args(["-r", local]).arg(&back).status().unwrap().success());
    check_run(&format!("{root}/runs/one"), &place);
    let missing = place(&["verify", &format!("{root}/none")]);
    let said = stderr(&missing);
    assert!(said.contains("none/manifest.json") && said.contains("404") && said.contains("fix: "), "{said}");
}

/// Ends the emulator, whose standard input closes with it.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn azure() {
    let azurite = std::env::var_os("COVID19_DIAG_AZURITE").unwrap_or_else(|| "azurite-blob".into());
    if !Command::new(&azurite).arg("--version").output().is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: az:// needs azurite-blob (npm install azurite; set COVID19_DIAG_AZURITE)");
        return;
    }
    let mut server = Command::new(python())
        .arg(workspace().join("tests/azure_store.py"))
        .arg(azurite)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut port = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut port).unwrap();
    let _server = Ended(server);
    let folder = tempfile::tempdir().unwrap();
    let local = folder.path().join("shards");
    make_shards(&local);
    let local = local.to_str().unwrap();
    let endpoint = format!("http://127.0.0.1:{}", port.trim());
    let place = |arguments: &[&str]| {
        let emulator = [
            ("AZURE_STORAGE_USE_EMULATOR", "true"),
            ("AZURITE_BLOB_STORAGE_URL", endpoint.as_str()),
            ("AZURE_ALLOW_HTTP", "true"),
        ];
        place(arguments, folder.path(), &emulator)
    };
    let want = succeeded(&["verify"], place(&["verify", local]));
    check_store("az://bucket/some", local, &want, place);
}

/// Bytes of a range, `bytes=FIRST-LAST`.
fn length(range: &str) -> Option<u64> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    Some(last.parse::<u64>().ok()? + 1 - first.parse::<u64>().ok()?)
}

/// How often a fault happened.
fn count(asked: &[Value], kind: &str) -> usize {
    asked.iter().filter(|request| request[4] == kind).count()
}
