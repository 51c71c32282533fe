//! Transfer syntaxes (PS3.5 section 10): how elements and pixels are written.

use dicom::encoding::transfer_syntax::TransferSyntaxIndex;
use dicom::transfer_syntax::TransferSyntaxRegistry;

use super::elements::Encoding;

/// What a transfer syntax UID stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Pixels as plain numbers.
    None,
    /// Plain pixels in a deflated data set.
    Deflate,
    /// RLE Lossless (PS3.5 annex G).
    Rle,
    /// JPEG baseline, extended and lossless (ISO 10918).
    Jpeg,
    /// JPEG-LS (ISO 14495).
    JpegLs,
    /// JPEG 2000 and HTJ2K (ISO 15444).
    Jpeg2000,
}

/// A transfer syntax that this program knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syntax {
    /// How elements are written.
    pub encoding: Encoding,
    /// How pixels are written.
    pub compression: Compression,
    /// Whether the syntax is meant for lossy pixels.
    pub lossy: bool,
}

/// Looks up a UID; `None` for one that cannot be read at all.
pub fn find(uid: &str) -> Option<Syntax> {
    let explicit = |compression, lossy| Syntax { encoding: Encoding::EXPLICIT_LITTLE, compression, lossy };
    Some(match uid.strip_prefix("1.2.840.10008.1.2")? {
        "" => Syntax { encoding: Encoding::IMPLICIT_LITTLE, ..explicit(Compression::None, false) },
        ".1" => explicit(Compression::None, false),
        ".2" => Syntax { encoding: Encoding::EXPLICIT_BIG, ..explicit(Compression::None, false) },
        ".1.99" => explicit(Compression::Deflate, false),
        ".5" => explicit(Compression::Rle, false),
        ".4.50" | ".4.51" => explicit(Compression::Jpeg, true),
        ".4.57" | ".4.70" => explicit(Compression::Jpeg, false),
        ".4.80" => explicit(Compression::JpegLs, false),
        ".4.81" => explicit(Compression::JpegLs, true),
        ".4.90" | ".4.201" | ".4.202" => explicit(Compression::Jpeg2000, false),
        ".4.91" | ".4.203" => explicit(Compression::Jpeg2000, true),
        _ => return None,
    })
}

/// The UID of uncompressed pixels in an encoding.
pub fn plain(encoding: Encoding) -> &'static str {
    match (encoding.explicit, encoding.big_endian) {
        (false, _) => "1.2.840.10008.1.2",
        (true, false) => "1.2.840.10008.1.2.1",
        (true, true) => "1.2.840.10008.1.2.2",
    }
}

/// Name of a transfer syntax for messages. An unknown value may be anything, the number of
/// somebody too: it is shown where it has the form of a syntax of the standard.
pub fn name(uid: &str) -> String {
    let is_short =
        |part: &str| (1..=3).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
    let below = uid.strip_prefix("1.2.840.10008.1.2.");
    match (TransferSyntaxRegistry.get(uid), below) {
        (Some(syntax), _) => format!("{} ({uid})", syntax.name()),
        (None, Some(below)) if below.split('.').count() <= 2 && below.split('.').all(is_short) => uid.into(),
        _ => "that it names".into(),
    }
}

/// What people call a transfer syntax.
pub fn short_name(uid: &str) -> String {
    let known = match uid.strip_prefix("1.2.840.10008.1.2") {
        Some("" | ".1") => "uncompressed",
        Some(".2") => "uncompressed, big endian",
        Some(".1.99") => "deflated",
        Some(".5") => "RLE",
        Some(".4.50" | ".4.51") => "JPEG",
        Some(".4.57" | ".4.70") => "JPEG lossless",
        Some(".4.80") => "JPEG-LS",
        Some(".4.81") => "JPEG-LS near-lossless",
        Some(".4.90") => "JPEG 2000 lossless",
        Some(".4.91") => "JPEG 2000",
        Some(".4.201" | ".4.202") => "HTJ2K lossless",
        Some(".4.203") => "HTJ2K",
        _ => return name(uid),
    };
    known.into()
}
