//! Files of single pictures (PNG, JPEG, TIFF, BMP, WebP) to grey levels, or to stored values.
//!
//! Colour is turned into luma (most "colour" CT images have three equal
//! channels; the others get a warning), transparency is laid over black, 16 bits become the
//! upper 8, and the turn that EXIF asks for is made.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use tiff::decoder::DecodingResult;

use crate::fault::Fault;
use crate::slice::render::Image;
use crate::stack::View;

/// Longest side that is accepted.
const MAX_SIDE: u32 = 16_384;
/// Most memory that a decoder may ask for.
const MAX_DECODER_BYTES: u64 = 512 << 20;
/// A picture of 16 bits whose values span less than this holds stored values of CT (12 bits,
/// wherever they begin), and next to nothing would be seen of them in the upper 8 bits.
const MIN_SPAN: u32 = 1 << 14;

/// HU of stored values: `slope * value + intercept`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HuLine {
    /// Slope; not 0.
    pub slope: f64,
    /// Intercept.
    pub intercept: f64,
}

/// A decoded image.
#[derive(Clone, Debug)]
pub struct Picture {
    /// What it shows.
    pub content: Content,
    /// "PNG", "JPEG", "TIFF", "BMP" or "WebP".
    pub format: &'static str,
    /// Whether the format is lossy.
    pub lossy: bool,
    /// What is odd about the image, in words.
    pub warnings: Vec<String>,
}

/// What an image shows.
#[derive(Clone, Debug)]
pub enum Content {
    /// Grey levels.
    Grey(Image<u8>),
    /// HU, made of stored values.
    Hu(Image<f32>),
}

/// Whether a file name has an extension of a format that is read.
pub fn is_named_as_image(relative: &str) -> bool {
    let extension = relative.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    matches!(extension.as_deref(), Some("png" | "jpg" | "jpeg" | "tif" | "tiff" | "bmp" | "webp"))
}

/// Decodes the bytes of a file. The format is taken from the bytes, not the name. With a line,
/// the values are stored values of CT.
///
/// # Errors
/// [`Fault::Image`] when they are of no format that is read, or broken or cut;
/// [`Fault::StoredValues`] for stored values of CT without a line.
pub fn decode(bytes: &[u8], line: Option<HuLine>) -> Result<Picture, Fault> {
    let wrong = |why: &str| Fault::Image { why: why.into() };
    const NO_FORMAT: &str = "it is no PNG, JPEG, TIFF, BMP or WebP";
    let guessed = image::guess_format(bytes).map_err(|_| wrong(NO_FORMAT))?;
    let (format, lossy) = match guessed {
        ImageFormat::Png => ("PNG", false),
        ImageFormat::Jpeg => ("JPEG", true),
        ImageFormat::Tiff => ("TIFF", false),
        ImageFormat::Bmp => ("BMP", false),
        ImageFormat::WebP => ("WebP", !is_lossless_webp(bytes)),
        _ => return Err(wrong(NO_FORMAT)),
    };
    if guessed == ImageFormat::Jpeg && !is_whole_jpeg(bytes) {
        return Err(wrong("it is cut: the mark of its end is missing"));
    }
    let mut warnings = Vec::new();
    if lossy {
        warnings.push("lossy compression".to_string());
    }
    let decoded =
        if guessed == ImageFormat::Tiff { decode_tiff(bytes)? } else { decode_other(bytes, guessed)? };
    let (rows, cols) = (decoded.rows, decoded.cols);
    let content = match (decoded.values, line) {
        (Values::Words(words), Some(line)) => {
            let hu = |word: &i32| (f64::from(*word) * line.slope + line.intercept) as f32;
            Content::Hu(Image { rows, cols, values: words.iter().map(hu).collect() })
        }
        (Values::Grey { levels, coloured: false }, Some(line)) => {
            let hu = |level: &u8| (f64::from(*level) * line.slope + line.intercept) as f32;
            Content::Hu(Image { rows, cols, values: levels.iter().map(hu).collect() })
        }
        (Values::Grey { coloured: true, .. }, Some(_)) => {
            return Err(wrong("it is a colour image, which holds no stored values of CT"));
        }
        (Values::Words(words), None) => {
            let (lowest, highest) = (words.iter().min().copied(), words.iter().max().copied());
            let (lowest, highest) = (lowest.unwrap_or(0), highest.unwrap_or(0));
            let span = lowest.abs_diff(highest);
            if span < MIN_SPAN || lowest < 0 {
                return Err(Fault::StoredValues { lowest, highest });
            }
            warnings.push("16 bits reduced to 8".into());
            let values = words.iter().map(|word| (word >> 8) as u8).collect();
            Content::Grey(Image { rows, cols, values })
        }
        (Values::Grey { levels, coloured }, None) => {
            if decoded.has_wide_channels {
                warnings.push("16 bits reduced to 8".into());
            }
            if coloured {
                warnings.push("colour image turned grey".into());
            }
            Content::Grey(Image { rows, cols, values: levels })
        }
    };
    Ok(Picture { content, format, lossy, warnings })
}

