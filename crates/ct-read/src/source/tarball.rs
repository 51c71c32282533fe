//! Tar archives (`.tar`, `.tar.gz`, `.tgz`) as folders.
//!
//! A packed archive can be read from its start only. Listing it goes through it once and keeps
//! nothing; when a file of it is opened, the whole is inflated into a file without a name in the
//! folder for temporary files, which goes when the last reader does. As many archives lie there as
//! threads read, so that a cohort of packed patients takes the room of a few. What is inflated is
//! bounded as in zip archives, and no name of an entry becomes a path.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use flate2::read::MultiGzDecoder;

use super::archive::{
    MAX_ENTRIES, MAX_ENTRY_RATIO, MAX_TOTAL_RATIO, MIN_ENTRY_LIMIT, MIN_TOTAL_LIMIT, label,
};
use crate::fault::Fault;
use crate::source::plain::open_plain;

/// Bytes of a header; what an entry holds is filled up to a multiple.
const BLOCK: u64 = 512;

/// Where the bytes of an entry lie in its (inflated) archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    start: u64,
    n_bytes: u64,
}

impl Entry {
    /// Length of the entry.
    pub fn n_bytes(self) -> u64 {
        self.n_bytes
    }
}

/// What an archive holds, by names made of plain components.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// Readable entries, in the archive's order.
    pub entries: Vec<(String, Entry)>,
    /// Entries that cannot be read, and why.
    pub closed: Vec<(String, Fault)>,
}

/// Lists an archive.
///
/// # Errors
/// [`Fault::Archive`] when it is no tar archive, or inflates beyond reason; [`Fault::Truncated`].
pub fn list(path: &Path) -> Result<Contents, Fault> {
    let file = open_plain(path)?;
    let n_bytes = file.metadata().map_err(|err| unreadable(&err))?.len();
    read_directory(inflated(file, n_bytes)?)
}

/// Lists what comes out of a reader.
///
/// # Errors
/// As [`list`].
pub fn read_directory(reader: impl Read) -> Result<Contents, Fault> {
    let wrong = |why: &str| Fault::Archive { why: why.into() };
    let mut archive = tar::Archive::new(Counted { reader, n_read: 0 });
    let mut contents = Contents::default();
    let mut end = 0;
    for entry in archive.entries().map_err(|err| broken(&err))? {
        let entry = entry.map_err(|err| broken(&err))?;
        if contents.entries.len() + contents.closed.len() >= MAX_ENTRIES {
            return Err(wrong("it has more entries than any export"));
        }
        let (start, n_bytes) = (entry.raw_file_position(), entry.size());
        end = start.saturating_add(n_bytes.div_ceil(BLOCK).saturating_mul(BLOCK));
        let kind = entry.header().entry_type();
        if kind.is_dir() {
            continue;
        }
        let name = label(&entry.path_bytes());
        if kind.is_file() || kind.is_contiguous() {
            contents.entries.push((name, Entry { start, n_bytes }));
        } else {
            let why =
                if kind.is_symlink() || kind.is_hard_link() { "it is a link" } else { "it is no plain file" };
            contents.closed.push((name, wrong(why)));
        }
    }
    // To the end, where the checksum of what is packed lies.
    let mut rest = archive.into_inner();
    std::io::copy(&mut rest, &mut std::io::sink()).map_err(|err| broken(&err))?;
    // A block of zeros ends an archive: without it, a cut between two entries would not be seen.
    if rest.n_read < end.saturating_add(BLOCK) {
        return Err(Fault::Truncated);
    }
    Ok(contents)
}

/// The bytes of an archive, inflated where they are packed, and not beyond reason.
fn inflated(mut file: File, n_bytes: u64) -> Result<Box<dyn Read + Send>, Fault> {
    let is_packed = is_packed(&mut file).map_err(|err| unreadable(&err))?;
    let file = BufReader::new(file);
    if !is_packed {
        return Ok(Box::new(file));
    }
    let by_entry = MIN_ENTRY_LIMIT.max(MAX_ENTRY_RATIO.saturating_mul(n_bytes));
    let in_total = MIN_TOTAL_LIMIT.max(MAX_TOTAL_RATIO.saturating_mul(n_bytes));
    Ok(Box::new(Bounded { reader: MultiGzDecoder::new(file), n_left: by_entry.min(in_total) }))
}

