//! The Parquet schema of slice shards: the only place that knows column names.
//!
//! A shard folder holds `data/<split>-00000-of-000NN.parquet`, `cases.parquet`,
//! `quarantine.jsonl`, `manifest.json`, whatever cards the writer adds, and
//! `SHA256SUMS` over all of them. See `docs/shard-format.md`.

mod columns;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::DataError;
use crate::case::{CaseId, Split};
use crate::files::{self, StagedDir};
use crate::manifest::{
    CaseRow, FORMAT_VERSION, Flow, Layout, Manifest, Quarantined, ShardFile, ShardSpec, TableRow,
};
use crate::slice::CtSlice;

/// Rows of one Parquet file; the last file of a split may have fewer.
const ROWS_PER_FILE: usize = 1024;
/// Rows of one row group: small, so that a random batch reads little.
const ROWS_PER_GROUP: usize = 256;
/// Bytes of one page: small, so that a random row reads little.
const PAGE_BYTES: usize = 64 * 1024;

/// What the writer of a shard folder knows beside its slices.
#[derive(Clone, Debug)]
pub struct Job {
    /// What is stored.
    pub spec: ShardSpec,
    /// Name and version of the writing program.
    pub tool: String,
    /// The command's resolved settings; hashed into the manifest.
    pub config: serde_json::Value,
}

/// What is known once every case was read.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Whether any source said that it is synthetic.
    pub synthetic: bool,
    /// Inclusion and exclusion.
    pub flow: Flow,
    /// One row a case, in the order of their slices.
    pub cases: Vec<CaseRow>,
    /// What was set aside.
    pub quarantined: Vec<Quarantined>,
}

/// Writes a shard folder that appears whole or not at all.
#[derive(Debug)]
pub struct ShardWriter {
    staged: StagedDir,
    job: Job,
    schema: Arc<Schema>,
    pending: BTreeMap<Split, Vec<CtSlice>>,
    written: BTreeMap<Split, Vec<usize>>,
    table: BTreeMap<(usize, Split), (std::collections::BTreeSet<CaseId>, u64)>,
}

impl ShardWriter {
    /// Starts a folder; nothing is visible at `target` until [`finish`](Self::finish).
    ///
    /// # Errors
    /// When `target` exists and is not empty, or its parent cannot be written.
    pub fn create(target: &Path, job: Job) -> Result<Self, DataError> {
        let staged = StagedDir::create(target)?;
        let data = staged.path().join("data");
        std::fs::create_dir(&data).map_err(DataError::io("create", data))?;
        let schema = Arc::new(columns::slice_schema(&job.spec));
        Ok(Self {
            staged,
            job,
            schema,
            pending: BTreeMap::new(),
            written: BTreeMap::new(),
            table: BTreeMap::new(),
        })
    }

    /// Adds slices. Their order within a split is the order of the files, so
    /// the same calls give the same bytes.
    ///
    /// # Errors
    /// When an image has the wrong size, its label is unknown, or a file cannot be written.
    pub fn append(&mut self, slices: Vec<CtSlice>) -> Result<(), DataError> {
        for slice in slices {
            let (got, want) = (slice.pixels.len(), self.job.spec.pixels_len());
            if got != want {
                return Err(DataError::invalid("slice", format!("{got} pixels where the shard has {want}")));
            }
            if self.job.spec.labels.name(slice.label).is_none() {
                return Err(DataError::invalid(
                    "slice",
                    format!("label {} is not in the label set", slice.label.0),
                ));
            }
            let split = slice.split;
            let count = self.table.entry((slice.label.index(), split)).or_default();
            count.0.insert(slice.case_id.clone());
            count.1 += 1;
            let pending = self.pending.entry(split).or_default();
            pending.push(slice);
            if pending.len() == ROWS_PER_FILE {
                self.flush(split)?;
            }
        }
        Ok(())
    }