/// A decoded matrix.
struct Decoded {
    rows: usize,
    cols: usize,
    values: Values,
    /// Whether colours had 16 bits each.
    has_wide_channels: bool,
}

enum Values {
    /// Grey levels, and whether they were colours.
    Grey { levels: Vec<u8>, coloured: bool },
    /// Grey values of 16 bits, signed or not.
    Words(Vec<i32>),
}

fn decode_other(bytes: &[u8], format: ImageFormat) -> Result<Decoded, Fault> {
    let wrong = |_| Fault::Image { why: "the decoder refused it".into() };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(wrong)?;
    // What EXIF says of the turn may be damaged where the picture is not.
    let turn = decoder.orientation().ok();
    let mut image = DynamicImage::from_decoder(decoder).map_err(wrong)?;
    turn.into_iter().for_each(|turn| image.apply_orientation(turn));
    let (cols, rows) = (image.width() as usize, image.height() as usize);
    let values = match &image {
        DynamicImage::ImageLuma16(image) => {
            Values::Words(image.as_raw().iter().map(|word| i32::from(*word)).collect())
        }
        other => {
            let (levels, coloured) = grey_levels(other);
            Values::Grey { levels, coloured }
        }
    };
    let has_wide_channels = image.color().bits_per_pixel() / u16::from(image.color().channel_count()) > 8;
    Ok(Decoded { rows, cols, values, has_wide_channels })
}

/// TIFF apart from the others, since its 16 bits may be signed.
fn decode_tiff(bytes: &[u8]) -> Result<Decoded, Fault> {
    let wrong = |_| Fault::Image { why: "the decoder refused it".into() };
    let unknown = || Fault::Image { why: "it is a TIFF of neither 8 nor 16 bits of grey".into() };
    let mut limits = tiff::decoder::Limits::default();
    limits.decoding_buffer_size = MAX_DECODER_BYTES as usize;
    let mut decoder = tiff::decoder::Decoder::new(Cursor::new(bytes)).map_err(wrong)?.with_limits(limits);
    let (cols, rows) = decoder.dimensions().map_err(wrong)?;
    if cols.max(rows) > MAX_SIDE {
        return Err(Fault::Image { why: "it is larger than any picture".into() });
    }
    let kind = decoder.colortype().map_err(wrong)?;
    let n_values = rows as usize * cols as usize;
    let values = match (kind, decoder.read_image().map_err(wrong)?) {
        (tiff::ColorType::Gray(8), DecodingResult::U8(levels)) => Values::Grey { levels, coloured: false },
        (tiff::ColorType::Gray(16), DecodingResult::U16(words)) => {
            Values::Words(words.into_iter().map(i32::from).collect())
        }
        (tiff::ColorType::Gray(16), DecodingResult::I16(words)) => {
            Values::Words(words.into_iter().map(i32::from).collect())
        }
        (tiff::ColorType::RGB(8), DecodingResult::U8(colours)) => {
            let image = image::RgbImage::from_raw(cols, rows, colours).ok_or_else(unknown)?;
            let (levels, coloured) = grey_levels(&DynamicImage::ImageRgb8(image));
            Values::Grey { levels, coloured }
        }
        _ => return Err(unknown()),
    };
    let n_found = match &values {
        Values::Grey { levels, .. } => levels.len(),
        Values::Words(words) => words.len(),
    };
    if n_found != n_values {
        return Err(unknown());
    }
    let stored = (rows as usize, cols as usize);
    let turn = turn_of(decoder.find_tag_unsigned::<u16>(tiff::tags::Tag::Orientation).ok().flatten());
    let values = match values {
        Values::Grey { levels, coloured } => {
            Values::Grey { levels: turn.turned(&levels, stored).into_owned(), coloured }
        }
        Values::Words(words) => Values::Words(turn.turned(&words, stored).into_owned()),
    };
    let (rows, cols) = turn.size(stored);
    Ok(Decoded { rows, cols, values, has_wide_channels: false })
}

