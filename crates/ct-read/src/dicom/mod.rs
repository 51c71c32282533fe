//! DICOM files to headers and CT numbers: the only place that names dicom-rs and its codecs.
//!
//! The walk over the elements is our own ([`elements`] says why); dicom-rs gives
//! the dictionary, the table of transfer syntaxes, and the codecs of lossy JPEG and JPEG 2000.

mod bits;
mod codestream;
mod elements;
pub mod frames;
pub mod header;
mod jpeg_lossless;
mod jpegls;
pub mod pixels;
pub mod rescale;
mod rle;
mod syntax;
mod tags;

use std::borrow::Cow;
use std::io::Read;

use dicom::encoding::Codec;
use dicom::encoding::transfer_syntax::TransferSyntaxIndex;
use dicom::transfer_syntax::TransferSyntaxRegistry;

use self::elements::{DataSet, Encoding};
pub use self::frames::{Frame, Reconstruction};
pub use self::header::{Header, Scanned, Scanner};
pub use self::pixels::{HuTable, StoredPixels, stored_pixels, stored_words};
pub use self::rescale::Rescale;
use crate::fault::Fault;
use crate::source::listing::{self, ListedFile};

/// Bytes read first: nearly every CT header is shorter.
const PREFIX_LEN: u64 = 16 << 10;
/// A header that does not end within what was read is read on, this many times as far...
const PREFIX_GROWTH: u64 = 16;
/// ...up to this, whatever its elements announce: thousands of frames describe themselves in less.
const MAX_HEADER_LEN: u64 = 64 << 20;
/// A deflated file may always inflate to this much...
const MIN_INFLATE_LIMIT: u64 = 64 << 20;
/// ...and to this many times its own size.
const MAX_INFLATE_RATIO: u64 = 16;

/// Reads the header of a file, and no more of the file than that needs.
///
/// # Errors
/// A [`Fault`] when the file is unreadable, no DICOM file, or broken.
pub fn scan_file(file: &ListedFile) -> Result<Scanned, Fault> {
    scan_object(file).map_err(|broken| broken.fault)
}

/// A file that cannot be used, and the series that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokenObject {
    /// What is wrong with it.
    pub fault: Fault,
    /// SeriesInstanceUID, where it could be read.
    pub series_uid: Option<String>,
}

impl From<Fault> for BrokenObject {
    fn from(fault: Fault) -> Self {
        Self { fault, series_uid: None }
    }
}

/// As [`scan_file`]; a broken file is reported with its series.
///
/// # Errors
/// As [`scan_file`].
pub fn scan_object(file: &ListedFile) -> Result<Scanned, BrokenObject> {
    let listing::Opened { mut reader, n_bytes } = file.open()?;
    let unreadable = |err: std::io::Error| Fault::Unreadable { why: err.kind().to_string() };
    let mut bytes = Vec::with_capacity(PREFIX_LEN.min(n_bytes) as usize);
    let mut limit = PREFIX_LEN;
    loop {
        reader.by_ref().take(limit - bytes.len() as u64).read_to_end(&mut bytes).map_err(unreadable)?;
        let is_whole = (bytes.len() as u64) < limit;
        match scan_bytes(&bytes, n_bytes) {
            // More of the file would not change these.
            Err(broken) if matches!(broken.fault, Fault::NotDicom { .. } | Fault::TransferSyntax { .. }) => {
                return Err(broken);
            }
            // The walk may only have run into the end of what was read. A deflated header cannot be
            // read apart from its pixels, and what they inflate to has a limit of its own.
            Err(_) if !is_whole && limit < listing::MAX_FILE_LEN && is_deflated(&bytes) => {
                limit = listing::MAX_FILE_LEN;
            }
            Err(_) if !is_whole && limit < MAX_HEADER_LEN => limit *= PREFIX_GROWTH,
            Err(_) if !is_whole => return Err(Fault::TooLarge { limit }.into()),
            scanned => return scanned,
        }
    }
}

fn is_deflated(bytes: &[u8]) -> bool {
    let uid = meta_start(bytes).and_then(|start| DataSet::walk_meta(bytes, start).ok());
    let uid = uid.and_then(|(meta, _)| meta.text(tags::TRANSFER_SYNTAX_UID));
    let syntax = uid.and_then(|uid| syntax::find(&uid));
    syntax.is_some_and(|syntax| syntax.compression == syntax::Compression::Deflate)
}

/// Where the meta group begins, in a file that has one.
fn meta_start(bytes: &[u8]) -> Option<usize> {
    match bytes {
        _ if bytes.get(128..132) == Some(b"DICM") => Some(132),
        [2, 0, ..] => Some(0),
        _ => None,
    }
}

