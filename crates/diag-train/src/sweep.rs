//! Sweeps: many runs, one table.
//!
//! | in the folder | holds |
//! | --- | --- |
//! | `recipes/RUN.toml` | the recipe of each run |
//! | `runs/RUN/` | its run folder |
//! | `logs/RUN.txt` | what it said |
//! | `results.parquet` | one number a row |
//! | `results.csv` | those that the summary compares |
//! | `summary.json`, `summary.md` | mean, spread, paired tests |
//!
//! A sweep that was stopped goes on: finished runs are kept, others resume.

mod document;
mod spec;
mod summary;

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use diag_data::DataError;
use diag_data::case::{LabelSet, Split};
use diag_data::files;
use diag_data::predictions::Predictions;
use diag_data::results::{self, ResultRow};
use diag_data::run::RunDir;
use diag_metrics::{Aggregation, Bootstrap, aggregate, summarise};

use crate::TrainError;
use crate::device::DeviceChoice;
use crate::fit::available_threads;
use crate::inference::{case_numbers, scores};
use crate::plan::TrainPlan;
pub use document::fill_tables;
use spec::{Cell, join};
pub use spec::{SummarySpec, SweepSpec, Variant};
pub use summary::{Compared, Condition, Setting, Summary};

/// What to run, and where.
#[derive(Clone, Debug)]
pub struct SweepJob {
    /// The grid.
    pub spec: SweepSpec,
    /// Folder of the sweep, made if it is missing.
    pub out: PathBuf,
    /// The diag-train program, which runs each cell in a process of its own.
    pub program: PathBuf,
    /// Where every run computes.
    pub device: DeviceChoice,
    /// Whether to start nothing and to sum up the runs that are finished.
    pub finished_only: bool,
}

/// Something happened in a sweep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SweepEvent {
    /// A run was finished before.
    Kept(String),
    /// A run begins or goes on.
    Starts(String),
    /// A run is done.
    Done(String),
    /// A run failed; its log says why.
    Failed(String),
}

/// Runs the cells of a grid that are not done yet; writes table and summary.
///
/// A run that fails does not stop the others: the summary names it.
///
/// # Errors
/// A grid or recipe that is refused, a folder of another sweep, a stop by request
/// (then the same call goes on), a program that cannot be started.
pub fn sweep(
    job: &SweepJob,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(SweepEvent),
) -> Result<Summary, TrainError> {
    let mut cells = job.spec.cells()?;
    if job.finished_only {
        cells.retain(|cell| run_dir(job, cell).metrics().exists());
    }
    for folder in ["recipes", "runs", "logs"] {
        let path = job.out.join(folder);
        std::fs::create_dir_all(&path).map_err(|source| DataError::Io { action: "create", path, source })?;
    }
    for cell in &cells {
        write_recipe(job, cell)?;
    }
    let n_processes = job.spec.processes.unwrap_or(1);
    let n_threads = (available_threads() / n_processes).max(1);
    let queue: Mutex<VecDeque<&Cell>> = Mutex::new(cells.iter().collect());
    let (sender, receiver) = mpsc::channel();
    let (mut failed, mut broken) = (Vec::new(), None);
    std::thread::scope(|scope| {
        for _ in 0..n_processes {
            let (sender, queue) = (sender.clone(), &queue);
            scope.spawn(move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(cell) = next.filter(|_| !stop.load(Ordering::Relaxed)) else {
                        return;
                    };
                    let told = run_cell(job, cell, n_threads, stop, &mut |event| {
                        let _ = sender.send(Ok(event));
                    });
                    if let Err(err) = told {
                        let _ = sender.send(Err(err));
                        return;
                    }
                }
            });
        }
        drop(sender);
        for message in receiver {
            match message {
                Ok(event) => {
                    if let SweepEvent::Failed(name) = &event {
                        failed.push(name.clone());
                    }
                    progress(event);
                }
                Err(err) => broken = Some(err),
            }
        }
    });
    if let Some(err) = broken {
        return Err(err);
    }
    if stop.load(Ordering::Relaxed) {
        return Err(TrainError::Interrupted { place: "in the sweep".to_owned() });
    }
    failed.sort();
    let mut rows = Vec::new();
    let done: Vec<&Cell> = cells.iter().filter(|cell| !failed.contains(&cell.name)).collect();
    for cell in &done {
        rows.extend(rows_of(cell, &run_dir(job, cell), &job.spec.summary)?);
    }
    results::write(&job.out.join("results.parquet"), &rows)?;
    let compared: Vec<ResultRow> =
        rows.iter().filter(|row| job.spec.summary.compares(row)).cloned().collect();
    results::write_csv(&job.out.join("results.csv"), &compared)?;
    let summary = summary::summarise(&job.spec, &rows, done.len(), failed);
    files::write_json(&job.out.join("summary.json"), &summary)?;
    files::write_atomic(&job.out.join("summary.md"), summary.markdown().as_bytes())?;
    Ok(summary)
}