/// The turn that a value of the tag Orientation (274, TIFF and EXIF) asks for.
fn turn_of(orientation: Option<u16>) -> View {
    match orientation {
        Some(2) => View::new(false, false, true),
        Some(3) => View::new(false, true, true),
        Some(4) => View::new(false, true, false),
        Some(5) => View::new(true, false, false),
        Some(6) => View::new(true, false, true),
        Some(7) => View::new(true, true, true),
        Some(8) => View::new(true, true, false),
        _ => View::default(),
    }
}

/// Differences between channels that JPEG makes in grey images stay below this.
const COLOUR_TOLERANCE: u8 = 16;

fn grey_levels(decoded: &DynamicImage) -> (Vec<u8>, bool) {
    match decoded {
        DynamicImage::ImageLuma8(image) => (image.as_raw().clone(), false),
        other => {
            let image = other.to_rgba8();
            let mut coloured = false;
            let level = |pixel: &image::Rgba<u8>| {
                let [red, green, blue, alpha] = pixel.0;
                let spread = red.max(green).max(blue) - red.min(green).min(blue);
                coloured |= spread > COLOUR_TOLERANCE && alpha > 0;
                // Luma of ITU-R BT.601 in whole numbers: exact for equal channels.
                let luma =
                    (299 * u32::from(red) + 587 * u32::from(green) + 114 * u32::from(blue) + 500) / 1000;
                ((luma * u32::from(alpha) + 127) / 255) as u8
            };
            let values = image.pixels().map(level).collect();
            (values, coloured)
        }
    }
}

/// Whether a JPEG stream goes on to the mark of its end: decoders fill what is missing with grey.
fn is_whole_jpeg(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        // To the next marker: entropy-coded data has FF only before 00, and restart marks.
        while bytes.get(at).is_some_and(|byte| *byte != 0xFF) {
            at += 1;
        }
        let Some(&marker) = bytes.get(at + 1) else { return false };
        at += match marker {
            0xD9 => return true,
            0xFF => 1,
            0x00 | 0x01 | 0xD0..=0xD8 => 2,
            _ => match bytes.get(at + 2..at + 4) {
                Some(&[high, low]) => 2 + usize::from(u16::from_be_bytes([high, low])),
                _ => return false,
            },
        };
    }
}

