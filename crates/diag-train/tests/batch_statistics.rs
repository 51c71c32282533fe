//! Recomputed batch statistics: what they mend, what they belong to, and that training is the
//! same with and without them.

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

mod toy;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;

use candle_core::Tensor;
use diag_data::case::Split;
use diag_data::run::{Epoch, RunDir};
use diag_data::shard::ShardSet;
use diag_model::{SavedModel, input, tensors};
use diag_train::fit::{FitJob, fit};
use diag_train::{DeviceChoice, TrainPlan};

fn train(folder: &Path, recipe: &str, run: &str) -> Vec<Epoch> {
    let job = FitJob {
        shards: folder.join("shards"),
        recipe: toy::write_recipe(folder, &format!("{run}.toml"), recipe),
        run: folder.join(run),
        device: DeviceChoice::Cpu,
        threads: None,
        resume: false,
        checkpoint_seconds: 60.0,
        command: "diag-train fit".into(),
    };
    fit(&job, &AtomicBool::new(false), &mut |_| ()).unwrap().epochs
}

fn weights(folder: &Path, run: &str) -> BTreeMap<String, Vec<f32>> {
    let (state, _) = tensors::read(&RunDir::new(folder.join(run)).weights()).unwrap();
    let numbers = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    state.into_iter().map(|(name, tensor)| (name, numbers(tensor))).collect()
}

#[test]
fn training_is_the_same_and_only_the_statistics_differ() {
    let folder = tempfile::tempdir().unwrap();
    toy::write_shards(folder.path(), 8, 1);
    let recipe = toy::RECIPE.replace("macro-f1", "last");
    train(folder.path(), &recipe, "precise");
    train(folder.path(), &format!("batch_norm = \"running\"\n{recipe}"), "running");
    let read = |run: &str, file: &str| std::fs::read(folder.path().join(run).join(file)).unwrap();
    assert!(read("precise", "steps.jsonl") == read("running", "steps.jsonl"));
    assert!(read("precise", "epochs.jsonl") != read("running", "epochs.jsonl"));
    let [precise, running] = ["precise", "running"].map(|run| weights(folder.path(), run));
    for (name, values) in &precise {
        assert_eq!(*values != running[name], name.contains("running_"), "{name}");
    }
    let n_slices =
        |run: &str| TrainPlan::read(&RunDir::new(folder.path().join(run)).plan()).unwrap().statistics_slices;
    // 76 training slices, a third of which make two batches of 12.
    assert_eq!((n_slices("precise"), n_slices("running")), (24, 0));
}

/// One batch that holds every training slice: its statistics can be had without the loader's order.
#[test]
fn statistics_belong_to_the_averaged_weights_and_to_images_without_augmentation() {
    let folder = tempfile::tempdir().unwrap();
    toy::write_shards(folder.path(), 4, 1);
    let recipe = toy::RECIPE
        .replace("batch_size = 12", "batch_size = 48\nema_decay = 0.9\ndropout = 0.3\nfreeze = \"stem\"")
        .replace("validation_share = 0.2", "validation_share = 0.0");
    train(folder.path(), &format!("{recipe}\n[mixing]\nmixup = 0.4"), "run");
    let run = RunDir::new(folder.path().join("run"));
    let model = SavedModel::read(&run.model(), &run.weights()).unwrap();
    let shards = ShardSet::open(&folder.path().join("shards")).unwrap();
    let slices: Vec<Vec<u8>> = shards.slices(Split::Train).map(|slice| slice.unwrap().pixels).collect();
    let image_nchw = input::from_grey(slices.iter().map(|s| &s[..]), toy::SIDE, toy::SIDE).unwrap();
    let batch = model.network.batch_statistics(&image_nchw, 1).unwrap();
    model.network.set_population_statistics(&[batch], 1).unwrap();
    let saved = weights(folder.path(), "run");
    let mut n_compared = 0;
    for (name, want) in model.network.state().unwrap() {
        if name.contains("running_") && name != "bn1.running_mean" && name != "bn1.running_var" {
            for (want, got) in want.to_vec1::<f32>().unwrap().into_iter().zip(&saved[&name]) {
                assert!((want - got).abs() <= 1e-4 * want.abs().max(0.1), "{name}: {got}, not {want}");
                n_compared += 1;
            }
        }
    }
    assert!(n_compared > 1000, "{n_compared}");
    // The frozen stem keeps what it started with.
    assert!(saved["bn1.running_mean"].iter().all(|mean| *mean == 0.0));
    assert!(saved["bn1.running_var"].iter().all(|var| *var == 1.0));
}

/// With a learning rate that moves no weight, runs on any number of ranks hold equal weights.
#[test]
fn equal_weights_get_equal_bits_on_any_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    toy::write_shards(folder.path(), 8, 1);
    let recipe = toy::RECIPE
        .replace("adamw", "sgd")
        .replace("learning_rate = 0.003", "learning_rate = 1e-300")
        .replace("batch_size = 12", "batch_size = 5")
        .replace("epochs = 4", "epochs = 1");
    let recipe = toy::write_recipe(folder.path(), "recipe.toml", &recipe);
    let mut runs = Vec::new();
    for n_ranks in 1..=3 {
        let run = folder.path().join(n_ranks.to_string());
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let ranks: Vec<_> = (0..n_ranks)
            .map(|rank| {
                Command::new(env!("CARGO_BIN_EXE_diag-train"))
                    .args(["fit", "--device", "cpu", "--threads", "1", "--shards"])
                    .arg(folder.path().join("shards"))
                    .arg("--recipe")
                    .arg(&recipe)
                    .arg("--out")
                    .arg(&run)
                    .env("RANK", rank.to_string())
                    .env("WORLD_SIZE", n_ranks.to_string())
                    .env("MASTER_ADDR", "127.0.0.1")
                    .env("MASTER_PORT", port.to_string())
                    .stdout(Stdio::null())
                    .spawn()
                    .unwrap()
            })
            .collect();
        for mut rank in ranks {
            assert!(rank.wait().unwrap().success());
        }
        runs.push(weights(folder.path(), &n_ranks.to_string()));
    }
    assert!(runs[0]["layer1.0.bn1.running_var"].iter().all(|var| *var != 1.0));
    assert!(runs.iter().all(|run| *run == runs[0]));
}

/// The failure that recomputed statistics mend, on synthetic images: ten steps separate the
/// classes, and with moving averages the network predicts one class for every case.
#[test]
fn after_few_steps_the_network_predicts_more_than_one_class() {
    let folder = tempfile::tempdir().unwrap();
    toy::write_shards(folder.path(), 12, 1);
    let recipe = toy::RECIPE
        .split_once("[augmentation]")
        .unwrap()
        .0
        .replace("epochs = 4", "epochs = 2")
        .replace("\"saal\"", "\"cross-entropy\"")
        .replace("deep_supervision = true", "deep_supervision = false");
    let accuracy = |batch_norm: &str| {
        let epochs = train(folder.path(), &format!("batch_norm = \"{batch_norm}\"\n{recipe}"), batch_norm);
        epochs[0].validation.as_ref().unwrap().case_balanced_accuracy
    };
    let (precise, running) = (accuracy("precise"), accuracy("running"));
    // A third: every case is predicted as one of the three classes.
    assert!(precise >= 0.95 && running < 0.34, "precise {precise}, running {running}");
}
