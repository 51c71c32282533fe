//! A model in one file: weights, description and decided rule of a run.
//!
//! It is a safetensors file whose tensors are those of the run's `model.safetensors`, byte for
//! byte, so that any tool for that format opens it. The rest stands as text in the metadata of
//! the header:
//!
//! | key | holds |
//! | --- | --- |
//! | `covid19-diag` | kind and version of the file |
//! | `model.json`, `decision.json` | these files of the run as they are |
//! | `seen` | `seen.json` of the run as it is; absent where the run has none or it was left out |
//! | `weights_header` | header of the run's `model.safetensors` |
//! | `sha256` | a line `hash  name` for each of the files above and `model.safetensors` |
//!
//! [`ModelFile::read`] puts `model.safetensors` together again and holds every part against its
//! hash: what is used is what was exported. This crate knows only the frame of the format, not
//! tensors.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{DataError, files};

/// Value of the key [`KIND`]: rises whenever a reader of the old form would fail.
const VERSION: &str = "model in one file, version 1";
/// Key of the version. The note of the weights of a run has the same key.
const KIND: &str = "covid19-diag";
const CARD: &str = "model.json";
const DECISION: &str = "decision.json";
const SEEN: &str = "seen";
const WEIGHTS_HEADER: &str = "weights_header";
const WEIGHTS: &str = "model.safetensors";
const SUMS: &str = "sha256";
/// Key of the metadata in the header.
const METADATA: &str = "__metadata__";
/// Bytes of the number before the header.
const LENGTH: usize = 8;
/// Longest header that readers of the format take.
const MAX_HEADER: usize = 100_000_000;

/// The files of a run that make a model, as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFile {
    /// `model.json`.
    pub card: Vec<u8>,
    /// `decision.json`.
    pub decision: Vec<u8>,
    /// `seen.json`, where it comes along.
    pub seen: Option<Vec<u8>>,
    /// `model.safetensors`.
    pub weights: Vec<u8>,
}

impl ModelFile {
    /// Writes the file, atomically; the same content gives the same bytes.
    ///
    /// # Errors
    /// Parts that are no text or no safetensors file, a header beyond 100 MB, a disk that refuses.
    pub fn write(&self, path: &Path) -> Result<(), DataError> {
        let bytes = self.to_bytes().map_err(|why| DataError::malformed(path, why))?;
        files::write_atomic(path, &bytes)
    }

    /// Reads the file, and holds every part against the hash that it records.
    ///
    /// # Errors
    /// A file that cannot be read, is of another kind or version, or was changed.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        Self::of_bytes(&files::read(path)?).map_err(|why| DataError::malformed(path, why))
    }

    fn to_bytes(&self) -> Result<Vec<u8>, String> {
        let (weights_header, data) = split(&self.weights)?;
        let mut tensors = header(weights_header)?;
        tensors.shift_remove(METADATA);
        let mut sums = String::new();
        for (name, bytes) in self.parts() {
            sums.push_str(&format!("{}  {name}\n", files::sha256_hex(bytes)));
        }
        let mut metadata = Map::new();
        metadata.insert(KIND.into(), VERSION.into());
        metadata.insert(CARD.into(), text(CARD, &self.card)?.into());
        metadata.insert(DECISION.into(), text(DECISION, &self.decision)?.into());
        if let Some(seen) = &self.seen {
            metadata.insert(SEEN.into(), text(SEEN, seen)?.into());
        }
        metadata.insert(WEIGHTS_HEADER.into(), text(WEIGHTS, weights_header)?.into());
        metadata.insert(SUMS.into(), sums.into());
        let mut all = Map::new();
        all.insert(METADATA.into(), metadata.into());
        all.extend(tensors);
        let mut header = Value::from(all).to_string().into_bytes();
        // The format wants the data at a multiple of eight.
        header.resize(header.len().next_multiple_of(LENGTH), b' ');
        if header.len() > MAX_HEADER {
            return Err(format!(
                "its header would have {} bytes, at most {MAX_HEADER} are read",
                header.len()
            ));
        }
        Ok(joined(&header, data))
    }

    fn of_bytes(bytes: &[u8]) -> Result<Self, String> {
        let (own_header, data) = split(bytes)?;
        let mut own_header = header(own_header)?;
        let metadata = own_header.shift_remove(METADATA).unwrap_or_default();
        let part = |key: &str| metadata.get(key).and_then(Value::as_str).map(str::to_owned);
        match part(KIND).as_deref() {
            Some(VERSION) => {}
            Some(other) if other.starts_with("model in one file") => {
                return Err(format!("it is a `{other}`, this program reads `{VERSION}`"));
            }
            _ => {
                return Err(
                    "it holds tensors, but no model: pass a run folder, or a file of diag-train export"
                        .into(),
                );
            }
        }
        let wanted = |key: &str| part(key).ok_or_else(|| format!("its metadata has no `{key}`"));
        let file = Self {
            card: wanted(CARD)?.into_bytes(),
            decision: wanted(DECISION)?.into_bytes(),
            seen: part(SEEN).map(String::into_bytes),
            weights: joined(wanted(WEIGHTS_HEADER)?.as_bytes(), data),
        };
        let sums = wanted(SUMS)?;
        let recorded: Vec<(&str, &str)> = sums.lines().filter_map(|line| line.split_once("  ")).collect();
        let parts = file.parts();
        if recorded.len() != parts.len() {
            return Err("its parts are not those whose hashes it records: it was changed".into());
        }
        for ((hash, name), (want, bytes)) in recorded.into_iter().zip(parts) {
            if name != want || hash != files::sha256_hex(bytes) {
                return Err(format!(
                    "{want} in it has another hash than it records: it was changed or damaged"
                ));
            }
        }
        Ok(file)
    }

    /// Every part by its name, in the order of the hashes.
    fn parts(&self) -> Vec<(&'static str, &[u8])> {
        let mut parts = vec![(CARD, &self.card[..]), (DECISION, &self.decision)];
        parts.extend(self.seen.as_deref().map(|seen| (SEEN, seen)));
        parts.push((WEIGHTS, &self.weights));
        parts
    }
}

