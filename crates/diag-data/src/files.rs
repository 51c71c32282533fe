//! Files that are either whole or absent, and their hashes.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use crate::DataError;
use crate::place::Place;

/// Writes a file so that a reader sees the old content or the new, never a part.
///
/// # Errors
/// When the folder is missing or the disk is full; the old file is then untouched.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    let staged = sibling(path, "part");
    let write = || -> std::io::Result<()> {
        let mut file = fs::File::create(&staged)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&staged, path)
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&staged);
        DataError::Io { action: "write", path: path.into(), source }
    })
}

/// Opens a file for reading. A folder, FIFO, socket or device is refused before it is opened, as
/// opening or reading one may wait for ever.
///
/// # Errors
/// When the system refuses, or it is no plain file.
pub fn open_plain(path: &Path) -> std::io::Result<fs::File> {
    if !fs::metadata(path)?.is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a plain file"));
    }
    fs::File::open(path)
}

/// Reads a whole file, here or in a store (see [`place`](crate::place)).
///
/// # Errors
/// When it cannot be read; the error names it.
pub fn read(path: &Path) -> Result<Vec<u8>, DataError> {
    let mut bytes = Vec::new();
    Place::of(path)?.open()?.read_to_end(&mut bytes).map_err(DataError::io("read", path))?;
    Ok(bytes)
}

/// Reads a JSON file into a checked type.
///
/// # Errors
/// When it cannot be read, or does not have the type's form.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, DataError> {
    serde_json::from_slice(&read(path)?).map_err(|err| DataError::malformed(path, err))
}

/// Writes a value as indented JSON, atomically, with a final newline.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_json<T: serde::Serialize>(path: &Path, value: &T) -> Result<(), DataError> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|err| DataError::malformed(path, err))?;
    text.push(b'\n');
    write_atomic(path, &text)
}

/// Writes rows as CSV with a header, in the order given and with all digits, so that a change of
/// one number changes one line.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_csv<T: serde::Serialize>(path: &Path, rows: &[T]) -> Result<(), DataError> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        writer.serialize(row).map_err(|err| DataError::malformed(path, err))?;
    }
    let bytes = writer.into_inner().map_err(|err| DataError::malformed(path, err))?;
    write_atomic(path, &bytes)
}

/// Reads rows that [`write_csv`] wrote.
///
/// # Errors
/// When the file cannot be read, lacks a column, or a value has another form.
pub fn read_csv<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>, DataError> {
    let bytes = read(path)?;
    let mut reader = csv::Reader::from_reader(bytes.as_slice());
    reader.deserialize().collect::<Result<_, _>>().map_err(|err| DataError::malformed(path, err))
}

/// SHA-256 of some bytes, in hex.
///
/// ```
/// assert!(diag_data::files::sha256_hex(b"").starts_with("e3b0c442"));
/// ```
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of a file, here or in a store, in hex, read piece by piece.
///
/// # Errors
/// When it cannot be read.
pub fn sha256_file(path: &Path) -> Result<String, DataError> {
    let place = Place::of(path)?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut place.open()?, &mut hasher).map_err(DataError::io("read", path))?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The right to write in a folder, which one process at a time has. The system takes it back
/// when the process ends, however it ends.
#[derive(Debug)]
pub struct FolderLock {
    _file: fs::File,
}

impl FolderLock {
    /// Name of the locked file in the folder. It stays there.
    pub const NAME: &str = "lock";

    /// Takes it.
    ///
    /// # Errors
    /// When another process has it, or the folder cannot be written.
    pub fn take(folder: &Path) -> Result<Self, DataError> {
        let file = fs::File::create(folder.join(Self::NAME)).map_err(DataError::io("create", folder))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(fs::TryLockError::WouldBlock) => Err(DataError::InUse { path: folder.into() }),
            Err(fs::TryLockError::Error(source)) => {
                Err(DataError::Io { action: "lock", path: folder.into(), source })
            }
        }
    }
}

/// A folder under construction beside its final place, of which one process at
/// a time is the owner. Dropped without [`commit`](Self::commit) or
/// [`keep`](Self::keep), it disappears with all that is in it.
#[derive(Debug)]
pub struct StagedDir {
    staged: PathBuf,
    target: PathBuf,
    is_kept: AtomicBool,
    _lock: FolderLock,
}

impl StagedDir {
    /// Starts a folder. What an earlier, killed run left in its place is removed.
    ///
    /// # Errors
    /// When the target exists and is not an empty folder, another process is at
    /// it, or its parent cannot be written.
    pub fn create(target: &Path) -> Result<Self, DataError> {
        let dir = Self::resume(target)?;
        dir.clear()?;
        Ok(dir)
    }

