//! From stored cases to shard files, encoded side by side in a fixed order.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use arrow::datatypes::Schema;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use rayon::prelude::*;

use super::staging::Piece;
use super::{Cards, Job, Outcome, columns, write_table};
use crate::DataError;
use crate::case::Split;
use crate::files;
use crate::manifest::{CaseRow, FORMAT_VERSION, Layout, Manifest, ShardFile, TableRow, selection_table};

/// Rows of one Parquet file; the last file of a split may have fewer.
const ROWS_PER_FILE: usize = 1024;
/// Rows of one row group: small, so that a random batch reads little.
pub(super) const ROWS_PER_GROUP: usize = 256;
/// Bytes of one page: small, so that a random row reads little.
const PAGE_BYTES: usize = 64 * 1024;

/// Writes all files of a shard folder below `root`, where `data` exists.
pub(super) fn write(
    root: &Path,
    job: &Job,
    schema: &Arc<Schema>,
    pieces: &[Piece],
    outcome: Outcome,
    cards: impl FnOnce(&Manifest) -> Cards,
) -> Result<Manifest, DataError> {
    let mut manifest = manifest(job, &outcome, Vec::new());
    let cases = columns::case_batch(&outcome.cases, &job.spec.labels)
        .map_err(|err| DataError::malformed(root.join("cases.parquet"), err))?;
    write_table(&root.join("cases.parquet"), &cases)?;
    let quarantined = outcome.quarantined;
    // What is said of the cases is written: the encoder needs its room.
    drop((cases, outcome.cases, outcome.flow));
    let plans: Vec<FilePlan<'_>> = Split::ALL.into_iter().flat_map(|split| plan(split, pieces)).collect();
    // Each worker holds one case, twice while it is read, and one row group at a time.
    let written: Vec<Result<ShardFile, DataError>> =
        plans.par_iter().map(|plan| encode(root, job, schema, plan)).collect();
    manifest.files = written.into_iter().collect::<Result<_, _>>()?;
    let mut lines = Vec::new();
    for entry in &quarantined {
        serde_json::to_writer(&mut lines, entry)
            .map_err(|err| DataError::malformed(root.join("quarantine.jsonl"), err))?;
        lines.push(b'\n');
    }
    files::write_atomic(&root.join("quarantine.jsonl"), &lines)?;
    files::write_json(&root.join("manifest.json"), &manifest)?;
    let cards = cards(&manifest);
    for (name, content) in &cards {
        files::write_atomic(&root.join(name), content)?;
    }
    let small = ["cases.parquet", "quarantine.jsonl", "manifest.json"];
    write_sums(root, &manifest, small.into_iter().chain(cards.keys().map(String::as_str)))?;
    Ok(manifest)
}

/// The manifest over some shard files.
pub(super) fn manifest(job: &Job, outcome: &Outcome, files: Vec<ShardFile>) -> Manifest {
    Manifest {
        format_version: FORMAT_VERSION,
        tool: job.tool.clone(),
        synthetic: outcome.synthetic,
        key: job.key.clone(),
        n_cases_burned_in_unknown: outcome.n_burned_in_unknown,
        spec: job.spec.clone(),
        config_sha256: files::sha256_hex(job.config.to_string().as_bytes()),
        config: job.config.clone(),
        flow: outcome.flow.clone(),
        table: table(job, &outcome.cases),
        selection: selection_table(&job.spec.labels, &outcome.cases),
        files,
    }
}

/// Which rows make one file.
struct FilePlan<'a> {
    path: String,
    split: Split,
    /// Pieces with the first row and the number of rows to take.
    runs: Vec<(&'a Piece, usize, usize)>,
}

/// Divides the rows of a split among files, in the order of the pieces.
fn plan(split: Split, pieces: &[Piece]) -> Vec<FilePlan<'_>> {
    let mut files: Vec<Vec<(&Piece, usize, usize)>> = Vec::new();
    let mut room = 0;
    for piece in pieces.iter().filter(|piece| piece.split() == split) {
        let mut from = 0;
        while from < piece.n_rows() {
            if room == 0 {
                files.push(Vec::new());
                room = ROWS_PER_FILE;
            }
            let n_rows = room.min(piece.n_rows() - from);
            if let Some(file) = files.last_mut() {
                file.push((piece, from, n_rows));
            }
            (from, room) = (from + n_rows, room - n_rows);
        }
    }
    let n_files = files.len();
    let path = |i| format!("data/{split}-{i:05}-of-{n_files:05}.parquet");
    files.into_iter().enumerate().map(|(i, runs)| FilePlan { path: path(i), split, runs }).collect()
}

