//! From pixel data to stored values, and from stored values to HU.

use std::borrow::Cow;

use dicom::encoding::Codec;
use dicom::encoding::adapters::{PixelDataObject, RawPixelData};
use dicom::encoding::transfer_syntax::TransferSyntaxIndex;
use dicom::transfer_syntax::TransferSyntaxRegistry;

use super::elements::Fragments;
use super::header::{Header, PixelFormat};
use super::rescale::Rescale;
use super::syntax::{self, Compression};
use super::{codestream, jpeg_lossless, jpegls, rle};
use crate::fault::Fault;
use crate::source::guard::guarded;

/// HU below this is no tissue and no air, but the unmarked filling outside the
/// reconstruction circle (GE writes -2000); real noise stays above -1300.
const OUTSIDE_CIRCLE_HU: f32 = -1500.0;
/// Entries of a table over stored words; 8-bit pixels use the first 256.
const N_WORDS: usize = 1 << 16;

/// The stored pixels of one frame, row-major, the bits as they were stored.
/// Uncompressed ones stay where they lie in the file.
#[derive(Clone, Debug)]
pub struct StoredPixels<'a> {
    cols: usize,
    form: Form<'a>,
}

#[derive(Clone, Debug)]
enum Form<'a> {
    Bytes(Cow<'a, [u8]>),
    LittleEndian(Cow<'a, [u8]>),
    BigEndian(Cow<'a, [u8]>),
    Words(Vec<u16>),
}

impl StoredPixels<'_> {
    /// Decoded words in rows of `cols`.
    pub fn of_words(words: Vec<u16>, cols: usize) -> Self {
        Self { cols, form: Form::Words(words) }
    }

    /// Puts a row into `words`, which has a place for each column; 8-bit pixels are widened.
    pub fn row(&self, row: usize, words: &mut [u16]) {
        let from = row * self.cols;
        match &self.form {
            Form::Bytes(bytes) => {
                words.iter_mut().zip(&bytes[from..]).for_each(|(word, byte)| *word = u16::from(*byte));
            }
            Form::LittleEndian(bytes) => {
                let (pairs, _) = bytes[2 * from..].as_chunks();
                words.iter_mut().zip(pairs).for_each(|(word, pair)| *word = u16::from_le_bytes(*pair));
            }
            Form::BigEndian(bytes) => {
                let (pairs, _) = bytes[2 * from..].as_chunks();
                words.iter_mut().zip(pairs).for_each(|(word, pair)| *word = u16::from_be_bytes(*pair));
            }
            Form::Words(all) => words.copy_from_slice(&all[from..from + self.cols]),
        }
    }

    /// All pixels of `n_rows` rows.
    pub fn words(&self, n_rows: usize) -> Vec<u16> {
        let mut words = vec![0; n_rows * self.cols];
        words.chunks_exact_mut(self.cols).enumerate().for_each(|(y, row)| self.row(y, row));
        words
    }
}

/// Decodes one frame to its stored words: row-major, `rows * cols` of them, the
/// bits as they were stored (8-bit pixels widened, nothing masked).
///
/// # Errors
/// As [`stored_pixels`].
pub fn stored_words(file: &[u8], header: &Header, frame_idx: usize) -> Result<Vec<u16>, Fault> {
    Ok(stored_pixels(file, header, frame_idx)?.words(header.format.rows))
}

/// Decodes one frame.
///
/// # Errors
/// [`Fault::Pixels`] when the data does not match the header,
/// [`Fault::Truncated`], or [`Fault::TransferSyntax`] without a decoder.
pub fn stored_pixels<'a>(
    file: &'a [u8],
    header: &Header,
    frame_idx: usize,
) -> Result<StoredPixels<'a>, Fault> {
    Ok(StoredPixels { cols: header.format.cols, form: decoded_form(file, header, frame_idx)? })
}

