//! Finished cases at rest, until all of them are there.
//!
//! A case is written to a file of its own, uncompressed, as soon as it is read.
//! That makes the rest simple: cases may be read in any order, a run that was
//! killed continues where it was, several runs can each read a part, and the
//! shard files are encoded side by side in the end. The price is room on the
//! disk for the cases' pixels once more until then.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::Compression;
use parquet::file::metadata::{FileMetaData, KeyValue};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{FileReader, SerializedFileReader};

use super::{Job, assemble, columns};
use crate::DataError;
use crate::case::Split;
use crate::files::{self, StagedDir};
use crate::slice::CtSlice;

/// Folder inside the staged one that a part keeps.
const WORK: &str = "work";
/// Folder inside the staged one that becomes the shard folder.
const SHARDS: &str = "shards";
/// File of a part folder that says what it is a part of.
pub const PART_FILE: &str = "part.json";

const FINGERPRINT: &str = "covid19-diag.fingerprint";
const SPLIT: &str = "covid19-diag.split";
const CONTENT: &str = "covid19-diag.content";

/// The stored slices of one case, all of one split. What is in the file stays there: a
/// cohort has any number of cases.
#[derive(Clone, Debug)]
pub struct Piece {
    path: PathBuf,
    split: Split,
    n_rows: usize,
}

impl Piece {
    /// Opens a stored piece, whatever its fingerprint.
    ///
    /// # Errors
    /// When the file is missing, damaged, or of another kind.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        Ok(Self::read(path)?.0)
    }

    /// Reads what the writer stored beside the slices.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn content(&self) -> Result<String, DataError> {
        Footer::read(&self.path)?.value(CONTENT)
    }

    /// The split of its slices.
    pub fn split(&self) -> Split {
        self.split
    }

    /// Number of slices.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    fn read(path: &Path) -> Result<(Self, String), DataError> {
        let footer = Footer::read(path)?;
        let n_rows = footer.metadata.num_rows() as usize;
        Ok((
            Self { path: path.into(), split: footer.value(SPLIT)?.parse()?, n_rows },
            footer.value(FINGERPRINT)?,
        ))
    }

    /// All rows, in the schema of the shards.
    pub(super) fn rows(&self, schema: &Arc<Schema>) -> Result<RecordBatch, DataError> {
        let wrong = |err: &dyn std::fmt::Display| DataError::malformed(&self.path, err);
        // At once: a reader of the file itself asks the system for every page several times.
        let file = Bytes::from(files::read(&self.path)?);
        // The file does not repeat the schema, which all pieces share.
        let options = ArrowReaderOptions::new().with_schema(schema.clone());
        let mut batches = ParquetRecordBatchReaderBuilder::try_new_with_options(file, options)
            .and_then(|builder| builder.with_batch_size(self.n_rows.max(1)).build())
            .map_err(|err| wrong(&err))?;
        let batch = match batches.next() {
            Some(batch) => batch.map_err(|err| wrong(&err))?,
            None => RecordBatch::new_empty(schema.clone()),
        };
        RecordBatch::try_new(schema.clone(), batch.columns().to_vec()).map_err(|err| wrong(&err))
    }
}

/// The footer of a piece.
struct Footer<'a> {
    path: &'a Path,
    metadata: FileMetaData,
}

impl<'a> Footer<'a> {
    fn read(path: &'a Path) -> Result<Self, DataError> {
        let file = files::open_plain(path).map_err(DataError::io("read", path))?;
        let reader = SerializedFileReader::new(file)
            .map_err(|source| DataError::Parquet { path: path.into(), source })?;
        Ok(Self { path, metadata: reader.metadata().file_metadata().clone() })
    }

    fn value(&self, name: &str) -> Result<String, DataError> {
        let entries = self.metadata.key_value_metadata().map_or(&[][..], Vec::as_slice);
        let entry = entries.iter().find(|entry| entry.key == name);
        let missing = || DataError::malformed(self.path, format!("its footer has no {name}"));
        entry.and_then(|entry| entry.value.clone()).ok_or_else(missing)
    }
}

/// A shard folder, or a part of one, under construction.
#[derive(Debug)]
pub struct Staging {
    dir: StagedDir,
    job: Job,
    schema: Arc<Schema>,
    is_resumable: bool,
}

impl Staging {
    /// Starts afresh, whatever an earlier run left.
    ///
    /// # Errors
    /// When `target` exists and is not empty, another run is at it, or its parent cannot be written.
    pub fn create(target: &Path, job: Job) -> Result<Self, DataError> {
        let dir = StagedDir::create(target)?;
        let cases = dir.path().join(WORK).join("cases");
        std::fs::create_dir_all(&cases).map_err(DataError::io("create", &cases))?;
        let schema = Arc::new(columns::slice_schema(&job.spec));
        Ok(Self { dir, job, schema, is_resumable: false })
    }

