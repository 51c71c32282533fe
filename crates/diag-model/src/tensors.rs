//! Named tensors in one safetensors file, written whole or not at all.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{Device, Tensor};
use diag_data::files;
use safetensors::SafeTensors;

use crate::ModelError;

/// Key of the note in the file's header. One key only: the header keeps no order.
const NOTE: &str = "covid19-diag";

/// Writes tensors and a note; the same content gives the same bytes.
///
/// # Errors
/// When the disk refuses.
pub fn write(path: &Path, tensors: &BTreeMap<String, Tensor>, note: &str) -> Result<(), ModelError> {
    let header = HashMap::from([(NOTE.to_owned(), note.to_owned())]);
    let unfit = |err: String| ModelError::Weights {
        file: path.into(),
        problem: format!("tensors that cannot be stored ({err})"),
    };
    // From a GPU here, where it may fail: the serialiser would panic.
    let on_cpu = tensors.iter().map(|(name, tensor)| Ok((name, tensor.to_device(&Device::Cpu)?)));
    let on_cpu: BTreeMap<_, _> =
        on_cpu.collect::<candle_core::Result<_>>().map_err(|err| unfit(err.to_string()))?;
    let bytes = safetensors::serialize(&on_cpu, Some(header)).map_err(|err| unfit(err.to_string()))?;
    Ok(files::write_atomic(path, &bytes)?)
}

/// Reads tensors and the note, which is empty in files of other programs.
///
/// # Errors
/// When the file cannot be read or is not a safetensors file.
pub fn read(path: &Path) -> Result<(BTreeMap<String, Tensor>, String), ModelError> {
    from_bytes(&files::read(path)?, path)
}

/// As [`read`], from the content of a file; `place` is named in errors.
///
/// # Errors
/// When it is not that of a safetensors file.
pub fn from_bytes(bytes: &[u8], place: &Path) -> Result<(BTreeMap<String, Tensor>, String), ModelError> {
    let malformed = |err: String| ModelError::Weights {
        file: place.into(),
        problem: format!("malformed content ({err})"),
    };
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|err| malformed(err.to_string()))?;
    let note = header.metadata().as_ref().and_then(|m| m.get(NOTE)).cloned().unwrap_or_default();
    let tensors = candle_core::safetensors::load_buffer(bytes, &Device::Cpu)
        .map_err(|err| malformed(err.to_string()))?;
    Ok((tensors.into_iter().collect(), note))
}
