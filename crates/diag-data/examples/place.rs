//! This crate's doors to object stores as a program of its own, which its test runs
//! with the environment of a store:
//!
//!     place copy FROM TO       shards, manifest.json last
//!     place verify SHARDS      hashes, and a hash over all rows
//!     place part SHARDS FROM   all keys of the training slices; the pixels from one on
//!     place work RUN NAME      opens a run, writes NAME into it, hands it in
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program prints")]

use std::path::Path;
use std::process::ExitCode;

use diag_data::DataError;
use diag_data::case::Split;
use diag_data::files;
use diag_data::place::{self, WorkingCopy};
use diag_data::shard::ShardSet;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["copy", from, to] => copy(Path::new(from), Path::new(to)),
        ["verify", shards] => verify(Path::new(shards)),
        ["part", shards, from] => part(Path::new(shards), from),
        ["work", run, name] => work(Path::new(run), name),
        _ => return ExitCode::from(2),
    };
    match done {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(err) => {
            let cause = std::error::Error::source(&err).map_or(String::new(), |cause| format!(": {cause}"));
            eprintln!("error: {err}{cause}\n  fix: {}", err.remedy());
            ExitCode::FAILURE
        }
    }
}

fn copy(from: &Path, to: &Path) -> Result<String, DataError> {
    place::copy(from, to, &["SHA256SUMS", "manifest.json"]).map(|n_files| format!("{n_files} files"))
}

fn verify(root: &Path) -> Result<String, DataError> {
    let shards = ShardSet::open(root)?;
    let n_files = shards.verify_hashes()?;
    let mut rows = String::new();
    for split in Split::ALL {
        for slice in shards.slices(split) {
            rows.push_str(&format!("{:?}\n", slice?));
        }
    }
    Ok(format!("{n_files} files, rows {}", hash(&rows)))
}

fn hash(text: &str) -> String {
    files::sha256_hex(text.as_bytes())
}

fn part(root: &Path, from: &str) -> Result<String, DataError> {
    let shards = ShardSet::open(root)?;
    let keys = shards.keys(Split::Train)?;
    let from: usize = from.parse().unwrap_or(keys.len());
    let mut pixels = Vec::new();
    shards.pixels(Split::Train, &|row| row >= from, &mut |_, grey| pixels.extend(grey))?;
    Ok(format!("{} keys {}, pixels {}", keys.len(), hash(&format!("{keys:?}")), files::sha256_hex(&pixels)))
}

fn work(run: &Path, name: &str) -> Result<String, DataError> {
    let copy = WorkingCopy::of(run)?;
    files::write_atomic(&copy.path().join(name), name.as_bytes())?;
    copy.upload(&["run.json"])?;
    let mut names: Vec<String> = std::fs::read_dir(copy.path())
        .map_err(|source| DataError::Io { action: "read", path: copy.path().into(), source })?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names.join(" "))
}
