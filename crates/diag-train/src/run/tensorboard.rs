//! TensorBoard event files: scalars in TFRecord framing.
//!
//! The wall time of an event is the number of its step, so that equal runs have
//! equal files.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use diag_data::DataError;
use diag_data::files;
use diag_data::run::{Epoch, LossRecord, Step};

/// Name of the file in the run folder.
const FILE_NAME: &str = "events.out.tfevents.1.diag-train";

/// Appends steps and epochs to the event file of a run.
pub(crate) struct EventFile {
    path: PathBuf,
}

impl EventFile {
    /// Starts the file anew with the steps and epochs that are kept, in the order
    /// in which they were first written.
    pub fn create(run: &Path, steps: &[Step], epochs: &[Epoch]) -> Result<Self, DataError> {
        let path = run.join(FILE_NAME);
        let mut bytes = record(&event(0, &Content::Version));
        let mut steps = steps.iter().peekable();
        for epoch in epochs {
            while let Some(step) = steps.next_if(|step| step.epoch <= epoch.epoch) {
                bytes.extend(records(step.step, step_scalars(step)));
            }
            bytes.extend(records(epoch.step, epoch_scalars(epoch)));
        }
        for step in steps {
            bytes.extend(records(step.step, step_scalars(step)));
        }
        files::write_atomic(&path, &bytes)?;
        Ok(Self { path })
    }

    /// Adds a step at the end, so that a running TensorBoard sees it.
    pub fn append_step(&self, step: &Step) -> Result<(), DataError> {
        self.append(&records(step.step, step_scalars(step)))
    }

    /// Adds an epoch at the end.
    pub fn append_epoch(&self, epoch: &Epoch) -> Result<(), DataError> {
        self.append(&records(epoch.step, epoch_scalars(epoch)))
    }

    fn append(&self, bytes: &[u8]) -> Result<(), DataError> {
        let write = || OpenOptions::new().append(true).open(&self.path)?.write_all(bytes);
        write().map_err(|source| DataError::Io { action: "write", path: self.path.clone(), source })
    }
}

/// Every number of a step as `(tag, value)`.
fn step_scalars(step: &Step) -> Vec<(String, f64)> {
    let numbers =
        [("learning_rate", step.learning_rate), ("loss", step.loss), ("gradient_norm", step.gradient_norm)];
    let numbers = numbers.into_iter().map(|(name, value)| (format!("step/{name}"), value));
    let state = step.loss_state.iter().map(|(name, value)| (format!("step/loss_state/{name}"), *value));
    numbers.chain(state).collect()
}

/// Every number of an epoch as `(tag, value)`.
fn epoch_scalars(epoch: &Epoch) -> Vec<(String, f64)> {
    let mut scalars = vec![("learning_rate".to_owned(), epoch.learning_rate)];
    let mut loss = |part: &str, record: &LossRecord| {
        scalars.push((format!("{part}/loss"), record.total));
        for (head, parts) in &record.heads {
            scalars.extend(parts.iter().map(|(name, value)| (format!("{part}/{head}/{name}"), *value)));
        }
    };
    loss("train", &epoch.train);
    if let Some(validation) = &epoch.validation {
        loss("validation", &validation.loss);
        scalars.push(("validation/case_macro_f1".to_owned(), validation.case_macro_f1));
        scalars.push(("validation/case_balanced_accuracy".to_owned(), validation.case_balanced_accuracy));
        scalars.push(("validation/slice_macro_f1".to_owned(), validation.slice_macro_f1));
        for (head, value) in &validation.slice_balanced_accuracy {
            scalars.push((format!("validation/{head}/slice_balanced_accuracy"), *value));
        }
    }
    scalars.extend(epoch.validation.iter().filter_map(|validation| {
        Some(("validation/case_macro_auroc".to_owned(), validation.case_macro_auroc?))
    }));
    scalars.extend(epoch.loss_state.iter().map(|(name, value)| (format!("loss_state/{name}"), *value)));
    scalars
}

fn records(step: u64, scalars: Vec<(String, f64)>) -> Vec<u8> {
    let scalars = scalars.into_iter();
    scalars.flat_map(|(tag, value)| record(&event(step, &Content::Scalar(&tag, value as f32)))).collect()
}

