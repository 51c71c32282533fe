//! `diag-predict` and the one-file model: the same decisions whichever way a case comes in, and
//! a batch that survives everything.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use covid19_diag_tests::{
    folder_of_programs, metric, output, program, python_with, smoke_run, stderr, succeed, test_data,
    workspace,
};
use diag_data::case::LabelSet;
use diag_data::case_predictions::{self, CasePrediction};
use diag_data::run::RunDir;
use diag_data::shard::ShardSet;
use serde_json::Value;

/// How many batches are killed; a long test takes more.
fn n_kills() -> u64 {
    std::env::var("COVID19_DIAG_PREDICT_KILLS").map_or(3, |text| text.parse().unwrap())
}

fn run() -> PathBuf {
    smoke_run().join("run")
}

fn labels() -> LabelSet {
    RunDir::new(run()).read_info().unwrap().labels
}

/// The run as one file, made once.
fn exported() -> &'static Path {
    static DONE: OnceLock<PathBuf> = OnceLock::new();
    DONE.get_or_init(|| {
        let out = folder_of_programs().join(format!("smoke-model-{}.safetensors", std::process::id()));
        succeed(program("diag-train").arg("export").arg(run()).arg("--out").arg(&out));
        out
    })
}

/// A folder of links to some studies of the smoke cohort.
fn some_studies(root: &Path, n_studies: usize) {
    let mut studies: Vec<PathBuf> = fs::read_dir(smoke_run().join("dicom"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    studies.sort();
    fs::create_dir_all(root).unwrap();
    for study in studies.into_iter().step_by(7).take(n_studies) {
        std::os::unix::fs::symlink(&study, root.join(study.file_name().unwrap())).unwrap();
    }
}

fn each(model: &Path, root: &Path, out: &Path) -> Command {
    let mut command = program("diag-predict");
    command.arg(model).arg(root).arg("--each").arg("--out").arg(out);
    command
}

/// The visible files of an output folder.
fn tables(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let names =
        fs::read_dir(out).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names
        .filter(|name| !name.starts_with('.'))
        .map(|name| (name.clone(), fs::read(out.join(name)).unwrap()))
        .collect()
}

fn rows(table: &Path) -> BTreeMap<String, CasePrediction> {
    let rows = case_predictions::read_csv(table, &labels()).unwrap();
    rows.into_iter().map(|row| (row.case_id.clone(), row)).collect()
}

#[test]
fn one_cohort_in_three_forms_is_decided_alike() {
    let folder = tempfile::tempdir().unwrap();
    let studies = smoke_run().join("dicom");
    let (of_run, of_file) = (folder.path().join("run"), folder.path().join("file"));
    succeed(each(&run(), &studies, &of_run).arg("--keep-case-ids"));
    succeed(each(exported(), &studies, &of_file).args(["--keep-case-ids", "--jobs", "1"]));
    // Run folder and one-file model, whatever the number of threads: the same bytes.
    assert_eq!(tables(&of_run), tables(&of_file));
    assert_eq!(tables(&of_run)["quarantine.jsonl"], b"");

    let published = rows(&run().join("case_predictions.csv"));
    let predicted = rows(&of_run.join("predictions.csv"));
    assert!(published.keys().eq(predicted.keys()), "not the same cases");
    assert!(published.len() > 100);
    let close =
        |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-6);
    for (case, want) in &published {
        let got = &predicted[case];
        assert_eq!(got.predicted, want.predicted, "{case}");
        assert!(close(&got.probability_k, &want.probability_k), "{case}: {got:?}");
        assert!(close(&got.mean_probability_k, &want.mean_probability_k), "{case}: {got:?}");
        assert!(got.set.is_some() && got.set == want.set, "{case}: {got:?}");
        assert!(got.call.is_some() && got.call == want.call, "{case}: {got:?}");
        assert_eq!(got.n_slices, want.n_slices, "{case}");
        let hashes = |row: &CasePrediction| (row.model_sha256.clone(), row.decision_sha256.clone());
        assert_eq!(hashes(got), hashes(want));
        assert_eq!((got.split, got.label), (None, None), "nobody told them");
    }
    let of_parquet = case_predictions::read_parquet(&of_run.join("predictions.parquet"), &labels()).unwrap();
    assert!(of_parquet.iter().eq(predicted.values()));
    // A second run over finished studies reads none of them again, and gives the same bytes.
    let before = tables(&of_run);
    succeed(each(&run(), &studies, &of_run).arg("--keep-case-ids"));
    assert_eq!(tables(&of_run), before);
}

#[test]
fn scikit_learn_recomputes_the_metrics_from_the_table() {
    let Some(python) = python_with("numpy, sklearn") else { return };
    let script = workspace().join("tests/case_metrics.py");
    let table = run().join("case_predictions.csv");
    let output = succeed(Command::new(python).arg(script).arg(table));
    let splits: BTreeMap<String, BTreeMap<String, f64>> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(splits.keys().eq(["test", "train", "validation"]));
    for (split, measures) in splits {
        assert_eq!(measures.len(), 6);
        for (measure, want) in measures {
            let got = metric(&run(), &["splits", &split, "decision", "case", &measure]);
            assert!((got - want).abs() < 1e-9, "{measure} of {split}: {got}, scikit-learn has {want}");
        }
    }
}

#[test]
fn an_exported_model_opens_elsewhere_and_its_bytes_repeat() {
    let folder = tempfile::tempdir().unwrap();
    let again = folder.path().join("again.safetensors");
    let mut export = program("diag-train");
    export.arg("export").arg(run()).arg("--out").arg(&again);
    succeed(&mut export);
    let bytes = fs::read(&again).unwrap();
    assert_eq!(bytes, fs::read(exported()).unwrap());
    // An earlier export is replaced; any other file is not.
    succeed(&mut export);
    fs::write(&again, "precious").unwrap();
    let refused = output(&mut export);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("exists") && fs::read(&again).unwrap() == b"precious");

    let Some(python) = python_with("json") else { return };
    let opened = |file: &Path| -> Value {
        let script = workspace().join("tests/open_model.py");
        serde_json::from_slice(&succeed(Command::new(&python).arg(script).arg(file)).stdout).unwrap()
    };
    let (one, weights) = (opened(exported()), opened(&run().join("model.safetensors")));
    assert_eq!(one["tensors"], weights["tensors"]);
    assert!(one["tensors"].as_object().unwrap().len() > 10);
    for part in ["model.json", "decision.json", "sha256"] {
        assert!(one["metadata"].as_array().unwrap().contains(&part.into()), "{part} is missing");
    }

    // The hashes of what the network has seen travel as they are, or not at all.
    let copy = folder.path().join("run");
    succeed(Command::new("cp").arg("-r").arg(run()).arg(&copy));
    let seen = "{\"a stand-in\": [1, 2]}\n";
    fs::write(copy.join("seen.json"), seen).unwrap();
    let metadata = |arguments: &[&str]| {
        let out = folder.path().join(format!("seen{}.safetensors", arguments.len()));
        succeed(program("diag-train").arg("export").arg(&copy).arg("--out").arg(&out).args(arguments));
        let bytes = fs::read(&out).unwrap();
        let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        header["__metadata__"].clone()
    };
    assert_eq!(metadata(&[])["seen"], seen);
    assert_eq!(metadata(&["--without-seen"])["seen"], Value::Null);
}

