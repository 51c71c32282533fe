//! Explanation of a toy run: what is written, for which slices, and that it does so again.

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

mod toy;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use diag_data::case::Split;
use diag_data::heatmaps::{self, Explanations, Heatmap, Method};
use diag_data::run::RunDir;
use diag_train::evaluate::{EvaluateJob, evaluate};
use diag_train::explain::{ExplainJob, Explained, explain};
use diag_train::fit::{FitJob, fit};
use diag_train::{DeviceChoice, TrainError};

static STAY: AtomicBool = AtomicBool::new(false);

fn trained(folder: &Path) -> RunDir {
    let shards = toy::write_shards(folder, 6, 2);
    let recipe = toy::write_recipe(folder, "recipe.toml", toy::RECIPE);
    let run = folder.join("run");
    let device = DeviceChoice::Cpu;
    let job = FitJob {
        shards,
        recipe,
        run: run.clone(),
        device,
        threads: None,
        resume: false,
        checkpoint_seconds: 60.0,
        command: "fit".into(),
    };
    fit(&job, &STAY, &mut |_| ()).unwrap();
    evaluate(&EvaluateJob { run: run.clone(), shards: None, split: None, device, threads: None }, &STAY)
        .unwrap();
    RunDir::new(run)
}

fn job(run: &RunDir) -> ExplainJob {
    ExplainJob {
        run: run.root().into(),
        shards: None,
        external: None,
        split: Split::Test,
        truth: None,
        slices_per_case: 2,
        occlusion_slices_per_case: 1,
        device: DeviceChoice::Cpu,
        command: "explain".into(),
    }
}

fn read(run: &RunDir) -> Vec<Heatmap> {
    heatmaps::read(&run.heatmaps(), &run.read_info().unwrap().labels).unwrap()
}

/// A truth that knows one case, and no slice of it.
fn write_truth(folder: &Path, case: &str) -> std::path::PathBuf {
    let path = folder.join("truth.json");
    let text = format!(
        r#"{{"mask_size": 4, "cases": [{{"case_id": "{case}", "lesion_share": 0.2, "slices": []}}]}}"#
    );
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn every_head_of_every_chosen_slice_has_its_maps() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path());
    let explained = explain(&job(&run), &STAY).unwrap();
    let rows = read(&run);
    assert_eq!((explained.n_slices, explained.n_cases, explained.n_with_lesion), (12, 6, 0));
    assert_eq!(rows.len(), explained.n_maps);

    let slices: BTreeSet<_> = rows.iter().map(|row| (row.case_id.clone(), row.slice_index)).collect();
    assert!(slices.iter().all(|(_, index)| [1, 3].contains(index)), "evenly spread over 4 slices");
    let heads = run.read_info().unwrap().heads;
    for (case, index) in &slices {
        let of_slice = || rows.iter().filter(|row| (&row.case_id, row.slice_index) == (case, *index));
        let classes: BTreeSet<_> = of_slice().map(|row| row.class).collect();
        assert!((1..=2).contains(&classes.len()) && classes.contains(&of_slice().next().unwrap().label));
        let n = |method, head: &str| of_slice().filter(|r| r.method == method && r.head == head).count();
        for head in &heads {
            assert_eq!(n(Method::GradCam, head), classes.len());
            assert_eq!(n(Method::GradCamPlusPlus, head), classes.len());
        }
        assert_eq!(n(Method::Occlusion, "final"), if *index == 3 { classes.len() } else { 0 });
    }
    for row in &rows {
        assert_eq!(row.split, Split::Test);
        assert_eq!(row.values.iter().max() == Some(&255), row.peak > 0.0, "scaled to its own highest");
        assert!((0.0..=1.0).contains(&row.probability.unwrap()));
        assert!(row.randomised_correlation.is_none_or(|r| (-1.0..=1.0).contains(&r)));
    }
    assert!(rows.iter().filter(|row| row.peak > 0.0).count() > rows.len() / 2);

    let described: Explanations = diag_data::files::read_json(&run.explanations()).unwrap();
    assert_eq!(described.heatmaps_sha256, diag_data::files::sha256_file(&run.heatmaps()).unwrap());
    assert_eq!(Some(described.model_sha256), run.read_info().unwrap().model_sha256);
    assert!(described.lesion_share.is_empty() && described.truth_sha256.is_none());
}

#[test]
fn the_same_job_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path());
    let bytes = || {
        explain(&job(&run), &STAY).unwrap();
        [run.heatmaps(), run.explanations()].map(|path| std::fs::read(path).unwrap())
    };
    assert!(bytes() == bytes());
}

#[test]
fn a_truth_of_other_cases_and_an_unevaluated_run_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(folder.path());
    let truth = Some(write_truth(folder.path(), "somebody-else"));
    let err = explain(&ExplainJob { truth, ..job(&run) }, &STAY).unwrap_err();
    assert!(matches!(err, TrainError::Truth { .. }), "{err}");
    let case = read_first_test_case(&run);
    let truth = Some(write_truth(folder.path(), &case));
    let Explained { n_with_lesion, .. } = explain(&ExplainJob { truth, ..job(&run) }, &STAY).unwrap();
    assert_eq!(n_with_lesion, 0, "toys have no position, so no mask is theirs");
    let described: Explanations = diag_data::files::read_json(&run.explanations()).unwrap();
    assert_eq!(described.lesion_share.into_values().collect::<Vec<_>>(), [0.2]);

    let stopped = explain(&job(&run), &AtomicBool::new(true)).unwrap_err();
    assert!(matches!(stopped, TrainError::Stopped), "{stopped}");
    std::fs::remove_file(run.predictions()).unwrap();
    let err = explain(&job(&run), &STAY).unwrap_err();
    assert!(err.to_string().contains("evaluate"), "{err}");
}

fn read_first_test_case(run: &RunDir) -> String {
    let labels = run.read_info().unwrap().labels;
    let table = diag_data::predictions::Predictions::read(&run.predictions(), &labels).unwrap();
    table.rows.iter().find(|row| row.split == Split::Test).unwrap().case_id.to_string()
}
