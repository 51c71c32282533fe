//! Zip archives as folders: their entries are read where they lie.
//!
//! Nothing is unpacked to disk, and no entry's name ever becomes a path of this
//! machine; it is a label only. What an archive announces is held against its
//! own length before anything is inflated, and inflating ends where the
//! announcement ends.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use flate2::Crc;
use flate2::read::DeflateDecoder;
use zip::{CompressionMethod, ZipArchive};

use crate::fault::Fault;
use crate::source::plain::open_plain;

/// Most entries of an archive: a hospital export has tens of thousands.
pub(super) const MAX_ENTRIES: usize = 500_000;
/// An entry may always inflate to this much...
pub(super) const MIN_ENTRY_LIMIT: u64 = 64 << 20;
/// ...and to this many times its packed size.
pub(super) const MAX_ENTRY_RATIO: u64 = 200;
/// All entries together may always inflate to this much...
pub(super) const MIN_TOTAL_LIMIT: u64 = 4 << 30;
/// ...and to this many times the archive; CT packs to about a half.
pub(super) const MAX_TOTAL_RATIO: u64 = 20;

/// Where an entry's bytes lie in its archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    start: u64,
    n_packed: u64,
    n_bytes: u64,
    crc32: u32,
    is_deflated: bool,
}

/// What an archive holds, by names made of plain components.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// Readable entries, in the archive's order.
    pub entries: Vec<(String, Entry)>,
    /// Entries that cannot be read, and why.
    pub closed: Vec<(String, Fault)>,
}

/// Whether a file is an archive by its name.
pub fn is_named_as_zip(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(".zip")
}

/// The name of a zip or tar archive without its extension; `None` where it has none of one.
pub fn stem(name: &str) -> Option<&str> {
    let lower = name.to_ascii_lowercase();
    let extension =
        [".zip", ".tar", ".tar.gz", ".tgz"].into_iter().find(|extension| lower.ends_with(extension))?;
    Some(&name[..name.len() - extension.len()])
}

/// Reads the directory of an archive.
///
/// # Errors
/// [`Fault::Archive`] when it is no zip archive, or announces more than it may.
pub fn list(path: &Path) -> Result<Contents, Fault> {
    let unreadable = |err: std::io::Error| Fault::Unreadable { why: err.kind().to_string() };
    let file = open_plain(path)?;
    let n_bytes = file.metadata().map_err(unreadable)?.len();
    read_directory(BufReader::new(file), n_bytes)
}

/// Reads the directory of an archive of `n_bytes`.
///
/// # Errors
/// As [`list`].
pub fn read_directory(reader: impl Read + Seek, n_bytes: u64) -> Result<Contents, Fault> {
    let wrong = |why: &str| Fault::Archive { why: why.into() };
    let mut archive = ZipArchive::new(reader).map_err(|_| wrong("it has no readable directory"))?;
    if archive.len() > MAX_ENTRIES {
        return Err(wrong("it has more entries than any export"));
    }
    let mut contents = Contents::default();
    for index in 0..archive.len() {
        // The library's words may quote names.
        let entry = archive.by_index_raw(index).map_err(|_| wrong("its directory is damaged"))?;
        if entry.is_dir() {
            continue;
        }
        let name = label(entry.name_raw());
        let method = entry.compression();
        let closed = if entry.encrypted() {
            Some(wrong("it is encrypted"))
        } else if entry.is_symlink() {
            Some(wrong("it is a link"))
        } else if !matches!(method, CompressionMethod::Stored | CompressionMethod::Deflated) {
            Some(wrong("it is packed by another method than deflate"))
        } else if entry.size() > MIN_ENTRY_LIMIT.max(MAX_ENTRY_RATIO.saturating_mul(entry.compressed_size()))
        {
            Some(wrong("it inflates beyond reason"))
        } else {
            None
        };
        match (closed, entry.data_start()) {
            (Some(fault), _) => contents.closed.push((name, fault)),
            (None, None) => contents.closed.push((name, wrong("it lies nowhere"))),
            (None, Some(start)) => {
                let found = Entry {
                    start,
                    n_packed: entry.compressed_size(),
                    n_bytes: entry.size(),
                    crc32: entry.crc32(),
                    is_deflated: method == CompressionMethod::Deflated,
                };
                contents.entries.push((name, found));
            }
        }
    }
    let total = contents.entries.iter().fold(0u64, |sum, (_, entry)| sum.saturating_add(entry.n_bytes));
    if total > MIN_TOTAL_LIMIT.max(MAX_TOTAL_RATIO.saturating_mul(n_bytes)) {
        return Err(wrong("its entries inflate beyond reason"));
    }
    let mut ranges: Vec<(u64, u64)> = contents
        .entries
        .iter()
        .map(|(_, entry)| (entry.start, entry.start.saturating_add(entry.n_packed)))
        .collect();
    ranges.sort_unstable();
    if ranges.windows(2).any(|pair| pair[1].0 < pair[0].1) {
        return Err(wrong("its entries overlap"));
    }
    Ok(contents)
}

/// An entry's name without anything that could lead elsewhere.
pub(super) fn label(raw: &[u8]) -> String {
    let name = String::from_utf8_lossy(raw);
    let parts: Vec<&str> = name.split(['/', '\\']).filter(|part| !matches!(*part, "" | "." | "..")).collect();
    parts.join("/")
}

impl Entry {
    /// Length of the entry as the archive announces it; reading ends there.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Opens the entry of an archive.
    ///
    /// # Errors
    /// The system's.
    pub fn open(&self, archive: &Path) -> std::io::Result<Box<dyn Read + Send>> {
        let mut file = File::open(archive)?;
        file.seek(SeekFrom::Start(self.start))?;
        let packed = BufReader::new(file).take(self.n_packed);
        let bytes: Box<dyn Read + Send> =
            if self.is_deflated { Box::new(DeflateDecoder::new(packed)) } else { Box::new(packed) };
        Ok(Box::new(Checked { bytes, n_left: self.n_bytes, crc: Crc::new(), want: self.crc32 }))
    }
}

/// Ends an entry at its announced length, and holds it against its checksum.
struct Checked {
    bytes: Box<dyn Read + Send>,
    n_left: u64,
    crc: Crc,
    want: u32,
}

impl Read for Checked {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let damaged = || std::io::Error::from(std::io::ErrorKind::InvalidData);
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.n_left == 0 {
            return if self.crc.sum() == self.want { Ok(0) } else { Err(damaged()) };
        }
        let most = buffer.len().min(usize::try_from(self.n_left).unwrap_or(usize::MAX));
        let n_read = self.bytes.read(&mut buffer[..most])?;
        if n_read == 0 {
            return Err(damaged());
        }
        self.crc.update(&buffer[..n_read]);
        self.n_left -= n_read as u64;
        Ok(n_read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_lead_elsewhere() {
        for (raw, want) in [
            ("a/b.dcm", "a/b.dcm"),
            ("../../etc/passwd", "etc/passwd"),
            ("/abs/x", "abs/x"),
            ("..\\..\\c:\\x", "c:/x"),
            ("./a//b", "a/b"),
        ] {
            assert_eq!(label(raw.as_bytes()), want);
        }
    }
}
