//! PNG and JPEG files to grey images.
//!
//! Colour is turned into luma (most "colour" CT images have three equal
//! channels; the others get a warning), transparency is laid over black, and
//! 16 bits become the upper 8.

use std::io::Cursor;

use image::{DynamicImage, ImageFormat, ImageReader, Limits};

use crate::fault::Fault;
use crate::slice::render::Image;

/// Longest side that is accepted.
const MAX_SIDE: u32 = 16_384;
/// Most memory that a decoder may ask for.
const MAX_DECODER_BYTES: u64 = 512 << 20;

/// A decoded image.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Grey levels.
    pub grey: Image<u8>,
    /// "PNG" or "JPEG".
    pub format: &'static str,
    /// Whether the format is lossy.
    pub lossy: bool,
    /// What is odd about the image, in words.
    pub warnings: Vec<String>,
}

/// Whether a file name has an extension of a format that is read.
pub fn is_named_as_image(relative: &str) -> bool {
    let extension = relative.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    matches!(extension.as_deref(), Some("png" | "jpg" | "jpeg"))
}

/// Decodes the bytes of a file. The format is taken from the bytes, not the name.
///
/// # Errors
/// [`Fault::Image`] when they are no PNG or JPEG, or broken.
pub fn decode(bytes: &[u8]) -> Result<Picture, Fault> {
    let wrong = |why: &str| Fault::Image { why: why.into() };
    let mut reader = ImageReader::new(Cursor::new(bytes));
    let guessed = image::guess_format(bytes).map_err(|_| wrong("it is neither PNG nor JPEG"))?;
    let (format, lossy) = match guessed {
        ImageFormat::Png => ("PNG", false),
        ImageFormat::Jpeg => ("JPEG", true),
        _ => return Err(wrong("it is neither PNG nor JPEG")),
    };
    reader.set_format(guessed);
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    reader.limits(limits);
    let decoded = reader.decode().map_err(|_| wrong("the decoder refused it"))?;
    let (cols, rows) = (decoded.width() as usize, decoded.height() as usize);
    let mut warnings = Vec::new();
    if lossy {
        warnings.push("lossy compression".to_string());
    }
    if decoded.color().bits_per_pixel() / u16::from(decoded.color().channel_count()) > 8 {
        warnings.push("16 bits reduced to 8".into());
    }
    let (values, coloured) = grey_levels(&decoded);
    if coloured {
        warnings.push("colour image turned grey".into());
    }
    Ok(Picture { grey: Image { rows, cols, values }, format, lossy, warnings })
}

/// Differences between channels that JPEG makes in grey images stay below this.
const COLOUR_TOLERANCE: u8 = 16;

fn grey_levels(decoded: &DynamicImage) -> (Vec<u8>, bool) {
    match decoded {
        DynamicImage::ImageLuma8(image) => (image.as_raw().clone(), false),
        DynamicImage::ImageLuma16(image) => {
            (image.as_raw().iter().map(|level| (level >> 8) as u8).collect(), false)
        }
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
