//! Where a file lies: in a folder, or as an object in a store.
//!
//! A store is named by a URL (`s3://bucket/shards`), and a URL is carried as a
//! path: joining a file name to it gives the URL of that file. Everything that
//! reads shards asks a [`Place`] what a path means, so nothing outside this
//! module knows of stores, and only the feature `cloud` compiles them.

#[cfg(feature = "cloud")]
mod store;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::DataError;
#[cfg(feature = "cloud")]
use store::Object;

/// Schemes of stores, as `object_store` knows them.
const STORES: [&str; 6] = ["s3", "s3a", "gs", "az", "abfs", "abfss"];

/// What a path means.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// A file or folder of this machine; `file:///...` is one too.
    Local(PathBuf),
    /// An object, or what lies below a prefix.
    #[cfg(feature = "cloud")]
    Store(Object),
}

impl Place {
    /// Tells a path of this machine from a URL.
    ///
    /// # Errors
    /// A URL of a store where this program was built without them, or of another scheme.
    pub fn of(path: &Path) -> Result<Self, DataError> {
        match scheme(path) {
            None => Ok(Self::Local(path.into())),
            Some(("file", rest)) if rest.starts_with('/') => Ok(Self::Local(rest.into())),
            Some((scheme, _)) if STORES.contains(&scheme) => Self::in_store(path),
            Some((scheme, _)) => {
                let why = format!("`{scheme}://` is none of {}://, file:///", STORES.join("://, "));
                Err(DataError::invalid("place", why))
            }
        }
    }

    #[cfg(feature = "cloud")]
    fn in_store(path: &Path) -> Result<Self, DataError> {
        Ok(Self::Store(Object::at(path)?))
    }

    #[cfg(not(feature = "cloud"))]
    fn in_store(path: &Path) -> Result<Self, DataError> {
        Err(DataError::NoObjectStores { path: path.into() })
    }

    /// A file, to be read piece by piece.
    pub fn open(&self) -> Result<Box<dyn Read + '_>, DataError> {
        match self {
            Self::Local(path) => {
                let file = crate::files::open_plain(path).map_err(DataError::io("read", path))?;
                Ok(Box::new(file))
            }
            #[cfg(feature = "cloud")]
            Self::Store(object) => Ok(Box::new(object.open()?)),
        }
    }

    /// Writes a file that appears whole or not at all, and the folders above it.
    fn fill(&self, content: &mut dyn Read) -> Result<(), DataError> {
        match self {
            Self::Local(path) => fill_local(path, content),
            #[cfg(feature = "cloud")]
            Self::Store(object) => object.fill(content),
        }
    }

    /// The files below a folder or prefix, relative to it, with `/` between names,
    /// sorted. Where nothing is, there are none. Hidden ones are unfinished and left out.
    fn list(&self) -> Result<Vec<String>, DataError> {
        let mut names = match self {
            Self::Local(root) => {
                let mut names = Vec::new();
                list_local(root, "", &mut names)?;
                names
            }
            #[cfg(feature = "cloud")]
            Self::Store(prefix) => prefix.list()?,
        };
        names.sort();
        Ok(names)
    }
}

/// Whether a path is the URL of a store.
pub fn is_store(path: &Path) -> bool {
    scheme(path).is_some_and(|(scheme, _)| STORES.contains(&scheme))
}

/// `path` as seen from the folder `from`; an absolute path or a URL stays what it is.
pub fn seen_from(from: &Path, path: &Path) -> PathBuf {
    if scheme(path).is_some() { path.into() } else { from.join(path) }
}

/// Whether there is a file at a place.
///
/// # Errors
/// When a store does not answer, or is named where this program was built without them.
pub fn exists(path: &Path) -> Result<bool, DataError> {
    match Place::of(path)? {
        Place::Local(path) => Ok(path.exists()),
        #[cfg(feature = "cloud")]
        Place::Store(object) => object.exists(),
    }
}

/// Copies the files of a folder or prefix to another. Files named in `last` come
/// last, in that order: they are what a reader asks for first, so a copy that broke
/// off is not taken for a whole one. Returns the number of files.
///
/// # Errors
/// When a file cannot be read or written; what was copied stays there, and another
/// try writes over it.
pub fn copy(from: &Path, to: &Path, last: &[&str]) -> Result<usize, DataError> {
    let mut names = Place::of(from)?.list()?;
    names.sort_by_key(|name| last.iter().position(|known| known == name).map_or(0, |at| at + 1));
    for name in &names {
        let source = Place::of(&from.join(name))?;
        let mut content = source.open()?;
        Place::of(&to.join(name))?.fill(&mut content)?;
    }
    Ok(names.len())
}

/// A folder on this machine to work in. If its lasting place is a store, it is a
/// copy, which goes when this is dropped; [`upload`](Self::upload) writes it back.
#[derive(Debug)]
pub struct WorkingCopy {
    folder: PathBuf,
    store: Option<PathBuf>,
}

