//! Identity ends here: names and identifiers become keyed hashes.
//!
//! Shards hold an allow-list of columns, none of them free text, so there is
//! nothing to remove; what must stay comparable (is it the same patient?)
//! becomes an HMAC-SHA256. Without the key a guessed name cannot be tested
//! against a hash. Where a key comes from is decided in [`key`](crate::key); the public one
//! is in this file, and is meant for images that show no patient.

use std::path::Path;
use std::sync::Arc;

use diag_data::DataError;
use diag_data::files;
use diag_data::manifest::{KeyInfo, KeyKind};
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::error::ReadError;
use crate::words::{HeaderText, ScannerText, ScannerWords};

/// Fewest bytes of a key file: as many as the hash has.
pub const MIN_KEY_LEN: usize = 32;
/// Hex digits of a key id.
const KEY_ID_LEN: usize = 8;
/// Hex digits of a token: two of a hundred texts are confused once in 3,400 cohorts.
const TOKEN_LEN: usize = 6;

/// What is hashed. Two kinds never give the same hash for the same text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A row of the label table.
    Case,
    /// PatientID, or the label table's patient.
    Patient,
    /// StudyInstanceUID.
    Study,
    /// SeriesInstanceUID.
    Series,
    /// SOPInstanceUID.
    Sop,
    /// A path below the input folder.
    Path,
}

/// Makes pseudonyms with one key.
#[derive(Clone)]
pub struct Pseudonyms {
    mac: Hmac<Sha256>,
    /// Key of the hashes of files; follows from that of the pseudonyms.
    file_key: [u8; 32],
    kind: KeyKind,
    words: Arc<ScannerWords>,
}

impl std::fmt::Debug for Pseudonyms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pseudonyms { key: hidden }")
    }
}

impl Pseudonyms {
    /// The key that everybody knows: whoever guesses a name can test the guess.
    ///
    /// # Errors
    /// Never in practice: HMAC takes a key of any length.
    pub fn public() -> Result<Self, ReadError> {
        Self::of_key(b"covid19-diag public key, version 2", KeyKind::Public)
    }

    /// A secret key: the bytes of a file, of which `kind` says whose it is.
    ///
    /// # Errors
    /// When it cannot be read or has fewer than 32 bytes.
    pub fn of_file(path: &Path, kind: KeyKind) -> Result<Self, ReadError> {
        let key = files::read(path)?;
        if key.len() < MIN_KEY_LEN {
            let why = format!("the key has {} bytes, at least {MIN_KEY_LEN} are needed", key.len());
            return Err(ReadError::Key { path: path.into(), why });
        }
        Self::of_key(&key, kind)
    }

    fn of_key(key: &[u8], kind: KeyKind) -> Result<Self, ReadError> {
        let mac = Hmac::new_from_slice(key)
            .map_err(|err| DataError::Invalid { what: "key", why: err.to_string() })?;
        let file_key = blake3::derive_key("covid19-diag ct-ingest source files", key);
        Ok(Self { mac, file_key, kind, words: Arc::new(ScannerWords::known()?) })
    }

    /// Lets the words of a file, one a line, leave as they stand, beside those that are known.
    ///
    /// # Errors
    /// As [`ScannerWords::with_file`].
    pub fn allowing(self, path: &Path) -> Result<Self, ReadError> {
        let words = ScannerWords::clone(&self.words).with_file(path)?;
        Ok(Self { words: words.into(), ..self })
    }

    /// What the manifest says of the key.
    pub fn info(&self) -> KeyInfo {
        KeyInfo { kind: self.kind, id: self.digits(b"key id", "covid19-diag", KEY_ID_LEN) }
    }

    /// Keyed BLAKE3 of the bytes of a file, 64 hex digits.
    pub fn hash_file(&self, bytes: &[u8]) -> String {
        blake3::keyed_hash(&self.file_key, bytes).to_hex().to_string()
    }

    /// Keyed hash, 32 hex digits.
    pub fn hash(&self, kind: Kind, text: &str) -> String {
        let kind = match kind {
            Kind::Case => "case",
            Kind::Patient => "patient",
            Kind::Study => "study",
            Kind::Series => "series",
            Kind::Sop => "sop",
            Kind::Path => "path",
        };
        self.digits(kind.as_bytes(), text, 32)
    }

    /// A maker, model or kernel as it may leave: a word of the list, or a token such as
    /// `model-3fa9c1`, equal for equal values under one key. `case` is the name of its case in
    /// the input, which may be somebody's.
    pub fn scanner_text(&self, what: ScannerText, text: &HeaderText, case: Option<&str>) -> String {
        let token = || {
            let digits = self.digits(what.name().as_bytes(), &text.folded(), TOKEN_LEN);
            format!("{}-{digits}", what.name())
        };
        text.listed(what, &self.words, case).unwrap_or_else(token)
    }

    /// The first hex digits of the keyed hash of a text of some kind.
    fn digits(&self, kind: &[u8], text: &str, n_digits: usize) -> String {
        let mut mac = self.mac.clone();
        mac.update(kind);
        mac.update(&[0]);
        mac.update(text.as_bytes());
        let digest = mac.finalize().into_bytes();
        digest.iter().take(n_digits / 2).map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::PartsOfNames;

    fn keys() -> (Pseudonyms, Pseudonyms) {
        let key = |byte: u8| Pseudonyms::of_key(&[byte; 32], KeyKind::File).unwrap();
        (key(1), key(2))
    }

    #[test]
    fn hashes_differ_by_key_kind_and_text_and_repeat() {
        let (a, b) = keys();
        let first = a.hash(Kind::Patient, "x");
        assert_eq!(first, a.hash(Kind::Patient, "x"));
        assert_ne!(first, b.hash(Kind::Patient, "x"));
        assert_ne!(first, a.hash(Kind::Study, "x"));
        assert_ne!(first, a.hash(Kind::Patient, "y"));
        assert_ne!(a.info().id, b.info().id);
        assert_ne!(a.hash_file(b"x"), b.hash_file(b"x"));
    }

    #[test]
    fn an_unlisted_text_becomes_a_token_that_only_equal_ones_share() {
        let (a, b) = keys();
        let text = |value: &str| HeaderText::new(value.into(), &PartsOfNames::default());
        let shown = |key: &Pseudonyms, value: &str| key.scanner_text(ScannerText::Model, &text(value), None);
        assert_eq!(shown(&a, "somatom force"), "SOMATOM Force");
        let token = shown(&a, "Zbigniew");
        assert!(token.starts_with("model-") && token.len() == 12, "{token}");
        assert_eq!(token, shown(&a, " ZBIGNIEW "));
        assert_ne!(token, shown(&a, "Zbigniew 2"));
        assert_ne!(token, shown(&b, "Zbigniew"));
    }

    #[test]
    fn a_short_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, [7; 31]).unwrap();
        assert!(matches!(Pseudonyms::of_file(&path, KeyKind::File), Err(ReadError::Key { .. })));
        std::fs::write(&path, [7; 32]).unwrap();
        assert!(Pseudonyms::of_file(&path, KeyKind::File).is_ok());
    }
}