    /// Continues what an earlier run of the same job left; starts afresh where
    /// there is nothing, or where the job was another one. What is finished stays
    /// when this is dropped, unless [`discard`](Self::discard) is called.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn resume(target: &Path, job: Job) -> Result<Self, DataError> {
        let dir = StagedDir::resume(target)?;
        let job_path = dir.path().join(WORK).join("job.json");
        let earlier = files::read(&job_path).ok();
        let stated = job.stated(&job_path)?;
        if earlier.as_deref() != Some(stated.as_slice()) {
            dir.clear()?;
        }
        let cases = dir.path().join(WORK).join("cases");
        std::fs::create_dir_all(&cases).map_err(DataError::io("create", &cases))?;
        files::write_atomic(&job_path, &stated)?;
        let mut finished = std::fs::read_dir(&cases).map_err(DataError::io("read", &cases))?;
        dir.keep(finished.next().is_some());
        let schema = Arc::new(columns::slice_schema(&job.spec));
        Ok(Self { dir, job, schema, is_resumable: true })
    }

    /// The piece of a finished case, if it is there and has this fingerprint.
    pub fn find(&self, name: &str, fingerprint: &str) -> Option<Piece> {
        let (piece, stored) = Piece::read(&self.piece_path(name)).ok()?;
        (stored == fingerprint).then_some(piece)
    }

    /// Stores the slices of a case, which are all of `split`, whole or not at
    /// all. `name` is safe as a file name; `content` is given back by [`Piece::content`].
    ///
    /// # Errors
    /// When an image has the wrong size, its label is unknown, or the file cannot be written.
    pub fn put(
        &self,
        name: &str,
        fingerprint: &str,
        content: String,
        split: Split,
        slices: &[CtSlice],
    ) -> Result<Piece, DataError> {
        self.check(slices)?;
        let path = self.piece_path(name);
        let batch = match slices {
            [] => RecordBatch::new_empty(self.schema.clone()),
            _ => columns::slice_batch(&self.schema, &self.job.spec, slices)
                .map_err(|err| DataError::malformed(&path, err))?,
        };
        let properties = WriterProperties::builder()
            .set_compression(Compression::UNCOMPRESSED)
            .set_dictionary_enabled(false)
            .set_statistics_enabled(EnabledStatistics::None)
            .set_max_row_group_row_count(Some(slices.len().max(1)))
            .set_key_value_metadata(Some(vec![
                KeyValue::new(FINGERPRINT.into(), fingerprint.to_string()),
                KeyValue::new(SPLIT.into(), split.to_string()),
                KeyValue::new(CONTENT.into(), content),
            ]))
            .build();
        let staged = path.with_extension("part");
        let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
        super::write_parquet(&staged, &batch, options)?;
        std::fs::rename(&staged, &path).map_err(DataError::io("rename", staged))?;
        self.dir.keep(self.is_resumable);
        Ok(Piece { path, split, n_rows: slices.len() })
    }

    fn check(&self, slices: &[CtSlice]) -> Result<(), DataError> {
        for slice in slices {
            let (got, want) = (slice.pixels.len(), self.job.spec.reader.n_pixels());
            if got != want {
                return Err(DataError::invalid("slice", format!("{got} pixels where the shard has {want}")));
            }
            if self.job.spec.labels.name(slice.label).is_none() {
                let why = format!("label {} is not in the label set", slice.label.0);
                return Err(DataError::invalid("slice", why));
            }
        }
        Ok(())
    }

    /// Encodes the pieces in their order, writes everything around them, and
    /// moves the folder to its place. As [`super::ShardWriter::finish`].
    ///
    /// # Errors
    /// When a file cannot be read or written; nothing is then left behind.
    pub fn finish(
        self,
        pieces: &[Piece],
        outcome: super::Outcome,
        cards: impl FnOnce(&crate::manifest::Manifest) -> super::Cards,
    ) -> Result<crate::manifest::Manifest, DataError> {
        let root = self.dir.path().join(SHARDS);
        // An earlier run may have been killed while it encoded.
        if root.exists() {
            std::fs::remove_dir_all(&root).map_err(DataError::io("remove", &root))?;
        }
        let data = root.join("data");
        std::fs::create_dir_all(&data).map_err(DataError::io("create", data))?;
        let manifest = assemble::write(&root, &self.job, &self.schema, pieces, outcome, cards)?;
        self.dir.commit(SHARDS)?;
        Ok(manifest)
    }

    /// Moves the stored pieces to their place as a part, with `part` beside them.
    /// Returns what the manifest of a shard folder of this part alone would say.
    ///
    /// # Errors
    /// When the file cannot be written or the folder cannot be moved.
    pub fn finish_part(
        self,
        part: &impl serde::Serialize,
        outcome: &super::Outcome,
    ) -> Result<crate::manifest::Manifest, DataError> {
        files::write_json(&self.dir.path().join(WORK).join(PART_FILE), part)?;
        let manifest = assemble::manifest(&self.job, outcome, Vec::new());
        self.dir.commit(WORK)?;
        Ok(manifest)
    }

    /// What is stored.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// Lets everything disappear when this is dropped.
    pub fn discard(&self) {
        self.dir.keep(false);
    }

    fn piece_path(&self, name: &str) -> PathBuf {
        piece_path(&self.dir.path().join(WORK), name)
    }
}

/// Where a part folder has the piece of a case.
pub fn piece_path(part: &Path, name: &str) -> PathBuf {
    part.join("cases").join(format!("{name}.parquet"))
}
