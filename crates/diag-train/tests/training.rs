//! Training on toy shards: what a run leaves behind, and that it does so again.

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

mod toy;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use diag_data::case::Split;
use diag_data::predictions::Predictions;
use diag_data::run::RunDir;
use diag_train::evaluate::{EvaluateJob, Metrics, evaluate};
use diag_train::fit::{FitJob, FitSummary, fit};
use diag_train::progress::Event;
use diag_train::{DeviceChoice, TrainError};

fn job(folder: &Path, recipe: PathBuf, run: &str) -> FitJob {
    FitJob {
        shards: folder.join("shards"),
        recipe,
        run: folder.join(run),
        device: DeviceChoice::Auto,
        threads: None,
        resume: false,
        checkpoint_seconds: 0.0,
        command: "diag-train fit".into(),
    }
}

fn train(folder: &Path, recipe: &str, run: &str) -> Result<FitSummary, TrainError> {
    let recipe = toy::write_recipe(folder, &format!("{run}.toml"), recipe);
    fit(&job(folder, recipe, run), &AtomicBool::new(false), &mut |_| ())
}

fn measure(folder: &Path, run: &str) -> Metrics {
    let job = EvaluateJob {
        run: folder.join(run),
        shards: None,
        split: None,
        device: DeviceChoice::Cpu,
        threads: None,
    };
    evaluate(&job, &AtomicBool::new(false)).unwrap()
}

#[test]
fn a_run_learns_and_leaves_a_whole_folder() {
    let folder = tempfile::tempdir().unwrap();
    toy::write_shards(folder.path(), 10, 4);
    let summary = train(folder.path(), &toy::RECIPE.replace("epochs = 4", "epochs = 10"), "run").unwrap();
    assert_eq!(summary.epochs.len(), 10);
    let metrics = measure(folder.path(), "run");
    let test = &metrics.splits["test"];
    assert_eq!(test.case["mean"].n, 12);
    assert!(test.case["mean"].balanced_accuracy.unwrap() >= 0.9, "{test:?}");

    let run = RunDir::new(folder.path().join("run"));
    let info = run.read_info().unwrap();
    assert!(info.shards.synthetic);
    assert_eq!(info.heads, ["stage1", "stage2", "stage3", "stage4", "final"]);
    assert_eq!(info.model_sha256.as_deref(), Some(metrics.model_sha256.as_str()));
    assert_eq!(info.cases["validation"]["normal"], 2);
    assert_eq!(info.cases["train"]["normal"], 8);
    let epochs = run.read_epochs().unwrap();
    assert_eq!(epochs, summary.epochs);
    assert!(epochs.iter().all(|epoch| epoch.loss_state.contains_key("alpha")));
    let predictions = Predictions::read(&run.predictions(), &info.labels).unwrap();
    let n = |split| predictions.rows.iter().filter(|row| row.split == split).count();
    assert_eq!(Split::ALL.map(n), [96, 24, 48]);
}

#[test]
fn the_number_of_threads_changes_no_byte() {
    let folder = tempfile::tempdir().unwrap();
    toy::write_shards(folder.path(), 5, 1);
    for n_threads in [1, 2] {
        let recipe = format!("threads = {n_threads}\n{}", toy::RECIPE);
        train(folder.path(), &recipe, &format!("run{n_threads}")).unwrap();
    }
    for file in ["epochs.jsonl", "model.safetensors", "checkpoint/state.safetensors"] {
        let [one, two] =
            ["run1", "run2"].map(|run| std::fs::read(folder.path().join(run).join(file)).unwrap());
        // The checkpoint's header holds the wall time; its tensors must agree.
        let same = if file.starts_with("checkpoint") { tensors(&one) == tensors(&two) } else { one == two };
        assert!(same, "{file} depends on the number of threads");
    }
}

/// The content of a safetensors file behind its header.
fn tensors(file: &[u8]) -> &[u8] {
    let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    &file[8 + header..]
}