/// Whether a file begins with the mark of gzip.
fn is_packed(file: &mut File) -> std::io::Result<bool> {
    let mut mark = Vec::new();
    file.take(2).read_to_end(&mut mark)?;
    file.rewind()?;
    Ok(mark == [0x1F, 0x8B])
}

fn unreadable(err: &std::io::Error) -> Fault {
    Fault::Unreadable { why: err.kind().to_string() }
}

fn broken(err: &std::io::Error) -> Fault {
    match err.kind() {
        std::io::ErrorKind::UnexpectedEof => Fault::Truncated,
        std::io::ErrorKind::FileTooLarge => {
            Fault::Archive { why: "its entries inflate beyond reason".into() }
        }
        std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData | std::io::ErrorKind::Other => {
            Fault::Archive { why: "it has no readable directory".into() }
        }
        _ => unreadable(err),
    }
}

/// Counts what is read.
struct Counted<R> {
    reader: R,
    n_read: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n_read = self.reader.read(buffer)?;
        self.n_read += n_read as u64;
        Ok(n_read)
    }
}

/// Fails where more comes than may.
struct Bounded<R> {
    reader: R,
    n_left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n_read = self.reader.read(buffer)?;
        self.n_left = self
            .n_left
            .checked_sub(n_read as u64)
            .ok_or(std::io::Error::from(std::io::ErrorKind::FileTooLarge))?;
        Ok(n_read)
    }
}

/// The archives that are open, the latest first.
#[derive(Debug, Default)]
pub struct OpenArchives {
    archives: Mutex<VecDeque<Arc<OpenArchive>>>,
}

#[derive(Debug)]
struct OpenArchive {
    path: Arc<Path>,
    /// Its bytes, or why there are none.
    file: OnceLock<Result<Mutex<File>, Fault>>,
}

impl OpenArchives {
    /// Opens an entry of an archive.
    ///
    /// # Errors
    /// As [`list`], and [`Fault::Unreadable`] when there is no room for what it inflates to.
    pub fn open(&self, path: &Arc<Path>, entry: Entry) -> Result<Box<dyn Read + Send>, Fault> {
        let archive = self.find(path);
        archive.file.get_or_init(|| whole(path)).as_ref().map_err(Clone::clone)?;
        Ok(Box::new(EntryReader { archive, at: entry.start, n_left: entry.n_bytes }))
    }

    fn find(&self, path: &Arc<Path>) -> Arc<OpenArchive> {
        let mut archives = self.archives.lock().unwrap_or_else(PoisonError::into_inner);
        let known = archives.iter().position(|archive| archive.path == *path);
        let found = known.and_then(|index| archives.remove(index));
        let found =
            found.unwrap_or_else(|| Arc::new(OpenArchive { path: path.clone(), file: OnceLock::new() }));
        archives.push_front(found.clone());
        archives.truncate(rayon::current_num_threads() + 1);
        found
    }
}

/// A plain archive as it lies; what a packed one inflates to, in a file without a name.
fn whole(path: &Path) -> Result<Mutex<File>, Fault> {
    let mut file = open_plain(path)?;
    let n_bytes = file.metadata().map_err(|err| unreadable(&err))?.len();
    if !is_packed(&mut file).map_err(|err| unreadable(&err))? {
        return Ok(Mutex::new(file));
    }
    let mut inflated = inflated(file, n_bytes)?;
    let mut spool = tempfile::tempfile().map_err(|err| unreadable(&err))?;
    std::io::copy(&mut inflated, &mut spool).map_err(|err| broken(&err))?;
    Ok(Mutex::new(spool))
}

struct EntryReader {
    archive: Arc<OpenArchive>,
    at: u64,
    n_left: u64,
}

impl Read for EntryReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.n_left).unwrap_or(usize::MAX));
        let Some(Ok(file)) = self.archive.file.get() else { return Ok(0) };
        // One place in the file for all readers of the archive.
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.at))?;
        let n_read = file.read(&mut buffer[..most])?;
        if n_read == 0 && most > 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n_read as u64;
        self.n_left -= n_read as u64;
        Ok(n_read)
    }
}