    /// Writes what is left, the manifest, `cards` (path below the folder to
    /// content) and the hashes, and moves the folder to its place.
    ///
    /// # Errors
    /// When a file cannot be written; nothing is then left behind.
    pub fn finish(
        mut self,
        outcome: Outcome,
        cards: impl FnOnce(&Manifest) -> BTreeMap<String, Vec<u8>>,
    ) -> Result<Manifest, DataError> {
        for split in Split::ALL {
            if self.pending.get(&split).is_some_and(|rows| !rows.is_empty()) {
                self.flush(split)?;
            }
        }
        let manifest = self.manifest(&outcome)?;
        let root = self.staged.path().to_path_buf();
        let cases = columns::case_batch(&outcome.cases, &self.job.spec.labels)
            .map_err(|err| DataError::malformed(root.join("cases.parquet"), err))?;
        write_table(&root.join("cases.parquet"), &cases)?;
        let mut lines = Vec::new();
        for entry in &outcome.quarantined {
            serde_json::to_writer(&mut lines, entry)
                .map_err(|err| DataError::malformed(root.join("quarantine.jsonl"), err))?;
            lines.push(b'\n');
        }
        files::write_atomic(&root.join("quarantine.jsonl"), &lines)?;
        files::write_json(&root.join("manifest.json"), &manifest)?;
        for (name, content) in cards(&manifest) {
            files::write_atomic(&root.join(name), &content)?;
        }
        write_sums(&root)?;
        self.staged.commit()?;
        Ok(manifest)
    }

    fn flush(&mut self, split: Split) -> Result<(), DataError> {
        let rows = self.pending.remove(&split).unwrap_or_default();
        let n_written = self.written.get(&split).map_or(0, Vec::len);
        let path = self.staged.path().join(staged_name(split, n_written));
        let batch = columns::slice_batch(&self.schema, &self.job.spec, &rows)
            .map_err(|err| DataError::malformed(&path, err))?;
        write_parquet(&path, &batch, self.properties())?;
        self.written.entry(split).or_default().push(rows.len());
        Ok(())
    }

    fn properties(&self) -> WriterProperties {
        let mut properties = WriterProperties::builder()
            .set_compression(zstd())
            .set_max_row_group_row_count(Some(ROWS_PER_GROUP))
            .set_data_page_size_limit(PAGE_BYTES)
            // Pages are cut only between batches of this many rows.
            .set_write_batch_size(1)
            .set_key_value_metadata(Some(self.footer()));
        // Grey levels neither repeat nor sort: a dictionary and statistics only cost.
        for parts in columns::image_columns() {
            let column = ColumnPath::new(parts);
            properties = properties
                .set_column_dictionary_enabled(column.clone(), false)
                .set_column_statistics_enabled(column, EnabledStatistics::None);
        }
        properties.build()
    }

    fn footer(&self) -> Vec<KeyValue> {
        let spec = &self.job.spec;
        let config = self.job.config.to_string();
        let mut footer = vec![
            KeyValue::new("covid19-diag.format_version".into(), FORMAT_VERSION.to_string()),
            KeyValue::new("covid19-diag.tool".into(), self.job.tool.clone()),
            KeyValue::new("covid19-diag.labels".into(), spec.labels.names().join(",")),
            KeyValue::new("covid19-diag.config_sha256".into(), files::sha256_hex(config.as_bytes())),
            KeyValue::new("covid19-diag.config".into(), config),
        ];
        if spec.layout == Layout::Hf {
            footer.push(KeyValue::new("huggingface".into(), columns::huggingface_features(spec)));
        }
        footer
    }

    /// Gives the files their final names, now that their number is known.
    fn manifest(&self, outcome: &Outcome) -> Result<Manifest, DataError> {
        let mut shard_files = Vec::new();
        for (&split, rows) in &self.written {
            for (i, &n_rows) in rows.iter().enumerate() {
                let path = format!("data/{split}-{i:05}-of-{:05}.parquet", rows.len());
                let (from, to) =
                    (self.staged.path().join(staged_name(split, i)), self.staged.path().join(&path));
                std::fs::rename(&from, &to).map_err(DataError::io("rename", from))?;
                let sha256 = files::sha256_file(&to)?;
                shard_files.push(ShardFile { path, split, n_rows: n_rows as u64, sha256 });
            }
        }
        let labels = &self.job.spec.labels;
        let table = self.table.iter().map(|(&(label, split), (cases, n_slices))| TableRow {
            label: labels.names()[label].clone(),
            split,
            n_cases: cases.len() as u64,
            n_slices: *n_slices,
        });
        Ok(Manifest {
            format_version: FORMAT_VERSION,
            tool: self.job.tool.clone(),
            synthetic: outcome.synthetic,
            spec: self.job.spec.clone(),
            config_sha256: files::sha256_hex(self.job.config.to_string().as_bytes()),
            config: self.job.config.clone(),
            flow: outcome.flow.clone(),
            table: table.collect(),
            files: shard_files,
        })
    }
}

