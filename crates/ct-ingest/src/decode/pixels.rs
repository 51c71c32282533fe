//! From pixel data to stored values, and from stored values to HU.

use std::borrow::Cow;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use dicom::encoding::Codec;
use dicom::encoding::adapters::{PixelDataObject, RawPixelData};
use dicom::encoding::transfer_syntax::TransferSyntaxIndex;
use dicom::transfer_syntax::TransferSyntaxRegistry;

use super::elements::Fragments;
use super::header::{Header, PixelFormat};
use super::rescale::Rescale;
use super::syntax::{self, Compression};
use super::{codestream, jpegls, rle};
use crate::fault::Fault;

/// HU below this is no tissue and no air, but the unmarked filling outside the
/// reconstruction circle (GE writes -2000); real noise stays above -1300.
const OUTSIDE_CIRCLE_HU: f32 = -1500.0;
/// Entries of a table over stored words; 8-bit pixels use the first 256.
const N_WORDS: usize = 1 << 16;

/// Decodes one frame to its stored words: row-major, `rows * cols` of them, the
/// bits as they were stored (8-bit pixels widened, nothing masked).
///
/// # Errors
/// [`Fault::Pixels`] when the data does not match the header,
/// [`Fault::Truncated`], or [`Fault::TransferSyntax`] without a decoder.
pub fn stored_words(file: &[u8], header: &Header, frame_idx: usize) -> Result<Vec<u16>, Fault> {
    let format = &header.format;
    match (header.syntax.compression, header.pixels.length) {
        (Compression::None | Compression::Deflate, Some(length)) => {
            let bytes = native_frame(file, header, length as usize, frame_idx)?;
            Ok(words(bytes, format, header.syntax.encoding.big_endian))
        }
        (Compression::None | Compression::Deflate, None) => {
            Err(Fault::Pixels { why: "uncompressed pixels have no length".into() })
        }
        (_, Some(_)) => Err(Fault::Pixels { why: "compressed pixels are not in fragments".into() }),
        (compression, None) => {
            let fragments = Fragments::read(file, header.pixels.start)?;
            let stream = frame_stream(&fragments, frame_idx, header.frames.len())?;
            if compression == Compression::Rle {
                return rle::decode(&stream, format);
            }
            codestream::check(header, &stream)?;
            if compression == Compression::JpegLs {
                return jpegls::decode(&stream, format.rows, format.cols);
            }
            let bytes = decode_by_codec(header, stream)?;
            if bytes.len() != format.frame_len() {
                let why = format!("{} bytes where the header asks for {}", bytes.len(), format.frame_len());
                return Err(Fault::Pixels { why });
            }
            Ok(words(&bytes, format, false))
        }
    }
}

fn native_frame<'a>(
    file: &'a [u8],
    header: &Header,
    length: usize,
    frame_idx: usize,
) -> Result<&'a [u8], Fault> {
    let (start, frame_len) = (header.pixels.start, header.format.frame_len());
    let wanted = frame_len * header.frames.len();
    // An odd number of bytes is padded to an even one.
    if length != wanted && length != wanted + wanted % 2 {
        let why = format!("{length} bytes where the header asks for {wanted}");
        return Err(Fault::Pixels { why });
    }
    let from = start + frame_idx * frame_len;
    file.get(from..from + frame_len).ok_or(Fault::Truncated)
}

fn words(bytes: &[u8], format: &PixelFormat, big_endian: bool) -> Vec<u16> {
    if format.bits_allocated == 8 {
        return bytes.iter().map(|byte| u16::from(*byte)).collect();
    }
    let pairs = bytes.chunks_exact(2);
    if big_endian {
        pairs.map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
    } else {
        pairs.map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
    }
}

/// The compressed bytes of one frame.
fn frame_stream<'a>(
    fragments: &Fragments<'a>,
    frame_idx: usize,
    n_frames: usize,
) -> Result<Cow<'a, [u8]>, Fault> {
    let parts = &fragments.parts;
    if n_frames == 1 && parts.len() > 1 {
        return Ok(Cow::Owned(parts.concat()));
    }
    if parts.len() == n_frames {
        return Ok(Cow::Borrowed(parts[frame_idx]));
    }
    if fragments.offsets.len() != n_frames {
        return Err(Fault::Pixels { why: format!("{} fragments for {n_frames} frames", parts.len()) });
    }
    let from = fragments.offsets[frame_idx];
    let to = fragments.offsets.get(frame_idx + 1).copied().unwrap_or(u32::MAX);
    let mut offset = 0u32;
    let mut stream = Vec::new();
    for part in parts {
        if (from..to).contains(&offset) {
            stream.extend_from_slice(part);
        }
        offset = offset.saturating_add(part.len() as u32 + 8);
    }
    Ok(Cow::Owned(stream))
}

