//! The Parquet schema of slice shards: the only place that knows column names.
//!
//! A shard folder holds `data/<split>-00000-of-000NN.parquet`, `cases.parquet`,
//! `quarantine.jsonl`, `manifest.json`, whatever cards the writer adds, and
//! `SHA256SUMS` over all of them. See `docs/shard-format.md`.

mod assemble;
mod check;
mod columns;
pub mod staging;

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::WriterProperties;

use self::assemble::{ROWS_PER_GROUP, zstd};
use self::check::{RowKey, Rows, Sums};
use self::staging::{Piece, Staging};
use crate::DataError;
use crate::case::{CaseId, Label, Split};
use crate::files;
use crate::manifest::{CaseRow, FORMAT_VERSION, Flow, KeyInfo, Manifest, Quarantined, ShardFile, ShardSpec};
use crate::place::Place;
use crate::slice::CtSlice;

/// What the writer of a shard folder knows beside its slices.
#[derive(Clone, Debug)]
pub struct Job {
    /// What is stored.
    pub spec: ShardSpec,
    /// The key of the pseudonyms.
    pub key: KeyInfo,
    /// Name and version of the writing program.
    pub tool: String,
    /// The command's resolved settings; hashed into the manifest.
    pub config: serde_json::Value,
}

/// What is known once every case was read.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Whether every used file bears the mark of ct-phantom.
    pub synthetic: bool,
    /// Cases of which nothing says whether text is burned into the pixels.
    pub n_burned_in_unknown: u64,
    /// Inclusion and exclusion.
    pub flow: Flow,
    /// One row a case, in the order of their slices.
    pub cases: Vec<CaseRow>,
    /// What was set aside.
    pub quarantined: Vec<Quarantined>,
}

/// Cards beside the shards: path below the folder to content.
pub type Cards = BTreeMap<String, Vec<u8>>;

impl Job {
    /// The job as bytes; equal jobs have equal ones.
    fn stated(&self, path: &Path) -> Result<Vec<u8>, DataError> {
        let job = serde_json::json!({
            "format_version": FORMAT_VERSION,
            "tool": self.tool,
            "spec": self.spec,
            "key": self.key,
            "config": self.config,
        });
        serde_json::to_vec_pretty(&job).map_err(|err| DataError::malformed(path, err))
    }
}

/// Writes a shard folder that appears whole or not at all, from slices as they
/// come. Programs that read many cases, or want to continue, use [`staging::Staging`].
#[derive(Debug)]
pub struct ShardWriter {
    staging: Staging,
    pieces: Vec<Piece>,
}

impl ShardWriter {
    /// Starts a folder; nothing is visible at `target` until [`finish`](Self::finish).
    ///
    /// # Errors
    /// When `target` exists and is not empty, or its parent cannot be written.
    pub fn create(target: &Path, job: Job) -> Result<Self, DataError> {
        Ok(Self { staging: Staging::create(target, job)?, pieces: Vec::new() })
    }

    /// Adds slices. Their order within a split is the order of the files, so
    /// the same calls give the same bytes.
    ///
    /// # Errors
    /// When an image has the wrong size, its label is unknown, or a file cannot be written.
    pub fn append(&mut self, slices: Vec<CtSlice>) -> Result<(), DataError> {
        for slices in slices.chunk_by(|a, b| a.split == b.split) {
            let name = format!("{:08}", self.pieces.len());
            self.pieces.push(self.staging.put(&name, "", String::new(), slices[0].split, slices)?);
        }
        Ok(())
    }

    /// Writes the shards, the manifest, `cards` and the hashes, and moves the
    /// folder to its place. Table 1 counts the cases of `outcome`.
    ///
    /// # Errors
    /// When a file cannot be written; nothing is then left behind.
    pub fn finish(
        self,
        outcome: Outcome,
        cards: impl FnOnce(&Manifest) -> Cards,
    ) -> Result<Manifest, DataError> {
        self.staging.finish(&self.pieces, outcome, cards)
    }
}

/// What tells a stored slice from all others, and its class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceKey {
    /// Pseudonym of its case.
    pub case_id: CaseId,
    /// Position among the slices of the case.
    pub slice_index: i32,
    /// Class of its case.
    pub label: Label,
}

