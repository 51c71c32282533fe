//! Several processes that train one network give what one process gives.
//!
//! They are linked by TCP here; with the feature `mpi` also by MPI, under `mpirun`.

#![expect(clippy::unwrap_used, reason = "a failed test may panic")]

mod toy;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use diag_data::run::RunDir;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How often a rank is killed; the environment asks for more.
const KILLS: &str = "COVID19_DIAG_KILLS";

/// 72 slices, 54 steps: batches of 13 and of 7, which no two ranks share evenly.
fn recipe() -> String {
    toy::RECIPE.replace("epochs = 4", "epochs = 9").replace("batch_size = 12", "batch_size = 13")
}

fn write(folder: &Path, recipe: &str) {
    toy::write_shards(folder, 7, 1);
    toy::write_recipe(folder, "recipe.toml", recipe);
}

fn fit(folder: &Path, run: &str) -> Command {
    fit_on("cpu", folder, run)
}

fn fit_on(device: &str, folder: &Path, run: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_diag-train"));
    arguments(&mut command, device, folder, run);
    command
}

fn arguments(command: &mut Command, device: &str, folder: &Path, run: &str) {
    command.args(["fit", "--device", device, "--resume", "--threads", "1"]);
    command.args(["--checkpoint-seconds", "0.1", "--shards"]);
    command.arg(folder.join("shards")).arg("--recipe").arg(folder.join("recipe.toml"));
    command.arg("--out").arg(folder.join(run)).stdout(Stdio::null()).stderr(Stdio::piped());
}

/// Starts the ranks of a run as torchrun would, the last one first.
fn start(folder: &Path, run: &str, n_ranks: usize) -> Vec<Child> {
    start_on("cpu", folder, run, n_ranks)
}

fn start_on(device: &str, folder: &Path, run: &str, n_ranks: usize) -> Vec<Child> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut ranks: Vec<Child> = (0..n_ranks)
        .rev()
        .map(|rank| {
            let mut command = fit_on(device, folder, run);
            command.env("RANK", rank.to_string()).env("WORLD_SIZE", n_ranks.to_string());
            command.env("LOCAL_RANK", rank.to_string()).env("RUST_LOG", "diag_train=debug");
            command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
            command.spawn().unwrap()
        })
        .collect();
    ranks.reverse();
    ranks
}

#[track_caller]
fn train(folder: &Path, run: &str, n_ranks: usize) {
    train_on("cpu", folder, run, n_ranks);
}

/// What rank 0 said.
#[track_caller]
fn train_on(device: &str, folder: &Path, run: &str, n_ranks: usize) -> String {
    let ranks = start_on(device, folder, run, n_ranks);
    let ranks: Vec<Output> = ranks.into_iter().map(|rank| rank.wait_with_output().unwrap()).collect();
    for rank in &ranks {
        assert!(rank.status.success(), "{}", String::from_utf8_lossy(&rank.stderr));
    }
    String::from_utf8_lossy(&ranks[0].stderr).into_owned()
}

#[track_caller]
fn check_success(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn read(folder: &Path, run: &str, file: &str) -> Vec<u8> {
    std::fs::read(folder.join(run).join(file)).unwrap()
}

fn weights(folder: &Path, run: &str) -> BTreeMap<String, Vec<f64>> {
    let (state, _) = diag_model::tensors::read(&folder.join(run).join("model.safetensors")).unwrap();
    let numbers = |tensor: candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    state.into_iter().map(|(name, t)| (name, numbers(t).into_iter().map(f64::from).collect())).collect()
}

/// Largest distance of a tensor from its counterpart and of a step's loss, both relative.
fn distance(folder: &Path, run: &str, other: &str) -> (f64, f64) {
    let norm = |numbers: &[f64]| numbers.iter().map(|x| x * x).sum::<f64>().sqrt();
    let (a, b) = (weights(folder, run), weights(folder, other));
    assert!(a.keys().eq(b.keys()));
    let of_weights = a.values().zip(b.values()).map(|(a, b)| {
        let apart: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
        norm(&apart) / norm(a).max(1e-30)
    });
    let steps = [run, other].map(|run| RunDir::new(folder.join(run)).read_steps().unwrap());
    assert_eq!(steps[0].len(), steps[1].len());
    assert!(steps[0].len() >= 50, "{} steps", steps[0].len());
    let of_losses = steps[0].iter().zip(&steps[1]).map(|(a, b)| (a.loss - b.loss).abs() / a.loss.abs());
    (of_weights.fold(0.0, f64::max), of_losses.fold(0.0, f64::max))
}

/// One process on a batch of 8 against two on 4 each, and these against themselves.
#[track_caller]
fn check_equality(recipe: &str) {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder, &format!("batch_parts = 2\n{recipe}"));
    check_success(&fit(folder, "one").output().unwrap());
    train(folder, "two", 2);
    let (of_weights, of_losses) = distance(folder, "one", "two");
    assert!(of_weights <= 1e-5 && of_losses <= 1e-5, "weights {of_weights:e}, losses {of_losses:e}");
    train(folder, "again", 2);
    for file in ["model.safetensors", "epochs.jsonl"] {
        assert!(read(folder, "two", file) == read(folder, "again", file), "{file} differs between two runs");
    }
    let steps = RunDir::new(folder.join("two")).read_steps().unwrap();
    let shares: Vec<f64> = steps.iter().map(|step| step.communication_share.unwrap()).collect();
    assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)), "{shares:?}");
    let info = RunDir::new(folder.join("two")).read_info().unwrap();
    assert!(info.device.contains("2 ranks linked by TCP"), "{}", info.device);
}

