//! Headers of text lines.

use std::io::{BufRead, Read};

use super::header::{broken, wrong};
use crate::fault::Fault;

/// Longest header: those of 3D Slicer repeat every DICOM attribute.
const MAX_TEXT_LEN: u64 = 1 << 20;

/// Hands over line by line, without its end, until `is_last` says so or the file ends.
/// Returns the number of bytes read, and whether it was said.
pub(super) fn lines(
    reader: &mut dyn BufRead,
    mut is_last: impl FnMut(&str) -> Result<bool, Fault>,
) -> Result<(u64, bool), Fault> {
    let mut reader = reader.take(MAX_TEXT_LEN);
    let mut line = Vec::new();
    loop {
        line.clear();
        let n_read = reader.read_until(b'\n', &mut line).map_err(|err| broken(&err))?;
        if n_read == 0 && reader.limit() == 0 {
            return Err(wrong("its header has no end"));
        }
        let text = String::from_utf8_lossy(&line);
        let is_end = n_read == 0;
        if is_end || is_last(text.trim_end_matches(['\r', '\n']))? {
            return Ok((MAX_TEXT_LEN - reader.limit(), !is_end));
        }
    }
}

/// Numbers between blanks, exactly `N` of them.
pub(super) fn numbers<const N: usize>(text: &str) -> Option<[f64; N]> {
    let numbers: Vec<f64> = text.split_whitespace().map(|part| part.parse().ok()).collect::<Option<_>>()?;
    numbers.try_into().ok()
}

/// Whole numbers between blanks, exactly `N` of them.
pub(super) fn counts<const N: usize>(text: &str) -> Option<[i64; N]> {
    let counts: Vec<i64> = text.split_whitespace().map(|part| part.parse().ok()).collect::<Option<_>>()?;
    counts.try_into().ok()
}

/// A file beside the header: a name that leads nowhere else.
pub(super) fn beside(name: &str) -> Result<String, Fault> {
    let is_plain = !name.is_empty() && !name.contains(['/', '\\', '\0']) && !matches!(name, "." | "..");
    if is_plain { Ok(name.into()) } else { Err(wrong("its voxels are not in a file beside it")) }
}
