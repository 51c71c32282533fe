//! Sweeps: many runs, one table.
//!
//! | in the folder | holds |
//! | --- | --- |
//! | `recipes/RUN.toml` | the recipe of each run |
//! | `runs/RUN/` | its run folder |
//! | `logs/RUN.txt` | its standard error |
//! | `results.parquet` | one number a row |
//! | `results.csv` | those that the summary compares |
//! | `calls.csv`, `cases.csv` | class that every run predicts for every case, of which patient |
//! | `summary.json`, `summary.md` | mean, spread, paired tests |
//!
//! A sweep that was stopped continues: finished runs are kept, others resume. Runs of lower seeds
//! come first, so that what is finished is a complete smaller sweep. Results of an earlier sweep
//! can stand in for its runs.

mod calls;
mod contrasts;
mod document;
mod markdown;
mod spec;
mod summary;
mod table;

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Duration;

use diag_data::DataError;
use diag_data::files;
use diag_data::results::{self, ResultRow};
use diag_data::run::RunDir;
use diag_data::shard::ShardSet;

use crate::device::DeviceChoice;
use crate::error::TrainError;
use crate::progress::{Event, Progress, RunState};
use crate::threads::available_threads;
use calls::{Calls, Had};
pub use document::fill_tables;
use spec::Cell;
pub use spec::{SettingSpec, SummarySpec, SweepSpec, Variant};
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
    /// Folder with `results.csv`, `calls.csv` and `cases.csv` of an earlier sweep: runs that it
    /// has of the same recipe and shards are not made again.
    pub have: Option<PathBuf>,
}

/// Runs the cells of a grid that are not done yet; writes table and summary.
///
/// A run that fails does not stop the others: the summary names it.
///
/// # Errors
/// A grid or recipe that is refused, a folder of another sweep, a stop by request
/// (then the same call goes on), a program that cannot be started.
pub fn sweep(job: &SweepJob, stop: &AtomicBool, progress: &mut Progress<'_>) -> Result<Summary, TrainError> {
    let shards = ShardSet::open(&job.spec.shards)?;
    let shards_sha256 = shards.sha256()?;
    let all = job.spec.cells()?;
    let had = match &job.have {
        Some(folder) => Had::read(folder, &all, &job.spec, &shards_sha256)?,
        None => Had::default(),
    };
    let mut cells: Vec<&Cell> = all.iter().filter(|cell| !had.has(cell)).collect();
    if job.finished_only {
        cells.retain(|cell| run_dir(job, cell).metrics().exists());
    }
    cells.sort_by_key(|cell| cell.recipe.seed);
    for folder in ["recipes", "runs", "logs"] {
        let path = job.out.join(folder);
        std::fs::create_dir_all(&path).map_err(|source| DataError::Io { action: "create", path, source })?;
    }
    for cell in &cells {
        write_recipe(job, cell)?;
    }
    check_shards(job, &cells, &shards_sha256)?;
    let n_processes = job.spec.processes.unwrap_or(1);
    let n_threads = (available_threads() / n_processes).max(1);
    let queue: Mutex<VecDeque<&Cell>> = Mutex::new(cells.iter().copied().collect());
    let (sender, receiver) = mpsc::channel();
    let (mut failed, mut error) = (Vec::new(), None);
    std::thread::scope(|scope| {
        for _ in 0..n_processes {
            let (sender, queue) = (sender.clone(), &queue);
            scope.spawn(move || {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(cell) = next.filter(|_| !stop.load(Ordering::Relaxed)) else {
                        return;
                    };
                    let ran = run_cell(job, cell, n_threads, stop, &mut |event| {
                        let _ = sender.send(Ok(event));
                    });
                    if let Err(err) = ran {
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
                    if let Event::SweepRun { name, state: RunState::Failed } = &event {
                        failed.push(name.clone());
                    }
                    progress(event);
                }
                Err(err) => error = Some(err),
            }
        }
    });
    if let Some(err) = error {
        return Err(err);
    }
    if stop.load(Ordering::Relaxed) {
        return Err(TrainError::Interrupted { place: "in the sweep".to_owned() });
    }
    failed.sort();
    let (mut rows, mut n_done) = (Vec::new(), 0);
    let mut calls = Calls::new(&shards)?;
    for cell in &all {
        if had.has(cell) {
            had.add_to(cell, &job.spec, &mut rows, &mut calls);
        } else if cells.contains(&cell) && !failed.contains(&cell.name) {
            rows.extend(table::rows_of(cell, &run_dir(job, cell), &job.spec, &mut calls)?);
        } else {
            continue;
        }
        n_done += 1;
    }
    calls.write(&job.out)?;
    results::write(&job.out.join("results.parquet"), &rows)?;
    let compared: Vec<ResultRow> =
        rows.iter().filter(|row| job.spec.summary.compares(row)).cloned().collect();
    files::write_csv(&job.out.join("results.csv"), &compared)?;
    let summary = summary::summarise(&job.spec, &rows, n_done, failed);
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
    let text = cell.recipe_text()?;
    if path.exists() && files::read(&path)? != text.as_bytes() {
        let how = format!("{} holds another one", path.display());
        return Err(TrainError::Changed { what: "recipe", how, run: run_dir(job, cell).root().into() });
    }
    Ok(files::write_atomic(&path, text.as_bytes())?)
}

/// Refuses finished runs on other shards than those of the grid: their table would be read as
/// one of these.
fn check_shards(job: &SweepJob, cells: &[&Cell], expected: &str) -> Result<(), TrainError> {
    for run in cells.iter().map(|cell| run_dir(job, cell)).filter(|run| run.metrics().exists()) {
        let metrics: serde_json::Value = files::read_json(&run.metrics())?;
        let found = metrics["shards_sha256"].as_str().unwrap_or_default();
        if found != expected {
            let how = format!("hash {found} before, {expected} now");
            return Err(TrainError::Changed { what: "shards", how, run: run.root().into() });
        }
    }
    Ok(())
}

/// Trains and evaluates one cell in processes of their own, unless that is done.
fn run_cell(
    job: &SweepJob,
    cell: &Cell,
    n_threads: usize,
    stop: &AtomicBool,
    progress: &mut Progress<'_>,
) -> Result<(), TrainError> {
    let mut report = |state| progress(Event::SweepRun { name: cell.name.clone(), state });
    let run = run_dir(job, cell);
    if run.metrics().exists() {
        report(RunState::AlreadyDone);
        return Ok(());
    }
    report(RunState::Started);
    let log_path = job.out.join("logs").join(format!("{}.txt", cell.name));
    let log = |source| DataError::Io { action: "write", path: log_path.clone(), source };
    let output = File::create(&log_path).map_err(log)?;
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
            .stderr(output.try_clone().map_err(log)?)
            .spawn();
        let mut child =
            started.map_err(|source| DataError::Io { action: "start", path: job.program.clone(), source })?;
        match wait(&mut child, stop).map_err(log)? {
            Some(true) => {}
            Some(false) => {
                report(RunState::Failed);
                return Ok(());
            }
            None => return Ok(()),
        }
    }
    report(RunState::Done);
    Ok(())
}

/// Whether a process succeeded; `None` when it was killed because of a stop. Its
/// files are complete even then: a resume is exact after any end.
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

/// The path of this program, which runs the cells.
///
/// # Errors
/// When the system does not say.
pub fn this_program() -> Result<PathBuf, TrainError> {
    std::env::current_exe().map_err(|source| {
        DataError::Io { action: "find", path: Path::new("diag-train").into(), source }.into()
    })
}