/// A shard folder that can be read.
#[derive(Clone, Debug)]
pub struct ShardSet {
    root: PathBuf,
    manifest: Manifest,
}

impl ShardSet {
    /// Opens a folder by its manifest.
    ///
    /// # Errors
    /// When there is no manifest, or it is of another format version.
    pub fn open(root: &Path) -> Result<Self, DataError> {
        let path = root.join("manifest.json");
        let manifest: Manifest = files::read_json(&path)?;
        if manifest.format_version != FORMAT_VERSION {
            let why = format!(
                "format version {} where this program reads {FORMAT_VERSION}",
                manifest.format_version
            );
            return Err(DataError::malformed(path, why));
        }
        Ok(Self { root: root.into(), manifest })
    }

    /// Where it lies.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its description.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Hash that stands for the whole folder: SHA-256 of `SHA256SUMS`.
    ///
    /// # Errors
    /// When `SHA256SUMS` cannot be read.
    pub fn sha256(&self) -> Result<String, DataError> {
        files::sha256_file(&self.root.join("SHA256SUMS"))
    }

    /// The slices of a split, in stored order, a batch of rows in memory at a time.
    pub fn slices(&self, split: Split) -> impl Iterator<Item = Result<CtSlice, DataError>> + '_ {
        let of_split = self.manifest.files.iter().filter(move |file| file.split == split);
        of_split.flat_map(move |file| {
            let path = self.root.join(&file.path);
            let rows: Box<dyn Iterator<Item = Result<CtSlice, DataError>>> = match read_table(&path) {
                Ok(batches) => Box::new(batches.flat_map(move |batch| {
                    let rows =
                        batch.and_then(|batch| columns::slices_of(&batch, &self.manifest.spec, split, &path));
                    match rows {
                        Ok(rows) => rows.into_iter().map(Ok).collect::<Vec<_>>(),
                        Err(err) => vec![Err(err)],
                    }
                })),
                Err(err) => Box::new(std::iter::once(Err(err))),
            };
            rows
        })
    }

    /// The rows of `cases.parquet`.
    ///
    /// # Errors
    /// When the file cannot be read or has other columns.
    pub fn cases(&self) -> Result<Vec<CaseRow>, DataError> {
        let path = self.root.join("cases.parquet");
        let mut rows = Vec::new();
        for batch in read_table(&path)? {
            rows.extend(columns::cases_of(&batch?, &self.manifest.spec.labels, &path)?);
        }
        Ok(rows)
    }

    /// The lines of `quarantine.jsonl`.
    ///
    /// # Errors
    /// When the file cannot be read or a line has another form.
    pub fn quarantined(&self) -> Result<Vec<Quarantined>, DataError> {
        let path = self.root.join("quarantine.jsonl");
        let bytes = files::read(&path)?;
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines
            .map(|line| serde_json::from_slice(line).map_err(|err| DataError::malformed(&path, err)))
            .collect()
    }

    /// Recomputes every hash of `SHA256SUMS`; returns the number of files.
    ///
    /// # Errors
    /// At the first file that is missing, unreadable or different.
    pub fn verify_hashes(&self) -> Result<usize, DataError> {
        let path = self.root.join("SHA256SUMS");
        let text = String::from_utf8(files::read(&path)?).map_err(|err| DataError::malformed(&path, err))?;
        for line in text.lines() {
            let Some((want, name)) = line.split_once("  ") else {
                return Err(DataError::malformed(&path, format!("`{line}` is not HASH  NAME")));
            };
            let file = self.root.join(name);
            if files::sha256_file(&file)? != want {
                return Err(DataError::HashMismatch { path: file });
            }
        }
        Ok(text.lines().count())
    }
}

