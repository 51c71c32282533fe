//! Where the key of the pseudonyms comes from.
//!
//! By default it is drawn at random at first use and kept for this machine's user, so that
//! cohorts of one user stay comparable and the same command gives the same bytes, while no
//! other person can test a guessed name. Synthetic cohorts, which show no patient, have the
//! public key.

use std::io::Write;
use std::path::{Path, PathBuf};

use diag_data::manifest::KeyKind;
use etcetera::BaseStrategy;
use rand::TryRngCore;

use crate::error::ReadError;
use crate::pseudonyms::{MIN_KEY_LEN, Pseudonyms};

/// Environment variable that names a key file, where no flag does.
pub const KEY_FILE_VARIABLE: &str = "COVID19_DIAG_KEY_FILE";

/// Which key is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// That of this machine's user; for synthetic cohorts the public one.
    Machine,
    /// The bytes of a file, at least 32.
    File(PathBuf),
    /// The public one: anyone can test names against the hashes.
    Public,
}

impl KeySource {
    /// What a user asks for: the file that a flag names, else the one that
    /// [`KEY_FILE_VARIABLE`] names, else the machine's.
    pub fn of_user(key_file: Option<PathBuf>) -> Self {
        let variable = || std::env::var_os(KEY_FILE_VARIABLE).filter(|value| !value.is_empty());
        key_file.or_else(|| variable().map(PathBuf::from)).map_or(Self::Machine, Self::File)
    }
}

/// Folder of the key, below the user's folder for settings.
const FOLDER: &str = "covid19-diag";
/// Its file.
const FILE: &str = "pseudonym.key";

/// The hashes by a key; `synthetic` says whether the images are. `on_new` gets the words about
/// a machine's key that was drawn now.
///
/// # Errors
/// When the key cannot be read, or there is none and it cannot be kept.
pub fn pseudonyms(
    source: &KeySource,
    synthetic: bool,
    on_new: &dyn Fn(&str),
) -> Result<Pseudonyms, ReadError> {
    Ok(match source {
        KeySource::File(path) => Pseudonyms::of_file(path, KeyKind::File)?,
        KeySource::Public => Pseudonyms::public()?,
        KeySource::Machine if synthetic => Pseudonyms::public()?,
        KeySource::Machine => {
            let home = etcetera::choose_base_strategy().map_err(|err| ReadError::MachineKey {
                path: Path::new("~").join(FOLDER).join(FILE),
                source: std::io::Error::other(err.to_string()),
            })?;
            let path = home.config_dir().join(FOLDER).join(FILE);
            let refused = |source| ReadError::MachineKey { path: path.clone(), source };
            if ensure(&path).map_err(refused)? {
                on_new(&format!(
                    "a new key of the pseudonyms is in {}: keep it to yourself, and do not lose it; \
                     only with it can cohorts be compared",
                    path.display()
                ));
            }
            Pseudonyms::of_file(&path, KeyKind::Machine)?
        }
    })
}

/// Draws a key and keeps it at `path`, for its owner only, unless there is one. Returns
/// whether it was drawn now. Of two processes that draw at a time one wins, and both
/// find that key afterwards.
fn ensure(path: &Path) -> std::io::Result<bool> {
    if path.try_exists()? {
        return Ok(false);
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut key = [0; MIN_KEY_LEN];
    let mut name = [0; 8];
    let mut random = rand::rngs::OsRng;
    random
        .try_fill_bytes(&mut key)
        .and_then(|()| random.try_fill_bytes(&mut name))
        .map_err(std::io::Error::other)?;
    let drawn = path.with_extension(format!("{:016x}.new", u64::from_le_bytes(name)));
    let write = || {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&drawn)?;
        file.write_all(&key)?;
        file.sync_all()?;
        // Unlike a rename, a link never takes the place of another file.
        match std::fs::hard_link(&drawn, path) {
            Ok(()) => Ok(true),
            Err(err) if err.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
            Err(err) => Err(err),
        }
    };
    let result = write();
    let _ = std::fs::remove_file(&drawn);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_drawn_once_and_is_its_owner_s() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b").join(FILE);
        assert!(ensure(&path).unwrap());
        let key = std::fs::read(&path).unwrap();
        assert_eq!(key.len(), MIN_KEY_LEN);
        assert!(!ensure(&path).unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), key);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let other = folder.path().join("other").join(FILE);
        ensure(&other).unwrap();
        assert_ne!(std::fs::read(other).unwrap(), key);
    }

    #[test]
    fn of_many_that_draw_at_a_time_one_wins() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..20 {
            let path = folder.path().join(round.to_string()).join(FILE);
            let draw = || (ensure(&path).unwrap(), std::fs::read(&path).unwrap());
            let drawn: Vec<(bool, Vec<u8>)> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(draw)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(drawn.iter().filter(|(is_new, _)| *is_new).count(), 1);
            assert!(drawn.iter().all(|(_, key)| *key == drawn[0].1 && key.len() == MIN_KEY_LEN));
        }
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        std::fs::write(&blocked, b"x").unwrap();
        assert!(ensure(&blocked.join(FILE)).is_err());
    }
}