#[test]
fn a_stopped_run_goes_on_as_if_it_had_not_been() {
    for optimiser in ["adamw", "sgd"] {
        let folder = tempfile::tempdir().unwrap();
        toy::write_shards(folder.path(), 5, 1);
        let recipe = toy::RECIPE.replace("\"adamw\"", &format!("\"{optimiser}\""));
        let whole = train(folder.path(), &recipe, "whole").unwrap();
        let recipe = toy::write_recipe(folder.path(), "stopped.toml", &recipe);
        let mut job = job(folder.path(), recipe, "stopped");
        // Stops in the first epoch, then in the third, in the middle of either.
        for n_steps in [2, 9] {
            let stop = AtomicBool::new(false);
            let mut seen = 0;
            let stopped = fit(&job, &stop, &mut |event| {
                if let Event::Batch { .. } = event {
                    seen += 1;
                    stop.store(seen >= n_steps, std::sync::atomic::Ordering::Relaxed);
                }
            });
            assert!(matches!(stopped, Err(TrainError::Interrupted { .. })), "{stopped:?}");
            job.resume = true;
        }
        let resumed = fit(&job, &AtomicBool::new(false), &mut |_| ()).unwrap();
        assert_eq!(resumed.epochs, whole.epochs);
        for file in ["epochs.jsonl", "model.safetensors", "events.out.tfevents.1.diag-train"] {
            let [whole, resumed] =
                ["whole", "stopped"].map(|run| std::fs::read(folder.path().join(run).join(file)).unwrap());
            assert!(whole == resumed, "{file} differs after two stops, {optimiser}");
        }
    }
}

#[test]
fn a_run_is_neither_overwritten_nor_resumed_with_another_recipe() {
    let folder = tempfile::tempdir().unwrap();
    toy::write_shards(folder.path(), 3, 1);
    let recipe = toy::RECIPE.replace("epochs = 4", "epochs = 1");
    train(folder.path(), &recipe, "run").unwrap();
    assert!(matches!(train(folder.path(), &recipe, "run"), Err(TrainError::RunExists { .. })));
    let other = toy::write_recipe(folder.path(), "other.toml", &recipe.replace("seed = 1", "seed = 2"));
    let job = FitJob { resume: true, ..job(folder.path(), other, "run") };
    let err = fit(&job, &AtomicBool::new(false), &mut |_| ()).unwrap_err();
    let TrainError::Changed { what: "recipe", how, .. } = &err else { panic!("{err}") };
    assert_eq!(how, "seed: 1 before, 2 now");
}

#[test]
fn epochs_may_be_added_and_an_evaluation_of_the_weights_before_goes() {
    let folder = tempfile::tempdir().unwrap();
    toy::write_shards(folder.path(), 6, 1);
    let recipe = toy::RECIPE.replace("epochs = 4", "epochs = 1");
    train(folder.path(), &recipe, "run").unwrap();
    let run = RunDir::new(folder.path().join("run"));
    for path in [run.decision(), run.metrics(), run.heatmaps()] {
        std::fs::write(path, "of the weights before").unwrap();
    }
    let resume = |epochs: u32, notes: &mut Vec<String>| {
        let text = recipe.replace("epochs = 1", &format!("epochs = {epochs}"));
        let file = toy::write_recipe(folder.path(), "more.toml", &text);
        let job = FitJob { resume: true, ..job(folder.path(), file, "run") };
        fit(&job, &AtomicBool::new(false), &mut |event| {
            if let Event::Note(note) = event {
                notes.push(note);
            }
        })
    };
    let mut notes = Vec::new();
    // As it is: nothing is trained, so nothing goes.
    resume(1, &mut notes).unwrap();
    assert!(run.decision().exists());
    assert_eq!(resume(3, &mut notes).unwrap().epochs.len(), 3);
    assert!(notes.iter().any(|note| note.starts_with("3 epochs instead of 1")), "{notes:?}");
    assert!(![run.decision(), run.metrics(), run.heatmaps()].iter().any(|path| path.exists()));
    let err = resume(2, &mut notes).unwrap_err();
    assert!(err.to_string().contains("epochs: 3 before, 2 now"), "{err}");
}

#[test]
fn divergence_names_head_and_part_and_keeps_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    toy::write_shards(folder.path(), 3, 1);
    let recipe = toy::RECIPE
        .replace("\"adamw\"", "\"sgd\"")
        .replace("learning_rate = 0.003", "learning_rate = 1e30")
        .replace("warmup_epochs = 0.5", "warmup_epochs = 0.0");
    let err = train(folder.path(), &recipe, "run").unwrap_err();
    let TrainError::Diverged { head, term, .. } = &err else { panic!("{err}") };
    assert!(!head.is_empty() && !term.is_empty());
}

