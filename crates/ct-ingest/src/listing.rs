//! The files below a folder, in a fixed order.

use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::IngestError;
use crate::fault::Fault;

/// One file below the root.
#[derive(Clone, Debug)]
pub struct ListedFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Its path below the root, with `/`.
    pub relative: String,
}

/// What a folder holds.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// Files, sorted by path below the root.
    pub files: Vec<ListedFile>,
    /// What could not be entered (a link that leads in a circle, a closed
    /// folder), by path below the root.
    pub closed: Vec<(String, Fault)>,
}

impl Listing {
    /// Lists a folder and all below it. Links are followed.
    ///
    /// # Errors
    /// When the folder itself cannot be read.
    pub fn of(root: &Path) -> Result<Self, IngestError> {
        let folder = |source| IngestError::Folder { path: root.into(), source };
        std::fs::read_dir(root).map_err(folder)?;
        let mut listing = Self::default();
        for entry in WalkDir::new(root).follow_links(true) {
            match entry {
                Ok(entry) if entry.file_type().is_dir() => {}
                Ok(entry) => {
                    let relative = relative(root, entry.path());
                    listing.files.push(ListedFile { path: entry.into_path(), relative });
                }
                Err(err) => {
                    let path = err.path().map(|path| relative(root, path)).unwrap_or_default();
                    let why = match err.io_error() {
                        Some(io) => io.kind().to_string(),
                        None => "a link leads in a circle".into(),
                    };
                    listing.closed.push((path, Fault::Unreadable { why }));
                }
            }
        }
        listing.files.sort_by(|a, b| a.relative.cmp(&b.relative));
        listing.closed.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(listing)
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