impl WorkingCopy {
    /// The folder itself, or a copy of what a store holds at `path`, in the
    /// system's folder for temporary files (`TMPDIR`).
    ///
    /// # Errors
    /// When the store cannot be read or the copy cannot be written.
    pub fn of(path: &Path) -> Result<Self, DataError> {
        if !is_store(path) {
            return match Place::of(path)? {
                Place::Local(folder) => Ok(Self { folder, store: None }),
                #[cfg(feature = "cloud")]
                Place::Store(_) => Ok(Self { folder: path.into(), store: None }),
            };
        }
        let url = path.to_string_lossy();
        let hash = crate::files::sha256_hex(url.as_bytes());
        let name = format!("covid19-diag-{}-{}", std::process::id(), &hash[..16]);
        let copy = Self { folder: std::env::temp_dir().join(name), store: Some(path.into()) };
        fs::create_dir_all(&copy.folder).map_err(DataError::io("create", &copy.folder))?;
        crate::files::close_to_others(&copy.folder)?;
        self::copy(path, &copy.folder, &[])?;
        Ok(copy)
    }

    /// Where to work.
    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Writes a copy back to its store, `last` last. A folder is in its place already.
    ///
    /// # Errors
    /// As [`copy`].
    pub fn upload(&self, last: &[&str]) -> Result<(), DataError> {
        match &self.store {
            Some(store) => copy(&self.folder, store, last).map(drop),
            None => Ok(()),
        }
    }
}

impl Drop for WorkingCopy {
    fn drop(&mut self) {
        if self.store.is_some() {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// `s3://bucket/key` is `s3` and `bucket/key`; a path of this machine has no scheme.
fn scheme(path: &Path) -> Option<(&str, &str)> {
    let (scheme, rest) = path.to_str()?.split_once("://")?;
    let is_word = !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_word.then_some((scheme, rest))
}

fn fill_local(path: &Path, content: &mut dyn Read) -> Result<(), DataError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(DataError::io("create", folder))?;
    }
    let staged = crate::files::sibling(path, "part");
    let mut write = || -> std::io::Result<()> {
        std::io::copy(content, &mut fs::File::create(&staged)?)?;
        fs::rename(&staged, path)
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&staged);
        DataError::Io { action: "copy to", path: path.into(), source }
    })
}

fn list_local(folder: &Path, above: &str, names: &mut Vec<String>) -> Result<(), DataError> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(DataError::io("read", folder)(err)),
    };
    for entry in entries {
        let path = entry.map_err(DataError::io("read", folder))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return Err(DataError::malformed(path, "its name is not UTF-8 text"));
        };
        if name.starts_with('.') {
            // Being written, and renamed when it is whole.
        } else if path.is_dir() {
            list_local(&path, &format!("{above}{name}/"), names)?;
        } else {
            names.push(format!("{above}{name}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, want: Option<&str>) {
        let local = match Place::of(Path::new(path)) {
            Ok(Place::Local(path)) => Some(path),
            _ => None,
        };
        assert_eq!(local.as_deref(), want.map(Path::new), "{path}");
    }

    #[test]
    fn paths_and_file_urls_are_local() {
        check("data/shards", Some("data/shards"));
        check("/data/a:b", Some("/data/a:b"));
        check("file:///data/shards", Some("/data/shards"));
        check("file://host/data", None);
        check("ftp://host/data", None);
    }

    #[cfg(not(feature = "cloud"))]
    #[test]
    fn a_store_needs_its_feature_and_says_so() {
        for url in ["s3://bucket/shards", "gs://bucket", "az://container/shards"] {
            let err = Place::of(Path::new(url)).unwrap_err();
            assert!(matches!(err, DataError::NoObjectStores { .. }), "{url}");
            assert!(err.remedy().contains("--features"), "{}", err.remedy());
        }
    }

    #[test]
    fn names_join_to_a_url_and_a_url_is_seen_from_anywhere() {
        let url = Path::new("s3://bucket/shards");
        assert_eq!(url.join("data/a.parquet").to_str(), Some("s3://bucket/shards/data/a.parquet"));
        assert_eq!(seen_from(Path::new("/runs/a"), url), url);
        assert_eq!(seen_from(Path::new("/runs/a"), Path::new("../s")), Path::new("/runs/a/../s"));
    }

    #[test]
    fn a_copy_writes_what_makes_it_whole_last() {
        let root = tempfile::tempdir().unwrap();
        let (from, to) = (root.path().join("from"), root.path().join("to"));
        for name in ["data/a", "data/b", "z", "manifest.json"] {
            let path = from.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, name).unwrap();
        }
        // A folder in the way of the one before last stops the copy.
        fs::create_dir_all(to.join("z/in-the-way")).unwrap();
        assert!(copy(&from, &to, &["manifest.json"]).is_err());
        assert!(!to.join("manifest.json").exists());
        fs::remove_dir_all(&to).unwrap();
        assert_eq!(copy(&from, &to, &["manifest.json"]).unwrap(), 4);
        assert_eq!(Place::of(&to).unwrap().list().unwrap(), ["data/a", "data/b", "manifest.json", "z"]);
    }
}