fn recipe_path(job: &SweepJob, cell: &Cell) -> PathBuf {
    job.out.join("recipes").join(format!("{}.toml", cell.name))
}

fn run_dir(job: &SweepJob, cell: &Cell) -> RunDir {
    RunDir::new(job.out.join("runs").join(&cell.name))
}

/// Writes a cell's recipe; refuses to put another one in its place.
fn write_recipe(job: &SweepJob, cell: &Cell) -> Result<(), TrainError> {
    let path = recipe_path(job, cell);
    let text = toml::to_string(&cell.recipe)
        .map_err(|err| TrainError::Recipe { file: path.clone(), reason: err.to_string() })?;
    if path.exists() && files::read(&path)? != text.as_bytes() {
        return Err(TrainError::Changed { what: "recipe", run: run_dir(job, cell).root().into() });
    }
    Ok(files::write_atomic(&path, text.as_bytes())?)
}

/// Trains and evaluates one cell in processes of their own, unless that is done.
fn run_cell(
    job: &SweepJob,
    cell: &Cell,
    n_threads: usize,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(SweepEvent),
) -> Result<(), TrainError> {
    let run = run_dir(job, cell);
    if run.metrics().exists() {
        tell(SweepEvent::Kept(cell.name.clone()));
        return Ok(());
    }
    tell(SweepEvent::Starts(cell.name.clone()));
    let log_path = job.out.join("logs").join(format!("{}.txt", cell.name));
    let log = |source| DataError::Io { action: "write", path: log_path.clone(), source };
    let said = File::create(&log_path).map_err(log)?;
    let recipe = recipe_path(job, cell);
    let (run_path, shards) = (run.root().as_os_str(), job.spec.shards.as_os_str());
    let fit = ["fit".as_ref(), "--shards".as_ref(), shards, "--recipe".as_ref(), recipe.as_os_str()];
    let fit = fit.into_iter().chain(["--out".as_ref(), run_path, "--resume".as_ref()]);
    let stages = [fit.collect::<Vec<_>>(), vec!["evaluate".as_ref(), run_path]];
    let (n_threads, device) = (n_threads.to_string(), job.device.to_string());
    for arguments in stages {
        let started = Command::new(&job.program)
            .args(arguments)
            .args(["--threads", n_threads.as_str(), "--device", device.as_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said.try_clone().map_err(log)?)
            .spawn();
        let mut child =
            started.map_err(|source| DataError::Io { action: "start", path: job.program.clone(), source })?;
        match wait(&mut child, stop).map_err(log)? {
            Some(true) => {}
            Some(false) => {
                tell(SweepEvent::Failed(cell.name.clone()));
                return Ok(());
            }
            None => return Ok(()),
        }
    }
    tell(SweepEvent::Done(cell.name.clone()));
    Ok(())
}

/// Whether a process ended well; `None` when it was ended because of a stop. Its
/// files are whole even then: a resume is exact after any end.
fn wait(child: &mut Child, stop: &AtomicBool) -> std::io::Result<Option<bool>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(if stop.load(Ordering::Relaxed) { None } else { Some(status.success()) });
        }
        if stop.load(Ordering::Relaxed) {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Every number of a run's `metrics.json`; where the summary asks for intervals, their
/// bounds besides.
fn rows_of(cell: &Cell, run: &RunDir, summary: &SummarySpec) -> Result<Vec<ResultRow>, TrainError> {
    let metrics: serde_json::Value = files::read_json(&run.metrics())?;
    let labels: LabelSet = serde_json::from_value(metrics["labels"].clone())
        .map_err(|err| DataError::Malformed { path: run.metrics(), why: format!("`labels`: {err}") })?;
    let info = run.read_info()?;
    let recipe = &TrainPlan::read(&run.plan())?.recipe;
    let row = |split: &str, unit: &str, aggregation: Option<&str>, measure: &str, value: f64| ResultRow {
        run: cell.name.clone(),
        variant: cell.variant.clone(),
        loss: info.loss.clone(),
        seed: recipe.seed as i64,
        fold: recipe.fold.map(|fold| fold.index as i64),
        class_ratio: recipe.data.class_ratio.as_ref().map(|ratio| join(ratio, ":")),
        label_noise: recipe.data.label_noise,
        best_epoch: info.best_epoch.unwrap_or_default().into(),
        split: split.to_owned(),
        unit: unit.to_owned(),
        aggregation: aggregation.map(str::to_owned),
        measure: measure.to_owned(),
        value,
    };
    let mut rows = Vec::new();
    let mut add = |split: &str, unit: &str, aggregation: Option<&str>, measures: &serde_json::Value| {
        let mut of_table = |measures: &serde_json::Value, ending: &str| {
            for (name, value) in measures.as_object().into_iter().flatten() {
                if let Some(value) = value.as_f64() {
                    rows.push(row(split, unit, aggregation, &format!("{name}{ending}"), value));
                }
            }
        };
        of_table(measures, "");
        for (name, of_class) in
            labels.names().iter().zip(measures["classes"].as_array().into_iter().flatten())
        {
            of_table(of_class, &format!("/{name}"));
        }
    };
    for (split, of_split) in metrics["splits"].as_object().into_iter().flatten() {
        add(split, "slice", None, &of_split["slice"]);
        for (aggregation, measures) in of_split["case"].as_object().into_iter().flatten() {
            add(split, "case", Some(aggregation), measures);
        }
        add(split, "case", Some("decision"), &of_split["decision"]["case"]);
        add(split, "case", Some("decision"), &of_split["decision"]["sets"]);
        add(split, "case", Some("decision"), &of_split["decision"]["at_threshold"]);
    }
    if summary.intervals {
        for (measure, value) in bounds(run, &labels, summary)? {
            rows.push(row(&summary.split, "case", Some("mean"), &measure, value));
        }
    }
    Ok(rows)
}

/// 95 % bootstrap bounds by case of the summary's measures, under the names
/// `MEASURE:low` and `MEASURE:high`.
fn bounds(run: &RunDir, labels: &LabelSet, summary: &SummarySpec) -> Result<Vec<(String, f64)>, TrainError> {
    let mut predictions = Predictions::read(&run.predictions(), labels)?;
    let split: Split = summary.split.parse()?;
    predictions.rows.retain(|row| row.split == split);
    let slices = scores(&predictions.rows, predictions.heads.len().saturating_sub(1), labels.len())?;
    let cases = aggregate(&slices, &case_numbers(&predictions.rows), Aggregation::Mean)?.scores;
    let numbers: Vec<usize> = (0..cases.len()).collect();
    let summarised = summarise(&cases, &numbers, &Bootstrap::default())?;
    let mut bounds = Vec::new();
    for &(measure, estimate) in summarised.estimates() {
        let name = match measure.class() {
            None => measure.key().to_owned(),
            Some(class) => format!("{}/{}", measure.key(), labels.names()[class]),
        };
        if summary.measures.contains(&name) {
            let ends = [("low", estimate.low), ("high", estimate.high)];
            bounds
                .extend(ends.into_iter().filter_map(|(end, value)| Some((format!("{name}:{end}"), value?))));
        }
    }
    Ok(bounds)
}

/// The program that is running: the one that runs the cells.
///
/// # Errors
/// When the system does not say.
pub fn this_program() -> Result<PathBuf, TrainError> {
    std::env::current_exe().map_err(|source| {
        DataError::Io { action: "find", path: Path::new("diag-train").into(), source }.into()
    })
}
