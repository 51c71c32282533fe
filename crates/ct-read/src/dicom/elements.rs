//! A bounded walk over the elements of a DICOM data set (PS3.5 section 7).
//!
//! General parsers recurse without limit, guess a missing value representation
//! and open a file cut in its header as if it were whole. This walk keeps
//! slices of the file's own bytes, follows nesting to a fixed depth, and ends at
//! the pixel data, so that a hostile file costs no more than its own length.

use crate::fault::Fault;

/// Group and element number, `0xGGGGEEEE`.
pub type TagNumber = u32;

/// Sequences inside sequences; real CT headers stay below 10.
const MAX_DEPTH: usize = 64;
/// Elements of one data set; the largest enhanced multi-frame headers have thousands.
const MAX_ELEMENTS: usize = 100_000;

const PIXEL_DATA: TagNumber = 0x7FE0_0010;
const ITEM: TagNumber = 0xFFFE_E000;
const ITEM_END: TagNumber = 0xFFFE_E00D;
const SEQUENCE_END: TagNumber = 0xFFFE_E0DD;
const UNDEFINED: u32 = u32::MAX;

/// How elements are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// Whether each element names its value representation.
    pub explicit: bool,
    /// Whether numbers start with their high byte.
    pub big_endian: bool,
}

impl Encoding {
    /// Explicit VR Little Endian.
    pub const EXPLICIT_LITTLE: Self = Self { explicit: true, big_endian: false };
    /// Implicit VR Little Endian.
    pub const IMPLICIT_LITTLE: Self = Self { explicit: false, big_endian: false };
    /// Explicit VR Big Endian.
    pub const EXPLICIT_BIG: Self = Self { explicit: true, big_endian: true };

    fn u16(self, bytes: [u8; 2]) -> u16 {
        if self.big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
    }

    fn u32(self, bytes: [u8; 4]) -> u32 {
        if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }
}

/// One element: its own bytes, not interpreted.
#[derive(Clone, Copy, Debug)]
pub struct Element<'a> {
    /// Group and element number.
    pub tag: TagNumber,
    /// Value representation as written; absent in implicit encodings.
    vr: Option<[u8; 2]>,
    encoding: Encoding,
    value: &'a [u8],
}

/// Where the pixel data lies: offsets into the walked bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelElement {
    /// First byte after the element's header.
    pub start: usize,
    /// Length of native pixels; `None` for encapsulated ones.
    pub length: Option<u32>,
}

/// The elements of one data set or sequence item.
#[derive(Clone, Debug)]
pub struct DataSet<'a> {
    elements: Vec<Element<'a>>,
    /// The pixel data, if the walk reached it.
    pub pixels: Option<PixelElement>,
}

impl<'a> DataSet<'a> {
    /// Walks `bytes` from `start` to the pixel data, or to the end where there is none.
    ///
    /// # Errors
    /// [`Fault::Truncated`] when an element reaches beyond the bytes,
    /// [`Fault::Malformed`] when they are no data set, [`Fault::TooDeep`].
    pub fn walk(bytes: &'a [u8], start: usize, encoding: Encoding) -> Result<Self, Fault> {
        match Self::walk_to_fault(bytes, start, encoding) {
            (set, None) => Ok(set),
            (_, Some(fault)) => Err(fault),
        }
    }

    /// As [`walk`](Self::walk), with what was read up to the fault.
    pub fn walk_to_fault(bytes: &'a [u8], start: usize, encoding: Encoding) -> (Self, Option<Fault>) {
        let mut set = Self { elements: Vec::new(), pixels: None };
        let fault = set.extend(bytes, start, encoding).err();
        (set, fault)
    }

    fn extend(&mut self, bytes: &'a [u8], start: usize, encoding: Encoding) -> Result<(), Fault> {
        let mut cursor = Cursor { bytes, at: start, encoding };
        // Trailing zeros after the last element are padding of the storage, not data.
        while cursor.at < bytes.len() && !bytes[cursor.at..].iter().all(|byte| *byte == 0) {
            let head = cursor.element_head()?;
            if head.tag >> 16 == 0xFFFE {
                return Err(Fault::Malformed { why: "an item mark stands outside a sequence".into() });
            }
            if head.tag == PIXEL_DATA {
                let length = (head.length != UNDEFINED).then_some(head.length);
                self.pixels = Some(PixelElement { start: cursor.at, length });
                break;
            }
            let value = cursor.value(&head, 0)?;
            self.elements.push(Element { tag: head.tag, vr: head.vr, encoding, value });
            if self.elements.len() > MAX_ELEMENTS {
                return Err(Fault::Malformed { why: format!("it has more than {MAX_ELEMENTS} elements") });
            }
        }
        Ok(())
    }

