//! What a compressed stream says about itself, held against the header.
//!
//! Some decoders fill a short stream with zeros and crop a long one without a
//! word. So the stream's own size must be the header's, and its end must be there.

use super::header::Header;
use super::syntax::{self, Compression};
use crate::fault::Fault;

/// The process of lossless JPEG in Huffman code.
pub const LOSSLESS: u8 = 3;

/// Checks size, depth, process and end mark of a stream. Returns what its frame header says.
///
/// # Errors
/// [`Fault::Pixels`] when they differ from the header, or are not there;
/// [`Fault::TransferSyntax`] for a process of JPEG without a decoder.
pub fn check(header: &Header, stream: &[u8]) -> Result<StreamFrame, Fault> {
    let format = &header.format;
    let compression = header.syntax.compression;
    let frame = match compression {
        Compression::Jpeg | Compression::JpegLs => jpeg_frame(stream),
        Compression::Jpeg2000 => jpeg2000_frame(stream),
        Compression::None | Compression::Deflate | Compression::Rle => None,
    };
    let frame = frame.ok_or(Fault::Pixels { why: "its compressed stream has no frame header".into() })?;
    if (frame.rows, frame.cols) != (format.rows, format.cols) {
        let why = format!(
            "its compressed stream is {} x {}, the header says {} x {}",
            frame.rows, frame.cols, format.rows, format.cols
        );
        return Err(Fault::Pixels { why });
    }
    if frame.n_components != 1 || frame.bits == 0 || frame.bits > format.bits_allocated {
        let why = format!(
            "its compressed stream has {} components of {} bits, the header asks for 1 of at most {}",
            frame.n_components, frame.bits, format.bits_allocated
        );
        return Err(Fault::Pixels { why });
    }
    if compression == Compression::Jpeg && !is_decodable(&frame) {
        let name = syntax::name(&header.transfer_syntax);
        let syntax = format!("{name}, process SOF{} of {} bits,", frame.process, frame.bits);
        return Err(Fault::TransferSyntax { syntax });
    }
    // The end mark is FFD9 in all these standards. Zeros may follow it, or the
    // one byte, of any value, that makes the length even.
    let end = stream.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let is_ended = |bytes: &[u8]| bytes.ends_with(&[0xFF, 0xD9]);
    if !is_ended(&stream[..end]) && !is_ended(&stream[..stream.len() - 1]) {
        return Err(Fault::Pixels { why: "its compressed stream is cut".into() });
    }
    Ok(frame)
}

/// What the decoders of JPEG can: cosine transform of 8 bits, and lossless, both
/// in Huffman code.
fn is_decodable(frame: &StreamFrame) -> bool {
    match frame.process {
        0..=2 => frame.bits == 8,
        process => process == LOSSLESS,
    }
}

/// What the frame header of a stream says.
pub struct StreamFrame {
    /// Number of the frame marker, for JPEG: 0 baseline, 1 extended, 3 lossless.
    pub process: u8,
    rows: usize,
    cols: usize,
    bits: u16,
    n_components: usize,
}

/// Walks the marker segments of a JPEG or JPEG-LS stream to its frame header.
fn jpeg_frame(stream: &[u8]) -> Option<StreamFrame> {
    let mut at = stream.starts_with(&[0xFF, 0xD8]).then_some(2)?;
    loop {
        while stream.get(at)? == &0xFF {
            at += 1;
        }
        let marker = stream[at];
        let length = usize::from(u16_at(stream, at + 1)?);
        match marker {
            // SOF0 to SOF15 but DHT, JPG and DAC; SOF55 is JPEG-LS.
            0xC0..=0xCF | 0xF7 if !matches!(marker, 0xC4 | 0xC8 | 0xCC) => {
                return Some(StreamFrame {
                    process: marker - 0xC0,
                    bits: u16::from(*stream.get(at + 3)?),
                    rows: usize::from(u16_at(stream, at + 4)?),
                    cols: usize::from(u16_at(stream, at + 6)?),
                    n_components: usize::from(*stream.get(at + 8)?),
                });
            }
            0xD8..=0xDA => return None,
            _ => at += 1 + length,
        }
    }
}

/// Reads the SIZ segment, which follows the start of the codestream
/// (ISO 15444-1 A.5.1), inside or without the JP2 boxes.
fn jpeg2000_frame(stream: &[u8]) -> Option<StreamFrame> {
    let start = if stream.starts_with(&[0xFF, 0x4F, 0xFF, 0x51]) {
        0
    } else {
        stream.windows(4).take(4096).position(|window| window == [0xFF, 0x4F, 0xFF, 0x51])?
    };
    let size = |at: usize| {
        let bytes = stream.get(start + at..start + at + 4)?.try_into().ok()?;
        Some(u32::from_be_bytes(bytes) as usize)
    };
    let (width, height, left, top) = (size(8)?, size(12)?, size(16)?, size(20)?);
    Some(StreamFrame {
        process: 0,
        rows: height.checked_sub(top)?,
        cols: width.checked_sub(left)?,
        n_components: usize::from(u16_at(stream, start + 40)?),
        bits: u16::from(*stream.get(start + 42)? & 0x7F) + 1,
    })
}

fn u16_at(stream: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(stream.get(at..at + 2)?.try_into().ok()?))
}