enum Content<'a> {
    Version,
    Scalar(&'a str, f32),
}

/// One `Event` message of tensorflow/core/util/event.proto: wall_time = 1,
/// step = 2, file_version = 3, summary = 5; `Summary.Value`: tag = 1, simple_value = 2.
fn event(step: u64, content: &Content<'_>) -> Vec<u8> {
    let mut message = vec![0x09];
    message.extend((step as f64).to_le_bytes());
    message.push(0x10);
    message.extend(varint(step));
    match content {
        Content::Version => message.extend(field(0x1a, b"brain.Event:2")),
        Content::Scalar(tag, value) => {
            let mut entry = field(0x0a, tag.as_bytes());
            entry.push(0x15);
            entry.extend(value.to_le_bytes());
            message.extend(field(0x2a, &field(0x0a, &entry)));
        }
    }
    message
}

/// A length-delimited field with its key.
fn field(key: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![key];
    bytes.extend(varint(content.len() as u64));
    bytes.extend(content);
    bytes
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// TFRecord: length, its checksum, content, its checksum.
fn record(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_le_bytes();
    let mut bytes = length.to_vec();
    bytes.extend(masked_crc(&length).to_le_bytes());
    bytes.extend(content);
    bytes.extend(masked_crc(content).to_le_bytes());
    bytes
}

/// CRC-32C, rotated and shifted, so that a checksum of checksums is no weakness.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Bytes as TensorFlow 2 writes them for `wall_time=7, step=7, tag "a/b", value 0.5`:
    /// key and type of every field by hand from event.proto and summary.proto.
    #[test]
    fn a_scalar_is_the_protobuf_message() {
        let mut want = vec![0x09, 0, 0, 0, 0, 0, 0, 0x1c, 0x40, 0x10, 7];
        want.extend([0x2a, 12, 0x0a, 10, 0x0a, 3, b'a', b'/', b'b', 0x15, 0, 0, 0, 0x3f]);
        assert_eq!(event(7, &Content::Scalar("a/b", 0.5)), want);
    }

    /// RFC 3720 B.4: CRC-32C of 32 zero bytes is 0x8a9136aa.
    #[test]
    fn checksums_are_masked() {
        assert_eq!(masked_crc(&[0; 32]), 0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn every_record_of_a_file_is_framed() {
        let folder = tempfile::tempdir().unwrap();
        let loss = LossRecord {
            total: 1.5,
            heads: BTreeMap::from([("final".into(), BTreeMap::from([("cross_entropy".into(), 1.0)]))]),
        };
        let epoch = Epoch {
            epoch: 1,
            step: 300,
            learning_rate: 1e-3,
            train: loss,
            validation: None,
            loss_state: BTreeMap::from([("alpha".into(), 0.999)]),
        };
        let step = |step: u64, epoch: u32| Step {
            step,
            epoch,
            learning_rate: 1e-3,
            loss: 1.0,
            gradient_norm: 2.0,
            loss_state: BTreeMap::from([("alpha".into(), 0.999)]),
            communication_share: None,
        };
        let second = Epoch { epoch: 2, step: 600, ..epoch.clone() };
        let file = EventFile::create(folder.path(), &[], &[]).unwrap();
        file.append_step(&step(300, 1)).unwrap();
        file.append_epoch(&epoch).unwrap();
        file.append_step(&step(600, 2)).unwrap();
        file.append_epoch(&second).unwrap();
        let at_once = tempfile::tempdir().unwrap();
        EventFile::create(at_once.path(), &[step(300, 1), step(600, 2)], &[epoch, second]).unwrap();
        let [grown, at_once] = [&folder, &at_once].map(|f| std::fs::read(f.path().join(FILE_NAME)).unwrap());
        assert!(grown == at_once, "a file written anew differs from one that grew");
        let bytes = std::fs::read(folder.path().join(FILE_NAME)).unwrap();
        let (mut rest, mut n_records) = (bytes.as_slice(), 0);
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked_crc(&rest[..8]).to_le_bytes());
            let content = &rest[12..12 + length];
            assert_eq!(rest[12 + length..16 + length], masked_crc(content).to_le_bytes());
            rest = &rest[16 + length..];
            n_records += 1;
        }
        assert_eq!(n_records, 1 + 2 * (4 + 4));
    }
}
