//! The files below a folder, in a fixed order.

use std::borrow::Cow;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use flate2::read::MultiGzDecoder;
use walkdir::WalkDir;

use crate::error::ReadError;
use crate::fault::Fault;
use crate::source::archive::{self, Entry};
use crate::source::guard::guarded;
use crate::source::plain::open_plain;
use crate::source::tarball::{self, OpenArchives};

/// Files above this are refused: the largest multi-frame objects stay below 2 GiB.
pub(crate) const MAX_FILE_LEN: u64 = 4 << 30;

/// One file below the root, or one entry of an archive below it. An export has hundreds of
/// thousands, all of which are in memory: none repeats what it shares with others.
#[derive(Clone, Debug)]
pub struct ListedFile {
    /// Its path below the root, with `/`; an archive counts as a folder.
    pub relative: Box<str>,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    /// Below this folder, by its `relative` path.
    Below(Arc<Path>),
    /// At this path, which `relative` does not tell.
    At(Box<Path>),
    /// In this zip archive.
    Packed(Arc<Path>, Box<Entry>),
    /// In this tar archive.
    Tarred(Arc<Path>, tarball::Entry, Arc<OpenArchives>),
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
        Self { relative: "".into(), place: Place::At(path.into()) }
    }

    /// A file that was found below `root`.
    fn found(root: &Arc<Path>, path: &Path) -> Self {
        let relative = relative(root, path).into_boxed_str();
        // What is not text cannot be found again by its text.
        let is_told = root.join(&*relative) == path;
        let place = if is_told { Place::Below(root.clone()) } else { Place::At(path.into()) };
        Self { relative, place }
    }

    /// Its name, without folders.
    pub fn name(&self) -> String {
        match &self.place {
            Place::At(path) if self.relative.is_empty() => {
                path.file_name().unwrap_or_default().to_string_lossy().into_owned()
            }
            _ => self.relative.rsplit('/').next().unwrap_or(&self.relative).into(),
        }
    }

    /// Where it lies; for an entry, where its archive lies.
    pub fn path(&self) -> Cow<'_, Path> {
        match &self.place {
            Place::Below(root) => root.join(&*self.relative).into(),
            Place::At(path) => Cow::Borrowed(path),
            Place::Packed(archive, _) | Place::Tarred(archive, ..) => Cow::Borrowed(archive),
        }
    }

    /// Its length; 0 where the system does not tell.
    pub fn n_bytes(&self) -> u64 {
        match &self.place {
            Place::Packed(_, entry) => entry.n_bytes(),
            Place::Tarred(_, entry, _) => entry.n_bytes(),
            _ => std::fs::metadata(self.path()).map_or(0, |metadata| metadata.len()),
        }
    }

    /// Opens it; one that is packed by gzip (`.dcm.gz`) as what it inflates to. Of NIfTI, whose
    /// volumes are large, the reader inflates itself.
    ///
    /// # Errors
    /// [`Fault::Unreadable`] when the system refuses, or it is no plain file; [`Fault::TooLarge`]
    /// when it inflates beyond reason.
    pub fn open(&self) -> Result<Opened, Fault> {
        let opened = self.open_as_stored()?;
        let name = self.path();
        let name = if self.relative.is_empty() { name.to_string_lossy() } else { Cow::from(&*self.relative) };
        if is_named_as_gzip(&name) { inflated(opened) } else { Ok(opened) }
    }

    /// Opens it, whatever its name says of packing.
    ///
    /// # Errors
    /// [`Fault::Unreadable`] when the system refuses, or it is no plain file.
    pub(crate) fn open_as_stored(&self) -> Result<Opened, Fault> {
        let unreadable = |err: std::io::Error| Fault::Unreadable { why: err.kind().to_string() };
        if let Place::Packed(archive, entry) = &self.place {
            let reader = entry.open(archive).map_err(unreadable)?;
            return Ok(Opened { reader, n_bytes: entry.n_bytes() });
        }
        if let Place::Tarred(archive, entry, open) = &self.place {
            return Ok(Opened { reader: open.open(archive, *entry)?, n_bytes: entry.n_bytes() });
        }
        let file = open_plain(&self.path())?;
        let n_bytes = file.metadata().map_err(unreadable)?.len();
        Ok(Opened { reader: Box::new(file), n_bytes })
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

    /// Reads all of it as it is stored, behind what a buffer holds.
    pub(crate) fn append_as_stored(&self, bytes: &mut Vec<u8>) -> Result<(), Fault> {
        let Opened { reader, n_bytes } = self.open_as_stored()?;
        if n_bytes > MAX_FILE_LEN {
            return Err(Fault::TooLarge { limit: MAX_FILE_LEN });
        }
        let taken = reader.take(MAX_FILE_LEN).read_to_end(bytes);
        taken.map(drop).map_err(|err| Fault::Unreadable { why: err.kind().to_string() })
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
        let believed = if matches!(self.place, Place::Packed(..) | Place::Tarred(..)) {
            n_bytes.min(1 << 20)
        } else {
            n_bytes
        };
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

fn is_named_as_gzip(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.ends_with(".gz") && !name.ends_with(".nii.gz") && !name.ends_with(".tar.gz")
}

/// Inflates a file in memory, with the caps that entries of zip archives have.
fn inflated(packed: Opened) -> Result<Opened, Fault> {
    let limit = archive::MIN_ENTRY_LIMIT.max(archive::MAX_ENTRY_RATIO.saturating_mul(packed.n_bytes));
    let mut bytes = Vec::new();
    let n_read = MultiGzDecoder::new(packed.reader).take(limit + 1).read_to_end(&mut bytes);
    n_read.map_err(|err| match err.kind() {
        std::io::ErrorKind::UnexpectedEof => Fault::Truncated,
        _ => Fault::Archive { why: "it does not inflate".into() },
    })?;
    if bytes.len() as u64 > limit {
        return Err(Fault::TooLarge { limit });
    }
    let n_bytes = bytes.len() as u64;
    Ok(Opened { reader: Box::new(std::io::Cursor::new(bytes)), n_bytes })
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
    /// Lists a folder and all below it, a zip or tar archive, or a file by itself. Links are
    /// followed, archives entered; an archive in an archive is not.
    ///
    /// # Errors
    /// When the folder itself cannot be read.
    pub fn of(root: &Path) -> Result<Self, ReadError> {
        let mut listing = Self::default();
        let open = Arc::default();
        if root.is_file() && archive::stem(&root.to_string_lossy()).is_some() {
            listing.enter(root, "", &open);
        } else if root.is_file() {
            let name = root.file_name().unwrap_or_default().to_string_lossy();
            listing.files.push(ListedFile { relative: name.into(), place: Place::At(root.into()) });
        } else {
            let folder = |source| ReadError::Folder { path: root.into(), source };
            std::fs::read_dir(root).map_err(folder)?;
            listing.walk(root, &open);
        }
        listing.files.sort_by(|a, b| a.relative.cmp(&b.relative));
        listing.files.shrink_to_fit();
        listing.closed.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(listing)
    }

    /// The file of this name in the folder of another one.
    pub fn beside(&self, file: &ListedFile, name: &str) -> Option<ListedFile> {
        let relative = match file.relative.rsplit_once('/') {
            Some((folder, _)) => format!("{folder}/{name}"),
            None => name.into(),
        };
        if let Ok(found) = self.files.binary_search_by(|other| (*other.relative).cmp(&relative)) {
            return Some(self.files[found].clone());
        }
        // A file by itself is listed alone.
        match &file.place {
            Place::At(path) if file.relative.is_empty() || self.files.len() == 1 => {
                let path = path.with_file_name(name);
                path.is_file().then(|| ListedFile::at(&path))
            }
            _ => None,
        }
    }

    fn walk(&mut self, root: &Path, open: &Arc<OpenArchives>) {
        let shared: Arc<Path> = root.into();
        for entry in WalkDir::new(root).follow_links(true) {
            match entry {
                Ok(entry) if entry.file_type().is_dir() => {}
                Ok(entry) => {
                    let file = ListedFile::found(&shared, entry.path());
                    if archive::stem(&file.relative).is_some() {
                        self.enter(entry.path(), &file.relative, open);
                    } else {
                        self.files.push(file);
                    }
                }
                // What the system refuses is listed, so that its case is set aside when it is opened. A
                // link to a folder around it hides nothing.
                Err(err) => match (err.path(), err.io_error()) {
                    (Some(path), Some(_)) => self.files.push(ListedFile::found(&shared, path)),
                    (path, _) => {
                        let path = path.map(|path| relative(root, path)).unwrap_or_default();
                        self.closed
                            .push((path, Fault::Unreadable { why: "a link leads in a circle".into() }));
                    }
                },
            }
        }
    }

    fn enter(&mut self, path: &Path, relative: &str, open: &Arc<OpenArchives>) {
        let below = |name: String| if relative.is_empty() { name } else { format!("{relative}/{name}") };
        let broken = Fault::Archive { why: "reading its directory broke off".into() };
        let archive: Arc<Path> = path.into();
        let listed = guarded(broken, || {
            let file = |name, place| ListedFile { relative: below(name).into(), place };
            if archive::is_named_as_zip(&path.to_string_lossy()) {
                let contents = archive::list(path)?;
                let place = |entry| Place::Packed(archive.clone(), Box::new(entry));
                let entries = contents.entries.into_iter().map(|(name, entry)| file(name, place(entry)));
                return Ok((entries.collect::<Vec<_>>(), contents.closed));
            }
            let contents = tarball::list(path)?;
            let place = |entry| Place::Tarred(archive.clone(), entry, open.clone());
            let entries = contents.entries.into_iter().map(|(name, entry)| file(name, place(entry)));
            Ok((entries.collect(), contents.closed))
        });
        match listed {
            Err(fault) => self.closed.push((relative.into(), fault)),
            Ok((files, closed)) => {
                self.files.extend(files);
                self.closed.extend(closed.into_iter().map(|(name, fault)| (below(name), fault)));
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

/// Whether a file that is no DICOM object by its bytes was never meant to be one: by its
/// extension, or, where it has none, by a name or a text that no image has. Research folders
/// and CDs are full of them.
pub fn is_foreign(file: &ListedFile) -> bool {
    let name = file.relative.rsplit('/').next().unwrap_or(&file.relative);
    let name = name.strip_suffix(".gz").unwrap_or(name);
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    match extension.as_deref() {
        // An archive in an archive may hold the series: it is named.
        Some("dcm" | "dicom" | "dic" | "ima" | "acr" | "zip" | "tar" | "tgz") => false,
        // A UID has points, too.
        Some(extension) if !is_number(extension) => true,
        _ => {
            let mut start = Vec::new();
            let opened = file.open().map(|opened| opened.reader.take(512).read_to_end(&mut start));
            let is_text = !start.is_empty() && start.iter().all(|byte| !matches!(byte, 0..=8 | 14..=31));
            let is_marked = FOREIGN_MARKS.iter().any(|mark| start.starts_with(mark));
            opened.is_ok_and(|read| read.is_ok())
                && (is_text || is_marked || !name.bytes().any(|byte| byte.is_ascii_digit()))
        }
    }
}

/// First bytes of files that are common beside images: pictures, documents, programs, NumPy and
/// HDF5. A zip archive is not among them: it may hold the series.
const FOREIGN_MARKS: [&[u8]; 10] = [
    b"\x89PNG",
    b"\xFF\xD8\xFF",
    b"GIF8",
    b"II*\0",
    b"MM\0*",
    b"%PDF",
    b"MZ",
    b"\x7FELF",
    b"\x93NUMPY",
    b"\x89HDF",
];

fn relative(root: &Path, path: &Path) -> String {
    let below = path.strip_prefix(root).unwrap_or(path);
    let parts: Vec<_> = below.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    parts.join("/")
}
