//! Damaged input by the ten thousand: whatever the bytes, the readers answer
//! with a value or a named fault, and never panic, hang, or take memory that the
//! input cannot justify. The same functions are the targets of `fuzz/`; here they run
//! a few seconds from a fixed seed, or as long and from the seed that
//! `COVID19_DIAG_HOSTILE=SECONDS,SEED` says. With `COVID19_DIAG_CORPUS=DIR` the undamaged
//! inputs are written to `DIR/TARGET/` too, where the fuzz targets begin.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use ct_ingest::fuzz_targets::label_table;
use ct_read::fuzz_targets;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::common::{Dicom, EXPLICIT_BIG, IMPLICIT_LITTLE};

/// How long a target is tested, with how many inputs at most, and from which seed.
struct Effort {
    time_limit: Duration,
    n_inputs: usize,
    seed: u64,
}

impl Effort {
    /// The usual one, of `n_inputs`, or the longer one that the environment asks for.
    fn of(n_inputs: usize) -> Self {
        let Ok(text) = std::env::var("COVID19_DIAG_HOSTILE") else {
            return Self { time_limit: Duration::from_secs(3), n_inputs, seed: 20_201_124 };
        };
        let (seconds, seed) = text.split_once(',').expect("COVID19_DIAG_HOSTILE is SECONDS,SEED");
        let time_limit = Duration::from_secs(seconds.parse().unwrap());
        Self { time_limit, n_inputs: usize::MAX, seed: seed.parse().unwrap() }
    }
}

/// No input of a few kilobytes takes nearly as long, even on a machine that others use.
const HANG: Duration = Duration::from_secs(20);

/// Changes a few bytes: flips, small and extreme numbers, cuts, copies, insertions.
fn mutated(seed: &[u8], other: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..rng.random_range(1..8) {
        if bytes.is_empty() {
            break;
        }
        // Headers are where decisions are made: half of the changes go there.
        let reach = if rng.random() { bytes.len().min(1200) } else { bytes.len() };
        let at = rng.random_range(0..reach);
        match rng.random_range(0..8) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => bytes[at] = [0, 1, 0x7F, 0x80, 0xFE, 0xFF][rng.random_range(0..6)],
            3 => {
                let end = (at + 4).min(bytes.len());
                bytes[at..end].fill([0, 0xFF, 0x7F, 0x80][rng.random_range(0..4)]);
            }
            4 => bytes.truncate(at),
            5 => {
                let from = rng.random_range(0..other.len());
                let length = rng.random_range(1..64usize).min(other.len() - from);
                bytes.splice(at..at, other[from..from + length].iter().copied());
            }
            6 => {
                let end = (at + rng.random_range(1..64)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let end = (at + rng.random_range(1..64)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = rng.random_range(0..bytes.len());
                bytes.splice(to..to, piece);
            }
        }
    }
    bytes
}

/// Writes the seeds of a target to where the environment asks for them.
fn write_corpus(seeds: &[Vec<u8>], name: &str) {
    let Some(root) = std::env::var_os("COVID19_DIAG_CORPUS") else { return };
    let folder = Path::new(&root).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    for (i, seed) in seeds.iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{i}")), seed).unwrap();
    }
}

/// Calls a target with mutations of the seeds until time or `n_inputs` end.
#[track_caller]
#[expect(clippy::print_stderr, reason = "how many inputs were tried is part of the result")]
fn mutate(seeds: &[Vec<u8>], n_inputs: usize, name: &str, target: fn(&[u8])) {
    write_corpus(seeds, name);
    let Effort { time_limit, n_inputs, seed } = Effort::of(n_inputs);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let started = Instant::now();
    for seed in seeds {
        target(seed);
    }
    let mut n_done = 0;
    // A hundred always, however slow the machine.
    while n_done < 100 || n_done < n_inputs && started.elapsed() < time_limit {
        let (seed, other) =
            (&seeds[rng.random_range(0..seeds.len())], &seeds[rng.random_range(0..seeds.len())]);
        let bytes = mutated(seed, other, &mut rng);
        let before = Instant::now();
        target(&bytes);
        assert!(before.elapsed() < HANG, "input {n_done} took {:?}", before.elapsed());
        n_done += 1;
    }
    eprintln!("{name}: {n_done} inputs from seed {seed}");
}

/// Small files of all encodings, and an enhanced one.
fn dicom_seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for syntax in [crate::common::EXPLICIT_LITTLE, IMPLICIT_LITTLE, EXPLICIT_BIG] {
        let mut dicom = Dicom::chest(1, 0.0);
        dicom.syntax = syntax;
        dicom.number(0x0028_0010, "US", 8);
        dicom.number(0x0028_0011, "US", 8);
        dicom.stored(&(0..64).collect::<Vec<i16>>());
        seeds.push(dicom.bytes());
    }
    seeds.extend(crate::multiframe::seeds());
    seeds.extend(crate::codecs::seeds());
    seeds
}

#[test]
fn the_header_walk_withstands_damage() {
    mutate(&dicom_seeds(), 40_000, "dicom_header", fuzz_targets::dicom_header);
}

#[test]
fn the_decoders_withstand_damage() {
    mutate(&dicom_seeds(), 20_000, "dicom_pixels", fuzz_targets::dicom_pixels);
}

#[test]
fn the_volume_readers_withstand_damage() {
    let plain = crate::nifti::seed();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&plain).unwrap();
    let mut seeds = vec![plain, encoder.finish().unwrap()];
    seeds.extend(crate::volumes::seeds());
    mutate(&seeds, 20_000, "volume", fuzz_targets::volume);
}

#[test]
fn the_label_table_withstands_damage() {
    let tables = [
        "case_id,label\na,normal\nb,covid-19\n",
        "case_id,label,split,patient_id\na,normal,train,p1\nb,covid-19,test,\"p,2\"\n",
        "label,case_id\r\nx,\"a\"\"b\"\r\ny,c\r\n",
        "\u{feff}case_id,label\n\u{e4},\u{df}\n\u{fc},y\n",
    ];
    mutate(&tables.map(|table| table.as_bytes().to_vec()), 40_000, "label_table", label_table);
}

#[test]
fn the_archive_reader_withstands_damage() {
    mutate(&crate::zip::seeds(), 10_000, "archive", fuzz_targets::archive);
}

#[test]
fn the_tar_reader_withstands_damage() {
    mutate(&crate::zip::tar_seeds(), 10_000, "tarball", fuzz_targets::tarball);
}
