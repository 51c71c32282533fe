//! Hashes by which a stage knows that nothing changed.

use std::path::Path;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// SHA-256 under construction.
#[derive(Default)]
pub struct Fingerprint(Sha256);

impl Fingerprint {
    /// Adds a text; its length goes in too, so that neighbours cannot run together.
    pub fn text(&mut self, text: &str) {
        self.0.update((text.len() as u64).to_le_bytes());
        self.0.update(text);
    }

    /// Adds the content of a file.
    pub fn file(&mut self, path: &Path) -> Result<()> {
        let mut file =
            std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut hasher = Sha256::new();
        std::io::copy(&mut file, &mut hasher).with_context(|| format!("cannot read {}", path.display()))?;
        self.0.update(hasher.finalize());
        Ok(())
    }

    /// Adds the names, sizes and modification times of all files below a folder.
    /// A hospital export is too large to be read for this at every run.
    pub fn listing(&mut self, root: &Path) -> Result<()> {
        let entries = std::fs::read_dir(root).with_context(|| format!("cannot read {}", root.display()))?;
        let mut entries = entries
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| format!("cannot read {}", root.display()))?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            self.text(&entry.file_name().to_string_lossy());
            // A link is not followed, so a loop of links ends here.
            let metadata = entry.metadata().with_context(|| format!("cannot read {}", path.display()))?;
            if metadata.is_dir() {
                self.listing(&path)?;
            } else {
                let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
                self.text(&format!("{} {:?}", metadata.len(), modified));
            }
        }
        self.text("end of folder");
        Ok(())
    }

    /// The hash in hex.
    pub fn hex(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