#[test]
fn two_ranks_give_what_one_gives() {
    check_equality(&recipe());
}

#[test]
fn so_they_do_with_everything_that_depends_on_the_whole_batch() {
    // Bins of a whole batch; dropped features by place in it; partners from the other rank.
    let recipe = recipe().replace("name = \"saal\"", "name = \"ghm\"");
    let more = "dropout = 0.2\naccumulate = 1\nsampling = \"case-balanced\"\nema_decay = 0.9\n";
    check_equality(&format!("{more}{recipe}\n[mixing]\nmixup = 0.4\ncutmix = 0.4\n"));
}

/// 72 slices: a last batch of 3 for 4 ranks. Small steps and one epoch, so that training does
/// not magnify rounding.
fn gentle_recipe() -> String {
    let recipe = recipe().replace("batch_size = 13", "batch_size = 23").replace("epochs = 9", "epochs = 1");
    recipe.replace("\"adamw\"", "\"sgd\"").replace("learning_rate = 0.003", "learning_rate = 1e-4")
}

/// Compares losses and gradients, step by step.
#[track_caller]
fn check_close(folder: &Path, run: &str, other: &str) {
    let plan = |run: &str| std::fs::read_to_string(folder.join(run).join("plan.toml")).unwrap();
    assert_eq!(plan(run), plan(other));
    let [a, b] = [run, other].map(|run| RunDir::new(folder.join(run)).read_steps().unwrap());
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(&b) {
        let apart = |a: f64, b: f64| (a - b).abs() / a.abs();
        let (loss, norm) = (apart(a.loss, b.loss), apart(a.gradient_norm, b.gradient_norm));
        assert!(loss < 1e-3 && norm < 2e-2, "step {}: loss {loss:e}, gradient {norm:e}", a.step);
    }
}

#[test]
fn a_rank_without_slices_of_the_last_batch_takes_part() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder, &gentle_recipe());
    train(folder, "four", 4);
    check_success(&fit(folder, "one").output().unwrap());
    check_close(folder, "one", "four");
}

fn n_kills(unless_told: u64) -> u64 {
    std::env::var(KILLS).map_or(unless_told, |text| text.parse().unwrap())
}

/// Kills one of two ranks up to so many milliseconds after a random one of so many steps, again and
/// again.
fn killed_on(device: &str, folder: &Path, n_kills: u64, (n_steps, until_ms): (i32, u64)) {
    let mut rng = ChaCha8Rng::seed_from_u64(n_kills);
    for _ in 0..n_kills {
        let mut ranks = start_on(device, folder, "killed", 2);
        let victim = rng.random_range(0..2);
        let mut steps_left = rng.random_range(1..n_steps);
        for line in BufReader::new(ranks[victim].stderr.take().unwrap()).lines() {
            steps_left -= i32::from(line.unwrap().contains("gradient_norm"));
            if steps_left == 0 {
                break;
            }
        }
        assert_eq!(steps_left, 0, "the run ended before a rank could be killed");
        // Somewhere within the step that follows.
        std::thread::sleep(Duration::from_millis(rng.random_range(0..until_ms)));
        // SIGKILL: no handler runs, nothing is said.
        ranks[victim].kill().unwrap();
        ranks[victim].wait().unwrap();
        let dead = Instant::now();
        let mut survivor = ranks.remove(1 - victim);
        // Generous, for a machine that does other things: it is milliseconds.
        while survivor.try_wait().unwrap().is_none() && dead.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let waits = survivor.try_wait().unwrap().is_none();
        let _ = survivor.kill();
        let mut said = String::new();
        survivor.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(!waits, "still waits for rank {victim}: {said}");
        assert_eq!(survivor.wait().unwrap().code(), Some(1), "{said}");
        assert!(said.contains(&format!("lost rank {victim}")) && said.contains("fix: "), "{said}");
    }
}