/// A network gives each true class one answer, right or wrong as a whole, so that
/// single runs scatter by thirds; their mean does not.
#[test]
fn shuffled_labels_teach_nothing() {
    let folder = tempfile::tempdir().unwrap();
    toy::write_shards(folder.path(), 10, 10);
    let mut balanced = Vec::new();
    for seed in 1..=6 {
        let recipe = format!("shuffle_labels = true\n{}", toy::RECIPE);
        let run = format!("run{seed}");
        train(folder.path(), &recipe.replace("seed = 1", &format!("seed = {seed}")), &run).unwrap();
        let measures = &measure(folder.path(), &run).splits["test"].case["mean"];
        balanced.push(measures.balanced_accuracy.unwrap());
    }
    let mean = balanced.iter().sum::<f64>() / balanced.len() as f64;
    assert!((0.15..0.52).contains(&mean), "balanced accuracies {balanced:?} where chance is 0.333");
}

#[test]
fn cross_entropy_without_side_heads_trains_as_well() {
    let folder = tempfile::tempdir().unwrap();
    toy::write_shards(folder.path(), 3, 1);
    let recipe = toy::RECIPE
        .replace("\"saal\"", "\"cross-entropy\"")
        .replace("deep_supervision = true", "deep_supervision = false");
    let summary = train(folder.path(), &recipe, "run").unwrap();
    let last = summary.epochs.last().unwrap();
    assert!(last.loss_state.is_empty());
    assert_eq!(last.train.heads.keys().collect::<Vec<_>>(), ["final"]);
}

#[track_caller]
fn check_refused(change: (&str, &str), want: &str) {
    let folder = tempfile::tempdir().unwrap();
    toy::write_shards(folder.path(), 2, 1);
    let err = train(folder.path(), &toy::RECIPE.replace(change.0, change.1), "run").unwrap_err();
    let text = format!("{err} {:?}", std::error::Error::source(&err).map(ToString::to_string));
    assert!(text.contains(want), "{text}");
    assert!(!folder.path().join("run").exists(), "a refused recipe left a folder");
}

#[test]
fn recipes_are_checked_at_the_door() {
    check_refused(("seed = 1", "seed = 1\nsead = 2"), "sead");
    check_refused(("weight_decay = 0.01", "weight_decay = 0.01\nbeta1 = 0.9"), "beta1");
    check_refused(("name = \"saal\"", "name = \"saal\"\nlambda = 1"), "lambda");
    check_refused(("name = \"saal\"", "name = \"saal\"\ninitial_alpha = 0.5"), "initial_alpha");
    check_refused(("batch_size = 12", "batch_size = 1"), "batch_size");
    check_refused(("learning_rate = 0.003", "learning_rate = -1.0"), "optimiser.learning_rate");
    check_refused(("epochs = 4", ""), "epochs");
}

#[test]
fn the_published_recipes_can_be_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/recipes");
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            diag_train::TrainSpec::read(&path).unwrap();
        }
    }
}

#[test]
fn the_published_sweeps_ask_for_valid_runs() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/sweeps");
    for (name, n_runs) in [
        ("imbalance.toml", 15 * 5 * 3),
        ("noise.toml", 15 * 4 * 3),
        ("ablation.toml", 12 * 3),
        ("covid-ct.toml", 2 * 3),
        ("covid-ct-224.toml", 2 * 3),
        ("covid-ct-pretrained.toml", 2 * 3),
        ("covid-ct-scratch.toml", 2 * 3),
        ("covid-ct-original.toml", 3),
        ("covid-ct-controlled.toml", 3),
        ("cxr.toml", 7 * 5 * 10),
        ("cxr-heads.toml", 4 * 2 * 5),
        ("cxr-size.toml", 3 * 3),
        ("study-ct.toml", 4 * 2 * 5),
    ] {
        let spec = diag_train::sweep::SweepSpec::read(&folder.join(name)).unwrap();
        assert_eq!(spec.n_runs().unwrap(), n_runs, "{name}");
    }
}