fn decoded_form<'a>(file: &'a [u8], header: &Header, frame_idx: usize) -> Result<Form<'a>, Fault> {
    let format = &header.format;
    match (header.syntax.compression, header.pixels.length) {
        (Compression::None | Compression::Deflate, Some(length)) => {
            let bytes = native_frame(file, header, length as usize, frame_idx)?;
            Ok(plain(bytes.into(), format, header.syntax.encoding.big_endian))
        }
        (Compression::None | Compression::Deflate, None) => {
            Err(Fault::Pixels { why: "uncompressed pixels have no length".into() })
        }
        (_, Some(_)) => Err(Fault::Pixels { why: "compressed pixels are not in fragments".into() }),
        (compression, None) => {
            let fragments = Fragments::read(file, header.pixels.start)?;
            let stream = frame_stream(&fragments, frame_idx, header.frames.len())?;
            if compression == Compression::Rle {
                return rle::decode(&stream, format).map(Form::Words);
            }
            let frame = codestream::check(header, &stream)?;
            if compression == Compression::JpegLs {
                return jpegls::decode(&stream, format.rows, format.cols).map(Form::Words);
            }
            if compression == Compression::Jpeg && frame.process == codestream::LOSSLESS {
                return jpeg_lossless::decode(&stream, format.rows, format.cols).map(Form::Words);
            }
            let bytes = decode_by_codec(header, stream)?;
            if bytes.len() != format.frame_len() {
                let why = format!("{} bytes where the header asks for {}", bytes.len(), format.frame_len());
                return Err(Fault::Pixels { why });
            }
            Ok(plain(bytes.into(), format, false))
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
    // What lies behind the pixels is padding (PS3.5 8.1.1), unless it is a frame more.
    if length < wanted || length >= wanted + frame_len.max(2) {
        let why = format!("{length} bytes where the header asks for {wanted}");
        return Err(Fault::Pixels { why });
    }
    let from = start + frame_idx * frame_len;
    file.get(from..from + frame_len).ok_or(Fault::Truncated)
}

fn plain<'a>(bytes: Cow<'a, [u8]>, format: &PixelFormat, big_endian: bool) -> Form<'a> {
    match (format.bits_allocated, big_endian) {
        (8, _) => Form::Bytes(bytes),
        (_, false) => Form::LittleEndian(bytes),
        (_, true) => Form::BigEndian(bytes),
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
    if fragments.offsets.len() != n_frames
        && let Some(stream) = stream_by_marks(parts, frame_idx, n_frames)
    {
        return Ok(Cow::Owned(stream));
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

/// Where no table says which fragments make a frame (PS3.5 A.4 allows that), the streams do: each
/// begins with the mark of its start, behind one that ends with the mark of its end.
fn stream_by_marks(parts: &[&[u8]], frame_idx: usize, n_frames: usize) -> Option<Vec<u8>> {
    let starts = |part: &[u8]| {
        part.starts_with(&[0xFF, 0xD8])
            || part.starts_with(&[0xFF, 0x4F, 0xFF, 0x51])
            || part.starts_with(&[0, 0, 0, 12, b'j', b'P'])
    };
    let ends = |part: &[u8]| {
        let last = part.iter().rposition(|byte| *byte != 0);
        last.is_some_and(|last| part[..=last].ends_with(&[0xFF, 0xD9]))
    };
    let is_first = |i: &usize| starts(parts[*i]) && (*i == 0 || ends(parts[i - 1]));
    let firsts: Vec<usize> = (0..parts.len()).filter(is_first).collect();
    if firsts.len() != n_frames || firsts.first() != Some(&0) {
        return None;
    }
    let end = firsts.get(frame_idx + 1).copied().unwrap_or(parts.len());
    Some(parts[firsts[frame_idx]..end].concat())
}

fn decode_by_codec(header: &Header, stream: Cow<'_, [u8]>) -> Result<Vec<u8>, Fault> {
    let unsupported = || Fault::TransferSyntax { syntax: syntax::name(&header.transfer_syntax) };
    let syntax = TransferSyntaxRegistry.get(&header.transfer_syntax).ok_or_else(unsupported)?;
    let Codec::EncapsulatedPixelData(Some(reader), _) = syntax.codec() else {
        return Err(unsupported());
    };
    let object = OneFrame { header, stream: &stream };
    let mut bytes = Vec::new();
    // The codec's words are not shown: they could quote the stream.
    let refused = |_| Fault::Pixels { why: "the decoder refused its compressed stream".into() };
    // The codecs panic on some hostile streams, which must not hide what our own code does.
    let broken = Fault::Pixels { why: "the decoder broke off on its compressed stream".into() };
    guarded(broken, || reader.decode_frame(&object, 0, &mut bytes).map_err(refused))?;
    Ok(bytes)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(parts: &[&[u8]], n_frames: usize, want: Option<&[&[u8]]>) {
        let found: Option<Vec<Vec<u8>>> =
            (0..n_frames).map(|i| stream_by_marks(parts, i, n_frames)).collect();
        assert_eq!(found, want.map(|frames| frames.iter().map(|frame| frame.to_vec()).collect()));
    }

    #[test]
    fn the_marks_of_streams_divide_fragments() {
        let (start, end): (&[u8], &[u8]) = (&[0xFF, 0xD8, 1], &[2, 0xFF, 0xD9, 0]);
        let frame = [start, end].concat();
        check(&[start, end, start, end], 2, Some(&[&frame, &frame]));
        // A fragment that begins as a stream does, inside another.
        check(&[start, start, end], 1, Some(&[&[start, start, end].concat()]));
        check(&[start, end, end], 2, None);
        check(&[end, start], 1, None);
    }
}