    /// Takes over what an earlier run left in its place; else starts a folder.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn resume(target: &Path) -> Result<Self, DataError> {
        refuse_occupied(target)?;
        let staged = sibling(target, "partial");
        fs::create_dir_all(&staged).map_err(DataError::io("create", &staged))?;
        close_to_others(&staged)?;
        let lock = FolderLock::take(&staged)?;
        Ok(Self { staged, target: target.into(), is_kept: AtomicBool::new(false), _lock: lock })
    }

    /// Removes all that is in it.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn clear(&self) -> Result<(), DataError> {
        let entries = fs::read_dir(&self.staged).map_err(DataError::io("read", &self.staged))?;
        for entry in entries {
            let path = entry.map_err(DataError::io("read", &self.staged))?.path();
            let removed = match path.file_name() {
                Some(name) if name == FolderLock::NAME => Ok(()),
                _ if path.is_dir() => fs::remove_dir_all(&path),
                _ => fs::remove_file(&path),
            };
            removed.map_err(DataError::io("remove", path))?;
        }
        Ok(())
    }

    /// Where to write until [`commit`](Self::commit).
    pub fn path(&self) -> &Path {
        &self.staged
    }

    /// Moves the folder `inner` of the staged one to the final place; the rest disappears.
    ///
    /// # Errors
    /// When the move is refused.
    pub fn commit(self, inner: &str) -> Result<(), DataError> {
        if self.target.exists() {
            fs::remove_dir(&self.target).map_err(DataError::io("replace", &self.target))?;
        }
        fs::rename(self.staged.join(inner), &self.target).map_err(DataError::io("create", &self.target))?;
        self.keep(false);
        Ok(())
    }

    /// Whether it stays for a later [`resume`](Self::resume) when it is dropped.
    pub fn keep(&self, is_kept: bool) {
        self.is_kept.store(is_kept, Ordering::Relaxed);
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        if !self.is_kept.load(Ordering::Relaxed) {
            let _ = fs::remove_dir_all(&self.staged);
        }
    }
}

/// Refuses a place that a new folder cannot take.
///
/// # Errors
/// When the target exists and is not an empty folder.
pub fn refuse_occupied(target: &Path) -> Result<(), DataError> {
    let occupied = match fs::read_dir(target) {
        Ok(mut entries) => entries.next().is_some(),
        Err(err) => err.kind() != std::io::ErrorKind::NotFound,
    };
    if occupied { Err(DataError::OutputExists { path: target.into() }) } else { Ok(()) }
}

/// Lets only its owner into a folder: a killed run leaves unfinished work in it. Where there
/// is no such permission, the folder has those of the one above it.
///
/// # Errors
/// When the folder is somebody else's.
pub fn close_to_others(folder: &Path) -> Result<(), DataError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
            .map_err(DataError::io("close to others", folder))?;
    }
    Ok(())
}

/// `dir/name` becomes `dir/.name.suffix`: the same file system, so that a rename is atomic.
pub(crate) fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{suffix}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abandoned_folder_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("shards");
        let staged = StagedDir::create(&target).unwrap();
        fs::write(staged.path().join("half"), b"x").unwrap();
        drop(staged);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_committed_folder_is_whole_and_is_not_overwritten() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("shards");
        let staged = StagedDir::create(&target).unwrap();
        fs::create_dir(staged.path().join("inner")).unwrap();
        fs::write(staged.path().join("inner/all"), b"x").unwrap();
        staged.commit("inner").unwrap();
        assert_eq!(fs::read(target.join("all")).unwrap(), b"x");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
        assert!(matches!(StagedDir::create(&target), Err(DataError::OutputExists { .. })));
    }

    #[test]
    fn a_kept_folder_is_resumed_or_cleared() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("shards");
        let made = |start: fn(&Path) -> Result<StagedDir, DataError>| {
            let staged = start(&target).unwrap();
            let found = staged.path().join("half").exists();
            fs::write(staged.path().join("half"), b"x").unwrap();
            staged.keep(true);
            found
        };
        assert_eq!([made(StagedDir::create), made(StagedDir::resume)], [false, true]);
        assert_eq!([made(StagedDir::create), made(StagedDir::resume)], [false, true]);
    }

    #[cfg(unix)]
    #[test]
    fn unfinished_work_is_closed_to_others_and_finished_work_is_not() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("shards");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let plain = root.path().join("plain");
        fs::create_dir(&plain).unwrap();
        let staged = StagedDir::create(&target).unwrap();
        assert_eq!(mode(staged.path()), 0o700);
        fs::create_dir(staged.path().join("inner")).unwrap();
        staged.commit("inner").unwrap();
        assert_eq!(mode(&target), mode(&plain));
    }

    #[test]
    fn a_folder_has_one_owner() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("shards");
        let first = StagedDir::resume(&target).unwrap();
        assert!(matches!(StagedDir::resume(&target), Err(DataError::InUse { .. })));
        assert!(first.path().exists());
        drop(first);
        assert!(StagedDir::resume(&target).is_ok());
    }

    #[test]
    fn a_failed_write_keeps_the_old_file() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("missing").join("file");
        assert!(write_atomic(&path, b"new").is_err());
        let path = root.path().join("file");
        write_atomic(&path, b"old").unwrap();
        write_atomic(&path, b"new").unwrap();
        assert_eq!(read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