/// A shard folder that can be read, here or in a store.
#[derive(Clone, Debug)]
pub struct ShardSet {
    root: PathBuf,
    manifest: Manifest,
    sums: Sums,
}

impl ShardSet {
    /// Opens a folder, or a prefix of a store (see [`place`](crate::place)), by its manifest.
    /// From here on every file is hashed when it is first read, and every row is checked.
    ///
    /// # Errors
    /// When there is no manifest, it is of another format version or not the one that
    /// `SHA256SUMS` was made for, or `SHA256SUMS` lacks a file.
    pub fn open(root: &Path) -> Result<Self, DataError> {
        let path = root.join("manifest.json");
        // The version first: a manifest of another one has other fields.
        let value: serde_json::Value = files::read_json(&path)?;
        let found = value.get("format_version").and_then(serde_json::Value::as_u64);
        if found != Some(FORMAT_VERSION.into()) {
            return Err(DataError::OtherVersion { path, found, supported: FORMAT_VERSION });
        }
        let manifest: Manifest =
            serde_json::from_value(value).map_err(|err| DataError::malformed(&path, err))?;
        let sums = Sums::read(root)?;
        sums.check_complete(&manifest)?;
        sums.check_file("manifest.json")?;
        Ok(Self { root: root.into(), manifest, sums })
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
        let rows_of_split = Arc::new(Mutex::new(Rows::default()));
        self.files_of(split).flat_map(move |file| {
            let path = self.root.join(&file.path);
            let batches = self.sums.check_file(&file.path).and_then(|()| read_table(&path));
            let checked = rows_of_split.clone();
            let rows: Box<dyn Iterator<Item = Result<CtSlice, DataError>>> = match batches {
                Ok(batches) => Box::new(batches.flat_map(move |batch| {
                    let rows = batch.and_then(|batch| {
                        self.check_rows(&batch, split, &path, &checked)?;
                        columns::slices_of(&batch, &self.manifest.spec, split, &path)
                    });
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

    /// The slices of a split by name, in stored order. Their pixels are not read.
    ///
    /// # Errors
    /// When a file cannot be read or has other columns.
    pub fn keys(&self, split: Split) -> Result<Vec<SliceKey>, DataError> {
        let mut keys = Vec::new();
        let rows = Mutex::new(Rows::default());
        for file in self.files_of(split) {
            let path = self.root.join(&file.path);
            self.sums.check_file(&file.path)?;
            let choice = Choice { columns: Some(&columns::KEY_COLUMNS), wanted: &|_| true };
            let n_before = keys.len();
            for batch in read_choice(&path, &choice)?.batches {
                let batch = batch?;
                self.check_rows(&batch, split, &path, &rows)?;
                keys.extend(columns::keys_of(&batch, &path)?);
            }
            check_count(file, keys.len() - n_before, &path)?;
        }
        Ok(keys)
    }

    /// Hands the grey levels of the wanted slices of a split to `take`, each with its
    /// place in stored order. Row groups without a wanted one are not read.
    ///
    /// # Errors
    /// When a file cannot be read or has other columns.
    pub fn pixels(
        &self,
        split: Split,
        wanted: &dyn Fn(usize) -> bool,
        take: &mut dyn FnMut(usize, Vec<u8>),
    ) -> Result<(), DataError> {
        let spec = &self.manifest.spec;
        let mut first_row = 0;
        for file in self.files_of(split) {
            let path = self.root.join(&file.path);
            let choice = Choice {
                columns: Some(&[columns::pixel_column(spec)]),
                wanted: &|row| wanted(first_row + row),
            };
            if (0..file.n_rows as usize).any(choice.wanted) {
                self.sums.check_file(&file.path)?;
            }
            let Chosen { n_rows, rows, batches } = read_choice(&path, &choice)?;
            check_count(file, n_rows, &path)?;
            let mut rows = rows.into_iter().flatten().map(|row| first_row + row);
            for batch in batches {
                let batch = batch?;
                for (at, row) in
                    rows.by_ref().take(batch.num_rows()).enumerate().filter(|(_, row)| wanted(*row))
                {
                    take(row, columns::pixels_of(&batch, spec, at, &path)?);
                }
            }
            first_row += n_rows;
        }
        Ok(())
    }

    fn files_of(&self, split: Split) -> impl Iterator<Item = &ShardFile> + '_ {
        self.manifest.files.iter().filter(move |file| file.split == split)
    }

    /// Checks what the rows of a batch say of themselves.
    fn check_rows(
        &self,
        batch: &RecordBatch,
        split: Split,
        path: &Path,
        rows: &Mutex<Rows>,
    ) -> Result<(), DataError> {
        let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
        columns::check_rows(batch, path, &mut |row: &RowKey<'_>| {
            rows.check(row, &self.manifest.spec.labels, split, path)
        })
    }

    /// The rows of `cases.parquet`.
    ///
    /// # Errors
    /// When the file cannot be read or has other columns.
    pub fn cases(&self) -> Result<Vec<CaseRow>, DataError> {
        let path = self.root.join("cases.parquet");
        self.sums.check_file("cases.parquet")?;
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
        self.sums.check_file("quarantine.jsonl")?;
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
        self.sums.check_all()
    }
}

/// The rows of a file must be as many as the manifest states.
fn check_count(file: &ShardFile, n_rows: usize, path: &Path) -> Result<(), DataError> {
    if n_rows as u64 == file.n_rows {
        return Ok(());
    }
    let why = format!("it holds {n_rows} rows where the manifest states {}", file.n_rows);
    Err(DataError::malformed(path, why))
}

/// The columns of slice files as the `features` list of a Hugging Face card
/// (`dataset_info`): JSON, which is YAML too.
pub fn card_features(spec: &ShardSpec) -> serde_json::Value {
    columns::card_features(spec)
}

fn write_parquet(path: &Path, batch: &RecordBatch, options: ArrowWriterOptions) -> Result<(), DataError> {
    let parquet = |source| DataError::Parquet { path: path.into(), source };
    let file = File::create(path).map_err(DataError::io("create", path))?;
    let mut writer = ArrowWriter::try_new_with_options(file, batch.schema(), options).map_err(parquet)?;
    writer.write(batch).map_err(parquet)?;
    writer.close().map_err(parquet)?;
    Ok(())
}

/// Rows of a table, a batch at a time.
type Batches = Box<dyn Iterator<Item = Result<RecordBatch, DataError>>>;

/// Writes a small table with this project's compression.
pub(crate) fn write_table(path: &Path, batch: &RecordBatch) -> Result<(), DataError> {
    let staged = path.with_extension("parquet.part");
    let properties = WriterProperties::builder().set_compression(zstd()).build();
    let written = write_parquet(&staged, batch, ArrowWriterOptions::new().with_properties(properties))
        .and_then(|()| std::fs::rename(&staged, path).map_err(DataError::io("write", path)));
    if written.is_err() {
        let _ = std::fs::remove_file(&staged);
    }
    written
}

/// Reads a table batch by batch, from a file or an object.
pub(crate) fn read_table(path: &Path) -> Result<Batches, DataError> {
    Ok(read_choice(path, &Choice { columns: None, wanted: &|_| true })?.batches)
}

/// What to read of a table.
pub(crate) struct Choice<'a> {
    /// The top-level columns; absent: all.
    columns: Option<&'a [&'a str]>,
    /// The rows. A row group is read if any of its rows is wanted.
    wanted: &'a dyn Fn(usize) -> bool,
}

/// What was chosen of a table.
pub(crate) struct Chosen {
    /// Rows of the whole table.
    pub n_rows: usize,
    /// Which of them `batches` hold, in order.
    pub rows: Vec<Range<usize>>,
    pub batches: Batches,
}

impl Choice<'_> {
    /// The row groups, with the rows that each holds, and the columns.
    pub fn of(&self, metadata: &ParquetMetaData) -> (Vec<usize>, Vec<Range<usize>>, ProjectionMask) {
        let mut n_rows = 0;
        let (mut groups, mut rows) = (Vec::new(), Vec::new());
        for (group, row_group) in metadata.row_groups().iter().enumerate() {
            let of_group = n_rows..n_rows + row_group.num_rows() as usize;
            n_rows = of_group.end;
            if of_group.clone().any(self.wanted) {
                groups.push(group);
                rows.push(of_group);
            }
        }
        let schema = metadata.file_metadata().schema_descr();
        let columns = match self.columns {
            Some(columns) => ProjectionMask::columns(schema, columns.iter().copied()),
            None => ProjectionMask::all(),
        };
        (groups, rows, columns)
    }
}

fn read_choice(path: &Path, choice: &Choice<'_>) -> Result<Chosen, DataError> {
    match Place::of(path)? {
        Place::Local(path) => read_file(path, choice),
        #[cfg(feature = "cloud")]
        Place::Store(object) => object.read(choice, ROWS_PER_GROUP),
    }
}

fn read_file(path: PathBuf, choice: &Choice<'_>) -> Result<Chosen, DataError> {
    let file = files::open_plain(&path).map_err(DataError::io("read", &path))?;
    let parquet = |source| DataError::Parquet { path: path.clone(), source };
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(parquet)?;
    let n_rows = builder.metadata().file_metadata().num_rows() as usize;
    let (groups, rows, columns) = choice.of(builder.metadata());
    let reader = builder
        .with_row_groups(groups)
        .with_projection(columns)
        .with_batch_size(ROWS_PER_GROUP)
        .build()
        .map_err(parquet)?;
    let batches = Box::new(reader.map(move |batch| batch.map_err(|err| DataError::malformed(&path, err))));
    Ok(Chosen { n_rows, rows, batches })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::{CaseId, Label, LabelSet};
    use crate::manifest::{KeyKind, Layout};
    use crate::reader::ReaderSettings;
    use crate::slice::{Acquisition, Geometry, Provenance, Selection};
    use crate::units::{Mm, Spacing};

    fn job(layout: Layout, with_hu: bool) -> Job {
        let spec = ShardSpec {
            labels: LabelSet::paper(),
            reader: ReaderSettings { size: 5, ..ReaderSettings::DEFAULT },
            layout,
            with_hu,
            split_seed: Some(1),
        };
        let key = KeyInfo { kind: KeyKind::Public, id: "0123abcd".into() };
        Job { spec, key, tool: "test 0".into(), config: serde_json::json!({"window": [-1350, 150]}) }
    }

    fn slice(i: usize, with_hu: bool) -> CtSlice {
        CtSlice {
            case_id: CaseId::new(format!("case-{:04}", i / 3)).unwrap(),
            slice_index: (i % 3) as i32,
            label: Label((i / 3 % 3) as u8),
            split: if (i / 3).is_multiple_of(4) { Split::Test } else { Split::Train },
            pixels: (0..25).map(|p| (p * 7 + i) as u8).collect(),
            hu: with_hu.then(|| (0..25).map(|p| -1024 + (p * 97 + i) as i16).collect()),
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
                source_blake3: "ab".into(),
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
    fn slices_are_listed_and_their_pixels_read_by_place() {
        let folder = tempfile::tempdir().unwrap();
        for layout in [Layout::Raw, Layout::Hf] {
            let shards = write(folder.path(), layout, true, 60);
            for split in Split::ALL {
                let slices: Vec<_> = shards.slices(split).collect::<Result<_, _>>().unwrap();
                let key = |s: &CtSlice| SliceKey {
                    case_id: s.case_id.clone(),
                    slice_index: s.slice_index,
                    label: s.label,
                };
                assert_eq!(shards.keys(split).unwrap(), slices.iter().map(key).collect::<Vec<_>>());
                let mut taken = Vec::new();
                shards
                    .pixels(split, &|row| row % 3 == 1, &mut |row, pixels| taken.push((row, pixels)))
                    .unwrap();
                let want =
                    slices.iter().map(|s| s.pixels.clone()).enumerate().filter(|(row, _)| row % 3 == 1);
                assert_eq!(taken, want.collect::<Vec<_>>(), "{layout:?} {split}");
            }
        }
    }

    #[test]
    fn row_groups_without_a_wanted_slice_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        // 1125 training slices: a file of four row groups, and one of 101 rows.
        let shards = write(folder.path(), Layout::Raw, false, 1500);
        let paths: Vec<PathBuf> =
            shards.files_of(Split::Train).map(|file| shards.root().join(&file.path)).collect();
        let (first, second) = (&paths[0], &paths[1]);
        // Both are hashed while they are whole; what is read later is not hashed again.
        shards.pixels(Split::Train, &|_| true, &mut |_, _| ()).unwrap();
        // The pixels of the first row group are gone.
        let footer = ParquetRecordBatchReaderBuilder::try_new(File::open(first).unwrap()).unwrap();
        let group = footer.metadata().row_group(0);
        let pixels = group.columns().iter().find(|c| c.column_path().string() == "pixels").unwrap();
        let (start, length) = pixels.byte_range();
        let mut bytes = std::fs::read(first).unwrap();
        bytes[start as usize..][..length as usize].fill(0);
        std::fs::write(first, bytes).unwrap();

        assert_eq!(shards.keys(Split::Train).unwrap().len(), 1125);
        let read = |rows: Range<usize>| {
            let mut taken = Vec::new();
            shards
                .pixels(Split::Train, &|row| rows.contains(&row), &mut |row, _| taken.push(row))
                .map(|()| taken)
        };
        assert_eq!(read(256..1125).unwrap(), (256..1125).collect::<Vec<_>>());
        assert!(read(255..257).is_err());
        // And of a file without any wanted row, the footer alone.
        let bytes = std::fs::read(second).unwrap();
        std::fs::write(second, [&[0; 200], &bytes[200..]].concat()).unwrap();
        assert_eq!(read(300..1000).unwrap().len(), 700);
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
        // Nobody reads it as if nothing had happened.
        let again = ShardSet::open(shards.root()).unwrap();
        let split = shards.manifest().files[0].split;
        assert!(matches!(again.keys(split), Err(DataError::HashMismatch { .. })));
        assert!(matches!(again.slices(split).next(), Some(Err(DataError::HashMismatch { .. }))));
        let pixels = again.pixels(split, &|_| true, &mut |_, _| ());
        assert!(matches!(pixels, Err(DataError::HashMismatch { .. })));
    }

    /// Changes a text file of a shard folder and opens it again.
    #[track_caller]
    fn check_refused(name: &str, change: impl Fn(&str) -> String, want: &str) {
        let folder = tempfile::tempdir().unwrap();
        let shards = write(folder.path(), Layout::Raw, false, 9);
        let path = shards.root().join(name);
        std::fs::write(&path, change(&std::fs::read_to_string(&path).unwrap())).unwrap();
        let err = ShardSet::open(shards.root()).unwrap_err().to_string();
        assert!(err.contains(want), "{err}");
    }

    #[test]
    fn hashes_that_are_incomplete_or_of_another_manifest_are_refused() {
        check_refused("SHA256SUMS", |_| String::new(), "it lacks cases.parquet");
        let without = |text: &str, name: &str| {
            text.lines().filter(|line| !line.ends_with(name)).map(|line| format!("{line}\n")).collect()
        };
        check_refused("SHA256SUMS", |text| without(text, "quarantine.jsonl"), "it lacks quarantine.jsonl");
        check_refused(
            "SHA256SUMS",
            |text| without(text, "train-00000-of-00001.parquet"),
            "it lacks data/train",
        );
        check_refused("SHA256SUMS", |text| text.replace("  data/", "  ../data/"), "is not HASH  NAME");
        check_refused(
            "manifest.json",
            |text| text.replace("\"synthetic\": false", "\"synthetic\": true"),
            "manifest.json",
        );
    }

    #[test]
    fn a_row_that_contradicts_its_file_is_named() {
        let labels = LabelSet::paper();
        let case_id = CaseId::new("case-0001").unwrap();
        let good = RowKey {
            case_id: &case_id,
            slice_index: 0,
            label: Label(0),
            label_name: "covid-19",
            split: "test",
        };
        let check = |row: RowKey<'_>, want: &str| {
            let mut rows = Rows::default();
            rows.check(&good, &labels, Split::Test, Path::new("x.parquet")).unwrap();
            let err = rows.check(&row, &labels, Split::Test, Path::new("x.parquet")).unwrap_err().to_string();
            assert!(err.contains("row 1") && err.contains(want) && err.contains("x.parquet"), "{err}");
        };
        let next = |slice_index| RowKey { slice_index, ..good };
        check(RowKey { label: Label(3), ..next(1) }, "outside the label set");
        check(RowKey { label: Label(1), ..next(1) }, "label_name");
        check(RowKey { split: "train", ..next(1) }, "test split");
        check(next(0), "twice");
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