    /// Walks the file meta group, which ends where the group number changes.
    /// Returns it with the offset of the data set.
    ///
    /// # Errors
    /// As [`walk`](Self::walk).
    pub fn walk_meta(bytes: &'a [u8], start: usize) -> Result<(Self, usize), Fault> {
        let encoding = Encoding::EXPLICIT_LITTLE;
        let mut cursor = Cursor { bytes, at: start, encoding };
        let mut set = Self { elements: Vec::new(), pixels: None };
        while cursor.at < bytes.len() {
            let before = cursor.at;
            if bytes.get(before..before + 2) != Some(&[2, 0]) {
                break;
            }
            let head = cursor.element_head()?;
            let value = cursor.value(&head, 0)?;
            set.elements.push(Element { tag: head.tag, vr: head.vr, encoding, value });
        }
        Ok((set, cursor.at))
    }

    /// The element of a tag.
    pub fn get(&self, tag: TagNumber) -> Option<&Element<'a>> {
        self.elements.iter().find(|element| element.tag == tag)
    }

    /// Text of a tag without padding; `None` when absent or empty. Characters
    /// outside ASCII are replaced: nothing that is kept needs them.
    pub fn text(&self, tag: TagNumber) -> Option<String> {
        let text = self.get(tag)?.text();
        (!text.is_empty()).then_some(text)
    }

    /// Whole number of a tag; `None` when absent or not a whole number.
    pub fn int(&self, tag: TagNumber) -> Option<i64> {
        let value = *self.get(tag)?.numbers()?.first()?;
        (value.fract() == 0.0 && value.abs() < 9e15).then_some(value as i64)
    }

    /// All numbers of a tag; `None` when absent or not numbers.
    pub fn numbers(&self, tag: TagNumber) -> Option<Vec<f64>> {
        self.get(tag)?.numbers()
    }

    /// The items of a sequence; empty when it is absent.
    ///
    /// # Errors
    /// As [`walk`](Self::walk).
    pub fn items(&self, tag: TagNumber) -> Result<Vec<DataSet<'a>>, Fault> {
        self.get(tag).map_or(Ok(Vec::new()), Element::items)
    }
}

impl<'a> Element<'a> {
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(self.value);
        text.trim_matches(|c: char| c == '\0' || c.is_whitespace()).to_string()
    }

    /// Numbers by the value representation. Where it says nothing (`UN`, or an
    /// implicit encoding), text that reads as numbers is taken as text, else
    /// the bytes are unsigned 16-bit numbers: the only kinds asked for here.
    fn numbers(&self) -> Option<Vec<f64>> {
        let encoding = self.encoding;
        match self.vr.as_ref() {
            Some(b"US" | b"OW") => self.each(|b| f64::from(encoding.u16(b))),
            Some(b"SS") => self.each(|b| f64::from(encoding.u16(b) as i16)),
            Some(b"UL") => self.each(|b| f64::from(encoding.u32(b))),
            Some(b"SL") => self.each(|b| f64::from(encoding.u32(b) as i32)),
            Some(b"FL") => self.each(|b| f64::from(f32::from_bits(encoding.u32(b)))),
            Some(b"FD") => self.each(|b: [u8; 8]| {
                f64::from_bits(if encoding.big_endian {
                    u64::from_be_bytes(b)
                } else {
                    u64::from_le_bytes(b)
                })
            }),
            Some(b"UN") | None if self.is_binary() => self.each(|b| f64::from(encoding.u16(b))),
            _ => {
                let text = self.text();
                let read = |part: &str| part.trim().parse::<f64>().ok().filter(|value| value.is_finite());
                text.split('\\').map(read).collect()
            }
        }
    }

    /// Whether a two-byte value of unknown kind is a binary number: its tag is
    /// one of the image description group (0028) below the rescale elements, or
    /// of a modality table; their kinds are fixed by the standard's dictionary.
    fn is_binary(&self) -> bool {
        const PIXEL_SPACING: TagNumber = 0x0028_0030;
        const NUMBER_OF_FRAMES: TagNumber = 0x0028_0008;
        const LUT_DESCRIPTOR: TagNumber = 0x0028_3002;
        const LUT_DATA: TagNumber = 0x0028_3006;
        let is_description = self.tag >> 16 == 0x0028
            && self.tag < 0x0028_1050
            && self.tag != PIXEL_SPACING
            && self.tag != NUMBER_OF_FRAMES;
        is_description || matches!(self.tag, LUT_DESCRIPTOR | LUT_DATA)
    }

    fn each<const N: usize>(&self, read: impl Fn([u8; N]) -> f64) -> Option<Vec<f64>> {
        let whole = self.value.len().is_multiple_of(N) && !self.value.is_empty();
        whole.then(|| {
            let chunks = self.value.chunks_exact(N);
            chunks.filter_map(|chunk| chunk.try_into().ok().map(&read)).collect()
        })
    }

    /// Items of a sequence, each walked as a data set of its own.
    fn items(&self) -> Result<Vec<DataSet<'a>>, Fault> {
        // A sequence written as UN holds implicit little endian (PS3.5 6.2.2).
        let encoding = if self.vr == Some(*b"UN") { Encoding::IMPLICIT_LITTLE } else { self.encoding };
        let mut cursor = Cursor { bytes: self.value, at: 0, encoding };
        let mut items = Vec::new();
        while cursor.at < self.value.len() {
            let head = cursor.element_head()?;
            match head.tag {
                SEQUENCE_END => break,
                ITEM => {
                    let start = cursor.at;
                    let end = cursor.skip_item(&head, 1)?;
                    items.push(DataSet::walk(&self.value[..end], start, encoding)?);
                }
                _ => return Err(Fault::Malformed { why: "a sequence has something else than items".into() }),
            }
        }
        Ok(items)
    }
}