/// The bytes in which a header's pixel offsets count: the file's own, or what a
/// deflated file inflates to.
///
/// # Errors
/// As [`scan_file`].
pub fn inflate(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Fault> {
    Ok(open(bytes)?.bytes)
}

/// What people call a file's transfer syntax.
pub fn syntax_name(header: &Header) -> String {
    syntax::short_name(&header.transfer_syntax)
}

/// Reads the header in `bytes`, which are the start of a file of `file_len` bytes.
///
/// # Errors
/// As [`scan_file`].
pub fn scan(bytes: &[u8], file_len: u64) -> Result<Scanned, Fault> {
    scan_bytes(bytes, file_len).map_err(|broken| broken.fault)
}

fn scan_bytes(bytes: &[u8], file_len: u64) -> Result<Scanned, BrokenObject> {
    let opened = open(bytes)?;
    let inflated = matches!(opened.bytes, Cow::Owned(_));
    let (set, fault) = DataSet::walk_to_fault(&opened.bytes, opened.body, opened.encoding);
    let series_uid = set.text(tags::SERIES_INSTANCE_UID);
    let broken = |fault| BrokenObject { fault, series_uid: series_uid.clone() };
    if let Some(fault) = fault {
        // Damage after the SOP class of an object that is no CT image has no effect.
        let reason = header::other_kind(&set, &opened.meta);
        return reason.map(|reason| Scanned::Other { reason }).ok_or(broken(fault));
    }
    let mut scanned = header::read(&set, &opened.meta, &opened.transfer_syntax).map_err(broken)?;
    if let Scanned::Ct(header) = &mut scanned {
        if opened.is_misnamed {
            header.warnings.push("the data set is in another transfer syntax than the file names".into());
        }
        let available = if inflated { opened.bytes.len() as u64 } else { file_len };
        let pixels_end = header.pixels.start as u64 + header.pixels.length.map_or(0, u64::from);
        if pixels_end > available {
            return Err(broken(Fault::Truncated));
        }
    }
    Ok(scanned)
}

struct Opened<'a> {
    bytes: Cow<'a, [u8]>,
    meta: DataSet<'a>,
    transfer_syntax: String,
    body: usize,
    encoding: Encoding,
    /// Whether the data set is written in another way than the file says.
    is_misnamed: bool,
}

/// Finds the data set: behind preamble and meta group, or, in files written
/// without them, at the start.
fn open(bytes: &[u8]) -> Result<Opened<'_>, Fault> {
    let not_dicom = |why: &str| Err(Fault::NotDicom { why: why.into() });
    match bytes {
        [] => return not_dicom("it is empty"),
        [0xFF, 0xD8, 0xFF, ..] => return not_dicom("it is a JPEG image"),
        [0x89, b'P', b'N', b'G', ..] => return not_dicom("it is a PNG image"),
        [b'P', b'K', 3, 4, ..] => return not_dicom("it is a zip archive"),
        _ => {}
    }
    let Some(meta_start) = meta_start(bytes) else {
        let [8, 0, _, 0, rest @ ..] = bytes else {
            return not_dicom("it has neither the DICM mark nor a data set at its start");
        };
        let is_explicit = [b"UL", b"CS", b"UI", b"DA"].into_iter().any(|vr| rest.starts_with(vr));
        let (encoding, uid) = if is_explicit {
            (Encoding::EXPLICIT_LITTLE, "1.2.840.10008.1.2.1")
        } else {
            (Encoding::IMPLICIT_LITTLE, "1.2.840.10008.1.2")
        };
        let (meta, _) = DataSet::walk_meta(&[], 0)?;
        return Ok(Opened {
            bytes: bytes.into(),
            meta,
            transfer_syntax: uid.into(),
            body: 0,
            encoding,
            is_misnamed: false,
        });
    };
    let (meta, body) = DataSet::walk_meta(bytes, meta_start)?;
    let Some(transfer_syntax) = meta.text(tags::TRANSFER_SYNTAX_UID) else {
        return Err(Fault::Attribute { name: "TransferSyntaxUID", why: "is missing".into() });
    };
    let unsupported = || Fault::TransferSyntax { syntax: syntax::name(&transfer_syntax) };
    let syntax = syntax::find(&transfer_syntax).ok_or_else(unsupported)?;
    if syntax.compression != syntax::Compression::Deflate {
        let seen = bytes.get(body..).and_then(Encoding::seen).filter(|seen| *seen != syntax.encoding);
        let is_plain = syntax.compression == syntax::Compression::None;
        let transfer_syntax = match seen.filter(|_| is_plain) {
            Some(seen) => syntax::plain(seen).into(),
            None => transfer_syntax,
        };
        let encoding = seen.unwrap_or(syntax.encoding);
        let is_misnamed = seen.is_some();
        return Ok(Opened { bytes: bytes.into(), meta, transfer_syntax, body, encoding, is_misnamed });
    }
    let limit = MIN_INFLATE_LIMIT.max(MAX_INFLATE_RATIO * bytes.len() as u64);
    let inflated = inflate_body(&transfer_syntax, &bytes[body..], limit)?;
    Ok(Opened {
        bytes: inflated.into(),
        meta,
        transfer_syntax,
        body: 0,
        encoding: syntax.encoding,
        is_misnamed: false,
    })
}

fn inflate_body(transfer_syntax: &str, deflated: &[u8], limit: u64) -> Result<Vec<u8>, Fault> {
    let syntax = TransferSyntaxRegistry.get(transfer_syntax);
    let Some(Codec::Dataset(Some(adapter))) = syntax.map(|syntax| syntax.codec()) else {
        return Err(Fault::TransferSyntax { syntax: syntax::name(transfer_syntax) });
    };
    let mut inflated = Vec::new();
    let mut reader = adapter.adapt_reader(Box::new(deflated)).take(limit + 1);
    reader
        .read_to_end(&mut inflated)
        .map_err(|_| Fault::Malformed { why: "its deflated data set does not inflate".into() })?;
    if inflated.len() as u64 > limit {
        return Err(Fault::TooLarge { limit });
    }
    Ok(inflated)
}