fn zstd() -> Compression {
    Compression::ZSTD(ZstdLevel::default())
}

fn staged_name(split: Split, i: usize) -> String {
    format!("data/{split}-{i:05}.parquet")
}

fn write_parquet(path: &Path, batch: &RecordBatch, properties: WriterProperties) -> Result<(), DataError> {
    let parquet = |source| DataError::Parquet { path: path.into(), source };
    let file = File::create(path).map_err(DataError::io("create", path))?;
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).map_err(parquet)?;
    writer.write(batch).map_err(parquet)?;
    writer.close().map_err(parquet)?;
    Ok(())
}

/// Writes a small table with this project's compression.
pub(crate) fn write_table(path: &Path, batch: &RecordBatch) -> Result<(), DataError> {
    let staged = path.with_extension("parquet.part");
    let written = write_parquet(&staged, batch, WriterProperties::builder().set_compression(zstd()).build())
        .and_then(|()| std::fs::rename(&staged, path).map_err(DataError::io("write", path)));
    if written.is_err() {
        let _ = std::fs::remove_file(&staged);
    }
    written
}

/// Reads a table batch by batch.
pub(crate) fn read_table(
    path: &Path,
) -> Result<impl Iterator<Item = Result<RecordBatch, DataError>> + use<>, DataError> {
    let path = path.to_path_buf();
    let file = File::open(&path).map_err(DataError::io("read", &path))?;
    let parquet = |source| DataError::Parquet { path: path.clone(), source };
    let reader = ParquetRecordBatchReaderBuilder::try_new(file)
        .and_then(|builder| builder.with_batch_size(ROWS_PER_GROUP).build())
        .map_err(parquet)?;
    Ok(reader.map(move |batch| batch.map_err(|err| DataError::malformed(&path, err))))
}