#[test]
fn a_run_whose_ranks_are_killed_ends_with_the_same_weights() {
    let n_kills = n_kills(3);
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder, &recipe().replace("epochs = 9", &format!("epochs = {}", 4 + 2 * n_kills)));
    train(folder, "whole", 2);
    killed_on("cpu", folder, n_kills, (15, 5));
    train(folder, "killed", 2);
    for file in ["model.safetensors", "epochs.jsonl"] {
        assert!(read(folder, "whole", file) == read(folder, "killed", file), "{file} differs");
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder, &format!("batch_parts = 2\n{}", recipe()));
    check_success(&fit(folder, "one").output().unwrap());
    // Two ranks begin, and are stopped; one goes on.
    let ranks = start(folder, "killed", 2);
    let mut ranks = ranks.into_iter();
    let mut first = ranks.next().unwrap();
    let lines = BufReader::new(first.stderr.take().unwrap()).lines();
    let steps = lines.filter(|line| line.as_ref().unwrap().contains("gradient_norm")).take(20);
    assert_eq!(steps.count(), 20);
    first.kill().unwrap();
    first.wait().unwrap();
    for mut rank in ranks {
        rank.wait().unwrap();
    }
    check_success(&fit(folder, "killed").output().unwrap());
    let (of_weights, of_losses) = distance(folder, "one", "killed");
    assert!(of_weights <= 1e-5 && of_losses <= 1e-5, "weights {of_weights:e}, losses {of_losses:e}");
}

#[test]
fn an_error_is_told_once_and_by_the_rank_that_met_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    write(folder, &recipe().replace("seed = 1", "seed = \"one\""));
    let ranks: Vec<Output> =
        start(folder, "run", 2).into_iter().map(|rank| rank.wait_with_output().unwrap()).collect();
    let said: Vec<_> = ranks.iter().map(|rank| String::from_utf8_lossy(&rank.stderr)).collect();
    assert!(said[0].starts_with("error: rank 0: recipe"), "{}", said[0]);
    assert_eq!(said[1], "");
    assert!(ranks.iter().all(|rank| rank.status.code() == Some(1)));
    // More ranks than a batch has slices.
    write_again(folder, &recipe().replace("batch_size = 13", "batch_size = 2"));
    let ranks: Vec<Output> =
        start(folder, "run", 3).into_iter().map(|rank| rank.wait_with_output().unwrap()).collect();
    let said = String::from_utf8_lossy(&ranks[0].stderr);
    assert!(said.contains("2 slices cannot be divided among 3 ranks"), "{said}");
}

fn write_again(folder: &Path, recipe: &str) {
    toy::write_recipe(folder, "recipe.toml", recipe);
}

#[cfg(feature = "mpi")]
mod mpi {
    use super::*;

    fn mpirun(folder: &Path, run: &str) -> Command {
        let mut command = Command::new("mpirun");
        command.args(["--allow-run-as-root", "--oversubscribe", "-n", "2"]);
        command.arg(env!("CARGO_BIN_EXE_diag-train")).env("RUST_LOG", "diag_train=debug");
        arguments(&mut command, "cpu", folder, run);
        command
    }

