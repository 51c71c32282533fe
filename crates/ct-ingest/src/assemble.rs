//! From stored cases to a shard folder: of one run, or of all partitions of one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use diag_data::DataError;
use diag_data::case::CaseId;
use diag_data::files;
use diag_data::manifest::{FORMAT_VERSION, KeyInfo, ShardSpec};
use diag_data::shard::staging::{self, Piece, Staging};
use diag_data::shard::{Job, Outcome};
use serde::{Deserialize, Serialize};

use crate::IngestError;
use crate::accounting::{CaseAccount, Opening, Origin};
use crate::cards;
use crate::leakage::LeakCheck;
use crate::partition::Partition;
use crate::run::{Control, Event, Summary};

/// Adds up the accounts of all cases.
pub(crate) fn account(opening: Opening, pieces: &[Piece]) -> Result<(Outcome, LeakCheck), IngestError> {
    let mut leaks = LeakCheck::default();
    let Opening { flow, quarantined } = opening;
    let mut outcome = Outcome { flow, quarantined, ..Outcome::default() };
    let mut origin: Option<Origin> = None;
    for piece in pieces {
        let account: CaseAccount = serde_json::from_str(&piece.content()?)
            .map_err(|err| DataError::Invalid { what: "account of a case", why: err.to_string() })?;
        outcome.flow.add(&account.flow);
        outcome.quarantined.extend(account.quarantined);
        outcome.n_burned_in_unknown += u64::from(account.burned_in_unknown);
        if let Some(row) = account.row {
            let synthetic = account.synthetic;
            let origin = origin.get_or_insert_with(|| Origin { case: row.case_id.clone(), synthetic });
            origin.check(&row.case_id, synthetic)?;
            leaks.add_case(&row, &account.marks);
            outcome.cases.push(row);
        }
    }
    outcome.synthetic = origin.is_some_and(|origin| origin.synthetic);
    Ok((outcome, leaks))
}

/// Adds up the accounts, adds the leaks between the parts of the split to the
/// quarantine, and writes the shard folder.
///
/// # Errors
/// When no case is left, or a shard cannot be written.
pub(crate) fn close(
    staging: Staging,
    opening: Opening,
    pieces: &[Piece],
    control: &Control<'_>,
) -> Result<Summary, IngestError> {
    let (mut outcome, leaks) = account(opening, pieces).inspect_err(|_| staging.discard())?;
    if outcome.cases.is_empty() {
        staging.discard();
        return Err(IngestError::NothingUsable { n_cases: outcome.flow.cases.seen });
    }
    for what in leaks.placeholders() {
        let note = format!("every case has the same {what} UID: taken as a placeholder");
        (control.on_event)(Event::Note(&note));
    }
    // The encoder needs the room of the marks.
    for leak in leaks.into_leaks() {
        let names: Vec<&str> = leak.cases.iter().map(|case| case.as_str()).collect();
        let fault = leak.fault();
        (control.on_event)(Event::SetAside { source: &names.join(" "), fault: &fault });
        outcome.quarantined.push(fault.line(names.join(" ")));
    }
    let (n_quarantined, synthetic) = (outcome.quarantined.len(), outcome.synthetic);
    let manifest = staging.finish(pieces, outcome, |manifest| cards::all(manifest, synthetic))?;
    Ok(Summary { manifest, n_quarantined })
}

/// `part.json`: what the folder of a partition is a partition of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PartitionFile {
    format_version: u32,
    partition: Partition,
    tool: String,
    spec: ShardSpec,
    key: KeyInfo,
    config: serde_json::Value,
    opening: Opening,
    /// All cases of the whole run, in the order of the shards.
    cases: Vec<CaseId>,
}

impl PartitionFile {
    /// Describes a partition of a job.
    pub(crate) fn new(partition: Partition, job: &Job, opening: Opening, cases: Vec<CaseId>) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            partition,
            tool: job.tool.clone(),
            spec: job.spec.clone(),
            key: job.key.clone(),
            config: job.config.clone(),
            opening,
            cases,
        }
    }
}

/// Joins partitions to a shard folder: the same bytes as one run over everything.
///
/// # Errors
/// When a folder is no partition, partitions are missing or doubled, belong to different
/// runs, or a shard cannot be written.
pub fn merge(folders: &[PathBuf], out: &Path, control: &Control<'_>) -> Result<Summary, IngestError> {
    let mut partitions: BTreeMap<u32, (&PathBuf, PartitionFile)> = BTreeMap::new();
    for folder in folders {
        let file: PartitionFile = files::read_json(&folder.join(staging::PART_FILE))?;
        let index = file.partition.index;
        if let Some((other, _)) = partitions.insert(index, (folder, file)) {
            let why = format!("{} and {} are both partition {index}", other.display(), folder.display());
            return Err(IngestError::Partitions { why });
        }
    }
    let Some((_, (_, first))) = partitions.first_key_value() else {
        return Err(IngestError::Partitions { why: "no partition is given".into() });
    };
    let first = first.clone();
    for (folder, file) in partitions.values() {
        if file.key != first.key {
            return Err(IngestError::Keys {
                path: folder.to_path_buf(),
                found: file.key.clone(),
                first: first.key,
            });
        }
        if *file != (PartitionFile { partition: file.partition, ..first.clone() })
            || file.partition.count != first.partition.count
        {
            let why = format!("{} is a partition of another run, or its input was another", folder.display());
            return Err(IngestError::Partitions { why });
        }
    }
    let count = first.partition.count;
    let missing: Vec<String> =
        (0..count).filter(|index| !partitions.contains_key(index)).map(|index| index.to_string()).collect();
    if !missing.is_empty() {
        let why = format!("{} of {count} partitions are missing: {}", missing.len(), missing.join(", "));
        return Err(IngestError::Partitions { why });
    }
    let PartitionFile { tool, spec, key, config, opening, cases, .. } = first;
    let staging = Staging::create(out, Job { spec, key, tool, config })?;
    let mut pieces = Vec::with_capacity(cases.len());
    for case in &cases {
        control.check()?;
        if let Some((folder, _)) = partitions.get(&Partition::of(case, count)) {
            pieces.push(Piece::open(&staging::piece_path(folder, case.as_str()))?);
        }
    }
    close(staging, opening, &pieces, control)
}
