//! Object stores: ranged reads, uploads in parts, and what went wrong in words.
//!
//! The client of `object_store` repeats a request that failed for want of an
//! answer (5xx, a broken connection, a body that ends early) up to ten times with
//! growing pauses, for three minutes at most. It is asynchronous; here a runtime
//! of one thread hides that, because a stage has nothing else to do meanwhile.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arrow::array::RecordBatch;
use bytes::{Buf, Bytes};
use futures_util::TryStreamExt;
use object_store::path::Path as Key;
use object_store::{Error, ObjectStore, ObjectStoreExt, aws, azure, gcp};
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::{ChunkReader, Length};
use tokio::runtime::{Builder, Runtime};

use crate::DataError;
use crate::shard::{Choice, Chosen};

/// Bytes of one request where a file is read or written from end to end.
const PIECE_BYTES: usize = 8 << 20;
/// Bytes that hold the footer of a Parquet file, or else say how long it is.
const FOOTER_BYTES: u64 = 64 << 10;

/// An object, or a prefix of objects, of a store.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    url: PathBuf,
    store: Arc<dyn ObjectStore>,
    key: Key,
}

impl Object {
    /// Finds the store that a URL names. Endpoint, region and credentials come
    /// from the environment.
    pub fn at(url: &Path) -> Result<Self, DataError> {
        let text = url.to_string_lossy();
        let invalid = |why: String| DataError::invalid("place", format!("{text}: {why}"));
        let (scheme, rest) = text.split_once("://").unwrap_or_default();
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() {
            return Err(invalid("it names no bucket".into()));
        }
        let key = Key::parse(key).map_err(|err| invalid(err.to_string()))?;
        let store =
            connect(scheme, &format!("{scheme}://{bucket}")).map_err(|err| invalid(in_words(&err)))?;
        Ok(Self { url: url.into(), store, key })
    }

    /// The object as a stream of ranged reads.
    pub fn open(&self) -> Result<Pieces<'_>, DataError> {
        Ok(Pieces { object: self, position: 0, length: self.length()?, piece: Bytes::new() })
    }

    /// Whether there is such an object.
    pub fn exists(&self) -> Result<bool, DataError> {
        match wait(self.store.head(&self.key)) {
            Ok(_) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(err) => Err(self.failed("find", err)),
        }
    }

    /// Writes the object, which appears whole or not at all.
    pub fn fill(&self, content: &mut dyn Read) -> Result<(), DataError> {
        let first = next_piece(content).map_err(DataError::io("read what goes to", &self.url))?;
        let written = if first.len() < PIECE_BYTES {
            wait(self.store.put(&self.key, first.into())).map(drop)
        } else {
            self.fill_in_parts(first, content)
        };
        written.map_err(|err| self.failed("write", err))
    }

    fn fill_in_parts(&self, first: Bytes, content: &mut dyn Read) -> Result<(), Error> {
        let mut upload = wait(self.store.put_multipart(&self.key))?;
        let mut piece = first;
        let mut write = || -> Result<(), Error> {
            while !piece.is_empty() {
                wait(upload.put_part(std::mem::take(&mut piece).into()))?;
                piece = next_piece(content).map_err(|err| generic(&err))?;
            }
            wait(upload.complete()).map(drop)
        };
        let written = write();
        if written.is_err() {
            // Parts that nobody completes cost money until they are thrown away.
            let _ = wait(upload.abort());
        }
        written
    }

    /// Objects below this prefix, relative to it.
    pub fn list(&self) -> Result<Vec<String>, DataError> {
        let found: Vec<_> =
            wait(self.store.list(Some(&self.key)).try_collect()).map_err(|err| self.failed("list", err))?;
        let name = |key: &Key| {
            let parts: Vec<String> =
                key.prefix_match(&self.key)?.map(|part| part.as_ref().to_owned()).collect();
            (!parts.is_empty()).then(|| parts.join("/"))
        };
        Ok(found.iter().filter_map(|meta| name(&meta.location)).collect())
    }

    /// What is wanted of a Parquet file: the footer first, then one ranged read a row
    /// group, from its first wanted column to its last. One group at a time is in memory.
    pub fn read(self, choice: &Choice<'_>, batch_rows: usize) -> Result<Chosen, DataError> {
        let length = self.length()?;
        let metadata = self.footer(length)?;
        let (groups, rows, columns) = choice.of(&metadata);
        let n_rows = metadata.file_metadata().num_rows() as usize;
        let parquet = |source| DataError::Parquet { path: self.url.clone(), source };
        let metadata =
            ArrowReaderMetadata::try_new(Arc::new(metadata), ArrowReaderOptions::new()).map_err(parquet)?;
        let group = move |group: usize| -> Result<Vec<RecordBatch>, DataError> {
            let of_group = metadata.metadata().row_group(group).columns().iter().enumerate();
            let wanted = of_group.filter(|(leaf, _)| columns.leaf_included(*leaf));
            let ranges = wanted.map(|(_, column)| column.byte_range());
            let (from, to) = ranges.fold((u64::MAX, 0), |(from, to), (start, length)| {
                (from.min(start), to.max(start.saturating_add(length)))
            });
            let bytes = self.range(from..to.min(length))?;
            let malformed = |err: &dyn std::fmt::Display| DataError::malformed(&self.url, err);
            ParquetRecordBatchReaderBuilder::new_with_metadata(
                Window { from, bytes, length },
                metadata.clone(),
            )
            .with_row_groups(vec![group])
            .with_projection(columns.clone())
            .with_batch_size(batch_rows)
            .build()
            .map_err(|err| malformed(&err))?
            .map(|batch| batch.map_err(|err| malformed(&err)))
            .collect()
        };
        let batches = groups.into_iter().flat_map(move |g| match group(g) {
            Ok(batches) => batches.into_iter().map(Ok).collect::<Vec<_>>(),
            Err(err) => vec![Err(err)],
        });
        Ok(Chosen { n_rows, rows, batches: Box::new(batches) })
    }

    fn footer(&self, length: u64) -> Result<ParquetMetaData, DataError> {
        let mut n_bytes = FOOTER_BYTES;
        loop {
            let tail = self.range(length.saturating_sub(n_bytes)..length)?;
            let mut reader = ParquetMetaDataReader::new();
            match reader.try_parse_sized(&tail, length).and_then(|()| reader.finish()) {
                Err(ParquetError::NeedMoreData(needed)) if n_bytes < length && needed as u64 > n_bytes => {
                    n_bytes = needed as u64;
                }
                parsed => {
                    return parsed.map_err(|source| DataError::Parquet { path: self.url.clone(), source });
                }
            }
        }
    }

    fn length(&self) -> Result<u64, DataError> {
        wait(self.store.head(&self.key)).map(|meta| meta.size).map_err(|err| self.failed("read", err))
    }

    fn range(&self, range: Range<u64>) -> Result<Bytes, DataError> {
        self.try_range(range).map_err(DataError::io("read", &self.url))
    }

    /// Exactly the bytes of a range, or an error.
    fn try_range(&self, range: Range<u64>) -> io::Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let wanted = range.end - range.start;
        let bytes = wait(self.store.get_range(&self.key, range)).map_err(system_error)?;
        if bytes.len() as u64 != wanted {
            let why = format!("the store gave {} bytes where {wanted} were asked for", bytes.len());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
        }
        Ok(bytes)
    }

    fn failed(&self, action: &'static str, err: Error) -> DataError {
        DataError::Io { action, path: self.url.clone(), source: system_error(err) }
    }
}

