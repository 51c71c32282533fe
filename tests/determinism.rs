//! Same seed, same input, same bytes, with one thread and with two.

use std::path::Path;

use covid19_diag_tests::{program, succeed, tiny_cohort, workspace};

fn made_with(threads: &str, root: &Path) -> Vec<(&'static str, Vec<u8>)> {
    let (dicom, shards, run) = (root.join("dicom"), root.join("shards"), root.join("run"));
    let with_threads = |name: &str| {
        let mut command = program(name);
        command.env("RAYON_NUM_THREADS", threads);
        command
    };
    succeed(
        with_threads("ct-phantom")
            .arg("--cohort")
            .arg(workspace().join("tests/tiny.toml"))
            .args(["--seed", "3", "--out"])
            .arg(&dicom),
    );
    succeed(
        with_threads("ct-ingest")
            .arg("dicom")
            .arg(&dicom)
            .arg("--labels")
            .arg(dicom.join("labels.csv"))
            .arg("--out")
            .arg(&shards)
            .args(["--select", "all", "--seed", "1"]),
    );
    let recipe = workspace().join("tests/tiny-recipe.toml");
    succeed(
        with_threads("diag-train")
            .arg("fit")
            .arg("--shards")
            .arg(&shards)
            .arg("--recipe")
            .arg(recipe)
            .arg("--out")
            .arg(&run)
            .args(["--device", "cpu"]),
    );
    succeed(with_threads("diag-train").arg("evaluate").arg(&run).arg("--shards").arg(&shards));
    succeed(with_threads("diag-train").arg("explain").arg(&run).args(["--slices", "2"]));
    let files = [
        ("truth", dicom.join("truth.json")),
        ("shards", shards.join("SHA256SUMS")),
        ("loss curve", run.join("epochs.jsonl")),
        ("weights", run.join("model.safetensors")),
        ("predictions", run.join("predictions.parquet")),
        ("heat maps", run.join("heatmaps.parquet")),
    ];
    files.into_iter().map(|(name, path)| (name, std::fs::read(path).unwrap())).collect()
}

#[test]
fn one_thread_and_two_threads_give_the_same_bytes() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [one, two] = [made_with("1", folders[0].path()), made_with("2", folders[1].path())];
    for ((name, one), (_, two)) in one.iter().zip(&two) {
        assert!(one == two, "{name}: other bytes with two threads");
    }
}

#[test]
fn the_label_table_does_not_depend_on_the_run() {
    let again = tempfile::tempdir().unwrap();
    let out = again.path().join("dicom");
    succeed(
        program("ct-phantom")
            .arg("--cohort")
            .arg(workspace().join("tests/tiny.toml"))
            .args(["--seed", "3", "--out"])
            .arg(&out),
    );
    for name in ["labels.csv", "truth.json"] {
        assert_eq!(
            std::fs::read(out.join(name)).unwrap(),
            std::fs::read(tiny_cohort().join(name)).unwrap(),
            "{name}"
        );
    }
}
