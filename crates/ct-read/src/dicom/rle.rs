//! RLE Lossless (PS3.5 annex G): byte planes, each packed by PackBits.

use super::header::PixelFormat;
use crate::fault::Fault;

const HEADER_LEN: usize = 64;
/// Two bytes of a segment make at most 128 pixels.
const MAX_PIXELS_PER_BYTE: usize = 64;

/// Unpacks one frame; every byte must be there, none may be left wanting.
///
/// # Errors
/// [`Fault::Pixels`] when the segments do not hold exactly the frame.
pub fn decode(stream: &[u8], format: &PixelFormat) -> Result<Vec<u16>, Fault> {
    let n_planes = usize::from(format.bits_allocated / 8);
    let n_pixels = format.rows * format.cols;
    let number = |at: usize| {
        let bytes = stream.get(4 * at..4 * at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(|bytes| u32::from_le_bytes(bytes) as usize)
    };
    if stream.len() < HEADER_LEN || number(0) != Some(n_planes) {
        return Err(Fault::Pixels { why: format!("its RLE header does not announce {n_planes} segments") });
    }
    // No more memory for the picture than its stream can fill.
    if n_planes * n_pixels > MAX_PIXELS_PER_BYTE * stream.len() {
        return Err(Fault::Pixels { why: format!("its RLE stream is too short for {n_pixels} pixels") });
    }
    let mut words = vec![0u16; n_pixels];
    let mut plane = Vec::with_capacity(n_pixels);
    for i in 0..n_planes {
        let from = number(i + 1).unwrap_or(0);
        let to = if i + 1 < n_planes { number(i + 2).unwrap_or(0) } else { stream.len() };
        let segment = stream.get(from..to).filter(|_| from >= HEADER_LEN);
        let segment = segment.ok_or(Fault::Pixels { why: "its RLE segments overlap or are cut".into() })?;
        unpack(segment, n_pixels, &mut plane)?;
        // The first plane holds the high bytes.
        for (word, byte) in words.iter_mut().zip(&plane) {
            *word = *word << 8 | u16::from(*byte);
        }
    }
    Ok(words)
}

fn unpack(segment: &[u8], n_pixels: usize, plane: &mut Vec<u8>) -> Result<(), Fault> {
    plane.clear();
    let mut at = 0;
    while plane.len() < n_pixels {
        let Some(&control) = segment.get(at) else { break };
        at += 1;
        match control {
            0..=127 => {
                let Some(literal) = segment.get(at..at + usize::from(control) + 1) else { break };
                plane.extend_from_slice(literal);
                at += literal.len();
            }
            128 => {}
            129..=255 => {
                let Some(&byte) = segment.get(at) else { break };
                plane.resize(plane.len() + 257 - usize::from(control), byte);
                at += 1;
            }
        }
    }
    if plane.len() != n_pixels {
        let why = format!("an RLE segment holds {} of {n_pixels} pixels", plane.len());
        return Err(Fault::Pixels { why });
    }
    // What follows may only be the zero that makes the length even.
    if segment[at..].len() > 1 {
        return Err(Fault::Pixels {
            why: "an RLE segment holds more pixels than the header asks for".into(),
        });
    }
    Ok(())
}