/// Header and data of a safetensors file.
fn split(bytes: &[u8]) -> Result<(&[u8], &[u8]), String> {
    let cut = || "it is no safetensors file, or was cut".to_owned();
    let (length, rest) = bytes.split_first_chunk::<LENGTH>().ok_or_else(cut)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| cut())?;
    if length > MAX_HEADER {
        return Err(cut());
    }
    rest.split_at_checked(length).ok_or_else(cut)
}

fn joined(header: &[u8], data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.extend_from_slice(data);
    bytes
}

fn header(bytes: &[u8]) -> Result<Map<String, Value>, String> {
    serde_json::from_slice(bytes).map_err(|err| format!("its header is damaged ({err})"))
}

fn text<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str, String> {
    std::str::from_utf8(bytes).map_err(|_| format!("{name} is no UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> ModelFile {
        let header = br#"{"__metadata__":{"covid19-diag":"epoch 3"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}   "#;
        ModelFile {
            card: b"{\"card\": \"\\u00e4\"}\n".to_vec(),
            decision: b"{}\n".to_vec(),
            seen: Some(b"{\"key\": 1}\n".to_vec()),
            weights: joined(header, &[1, 2, 3, 4]),
        }
    }

    #[test]
    fn every_part_comes_back_byte_for_byte() {
        for model in [model(), ModelFile { seen: None, ..model() }] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("model.safetensors");
            model.write(&path).unwrap();
            assert_eq!(ModelFile::read(&path).unwrap(), model);
            let bytes = files::read(&path).unwrap();
            assert_eq!(bytes, model.to_bytes().unwrap());
            let (header_bytes, data) = split(&bytes).unwrap();
            assert_eq!(((LENGTH + header_bytes.len()) % LENGTH, data), (0, &[1, 2, 3, 4][..]));
            assert_eq!(header(header_bytes).unwrap()["a"]["data_offsets"], serde_json::json!([0, 4]));
        }
    }

    #[test]
    fn a_change_of_any_part_is_noticed() {
        let bytes = model().to_bytes().unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        for (part, what) in
            [("{}\\n", "decision"), ("\\\"card", "card"), ("\\\"key", "seen"), ("epoch 3", "w")]
        {
            let at = text.find(part).unwrap() + part.len() - 1;
            let mut changed = bytes.clone();
            changed[at] = if changed[at] == b'n' { b't' } else { b'x' };
            assert!(ModelFile::of_bytes(&changed).is_err(), "{what}");
        }
        let mut changed = bytes.clone();
        *changed.last_mut().unwrap() ^= 1;
        let refused = ModelFile::of_bytes(&changed).unwrap_err();
        assert!(refused.contains("model.safetensors"), "{refused}");
        for n_bytes in [0, 7, 8, 40, bytes.len() - 1] {
            assert!(ModelFile::of_bytes(&bytes[..n_bytes]).is_err(), "cut after {n_bytes}");
        }
    }

    #[test]
    fn what_was_left_out_is_not_missed_and_weights_alone_are_no_model() {
        let bare = ModelFile { seen: None, ..model() };
        assert_eq!(ModelFile::of_bytes(&bare.to_bytes().unwrap()).unwrap().seen, None);
        let refused = ModelFile::of_bytes(&model().weights).unwrap_err();
        assert!(refused.contains("no model") && refused.contains("diag-train export"), "{refused}");
    }
}