fn is_lossless_webp(bytes: &[u8]) -> bool {
    bytes.get(12..16) == Some(b"VP8L")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jpeg() -> Vec<u8> {
        let image = image::GrayImage::from_fn(40, 30, |x, y| image::Luma([(x * 5 + y * 3) as u8]));
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn a_jpeg_cut_anywhere_is_refused() {
        let whole = jpeg();
        assert!(decode(&whole, None).is_ok());
        for length in 0..whole.len() {
            assert!(decode(&whole[..length], None).is_err(), "cut at {length} of {}", whole.len());
        }
    }

    fn png16(values: impl Fn(u32, u32) -> u16) -> Vec<u8> {
        let image = image::ImageBuffer::<image::Luma<u16>, Vec<u16>>::from_fn(8, 8, |x, y| {
            image::Luma([values(x, y)])
        });
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn stored_values_need_a_line_and_become_hu_by_it() {
        for first in [0, 1024, 32_768 - 1024] {
            let bytes = png16(|x, y| first + (x * 400 + y) as u16);
            let refused = decode(&bytes, None).unwrap_err();
            assert_eq!(refused.code(), "stored-values");
            let line = HuLine { slope: 1.0, intercept: -f64::from(first) - 1000.0 };
            let Content::Hu(hu) = decode(&bytes, Some(line)).unwrap().content else { panic!("no HU") };
            assert_eq!((hu.values[0], hu.values[8 * 3 + 2]), (-1000.0, -1000.0 + 803.0));
        }
        assert!(decode(&png16(|x, y| (x * 9000 + y * 100) as u16), None).is_ok());
    }

    #[test]
    fn signed_tiff_is_read() {
        let mut bytes = Cursor::new(Vec::new());
        let values: Vec<i16> = (0..64).map(|i| i * 30 - 1000).collect();
        let mut encoder = tiff::encoder::TiffEncoder::new(&mut bytes).unwrap();
        encoder.write_image::<tiff::encoder::colortype::GrayI16>(8, 8, &values).unwrap();
        let bytes = bytes.into_inner();
        assert_eq!(decode(&bytes, None).unwrap_err().code(), "stored-values");
        let line = HuLine { slope: 1.0, intercept: 0.0 };
        let Content::Hu(hu) = decode(&bytes, Some(line)).unwrap().content else { panic!("no HU") };
        assert_eq!((hu.values[0], hu.values[63]), (-1000.0, 890.0));
        for length in [bytes.len() / 2, bytes.len() - 1] {
            assert!(decode(&bytes[..length], Some(line)).is_err(), "{length}");
        }
    }

    #[test]
    fn exif_turns_a_jpeg() {
        let whole = jpeg();
        // An APP1 segment with one entry: Orientation, 6, a quarter turn clockwise.
        let tiff = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        let length = (tiff.len() as u16 + 2).to_be_bytes();
        let turned = [&whole[..2], b"\xFF\xE1", &length, tiff, &whole[2..]].concat();
        let grey = |bytes: &[u8]| match decode(bytes, None).unwrap().content {
            Content::Grey(grey) => grey,
            Content::Hu(_) => panic!("no grey"),
        };
        let (upright, turned) = (grey(&whole), grey(&turned));
        assert_eq!((turned.rows, turned.cols), (upright.cols, upright.rows));
        let view = View::new(true, false, true);
        assert_eq!(turned.values, *view.turned(&upright.values, (upright.rows, upright.cols)));
    }

    #[test]
    fn a_tiff_is_turned_as_its_tag_says() {
        // What the image library makes of the same turn in EXIF.
        let values: Vec<u8> = (0..6).collect();
        let upright = image::GrayImage::from_raw(3, 2, values.clone()).unwrap();
        for orientation in 0..=9u16 {
            let mut bytes = Cursor::new(Vec::new());
            let mut encoder = tiff::encoder::TiffEncoder::new(&mut bytes).unwrap();
            let mut image = encoder.new_image::<tiff::encoder::colortype::Gray8>(3, 2).unwrap();
            image.encoder().write_tag(tiff::tags::Tag::Orientation, orientation).unwrap();
            image.write_data(&values).unwrap();
            let Content::Grey(grey) = decode(&bytes.into_inner(), None).unwrap().content else {
                panic!("no grey")
            };
            let mut want = DynamicImage::ImageLuma8(upright.clone());
            let turn = image::metadata::Orientation::from_exif(orientation as u8);
            turn.into_iter().for_each(|turn| want.apply_orientation(turn));
            assert_eq!(
                (grey.cols, grey.rows),
                (want.width() as usize, want.height() as usize),
                "{orientation}"
            );
            assert_eq!(grey.values, want.to_luma8().into_raw(), "{orientation}");
        }
    }

    #[test]
    fn bmp_and_webp_are_read_whole_or_not_at_all() {
        let image = image::GrayImage::from_fn(16, 16, |x, y| image::Luma([(x * 7 + y * 5) as u8]));
        for format in [ImageFormat::Bmp, ImageFormat::WebP] {
            let mut bytes = Cursor::new(Vec::new());
            DynamicImage::ImageLuma8(image.clone()).to_rgb8().write_to(&mut bytes, format).unwrap();
            let bytes = bytes.into_inner();
            let Content::Grey(grey) = decode(&bytes, None).unwrap().content else { panic!("no grey") };
            assert_eq!(&grey.values, image.as_raw());
            assert!(decode(&bytes[..bytes.len() / 2], None).is_err(), "{format:?}");
        }
    }
}