#[test]
fn a_model_that_was_changed_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let study = smoke_run().join("dicom/case-0001");
    let refused = |model: &Path, what: &str| {
        let output = output(program("diag-predict").arg(model).arg(&study));
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(
            stderr(&output).contains(what) && stderr(&output).contains("\n  fix: "),
            "{}",
            stderr(&output)
        );
        assert!(output.stdout.is_empty());
    };
    let bytes = fs::read(exported()).unwrap();
    let file = folder.path().join("model.safetensors");
    let mut changed = bytes.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&file, &changed).unwrap();
    refused(&file, "model.safetensors in it has another hash");
    let text = b"\\\"temperature\\\": ";
    let at = bytes.windows(text.len()).position(|window| window == text).unwrap() + text.len();
    let mut changed = bytes.clone();
    changed[at] = if changed[at] == b'1' { b'2' } else { b'1' };
    fs::write(&file, &changed).unwrap();
    refused(&file, "decision.json in it has another hash");
    refused(&run().join("model.safetensors"), "no model");
    // A rule that the run does not publish.
    let copy = folder.path().join("run");
    succeed(Command::new("cp").arg("-r").arg(run()).arg(&copy));
    let decision = fs::read_to_string(copy.join("decision.json")).unwrap();
    fs::write(copy.join("decision.json"), format!("{decision}\n")).unwrap();
    refused(&copy, "metrics.json");
    let export =
        output(program("diag-train").arg("export").arg(&copy).arg("--out").arg(folder.path().join("x")));
    assert_eq!(export.status.code(), Some(1));
    fs::remove_file(copy.join("decision.json")).unwrap();
    refused(&copy, "no decision.json");
}