fn decode_by_codec(header: &Header, stream: Cow<'_, [u8]>) -> Result<Vec<u8>, Fault> {
    let unsupported = || Fault::TransferSyntax { syntax: syntax::name(&header.transfer_syntax) };
    let syntax = TransferSyntaxRegistry.get(&header.transfer_syntax).ok_or_else(unsupported)?;
    let Codec::EncapsulatedPixelData(Some(reader), _) = syntax.codec() else {
        return Err(unsupported());
    };
    let object = OneFrame { header, stream: &stream };
    let mut bytes = Vec::new();
    // The codecs panic on some hostile streams; that must cost one file only.
    let outcome = quietly(|| catch_unwind(AssertUnwindSafe(|| reader.decode_frame(&object, 0, &mut bytes))));
    match outcome {
        Ok(Ok(())) => Ok(bytes),
        // The codec's words are not shown: they could quote the stream.
        Ok(Err(_)) => Err(Fault::Pixels { why: "the decoder refused its compressed stream".into() }),
        Err(_) => Err(Fault::Pixels { why: "the decoder broke off on its compressed stream".into() }),
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` without the panic message of this thread: the fault is reported
/// by the caller, and a message could repeat what stands in a patient's file.
fn quietly<T>(work: impl FnOnce() -> T) -> T {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let outer = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                outer(info);
            }
        }));
    });
    QUIET.set(true);
    let result = work();
    QUIET.set(false);
    result
}

/// One compressed frame as the codecs of dicom-rs want to see it.
struct OneFrame<'a> {
    header: &'a Header,
    stream: &'a [u8],
}

impl PixelDataObject for OneFrame<'_> {
    fn transfer_syntax_uid(&self) -> &str {
        &self.header.transfer_syntax
    }

    fn rows(&self) -> Option<u16> {
        u16::try_from(self.header.format.rows).ok()
    }

    fn cols(&self) -> Option<u16> {
        u16::try_from(self.header.format.cols).ok()
    }

    fn samples_per_pixel(&self) -> Option<u16> {
        Some(1)
    }

    fn bits_allocated(&self) -> Option<u16> {
        Some(self.header.format.bits_allocated)
    }

    fn bits_stored(&self) -> Option<u16> {
        Some(self.header.format.bits_stored)
    }

    fn photometric_interpretation(&self) -> Option<&str> {
        Some("MONOCHROME2")
    }

    fn number_of_frames(&self) -> Option<u32> {
        Some(1)
    }

    fn number_of_fragments(&self) -> Option<u32> {
        Some(1)
    }

    fn fragment(&self, fragment: usize) -> Option<Cow<'_, [u8]>> {
        (fragment == 0).then_some(Cow::Borrowed(self.stream))
    }

    fn offset_table(&self) -> Option<Cow<'_, [u32]>> {
        Some(Cow::Borrowed(&[]))
    }

    fn raw_pixel_data(&self) -> Option<RawPixelData> {
        Some(RawPixelData { fragments: vec![self.stream.to_vec()].into(), offset_table: Vec::new().into() })
    }
}

/// Stored words to HU by table: the general rule is applied once a word, not
/// once a pixel, and slices of one series share it.
#[derive(Clone, Debug)]
pub struct HuTable {
    hu: Vec<f32>,
    /// As `hu`, padding as -1024.
    filled: Vec<f32>,
    is_padding: Vec<bool>,
}

impl HuTable {
    /// What padding becomes: the lowest CT number of a 12-bit scanner.
    pub const PADDING_HU: f32 = -1024.0;

    /// Computes the HU of every possible word.
    pub fn new(format: PixelFormat, rescale: &Rescale) -> Self {
        let mut hu = Vec::with_capacity(N_WORDS);
        let mut is_padding = Vec::with_capacity(N_WORDS);
        for word in 0..N_WORDS {
            let value = value_of(word as u16, &format);
            let exact = rescale.hu(value) as f32;
            hu.push(exact);
            is_padding.push(is_padded(word as u16, value, &format) || exact < OUTSIDE_CIRCLE_HU);
        }
        let of = |(hu, padded): (&f32, &bool)| if *padded { Self::PADDING_HU } else { *hu };
        let filled = hu.iter().zip(&is_padding).map(of).collect();
        Self { hu, filled, is_padding }
    }

    /// Applies `f` to the HU of every possible word, padding as -1024.
    pub fn map<T>(&self, f: impl Fn(f32) -> T) -> Vec<T> {
        self.filled.iter().map(|hu| f(*hu)).collect()
    }

    /// HU of each word as the file states it, padding included.
    pub fn hu(&self, words: &[u16]) -> Vec<f32> {
        words.iter().map(|word| self.hu[usize::from(*word)]).collect()
    }

    /// HU of each word with padding set to [`PADDING_HU`](Self::PADDING_HU), into `hu` of the same length.
    pub fn fill(&self, words: &[u16], hu: &mut [f32]) {
        // The table's length is said once, not checked at every pixel.
        let filled = &self.filled[..N_WORDS];
        hu.iter_mut().zip(words).for_each(|(hu, word)| *hu = filled[usize::from(*word)]);
    }

    /// Whether a word is padding.
    pub fn is_padding(&self, word: u16) -> bool {
        self.is_padding[usize::from(word)]
    }
}

/// The number in the low `bits_stored` bits; overlays above them are masked.
fn value_of(word: u16, format: &PixelFormat) -> i32 {
    let unused = 16 - u32::from(format.bits_stored);
    if format.signed {
        i32::from(((word << unused) as i16) >> unused)
    } else {
        i32::from((word << unused) >> unused)
    }
}

/// Whether a word is padding: it equals the padding value, bit by bit or as a
/// number, or lies in the padding range.
fn is_padded(word: u16, value: i32, format: &PixelFormat) -> bool {
    let Some(padding) = format.padding else {
        return false;
    };
    let as_number = |bits: u16| if format.signed { i32::from(bits as i16) } else { i32::from(bits) };
    match format.padding_limit.map(as_number) {
        None => word == padding || value == as_number(padding),
        Some(limit) => {
            let (a, b) = (as_number(padding), limit);
            (a.min(b)..=a.max(b)).contains(&value)
        }
    }
}
