//! A run on a GPU is the run on the CPU but for rounding: training, evaluation, explanation.
//! Where no CUDA device can be used, nothing is trained on one, and the test says so.

#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

mod toy;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use diag_data::case::Split;
use diag_data::heatmaps::{self, Heatmap};
use diag_data::predictions::Predictions;
use diag_data::run::{RunDir, Step};
use diag_train::evaluate::{EvaluateJob, evaluate};
use diag_train::explain::{ExplainJob, explain};
use diag_train::fit::{FitJob, fit};
use diag_train::progress::Event;
use diag_train::{DeviceChoice, TrainError};

const GPU: DeviceChoice = DeviceChoice::Cuda(0);

static STAY: AtomicBool = AtomicBool::new(false);

/// The switches of the arithmetic belong to the process: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// The GPU for one test; if there is none, prints that the test skips.
#[expect(clippy::print_stderr, reason = "a test that skips says so")]
fn gpu() -> Option<MutexGuard<'static, ()>> {
    match candle_train_ops::cuda::device(0) {
        Ok(_) => Some(ALONE.lock().unwrap_or_else(PoisonError::into_inner)),
        Err(err) => {
            assert!(std::env::var_os("COVID19_DIAG_REQUIRE_GPU").is_none(), "a GPU must be here: {err}");
            eprintln!("SKIPPED: NOTHING WAS TRAINED ON A GPU: no CUDA device can be used: {err}");
            None
        }
    }
}

/// One epoch of small steps: rounding does not grow with them.
fn recipe(more: &str) -> String {
    let recipe = toy::RECIPE.replace("epochs = 4", "epochs = 1").replace("\"adamw\"", "\"sgd\"");
    format!("{more}\n{}", recipe.replace("learning_rate = 0.003", "learning_rate = 1e-4"))
}

fn job(folder: &Path, run: &str, recipe: &str, device: DeviceChoice) -> FitJob {
    FitJob {
        shards: folder.join("shards"),
        recipe: toy::write_recipe(folder, &format!("{run}.toml"), recipe),
        run: folder.join(run),
        device,
        threads: None,
        resume: false,
        checkpoint_seconds: 0.0,
        command: "fit".into(),
    }
}

fn trained(folder: &Path, run: &str, recipe: &str, device: DeviceChoice) -> RunDir {
    let job = job(folder, run, recipe, device);
    fit(&job, &STAY, &mut |_| ()).unwrap();
    RunDir::new(job.run)
}

#[track_caller]
fn check_steps(got: &[Step], want: &[Step], (of_loss, of_gradient): (f64, f64)) {
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(want) {
        let apart = |got: f64, want: f64| (got - want).abs() / want.abs();
        let (loss, gradient) = (apart(got.loss, want.loss), apart(got.gradient_norm, want.gradient_norm));
        // Not "greater": a NaN is wrong too.
        let close = loss <= of_loss && gradient <= of_gradient;
        assert!(close, "step {}: loss apart by {loss:e}, gradient by {gradient:e}", got.step);
    }
}

/// Predictions of all slices, and maps of the test cases.
fn judged(run: &RunDir, device: DeviceChoice) -> (Predictions, Vec<Heatmap>) {
    let root = run.root().to_path_buf();
    let job = EvaluateJob { run: root.clone(), shards: None, split: None, device, threads: None };
    evaluate(&job, &STAY).unwrap();
    let job = ExplainJob {
        run: root,
        shards: None,
        external: None,
        split: Split::Test,
        truth: None,
        slices_per_case: 1,
        occlusion_slices_per_case: 1,
        device,
        command: "explain".into(),
    };
    explain(&job, &STAY).unwrap();
    let labels = run.read_info().unwrap().labels;
    let predictions = Predictions::read(&run.predictions(), &labels).unwrap();
    (predictions, heatmaps::read(&run.heatmaps(), &labels).unwrap())
}

#[test]
fn a_run_on_a_gpu_is_that_on_the_cpu_but_for_rounding() {
    let Some(_alone) = gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    toy::write_shards(folder, 4, 1);
    let recipe = recipe("accumulate = 2\nema_decay = 0.9");
    let cpu = trained(folder, "cpu", &recipe, DeviceChoice::Cpu);
    let gpu = trained(folder, "gpu", &recipe, GPU);
    check_steps(&gpu.read_steps().unwrap(), &cpu.read_steps().unwrap(), (1e-4, 1e-3));

    let ((got, got_maps), (want, want_maps)) = (judged(&gpu, GPU), judged(&cpu, DeviceChoice::Cpu));
    assert_eq!(got.rows.len(), want.rows.len());
    for (got, want) in got.rows.iter().zip(&want.rows) {
        assert_eq!((&got.case_id, got.slice_index), (&want.case_id, want.slice_index));
        let pairs = got.head_probabilities.iter().flatten().zip(want.head_probabilities.iter().flatten());
        let furthest = pairs.map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
        assert!(furthest <= 1e-3, "{} {}: {furthest:e}", got.case_id, got.slice_index);
    }
    assert_eq!(got_maps.len(), want_maps.len());
    for (got, want) in got_maps.iter().zip(&want_maps) {
        assert_eq!((&got.head, got.method), (&want.head, want.method));
        let evidence = |map: &Heatmap, value: u8| f32::from(value) / 255.0 * map.peak;
        let values = got.values.iter().zip(&want.values);
        let apart = values.map(|(a, b)| (evidence(got, *a) - evidence(want, *b)).abs());
        let (furthest, highest) = (apart.fold(0.0, f32::max), want.peak);
        // Occlusion subtracts probabilities, of which rounding leaves six digits.
        let close = furthest <= 1e-2 * highest + 1e-5;
        assert!(close, "{}, {:?}: {furthest:e}, the highest is {highest:e}", got.head, got.method);
    }
}

#[test]
fn bf16_on_a_gpu_stays_near_the_run_in_f32() {
    let Some(_alone) = gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    toy::write_shards(folder, 4, 1);
    let cpu = trained(folder, "cpu", &recipe(""), DeviceChoice::Cpu);
    let gpu = trained(folder, "gpu", &recipe("bf16 = true"), GPU);
    // The norm of a gradient in bf16 is off by some percent on the CPU as well.
    check_steps(&gpu.read_steps().unwrap(), &cpu.read_steps().unwrap(), (1e-2, 0.15));
}

#[test]
fn a_stopped_run_on_a_gpu_goes_on_as_if_it_had_not_been() {
    let Some(_alone) = gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    toy::write_shards(folder, 4, 1);
    let recipe = toy::RECIPE.replace("epochs = 4", "epochs = 1").replace("batch_size = 12", "batch_size = 8");
    let recipe = format!("deterministic = true\n{recipe}");
    trained(folder, "whole", &recipe, GPU);

    let mut job = job(folder, "stopped", &recipe, GPU);
    let (stop, mut seen) = (AtomicBool::new(false), 0);
    let stopped = fit(&job, &stop, &mut |event| {
        if let Event::Batch { .. } = event {
            seen += 1;
            stop.store(seen >= 2, Ordering::Relaxed);
        }
    });
    assert!(matches!(stopped, Err(TrainError::Interrupted { .. })), "{stopped:?}");
    job.resume = true;
    fit(&job, &STAY, &mut |_| ()).unwrap();
    for file in ["model.safetensors", "epochs.jsonl", "steps.jsonl"] {
        let [whole, resumed] =
            ["whole", "stopped"].map(|run| std::fs::read(folder.join(run).join(file)).unwrap());
        assert!(whole == resumed, "{file} differs after a stop");
    }
}
