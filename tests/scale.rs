//! Killed runs, several processes, and parts that are joined.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use covid19_diag_tests::{output, program, stderr, succeed, tiny_cohort, workspace};

/// How many runs are killed; the long test of a release takes 100.
fn n_kills() -> u64 {
    std::env::var("COVID19_DIAG_KILLS").map_or(10, |text| text.parse().unwrap())
}

fn ingest(shards: &Path) -> Command {
    let dicom = tiny_cohort();
    let mut command = program("ct-ingest");
    command.arg("dicom").arg(dicom).arg("--labels").arg(dicom.join("labels.csv"));
    command.arg("--out").arg(shards).args(["--select", "all", "--size", "64", "--jobs", "2"]);
    command.stderr(Stdio::null()).stdout(Stdio::null());
    command
}

fn sums(shards: &Path) -> String {
    fs::read_to_string(shards.join("SHA256SUMS")).unwrap()
}

/// An undisturbed run: its hashes.
fn undisturbed(folder: &Path) -> String {
    succeed(&mut ingest(&folder.join("whole")));
    sums(&folder.join("whole"))
}

/// Finished cases of an unfinished run.
fn n_finished(out: &Path) -> usize {
    let name = format!(".{}.partial", out.file_name().unwrap().to_string_lossy());
    let cases = out.with_file_name(name).join("work/cases").read_dir();
    cases
        .into_iter()
        .flatten()
        .flatten()
        .filter(|case| case.path().extension().is_some_and(|e| e == "parquet"))
        .count()
}

/// Kills a run at a moment that looks random and depends on `round` alone: some
/// milliseconds after some number of cases is finished, or when it has ended.
fn kill_in_between(mut child: Child, out: &Path, round: u64) {
    let mixed = round.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let (n_cases, wait) = ((mixed % 13) as usize, Duration::from_millis(mixed / 13 % 40));
    while n_finished(out) < n_cases && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(wait);
    // SIGKILL: nothing can be tidied up.
    let _ = child.kill();
    child.wait().unwrap();
}

fn left_in(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn killed_runs_continue_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let want = undisturbed(folder.path());
    let mut n_with_finished_cases = 0;
    for round in 0..n_kills() {
        let folder = tempfile::tempdir().unwrap();
        let shards = folder.path().join("shards");
        kill_in_between(ingest(&shards).spawn().unwrap(), &shards, round);
        n_with_finished_cases += u64::from(n_finished(&shards) > 0);
        if !shards.exists() {
            succeed(&mut ingest(&shards));
        }
        assert_eq!(sums(&shards), want, "round {round}");
        succeed(program("ct-ingest").arg("verify").arg(&shards));
        let left = left_in(folder.path());
        // Killed between the last two steps, the emptied folder may be left beside the whole result.
        assert!(left == ["shards"] || left == [".shards.partial", "shards"], "round {round}: {left:?}");
    }
    assert!(n_with_finished_cases > 0, "no run was killed while it read cases");
}

fn part(folder: &Path, index: usize, count: usize) -> (Command, PathBuf) {
    let out = folder.join(format!("part-{index}"));
    let mut command = ingest(&out);
    command.args(["--partition", &format!("{index}/{count}")]);
    (command, out)
}