/// `SHA256SUMS` in the form that `sha256sum -c` reads, sorted by name.
fn write_sums(root: &Path) -> Result<(), DataError> {
    let mut names = Vec::new();
    for folder in ["", "data"] {
        let folder_path = root.join(folder);
        for entry in std::fs::read_dir(&folder_path).map_err(DataError::io("read", &folder_path))? {
            let entry = entry.map_err(DataError::io("read", &folder_path))?;
            if entry.path().is_file() {
                let name = entry.file_name().to_string_lossy().into_owned();
                names.push(if folder.is_empty() { name } else { format!("{folder}/{name}") });
            }
        }
    }
    names.sort();
    let mut text = String::new();
    for name in names {
        text.push_str(&format!("{}  {name}\n", files::sha256_file(&root.join(&name))?));
    }
    files::write_atomic(&root.join("SHA256SUMS"), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{Label, LabelSet};
    use crate::slice::{Acquisition, Geometry, Provenance, Selection};
    use crate::units::{HuWindow, Mm, Spacing};

    fn job(layout: Layout, with_hu: bool) -> Job {
        let spec = ShardSpec {
            labels: LabelSet::paper(),
            height: 4,
            width: 6,
            window: Some(HuWindow::LUNG),
            resize: "bilinear".into(),
            layout,
            with_hu,
            split_seed: Some(1),
        };
        Job { spec, tool: "test 0".into(), config: serde_json::json!({"window": [-1350, 150]}) }
    }

    fn slice(i: usize, with_hu: bool) -> CtSlice {
        CtSlice {
            case_id: CaseId::new(format!("case-{:04}", i / 3)).unwrap(),
            slice_index: (i % 3) as i32,
            label: Label((i / 3 % 3) as u8),
            split: if (i / 3).is_multiple_of(4) { Split::Test } else { Split::Train },
            pixels: (0..24).map(|p| (p * 7 + i) as u8).collect(),
            hu: with_hu.then(|| (0..24).map(|p| -1024 + (p * 97 + i) as i16).collect()),
            geometry: Geometry {
                z: Some(Mm(-12.5 + i as f64)),
                gap_before: (!i.is_multiple_of(3)).then_some(Mm(5.0)),
                spacing: Some(Spacing { row: Mm(0.7), col: Mm(0.8) }),
                slice_thickness: Some(Mm(5.0)),
                tilt_deg: Some(0.5),
                source_rows: 512,
                source_cols: 512,
            },
            acquisition: Acquisition {
                manufacturer: Some("SIEMENS".into()),
                kernel: None,
                kvp: Some(120.0),
                transfer_syntax: "1.2.840.10008.1.2.1".into(),
                rescale_slope: Some(1.0),
                rescale_intercept: Some(-1024.0),
                ..Acquisition::default()
            },
            selection: Selection { lung_fraction: Some(0.4), ..Selection::default() },
            provenance: Provenance {
                source_sha256: "ab".into(),
                pixel_sha256: format!("{i}"),
                warnings: vec!["synthetic".into(); i % 2],
                ..Provenance::default()
            },
        }
    }

    fn write(root: &Path, layout: Layout, with_hu: bool, n_slices: usize) -> ShardSet {
        let target = root.join(format!("{layout:?}{with_hu}{n_slices}"));
        let mut writer = ShardWriter::create(&target, job(layout, with_hu)).unwrap();
        for i in 0..n_slices {
            writer.append(vec![slice(i, with_hu)]).unwrap();
        }
        writer
            .finish(Outcome::default(), |_| BTreeMap::from([("README.md".into(), b"card".to_vec())]))
            .unwrap();
        ShardSet::open(&target).unwrap()
    }

    #[track_caller]
    fn check_round_trip(layout: Layout, with_hu: bool, n_slices: usize) {
        let folder = tempfile::tempdir().unwrap();
        let shards = write(folder.path(), layout, with_hu, n_slices);
        for split in Split::ALL {
            let want: Vec<_> =
                (0..n_slices).map(|i| slice(i, with_hu)).filter(|s| s.split == split).collect();
            let got: Vec<_> = shards.slices(split).collect::<Result<_, _>>().unwrap();
            assert_eq!(got, want, "{layout:?} {split}");
        }
        assert!(shards.verify_hashes().unwrap() >= 4);
    }

    #[test]
    fn raw_rows_survive() {
        check_round_trip(Layout::Raw, false, 30);
    }

    #[test]
    fn hu_planes_survive() {
        check_round_trip(Layout::Raw, true, 30);
    }

    #[test]
    fn png_rows_survive() {
        check_round_trip(Layout::Hf, false, 30);
    }

    #[test]
    fn a_long_split_spans_files() {
        let folder = tempfile::tempdir().unwrap();
        let shards = write(folder.path(), Layout::Raw, false, 1500);
        let names: Vec<_> = shards.manifest().files.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(
            names,
            [
                "data/train-00000-of-00002.parquet",
                "data/train-00001-of-00002.parquet",
                "data/test-00000-of-00001.parquet"
            ]
        );
        check_round_trip(Layout::Raw, false, 1500);
    }

    #[test]
    fn the_same_rows_give_the_same_bytes() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let hashes = folders.each_ref().map(|f| write(f.path(), Layout::Raw, true, 40).sha256().unwrap());
        assert_eq!(hashes[0], hashes[1]);
    }

    #[test]
    fn a_changed_byte_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let shards = write(folder.path(), Layout::Raw, false, 9);
        let file = shards.root().join(&shards.manifest().files[0].path);
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[100] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        assert!(matches!(shards.verify_hashes(), Err(DataError::HashMismatch { .. })));
    }

    #[test]
    fn a_wrong_size_or_label_is_refused_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("shards");
        for change in [|s: &mut CtSlice| s.pixels.truncate(3), |s: &mut CtSlice| s.label = Label(9)] {
            let mut writer = ShardWriter::create(&target, job(Layout::Raw, false)).unwrap();
            let mut bad = slice(0, false);
            change(&mut bad);
            assert!(writer.append(vec![bad]).is_err());
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
