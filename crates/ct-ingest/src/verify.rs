//! `ct-ingest verify`: is a shard folder what its manifest says, and does
//! nothing cross its split?

use std::collections::BTreeMap;
use std::path::Path;

use diag_data::DataError;
use diag_data::case::Split;
use diag_data::shard::ShardSet;

use crate::IngestError;
use crate::leakage::{Leak, LeakCheck, Mark};

/// What was checked, and what was found.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Files whose hash is right.
    pub n_files: usize,
    /// Slices that were read.
    pub n_slices: u64,
    /// Cases that were read.
    pub n_cases: usize,
    /// What two parts of the split share.
    pub leaks: Vec<Leak>,
}

/// Checks hashes, schema, counts and the split of a shard folder.
///
/// # Errors
/// When a file is missing, changed or malformed, or counts contradict each other.
pub fn verify(root: &Path) -> Result<Verified, IngestError> {
    let shards = ShardSet::open(root)?;
    let n_files = shards.verify_hashes()?;
    let wrong = |file: &str, why: String| DataError::Malformed { path: root.join(file), why };
    let manifest = shards.manifest();
    let flow = &manifest.flow;
    for (name, level) in
        [("files", &flow.files), ("series", &flow.series), ("cases", &flow.cases), ("slices", &flow.slices)]
    {
        if !level.adds_up() {
            return Err(wrong("manifest.json", format!("its flow of {name} does not add up")).into());
        }
    }
    let mut marks_of: BTreeMap<(String, Split), Vec<Mark>> = BTreeMap::new();
    let mut n_slices = 0;
    for split in Split::ALL {
        let mut n_rows = 0;
        for slice in shards.slices(split) {
            let slice = slice?;
            marks_of.entry((slice.case_id.to_string(), slice.split)).or_default().push(Mark::of(&slice));
            n_rows += 1;
        }
        let files = manifest.files.iter().filter(|file| file.split == split);
        let stated: u64 = files.map(|file| file.n_rows).sum();
        if n_rows != stated {
            let why = format!("it states {stated} rows of {split} where the files hold {n_rows}");
            return Err(wrong("manifest.json", why).into());
        }
        n_slices += n_rows;
    }
    let cases = shards.cases()?;
    let mut leaks = LeakCheck::default();
    for case in &cases {
        let marks = marks_of.remove(&(case.case_id.to_string(), case.split)).unwrap_or_default();
        if marks.len() as i64 != i64::from(case.n_slices) {
            let why =
                format!("{} has {} slices there and {} in data", case.case_id, case.n_slices, marks.len());
            return Err(wrong("cases.parquet", why).into());
        }
        leaks.add_case(case, &marks);
    }
    if let Some((case, split)) = marks_of.into_keys().next() {
        return Err(wrong("cases.parquet", format!("{case} of {split} is not in it")).into());
    }
    Ok(Verified { n_files, n_slices, n_cases: cases.len(), leaks: leaks.into_leaks() })
}
