//! The files below a folder, in a fixed order.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::IngestError;
use crate::archive::{self, Entry};
use crate::fault::Fault;
use crate::guard::guarded;

/// Files above this are refused: the largest multi-frame objects stay below 2 GiB.
pub(crate) const MAX_FILE_LEN: u64 = 4 << 30;

/// One file below the root, or one entry of an archive below it.
#[derive(Clone, Debug)]
pub struct ListedFile {
    /// Where it lies; for an entry, where its archive lies.
    pub path: PathBuf,
    /// The entry of the archive.
    pub entry: Option<Entry>,
    /// Its path below the root, with `/`; an archive counts as a folder.
    pub relative: String,
}

/// An opened file: its bytes, and how many they are.
pub struct Opened {
    /// The bytes, from the first.
    pub reader: Box<dyn Read + Send>,
    /// Their number.
    pub n_bytes: u64,
}

impl ListedFile {
    /// A file by itself.
    pub fn at(path: &Path) -> Self {
        Self { path: path.into(), entry: None, relative: String::new() }
    }

    /// Its length; 0 where the system does not tell.
    pub fn n_bytes(&self) -> u64 {
        match &self.entry {
            Some(entry) => entry.n_bytes(),
            None => std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len()),
        }
    }

    /// Opens it.
    ///
    /// # Errors
    /// [`Fault::Unreadable`] when the system refuses, or it is no plain file.
    pub fn open(&self) -> Result<Opened, Fault> {
        let unreadable = |err: std::io::Error| Fault::Unreadable { why: err.kind().to_string() };
        if let Some(entry) = &self.entry {
            let reader = entry.open(&self.path).map_err(unreadable)?;
            return Ok(Opened { reader, n_bytes: entry.n_bytes() });
        }
        let file = File::open(&self.path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(Fault::Unreadable { why: "it is not a plain file".into() });
        }
        Ok(Opened { reader: Box::new(file), n_bytes: metadata.len() })
    }

    /// Reads all of it, with a limit.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`Fault::TooLarge`].
    pub fn read(&self) -> Result<Vec<u8>, Fault> {
        let mut bytes = Vec::new();
        self.read_into(&mut bytes)?;
        Ok(bytes)
    }

    /// As [`read`](Self::read), into a buffer that had another file before.
    ///
    /// # Errors
    /// As [`read`](Self::read); the buffer then holds anything.
    pub fn read_into(&self, bytes: &mut Vec<u8>) -> Result<(), Fault> {
        let Opened { mut reader, n_bytes } = self.open()?;
        if n_bytes > MAX_FILE_LEN {
            return Err(Fault::TooLarge { limit: MAX_FILE_LEN });
        }
        let unreadable = |err: std::io::Error| Fault::Unreadable { why: err.kind().to_string() };
        // An entry's length is only announced: it is believed as far as a scan goes.
        let believed = if self.entry.is_some() { n_bytes.min(1 << 20) } else { n_bytes };
        bytes.resize(believed as usize, 0);
        let mut n_read = 0;
        while n_read < bytes.len() {
            match reader.read(&mut bytes[n_read..]) {
                Ok(0) => break,
                Ok(n_more) => n_read += n_more,
                Err(err) if err.kind() == std::io::ErrorKind::Interrupted => {}
                Err(err) => return Err(unreadable(err)),
            }
        }
        bytes.truncate(n_read);
        reader.take(MAX_FILE_LEN - n_read as u64).read_to_end(bytes).map_err(unreadable)?;
        Ok(())
    }
}

/// What a folder holds.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Files, sorted by path below the root.
    pub files: Vec<ListedFile>,
    /// What could not be entered (a link that leads in a circle, a closed
    /// folder, a broken archive), by path below the root.
    pub closed: Vec<(String, Fault)>,
}

impl Listing {
    /// Lists a folder and all below it, or a zip archive. Links are followed,
    /// archives entered; an archive in an archive is not.
    ///
    /// # Errors
    /// When the folder itself cannot be read.
    pub fn of(root: &Path) -> Result<Self, IngestError> {
        let mut listing = Self::default();
        if root.is_file() && archive::is_named_as_zip(&root.to_string_lossy()) {
            listing.enter(root, "");
        } else {
            let folder = |source| IngestError::Folder { path: root.into(), source };
            std::fs::read_dir(root).map_err(folder)?;
            listing.walk(root);
        }
        listing.files.sort_by(|a, b| a.relative.cmp(&b.relative));
        listing.closed.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(listing)
    }

    fn walk(&mut self, root: &Path) {
        for entry in WalkDir::new(root).follow_links(true) {
            match entry {
                Ok(entry) if entry.file_type().is_dir() => {}
                Ok(entry) => {
                    let relative = relative(root, entry.path());
                    if archive::is_named_as_zip(&relative) {
                        self.enter(entry.path(), &relative);
                    } else {
                        self.files.push(ListedFile { path: entry.into_path(), entry: None, relative });
                    }
                }
                // What the system refuses is listed, so that its case is set aside when it is opened. A
                // link to a folder around it hides nothing.
                Err(err) => match (err.path(), err.io_error()) {
                    (Some(path), Some(_)) => {
                        let relative = relative(root, path);
                        self.files.push(ListedFile { path: path.into(), entry: None, relative });
                    }
                    (path, _) => {
                        let path = path.map(|path| relative(root, path)).unwrap_or_default();
                        self.closed
                            .push((path, Fault::Unreadable { why: "a link leads in a circle".into() }));
                    }
                },
            }
        }
    }

    fn enter(&mut self, path: &Path, relative: &str) {
        let below = |name: String| if relative.is_empty() { name } else { format!("{relative}/{name}") };
        let broken = Fault::Archive { why: "reading its directory broke off".into() };
        match guarded(broken, || archive::list(path)) {
            Err(fault) => self.closed.push((relative.into(), fault)),
            Ok(contents) => {
                let listed = contents.entries.into_iter().map(|(name, entry)| ListedFile {
                    path: path.into(),
                    entry: Some(entry),
                    relative: below(name),
                });
                self.files.extend(listed);
                self.closed.extend(contents.closed.into_iter().map(|(name, fault)| (below(name), fault)));
            }
        }
    }
}

/// Whether a file is plainly something else than a DICOM object by its name:
/// tables, notes and what operating systems leave behind.
pub fn is_companion(relative: &str) -> bool {
    let name = relative.rsplit('/').next().unwrap_or(relative).to_ascii_lowercase();
    let known = [
        "csv", "tsv", "json", "jsonl", "txt", "md", "toml", "yaml", "yml", "xml", "html", "htm", "pdf",
        "log", "ini", "inf", "exe", "xlsx", "xls", "doc", "docx", "sha256", "md5",
    ];
    name.starts_with('.')
        || matches!(
            name.as_str(),
            "thumbs.db" | "dicomdir" | "license" | "readme" | "sha256sums" | "autorun.inf"
        )
        || name.rsplit_once('.').is_some_and(|(_, extension)| known.contains(&extension))
}

fn relative(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).unwrap_or(path);
    let parts: Vec<_> = below.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    parts.join("/")
}