    #[test]
    fn two_ranks_under_mpirun_give_what_one_gives() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        write(folder, &format!("batch_parts = 2\n{}", recipe()));
        check_success(&fit(folder, "one").output().unwrap());
        for run in ["two", "again"] {
            check_success(&mpirun(folder, run).output().unwrap());
        }
        let (of_weights, of_losses) = distance(folder, "one", "two");
        assert!(of_weights <= 1e-5 && of_losses <= 1e-5, "weights {of_weights:e}, losses {of_losses:e}");
        for file in ["model.safetensors", "epochs.jsonl"] {
            assert!(read(folder, "two", file) == read(folder, "again", file), "{file} differs");
        }
        let info = RunDir::new(folder.join("two")).read_info().unwrap();
        assert!(info.device.contains("2 ranks linked by MPI"), "{}", info.device);
    }

    /// The process of a rank below `mpirun`.
    fn process_of(rank: usize, folder: &Path) -> Option<u32> {
        let wanted = format!("OMPI_COMM_WORLD_RANK={rank}");
        let mut processes = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        processes.find(|id| {
            let of = |file: &str| std::fs::read(format!("/proc/{id}/{file}")).unwrap_or_default();
            let has = |text: &[u8], part: &str| text.windows(part.len()).any(|w| w == part.as_bytes());
            let command = of("cmdline");
            has(&command, folder.to_str().unwrap())
                && !command.starts_with(b"mpirun")
                && of("environ").split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
        })
    }

    #[test]
    fn a_killed_rank_is_named_and_the_run_goes_on() {
        let n_kills = n_kills(2);
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        write(folder, &recipe().replace("epochs = 9", &format!("epochs = {}", 4 + 2 * n_kills)));
        check_success(&mpirun(folder, "whole").output().unwrap());
        let mut rng = ChaCha8Rng::seed_from_u64(n_kills);
        for _ in 0..n_kills {
            let (victim, n_steps) = (rng.random_range(0..2), rng.random_range(1..15));
            let mut job = mpirun(folder, "killed").spawn().unwrap();
            let mut lines = BufReader::new(job.stderr.take().unwrap()).lines();
            let steps = lines.by_ref().filter(|line| line.as_ref().unwrap().contains("gradient_norm"));
            assert_eq!(steps.take(n_steps).count(), n_steps, "the run ended before a rank could be killed");
            let id = process_of(victim, folder).unwrap();
            check_success(&Command::new("kill").args(["-KILL", &id.to_string()]).output().unwrap());
            let dead = Instant::now();
            let rest: Vec<String> = lines.map_while(Result::ok).collect();
            assert!(!job.wait().unwrap().success());
            assert!(dead.elapsed() < Duration::from_secs(60), "{:?}", dead.elapsed());
            let named = format!("process rank {victim} ");
            assert!(rest.iter().any(|line| line.contains(&named)), "{}", rest.join("\n"));
        }
        check_success(&mpirun(folder, "killed").output().unwrap());
        for file in ["model.safetensors", "epochs.jsonl"] {
            assert!(read(folder, "whole", file) == read(folder, "killed", file), "{file} differs");
        }
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use super::*;

    /// Whether so many GPUs are here; if not, prints that the test skips.
    #[expect(clippy::print_stderr, reason = "a test that skips says so")]
    fn are_here(n_wanted: usize) -> bool {
        let n = candle_train_ops::cuda::n_devices().unwrap_or(0);
        if n < n_wanted {
            let required = std::env::var_os("COVID19_DIAG_REQUIRE_GPU").is_some();
            assert!(!required, "{n_wanted} GPUs must be here, not {n}");
            eprintln!("SKIPPED: NOTHING WAS TRAINED ON GPUS: {n_wanted} wanted, {n} here");
        }
        n >= n_wanted
    }

    fn described(folder: &Path, run: &str) -> String {
        RunDir::new(folder.join(run)).read_info().unwrap().device
    }

    #[test]
    fn ranks_that_share_a_gpu_add_up_through_the_host() {
        if !are_here(1) {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        // The last batch leaves one of four ranks without slices.
        write(folder, &format!("deterministic = true\n{}", gentle_recipe()));
        check_success(&fit_on("cuda:0", folder, "one").output().unwrap());
        let said = train_on("cuda:0", folder, "four", 4);
        let reason = if cfg!(feature = "nccl") { "share a GPU" } else { "built without the feature `nccl`" };
        // Without the library that is what is said, and the same follows.
        assert!(said.contains("through the host and TCP"), "{said}");
        assert!(said.contains(reason) || said.contains("NCCL: "), "{said}");
        assert!(described(folder, "four").contains("4 ranks linked by TCP"), "{}", described(folder, "four"));
        check_close(folder, "one", "four");
        train_on("cuda:0", folder, "again", 4);
        for file in ["model.safetensors", "epochs.jsonl"] {
            assert!(
                read(folder, "four", file) == read(folder, "again", file),
                "{file} differs between two runs"
            );
        }
    }

    /// A GPU that waits for a sum does not notice that a rank is gone: the host does.
    #[test]
    #[cfg(feature = "nccl")]
    fn two_gpus_of_which_one_is_lost_end_with_the_same_weights() {
        if !are_here(2) {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        // Steps enough for two kills, some steps on from where a rank was last.
        let recipe = recipe().replace("epochs = 9", "epochs = 4");
        write(folder, &format!("deterministic = true\n{recipe}"));
        train_on("cuda", folder, "whole", 2);
        killed_on("cuda", folder, 2, (6, 800));
        train_on("cuda", folder, "killed", 2);
        for file in ["model.safetensors", "epochs.jsonl"] {
            assert!(read(folder, "whole", file) == read(folder, "killed", file), "{file} differs");
        }
    }

    /// The sum of two numbers does not depend on their order, so NCCL must give what the host gives.
    #[test]
    #[cfg(feature = "nccl")]
    fn two_gpus_add_up_by_nccl_to_what_the_host_gives() {
        if !are_here(2) {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let recipe = recipe().replace("epochs = 9", "epochs = 2");
        write(folder, &format!("deterministic = true\n{recipe}"));
        train_on("cuda", folder, "nccl", 2);
        assert!(described(folder, "nccl").contains("2 ranks linked by NCCL and TCP"));
        train_on("cuda:0", folder, "host", 2);
        for file in ["model.safetensors", "epochs.jsonl"] {
            assert!(read(folder, "nccl", file) == read(folder, "host", file), "{file} differs");
        }
    }
}