/// An object that is read from end to end.
pub(crate) struct Pieces<'a> {
    object: &'a Object,
    position: u64,
    length: u64,
    piece: Bytes,
}

impl Read for Pieces<'_> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            let end = self.length.min(self.position + PIECE_BYTES as u64);
            self.piece = self.object.try_range(self.position..end)?;
            self.position = end;
        }
        let n_bytes = target.len().min(self.piece.len());
        self.piece.split_to(n_bytes).copy_to_slice(&mut target[..n_bytes]);
        Ok(n_bytes)
    }
}

/// The bytes of one row group, in the place that they have in their file.
struct Window {
    from: u64,
    bytes: Bytes,
    length: u64,
}

impl Window {
    fn cut(&self, start: u64, length: Option<usize>) -> Result<Bytes, ParquetError> {
        let outside = || ParquetError::EOF(format!("byte {start} is outside of the row group"));
        let from = start.checked_sub(self.from).and_then(|from| usize::try_from(from).ok());
        let from = from.filter(|from| *from <= self.bytes.len()).ok_or_else(outside)?;
        let to = length.map_or(Some(self.bytes.len()), |length| from.checked_add(length));
        let to = to.filter(|to| *to <= self.bytes.len()).ok_or_else(outside)?;
        Ok(self.bytes.slice(from..to))
    }
}

impl Length for Window {
    fn len(&self) -> u64 {
        self.length
    }
}

impl ChunkReader for Window {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(self.cut(start, None)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        self.cut(start, Some(length))
    }
}

/// A client of a bucket, made once: it keeps its connections.
fn connect(scheme: &str, bucket: &str) -> Result<Arc<dyn ObjectStore>, Error> {
    static CLIENTS: Mutex<BTreeMap<String, Arc<dyn ObjectStore>>> = Mutex::new(BTreeMap::new());
    let mut clients = CLIENTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(client) = clients.get(bucket) {
        return Ok(client.clone());
    }
    let client: Arc<dyn ObjectStore> = match scheme {
        "gs" => Arc::new(gcp::GoogleCloudStorageBuilder::from_env().with_url(bucket).build()?),
        "az" | "abfs" | "abfss" => {
            Arc::new(azure::MicrosoftAzureBuilder::from_env().with_url(bucket).build()?)
        }
        _ => Arc::new(aws::AmazonS3Builder::from_env().with_url(bucket).build()?),
    };
    clients.insert(bucket.to_owned(), client.clone());
    Ok(client)
}

/// Waits for an answer on this thread.
fn wait<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    static RUNTIME: OnceLock<io::Result<Runtime>> = OnceLock::new();
    match RUNTIME.get_or_init(|| Builder::new_current_thread().enable_all().build()) {
        Ok(runtime) => runtime.block_on(answer),
        Err(err) => Err(generic(err)),
    }
}

fn generic(err: &io::Error) -> Error {
    Error::Generic { store: "local", source: err.to_string().into() }
}

fn next_piece(content: &mut dyn Read) -> io::Result<Bytes> {
    let mut piece = Vec::new();
    content.take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
    Ok(piece.into())
}

fn system_error(err: Error) -> io::Error {
    let words = in_words(&err);
    // A store may refuse an expired credential as a bad request.
    let refusals = ["ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "AuthenticationFailed"];
    let kind = match err {
        Error::NotFound { .. } => io::ErrorKind::NotFound,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => io::ErrorKind::PermissionDenied,
        _ if refusals.iter().any(|code| words.contains(code)) => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, words)
}

/// The store's code and message where it gave them: the rest of its answer can
/// hold the token that it refused.
fn in_words(err: &Error) -> String {
    let text = err.to_string();
    let element = |name: &str| {
        let (_, after) = text.split_once(&format!("<{name}>"))?;
        after.split_once(&format!("</{name}>")).map(|(inside, _)| inside)
    };
    match (element("Code"), element("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        _ => text.split_whitespace().collect::<Vec<_>>().join(" "),
    }
}