fn encode(root: &Path, job: &Job, schema: &Arc<Schema>, plan: &FilePlan<'_>) -> Result<ShardFile, DataError> {
    let path = root.join(&plan.path);
    let parquet = |source| DataError::Parquet { path: path.clone(), source };
    let file = std::fs::File::create(&path).map_err(DataError::io("create", &path))?;
    let mut writer = ArrowWriter::try_new(file, schema.clone(), Some(properties(job))).map_err(parquet)?;
    for (piece, from, n_rows) in &plan.runs {
        writer.write(&piece.rows(schema)?.slice(*from, *n_rows)).map_err(parquet)?;
    }
    writer.close().map_err(parquet)?;
    let n_rows = plan.runs.iter().map(|(_, _, n_rows)| *n_rows as u64).sum();
    Ok(ShardFile { path: plan.path.clone(), split: plan.split, n_rows, sha256: files::sha256_file(&path)? })
}

fn properties(job: &Job) -> WriterProperties {
    let mut properties = WriterProperties::builder()
        .set_compression(zstd())
        .set_max_row_group_row_count(Some(ROWS_PER_GROUP))
        .set_data_page_size_limit(PAGE_BYTES)
        // Pages are cut only between batches of this many rows.
        .set_write_batch_size(1)
        .set_key_value_metadata(Some(footer(job)));
    // Grey levels neither repeat nor sort: a dictionary and statistics only cost.
    for parts in columns::image_columns() {
        let column = ColumnPath::new(parts);
        properties = properties
            .set_column_dictionary_enabled(column.clone(), false)
            .set_column_statistics_enabled(column, EnabledStatistics::None);
    }
    properties.build()
}

pub(super) fn zstd() -> Compression {
    Compression::ZSTD(ZstdLevel::default())
}

fn footer(job: &Job) -> Vec<KeyValue> {
    let spec = &job.spec;
    let config = job.config.to_string();
    let mut footer = vec![
        KeyValue::new("covid19-diag.format_version".into(), FORMAT_VERSION.to_string()),
        KeyValue::new("covid19-diag.tool".into(), job.tool.clone()),
        KeyValue::new("covid19-diag.labels".into(), spec.labels.names().join(",")),
        KeyValue::new("covid19-diag.reader".into(), serde_json::json!(spec.reader).to_string()),
        KeyValue::new("covid19-diag.key".into(), serde_json::json!(job.key).to_string()),
        KeyValue::new("covid19-diag.config_sha256".into(), files::sha256_hex(config.as_bytes())),
        KeyValue::new("covid19-diag.config".into(), config),
    ];
    if spec.layout == Layout::Hf {
        footer.push(KeyValue::new(columns::HUGGING_FACE.into(), columns::image_feature()));
    }
    footer
}

/// Table 1: cases and slices by class and part.
fn table(job: &Job, cases: &[CaseRow]) -> Vec<TableRow> {
    let mut counts: BTreeMap<(usize, Split), (BTreeSet<&str>, u64)> = BTreeMap::new();
    for case in cases {
        let count = counts.entry((case.label.index(), case.split)).or_default();
        count.0.insert(case.case_id.as_str());
        count.1 += case.n_slices.max(0) as u64;
    }
    let labels = &job.spec.labels;
    let row = |((label, split), (cases, n_slices)): (_, (BTreeSet<&str>, u64))| TableRow {
        label: labels.names().get::<usize>(label).cloned().unwrap_or_default(),
        split,
        n_cases: cases.len() as u64,
        n_slices,
    };
    counts.into_iter().map(row).collect()
}

/// `SHA256SUMS` in the form that `sha256sum -c` reads, sorted by name.
fn write_sums<'a>(
    root: &Path,
    manifest: &Manifest,
    small: impl Iterator<Item = &'a str>,
) -> Result<(), DataError> {
    let mut sums: BTreeMap<String, String> =
        manifest.files.iter().map(|file| (file.path.clone(), file.sha256.clone())).collect();
    for name in small {
        sums.insert(name.to_string(), files::sha256_file(&root.join(name))?);
    }
    let text: String = sums.into_iter().map(|(name, sha256)| format!("{sha256}  {name}\n")).collect();
    files::write_atomic(&root.join("SHA256SUMS"), text.as_bytes())
}