/// A root with sound studies, an archive, a broken study, loose files and an odd name.
fn mixed_root(root: &Path) {
    some_studies(root, 12);
    let study = smoke_run().join("dicom/case-0002");
    zipped(&study, &root.join("packed.zip"));
    let odd = root.join("odd\u{1b}[2J\u{202e}name");
    std::os::unix::fs::symlink(&study, odd).unwrap();
    let broken = root.join("broken");
    fs::create_dir(&broken).unwrap();
    for entry in fs::read_dir(&study).unwrap() {
        let path = entry.unwrap().path();
        fs::write(broken.join(path.file_name().unwrap()), &fs::read(&path).unwrap()[..1000]).unwrap();
    }
    let two = root.join("two-studies");
    fs::create_dir(&two).unwrap();
    for case in ["case-0003", "case-0004"] {
        std::os::unix::fs::symlink(smoke_run().join("dicom").join(case), two.join(case)).unwrap();
    }
    fs::write(root.join("labels.csv"), "case_id,label\n").unwrap();
    let slice = fs::read_dir(&study).unwrap().next().unwrap().unwrap().path();
    fs::copy(slice, root.join("loose.dcm")).unwrap();
}

fn zipped(folder: &Path, archive: &Path) {
    let mut writer = zip::ZipWriter::new(fs::File::create(archive).unwrap());
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let options = zip::write::SimpleFileOptions::default();
        writer.start_file(format!("deep/{}", path.file_name().unwrap().to_string_lossy()), options).unwrap();
        std::io::Write::write_all(&mut writer, &fs::read(&path).unwrap()).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn what_cannot_be_read_is_set_aside_and_the_rest_is_predicted() {
    let folder = tempfile::tempdir().unwrap();
    let (root, out) = (folder.path().join("root"), folder.path().join("out"));
    mixed_root(&root);
    let output = output(each(&run(), &root, &out).args(["--keep-case-ids", "--json"]));
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((report["n_studies"].as_u64(), report["n_predicted"].as_u64()), (Some(16), Some(14)));
    assert_eq!(report["n_set_aside"], 3);
    let rows = rows(&out.join("predictions.csv"));
    let published = self::rows(&run().join("case_predictions.csv"));
    // An archive and a link are what they hold; control characters are escaped.
    for name in ["packed", "odd\\u{1b}[2J\\u{202e}name"] {
        let (got, want) = (&rows[name], &published["case-0002"]);
        assert_eq!((got.predicted, &got.set, got.call), (want.predicted, &want.set, want.call), "{name}");
    }
    let lines: Vec<Value> = fs::read_to_string(out.join("quarantine.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let reasons: Vec<(&str, &str)> = lines
        .iter()
        .map(|line| (line["source"].as_str().unwrap(), line["reason"].as_str().unwrap()))
        .collect();
    assert_eq!(reasons, [("broken", "truncated"), ("two-studies", "several-patients"), (".", "loose-files")]);
    for bytes in tables(&out).values().chain([&output.stdout, &output.stderr]) {
        assert!(!bytes.contains(&0x1b) || bytes.starts_with(b"PAR1"), "a control character came through");
    }

    // Pseudonyms: of synthetic studies those that ct-ingest makes, by the public key.
    let public = folder.path().join("public");
    assert_eq!(self::output(&mut each(&run(), &root, &public)).status.code(), Some(3));
    let pseudonyms = self::rows(&public.join("predictions.csv"));
    assert!(pseudonyms.keys().all(|name| name.starts_with("case-") && name.len() == 15), "{pseudonyms:?}");
    let csv = fs::read_to_string(public.join("predictions.csv")).unwrap();
    let quarantine = fs::read_to_string(public.join("quarantine.jsonl")).unwrap();
    assert!(!csv.contains("packed") && !csv.contains("odd") && !quarantine.contains("broken\""));
    let shards = folder.path().join("shards");
    let labels = folder.path().join("labels.csv");
    fs::write(&labels, "case_id,label\ncase-0001,covid-19\ncase-0008,normal\npacked,normal\n").unwrap();
    let mut ingest = program("ct-ingest");
    ingest.arg("dicom").arg(&root).arg("--labels").arg(&labels).arg("--out").arg(&shards);
    self::output(&mut ingest);
    let cases = ShardSet::open(&shards).unwrap().cases().unwrap();
    assert_eq!(cases.len(), 3);
    for case in cases {
        let name = case.case_id.as_str();
        assert!(pseudonyms.contains_key(name), "the same folder has the same name in shards and tables");
    }
    // Another key, other names.
    let key = folder.path().join("key");
    fs::write(&key, [7; 32]).unwrap();
    let keyed = folder.path().join("keyed");
    assert_eq!(self::output(each(&run(), &root, &keyed).arg("--key-file").arg(&key)).status.code(), Some(3));
    let keyed = self::rows(&keyed.join("predictions.csv"));
    assert!(keyed.len() == pseudonyms.len() && keyed.keys().all(|name| !pseudonyms.contains_key(name)));
}

#[test]
fn killed_batches_continue_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    mixed_root(&root);
    let batch = |out: &Path| {
        let mut command = each(&run(), &root, out);
        command.args(["--jobs", "2"]).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let whole = folder.path().join("whole");
    let started = std::time::Instant::now();
    assert_eq!(batch(&whole).status().unwrap().code(), Some(3));
    let (want, took) = (tables(&whole), started.elapsed());
    let n_finished = |out: &Path| {
        let entries = fs::read_dir(out.join(".studies")).into_iter().flatten().flatten();
        entries.filter(|entry| entry.path().extension().is_some_and(|e| e == "json")).count()
    };
    let (mut n_in_between, mut random) = (0, std::process::id() as u64);
    for round in 0..n_kills() {
        let out = folder.path().join(format!("killed-{round}"));
        let mut child = batch(&out).spawn().unwrap();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let share = (random >> 33) as f64 / f64::from(1_u32 << 31);
        std::thread::sleep(Duration::from_secs_f64(took.as_secs_f64() * share));
        // SIGKILL: nothing can be tidied up.
        let _ = child.kill();
        child.wait().unwrap();
        n_in_between += u64::from(n_finished(&out) > 0 && !out.join("predictions.csv").exists());
        assert_eq!(batch(&out).status().unwrap().code(), Some(3), "round {round}, killed after {share:.3}");
        assert_eq!(tables(&out), want, "round {round}, killed after {share:.3} of {took:?}");
        fs::remove_dir_all(&out).unwrap();
    }
    assert!(n_kills() < 10 || n_in_between > 0, "no batch was killed between studies");
}

#[test]
fn another_model_or_a_changed_study_is_predicted_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (root, out) = (folder.path().join("root"), folder.path().join("out"));
    some_studies(&root, 2);
    let changing = root.join("changing");
    succeed(Command::new("cp").arg("-r").arg(smoke_run().join("dicom/case-0005")).arg(&changing));
    let predict = |model: &Path| {
        succeed(each(model, &root, &out).arg("--keep-case-ids"));
        rows(&out.join("predictions.csv"))
    };
    let stored = || {
        let mut names: Vec<_> =
            fs::read_dir(out.join(".studies")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let first = predict(&run());
    let (of_first, n_slices) = (stored(), first["changing"].n_slices);
    // A study loses a slice.
    let slices = fs::read_dir(&changing).unwrap().map(|entry| entry.unwrap().path());
    fs::remove_file(slices.max().unwrap()).unwrap();
    let second = predict(&run());
    assert_eq!(second["changing"].n_slices, n_slices - 1);
    let of_second = stored();
    assert_eq!(of_first.len(), of_second.len(), "what is outdated goes");
    assert_eq!(of_first.iter().filter(|name| !of_second.contains(name)).count(), 1);
    // Another rule: nothing is taken over.
    let other = folder.path().join("run");
    succeed(Command::new("cp").arg("-r").arg(run()).arg(&other));
    fs::remove_file(other.join("metrics.json")).unwrap();
    let decision = fs::read_to_string(other.join("decision.json")).unwrap();
    fs::write(other.join("decision.json"), format!("{decision}\n")).unwrap();
    let third = predict(&other);
    for (case, row) in &third {
        assert_ne!(row.decision_sha256, second[case].decision_sha256);
        assert_eq!(row.probability_k, second[case].probability_k);
    }
    assert!(stored().iter().all(|name| name == "lock" || !of_second.contains(name)));
    // What a stopped run finds of an earlier one is no result of its own.
    fs::remove_dir_all(&root).unwrap();
    let refused = output(&mut each(&run(), &root, &out));
    assert_eq!(refused.status.code(), Some(1));
    assert!(out.join("predictions.csv").exists(), "an input that is not there costs nothing");
}

#[test]
fn an_output_folder_has_one_writer_and_is_not_taken_from_others() {
    let folder = tempfile::tempdir().unwrap();
    let (root, out) = (folder.path().join("root"), folder.path().join("out"));
    some_studies(&root, 1);
    fs::create_dir_all(&out).unwrap();
    fs::write(out.join("precious"), "x").unwrap();
    let refused = |out: &Path, what: &str| {
        let output = output(&mut each(&run(), &root, out));
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains(what), "{}", stderr(&output));
    };
    refused(&out, "exists");
    refused(&root, "exists");
    fs::remove_file(out.join("precious")).unwrap();
    succeed(&mut each(&run(), &root, &out));
    let lock = fs::File::open(out.join(".studies/lock")).unwrap();
    lock.lock().unwrap();
    refused(&out, "another run is writing");
    drop(lock);
    // Below the root, it is no study of the next run.
    let inside = root.join("predictions");
    let twice = [(); 2].map(|()| {
        succeed(&mut each(&run(), &root, &inside));
        tables(&inside)
    });
    assert_eq!(twice[0], twice[1]);
    assert_eq!(twice[0], tables(&out));
}

#[test]
fn a_study_is_a_folder_a_file_an_archive_or_a_volume_and_one_only() {
    let folder = tempfile::tempdir().unwrap();
    let study = smoke_run().join("dicom/case-0001");
    let json = |study: &Path| -> Value {
        let output = succeed(program("diag-predict").arg(exported()).arg(study).arg("--json"));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let of_folder = json(&study);
    let archive = folder.path().join("study.ZIP");
    zipped(&study, &archive);
    assert_eq!(json(&archive), of_folder);
    let tarball = folder.path().join("study.tar.gz");
    let (parent, name) = (study.parent().unwrap(), study.file_name().unwrap());
    succeed(Command::new("tar").arg("-czf").arg(&tarball).arg("-C").arg(parent).arg(name));
    assert_eq!(json(&tarball), of_folder);
    let refused = |study: &Path, what: &str| {
        let output = output(program("diag-predict").arg(exported()).arg(study));
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains(what), "{}", stderr(&output));
    };
    // One slice is a file, but no series.
    let slice = fs::read_dir(&study).unwrap().next().unwrap().unwrap().path();
    refused(&slice, "no axial CT series of at least 2 slices");
    // Two patients; then two studies of one.
    let two = folder.path().join("two");
    fs::create_dir(&two).unwrap();
    for case in ["case-0001", "case-0002"] {
        std::os::unix::fs::symlink(smoke_run().join("dicom").join(case), two.join(case)).unwrap();
    }
    refused(&two, "of 2 patients");
    refused(&two, "--each");
    let Some(volumes) = test_data("cases/orientation/nifti") else { return };
    let mut files: Vec<PathBuf> = fs::read_dir(volumes).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let report = json(&files[0]);
    assert!(report["n_source_slices"].as_u64() > Some(1), "{report}");
    refused(files[0].parent().unwrap(), "volumes");

    // Its header and its voxels in two files: the same; and the second file is a part of the study.
    let root = folder.path().join("volumes");
    fs::create_dir(&root).unwrap();
    let whole = succeed(Command::new("gzip").arg("-dc").arg(&files[0])).stdout;
    let mut header = whole[..348].to_vec();
    header[108..112].copy_from_slice(&0_f32.to_le_bytes());
    header[344..348].copy_from_slice(b"ni1\0");
    fs::write(root.join("pair.hdr"), header).unwrap();
    fs::write(root.join("pair.img"), &whole[352..]).unwrap();
    assert_eq!(json(&root.join("pair.hdr")), report);
    let out = folder.path().join("out");
    let mut batch = each(exported(), &root, &out);
    batch.arg("--keep-case-ids");
    succeed(&mut batch);
    assert_eq!(
        rows(&out.join("predictions.csv"))["pair"].n_slices as usize,
        report["slices"].as_array().unwrap().len()
    );
    fs::write(root.join("pair.img"), &whole[352..whole.len() / 2]).unwrap();
    assert_eq!(output(&mut batch).status.code(), Some(3));
    assert!(fs::read_to_string(out.join("quarantine.jsonl")).unwrap().contains("truncated"));
}

#[test]
fn a_model_of_phantoms_says_synthetic_wherever_it_speaks() {
    let folder = tempfile::tempdir().unwrap();
    let (root, out) = (folder.path().join("root"), folder.path().join("out"));
    some_studies(&root, 2);
    let study = smoke_run().join("dicom/case-0001");
    let said = |output: &Output, what: &str| {
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("synthetic"), "{what}: {text}");
    };
    for model in [&run(), exported()] {
        for json in [&[][..], &["--json"]] {
            said(&succeed(program("diag-predict").arg(model).arg(&study).args(json)), "a study");
            said(&succeed(each(model, &root, &out).args(json)), "a batch");
        }
    }
    for row in rows(&out.join("predictions.csv")).values() {
        assert!(row.warnings.iter().any(|warning| warning.contains("synthetic")), "{row:?}");
    }
    let parquet = case_predictions::read_parquet(&out.join("predictions.parquet"), &labels()).unwrap();
    assert!(parquet.iter().all(|row| row.warnings.iter().any(|warning| warning.contains("synthetic"))));
    let file = folder.path().join("model.safetensors");
    for json in [&[][..], &["--json"]] {
        let mut export = program("diag-train");
        said(&succeed(export.arg("export").arg(run()).arg("--out").arg(&file).args(json)), "an export");
    }
}