/// The pieces of encapsulated pixel data (PS3.5 A.4): the offset table and the fragments.
#[derive(Clone, Debug, Default)]
pub struct Fragments<'a> {
    /// Offset of each frame's first fragment; may be empty.
    pub offsets: Vec<u32>,
    /// The fragments in order.
    pub parts: Vec<&'a [u8]>,
}

impl<'a> Fragments<'a> {
    /// Reads the items from `start` to the closing delimiter.
    ///
    /// # Errors
    /// [`Fault::Truncated`] when a fragment or the delimiter is missing.
    pub fn read(bytes: &'a [u8], start: usize) -> Result<Self, Fault> {
        let mut cursor = Cursor { bytes, at: start, encoding: Encoding::EXPLICIT_LITTLE };
        let mut parts = Vec::new();
        loop {
            let head = cursor.element_head()?;
            match head.tag {
                ITEM if head.length != UNDEFINED => parts.push(cursor.take(head.length as usize)?),
                SEQUENCE_END => break,
                _ => return Err(Fault::Pixels { why: "a compressed fragment has no item header".into() }),
            }
        }
        if parts.is_empty() {
            return Err(Fault::Pixels { why: "there is no compressed fragment".into() });
        }
        let table = parts.remove(0);
        let entry = |chunk: &[u8]| chunk.iter().rev().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
        Ok(Self { offsets: table.chunks_exact(4).map(entry).collect(), parts })
    }
}

struct Head {
    tag: TagNumber,
    vr: Option<[u8; 2]>,
    length: u32,
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    encoding: Encoding,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n_bytes: usize) -> Result<&'a [u8], Fault> {
        let end = self.at.checked_add(n_bytes).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(Fault::Truncated)?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        self.take(N)?.try_into().map_err(|_| Fault::Truncated)
    }

    fn element_head(&mut self) -> Result<Head, Fault> {
        let group = self.encoding.u16(self.array()?);
        let element = self.encoding.u16(self.array()?);
        let tag = TagNumber::from(group) << 16 | TagNumber::from(element);
        // Item marks have no value representation in any encoding.
        if group == 0xFFFE || !self.encoding.explicit {
            return Ok(Head { tag, vr: None, length: self.encoding.u32(self.array()?) });
        }
        let vr: [u8; 2] = self.array()?;
        if !vr.iter().all(u8::is_ascii_uppercase) {
            return Err(Fault::Malformed { why: "an element has no value representation".into() });
        }
        let long = matches!(
            &vr,
            b"OB"
                | b"OD"
                | b"OF"
                | b"OL"
                | b"OV"
                | b"OW"
                | b"SQ"
                | b"SV"
                | b"UC"
                | b"UN"
                | b"UR"
                | b"UT"
                | b"UV"
        );
        let length = if long {
            self.take(2)?;
            self.encoding.u32(self.array()?)
        } else {
            u32::from(self.encoding.u16(self.array()?))
        };
        Ok(Head { tag, vr: Some(vr), length })
    }

    fn value(&mut self, head: &Head, depth: usize) -> Result<&'a [u8], Fault> {
        if head.length != UNDEFINED {
            return self.take(head.length as usize);
        }
        let start = self.at;
        let outer = self.encoding;
        if head.vr == Some(*b"UN") {
            self.encoding = Encoding::IMPLICIT_LITTLE;
        }
        let end = self.skip_sequence(depth + 1);
        self.encoding = outer;
        Ok(&self.bytes[start..end?])
    }

    /// Moves behind a sequence of undefined length; returns where its items end.
    fn skip_sequence(&mut self, depth: usize) -> Result<usize, Fault> {
        if depth > MAX_DEPTH {
            return Err(Fault::TooDeep { limit: MAX_DEPTH });
        }
        loop {
            let before = self.at;
            let head = self.element_head()?;
            match head.tag {
                SEQUENCE_END => return Ok(before),
                ITEM => {
                    self.skip_item(&head, depth)?;
                }
                _ => return Err(Fault::Malformed { why: "a sequence has something else than items".into() }),
            }
        }
    }

    /// Moves behind an item; returns where its elements end.
    fn skip_item(&mut self, head: &Head, depth: usize) -> Result<usize, Fault> {
        if head.length != UNDEFINED {
            self.take(head.length as usize)?;
            return Ok(self.at);
        }
        loop {
            let before = self.at;
            let head = self.element_head()?;
            if head.tag == ITEM_END {
                return Ok(before);
            }
            self.value(&head, depth)?;
        }
    }
}