#[test]
fn parts_made_side_by_side_with_one_killed_join_to_the_same_bytes() {
    const COUNT: usize = 3;
    let folder = tempfile::tempdir().unwrap();
    let want = undisturbed(folder.path());
    let mut running: Vec<Child> =
        (0..COUNT).map(|index| part(folder.path(), index, COUNT).0.spawn().unwrap()).collect();
    kill_in_between(running.remove(1), &part(folder.path(), 1, COUNT).1, 1);
    for mut child in running {
        assert!(child.wait().unwrap().success());
    }
    let (mut again, killed) = part(folder.path(), 1, COUNT);
    let parts: Vec<PathBuf> = (0..COUNT).map(|index| part(folder.path(), index, COUNT).1).collect();
    let merge = |parts: &[&Path], out: &str| {
        output(program("ct-ingest").arg("merge").args(parts).arg("--out").arg(folder.path().join(out)))
    };
    let refused = |parts: &[&Path], what: &str| {
        let output = merge(parts, "refused");
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(what), "{}", stderr(&output));
        assert!(!folder.path().join("refused").exists());
    };
    if !killed.exists() {
        refused(&[&parts[0], &parts[1], &parts[2]], "part-1");
        succeed(&mut again);
    }
    refused(&[&parts[0], &parts[2]], "1 of 3 partitions are missing: 1");
    refused(&[&parts[0], &parts[1], &parts[2], &parts[1]], "are both partition 1");
    let merged = merge(&[&parts[2], &parts[0], &parts[1]], "merged");
    assert!(merged.status.success(), "{}", stderr(&merged));
    assert_eq!(sums(&folder.path().join("merged")), want);
    succeed(program("ct-ingest").arg("verify").arg(folder.path().join("merged")));
}

#[test]
fn the_environment_of_a_scheduler_says_which_part() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("part");
    succeed(
        ingest(&out)
            .args(["--shard", "auto"])
            .env("SLURM_ARRAY_TASK_ID", "3")
            .env("SLURM_ARRAY_TASK_MIN", "1")
            .env("SLURM_ARRAY_TASK_COUNT", "4"),
    );
    let part: serde_json::Value = serde_json::from_slice(&fs::read(out.join("part.json")).unwrap()).unwrap();
    assert_eq!(part["partition"], serde_json::json!({"index": 2, "count": 4}));
    let refused = output(ingest(&folder.path().join("other")).args(["--shard", "4/4"]));
    assert_eq!(refused.status.code(), Some(2));
}

#[test]
fn two_runs_do_not_write_to_one_place() {
    let folder = tempfile::tempdir().unwrap();
    let shards = folder.path().join("shards");
    let mut first = ingest(&shards).spawn().unwrap();
    let partial = folder.path().join(".shards.partial").join("work").join("job.json");
    let waiting = Instant::now();
    while !partial.exists() && waiting.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(1));
    }
    // Halted, it cannot end before the second one starts.
    succeed(Command::new("kill").args(["-STOP", &first.id().to_string()]));
    let refused = output(ingest(&shards).stderr(Stdio::piped()));
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("another run is writing"), "{}", stderr(&refused));
}

#[test]
fn gnu_parallel_repeats_only_what_failed() {
    let folder = tempfile::tempdir().unwrap();
    let Some(()) = covid19_diag_tests::installed("parallel", "GNU parallel") else { return };
    let want = undisturbed(folder.path());
    let dicom = tiny_cohort();
    let shards = folder.path().join("shards");
    let programs = covid19_diag_tests::folder_of_programs();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let run = || {
        let mut command = Command::new(workspace().join("deploy/parallel.sh"));
        command.arg(dicom).arg(dicom.join("labels.csv")).arg(&shards).arg("3");
        command.args(["--select", "all", "--size", "64", "--jobs", "1"]).env("PATH", &path);
        command
    };
    // A folder in the way lets one part fail, three times.
    let in_the_way = folder.path().join("shards.parts/part-1/other");
    fs::create_dir_all(&in_the_way).unwrap();
    let failed = output(&mut run());
    assert!(!failed.status.success());
    assert!(stderr(&failed).contains("run again to repeat them: 1\n"), "{}", stderr(&failed));
    let retry_list = || {
        let mut command = Command::new(workspace().join("deploy/failed-parts.sh"));
        String::from_utf8(succeed(command.arg(folder.path().join("shards.parts")).arg("3")).stdout).unwrap()
    };
    assert_eq!(retry_list(), "1\n");
    let modified = |index| {
        let part = folder.path().join(format!("shards.parts/part-{index}/part.json"));
        fs::metadata(part).unwrap().modified().unwrap()
    };
    let before = [modified(0), modified(2)];
    fs::remove_dir(&in_the_way).unwrap();
    succeed(&mut run());
    assert_eq!([modified(0), modified(2)], before, "whole parts were made again");
    assert_eq!(retry_list(), "\n");
    assert_eq!(sums(&shards), want);
}
