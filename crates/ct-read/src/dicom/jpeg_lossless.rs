//! JPEG lossless in Huffman code (ITU-T T.81 | ISO/IEC 10918-1, annex H), one component.
//!
//! A decoder of our own: the one that dicom-rs offers takes three times as long, and gives wrong
//! samples without a word where there are restarts, across which it predicts, or a point transform.
//! `ra`, `rb` and `rc` are the neighbours to the left, above, and above to the left.

use pulp::{Arch, NullaryFnOnce};

use super::bits::Bits;
use crate::fault::Fault;

/// Decodes a stream to `rows * cols` words. `rows` and `cols` are those of the
/// header, which the stream's own have been held against.
///
/// # Errors
/// [`Fault::Pixels`] when the stream breaks a rule, ends too early or holds more than its pixels.
pub fn decode(stream: &[u8], rows: usize, cols: usize) -> Result<Vec<u16>, Fault> {
    let scan = Scan::read(stream)?;
    // No pixel takes less than a bit: no more memory than the stream can fill.
    if rows * cols > 8 * scan.data.len() {
        return Err(wrong("ends too early"));
    }
    let n_interval_rows = match scan.restart_interval {
        0 => rows,
        // Whole lines only (H.1.1).
        n_pixels if n_pixels.is_multiple_of(cols) => n_pixels / cols,
        _ => return Err(wrong("restarts within a line")),
    };
    let mut words = vec![0; rows * cols];
    let mut data = scan.data;
    let n_intervals = rows.div_ceil(n_interval_rows);
    for (i, interval) in words.chunks_mut(n_interval_rows * cols).enumerate() {
        let (bits, n_bytes) = Bits::of_jpeg(data);
        decode_interval(&bits, &scan, interval, cols)?;
        data = &data[n_bytes..];
        let restart = 0xD0 + (i % 8) as u8;
        let marker = if i + 1 < n_intervals { restart } else { 0xD9 };
        // Any number of FF may stand before a marker.
        let n_fill = data.iter().take_while(|byte| **byte == 0xFF).count();
        if n_fill == 0 || data.get(n_fill) != Some(&marker) {
            return Err(wrong("has another marker than the one that is due"));
        }
        data = &data[n_fill + 1..];
    }
    if scan.point_transform > 0 {
        words.iter_mut().for_each(|word| *word <<= scan.point_transform);
    }
    Ok(words)
}

fn wrong(why: &str) -> Fault {
    Fault::Pixels { why: format!("its JPEG lossless stream {why}") }
}

/// Parameters of the one scan.
struct Scan<'a> {
    precision: u32,
    /// Which neighbours predict a sample, 1 to 7 (table H.1).
    selection: u8,
    /// Low bits that were left out.
    point_transform: u32,
    /// Pixels between restarts; 0 for none.
    restart_interval: usize,
    table: HuffmanTable,
    /// The coded data, and what follows it.
    data: &'a [u8],
}

impl<'a> Scan<'a> {
    fn read(stream: &'a [u8]) -> Result<Self, Fault> {
        let short = || wrong("ends in its header");
        let (mut at, mut precision, mut restart_interval) = (2, None, 0);
        let mut tables: [Option<HuffmanTable>; 4] = [const { None }; 4];
        loop {
            while *stream.get(at).ok_or_else(short)? == 0xFF {
                at += 1;
            }
            let marker = stream[at];
            let length = stream.get(at + 1..at + 3).ok_or_else(short)?;
            let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
            // The length counts itself.
            let segment = stream.get(at + 3..at + 1 + length).ok_or_else(short)?;
            at += 1 + length;
            match (marker, segment) {
                (0xC3, [bits @ 2..=16, ..]) => precision = Some(u32::from(*bits)),
                (0xC3, _) => return Err(wrong("has an impossible precision")),
                (0xC4, _) => read_tables(segment, &mut tables)?,
                (0xDD, [high, low]) => restart_interval = usize::from(u16::from_be_bytes([*high, *low])),
                (0xDA, [1, _, table, selection @ 1..=7, 0, point_transform @ 0..=15]) => {
                    let table = tables.get_mut(usize::from(table >> 4)).and_then(Option::take);
                    let precision = precision.ok_or_else(|| wrong("has no frame header"))?;
                    let point_transform = u32::from(*point_transform);
                    if point_transform >= precision {
                        return Err(wrong("shifts all of its bits away"));
                    }
                    return Ok(Self {
                        precision,
                        selection: *selection,
                        point_transform,
                        restart_interval,
                        table: table.ok_or_else(|| wrong("has no Huffman table"))?,
                        data: &stream[at..],
                    });
                }
                (0xDA, _) => return Err(wrong("is not one plain component")),
                _ => {}
            }
        }
    }
}

/// Reads the tables of one segment (B.2.4.2); those for cosine coefficients have no use here.
fn read_tables(mut segment: &[u8], tables: &mut [Option<HuffmanTable>; 4]) -> Result<(), Fault> {
    while let Some((kind, rest)) = segment.split_first() {
        let table = rest.split_first_chunk::<16>().and_then(|(counts, rest)| {
            let n_symbols = counts.iter().map(|count| usize::from(*count)).sum();
            Some((counts, rest.split_at_checked(n_symbols)?))
        });
        let (counts, (symbols, rest)) = table.ok_or_else(|| wrong("has a Huffman table that is cut"))?;
        if let Some(table) = tables.get_mut(usize::from(*kind)) {
            *table = Some(HuffmanTable::new(counts, symbols)?);
        }
        segment = rest;
    }
    Ok(())
}

/// Bits of a code that are looked up at once; hardly any code is longer.
const N_LOOKUP_BITS: u32 = 10;

/// Bits of the longest code with its difference.
const MAX_BITS: u32 = 16 + 15;

/// A code for the number of bits that a difference takes.
struct HuffmanTable {
    /// By the next bits: their code, where it is no longer and stands for at most 15 bits.
    short: Vec<Code>,
    /// All codes by length: the first one, how many there are, and the symbol of the first.
    lengths: [(u32, u32, usize); 16],
    symbols: Vec<u8>,
}

/// A code, and the bits of the difference that follow it. Nothing has a length of 0.
#[derive(Clone, Copy, Default)]
struct Code {
    n_code_bits: u8,
    n_difference_bits: u8,
    /// Of both. A loop waits for this one, so that it is not added up there.
    n_bits: u8,
}

impl Code {
    fn new(n_code_bits: u32, symbol: u8) -> Self {
        let n_code_bits = n_code_bits as u8;
        Self { n_code_bits, n_difference_bits: symbol, n_bits: n_code_bits + symbol }
    }
}

impl HuffmanTable {
    /// Gives out codes in the order of their lengths (annex C).
    fn new(counts: &[u8; 16], symbols: &[u8]) -> Result<Self, Fault> {
        if symbols.iter().any(|symbol| *symbol > 16) {
            return Err(wrong("has a Huffman table for something else"));
        }
        let mut short = vec![Code::default(); 1 << N_LOOKUP_BITS];
        let mut lengths = [(0, 0, 0); 16];
        let (mut next_code, mut n_before) = (0u32, 0);
        for (i, count) in counts.iter().enumerate() {
            let (n_bits, count) = (i as u32 + 1, u32::from(*count));
            lengths[i] = (next_code, count, n_before);
            if next_code + count > 1 << n_bits {
                return Err(wrong("has an impossible Huffman table"));
            }
            for (code, symbol) in (next_code..next_code + count).zip(&symbols[n_before..]) {
                if n_bits <= N_LOOKUP_BITS && *symbol < 16 {
                    let n_free = N_LOOKUP_BITS - n_bits;
                    short[(code << n_free) as usize..][..1 << n_free].fill(Code::new(n_bits, *symbol));
                }
            }
            n_before += count as usize;
            next_code = (next_code + count) << 1;
        }
        Ok(Self { short, lengths, symbols: symbols.into() })
    }

    /// The difference at the top of a word (H.1.2.2), and the bits that it took.
    #[inline(always)]
    fn difference(&self, word: u64) -> Option<(u16, u32)> {
        let code = self.short[(word >> (64 - N_LOOKUP_BITS)) as usize];
        if code.n_code_bits == 0 {
            return self.seldom_difference(word);
        }
        Some(extended(word, code))
    }

    #[cold]
    #[inline(never)]
    fn seldom_difference(&self, word: u64) -> Option<(u16, u32)> {
        for (i, (first, count, n_before)) in self.lengths.iter().enumerate() {
            let n_bits = i as u32 + 1;
            let place = ((word >> (64 - n_bits)) as u32).wrapping_sub(*first);
            if place < *count {
                return match self.symbols[n_before + place as usize] {
                    16 => Some((1 << 15, n_bits)),
                    symbol => Some(extended(word, Code::new(n_bits, symbol))),
                };
            }
        }
        None
    }
}

/// The difference that follows a code. Those that start with a zero bit are negative.
#[inline(always)]
fn extended(word: u64, code: Code) -> (u16, u32) {
    let n_bits = u32::from(code.n_difference_bits);
    let word = word << code.n_code_bits;
    let size = (word >> 1 >> (63 - n_bits)) as u32;
    let lowered = if word >> 63 == 0 { (1 << n_bits) - 1 } else { 0u32 };
    (size.wrapping_sub(lowered) as u16, code.n_bits.into())
}

/// Decodes the lines between two restarts.
fn decode_interval(bits: &Bits, scan: &Scan<'_>, interval: &mut [u16], cols: usize) -> Result<(), Fault> {
    let mut at = 0;
    let first = 1 << (scan.precision - scan.point_transform - 1);
    for row in 0..interval.len() / cols {
        let (above, current) = interval.split_at_mut(row * cols);
        let current = &mut current[..cols];
        let differences = Differences { bits, table: &scan.table, at, line: current };
        at = Arch::new().dispatch(differences).ok_or_else(|| wrong("has an impossible code"))?;
        if at > bits.len() {
            return Err(wrong("ends too early"));
        }
        match above.len().checked_sub(cols) {
            None => add_left(current, first),
            Some(from) => add_prediction(current, &above[from..], scan.selection),
        }
    }
    if bits.ends_at(at) { Ok(()) } else { Err(wrong("holds more than its pixels")) }
}

/// The differences of a line, from a place on; gives the place of the next line's. Compiled for
/// several processors, since shifting is most of the work.
struct Differences<'a> {
    bits: &'a Bits,
    table: &'a HuffmanTable,
    at: usize,
    line: &'a mut [u16],
}

impl NullaryFnOnce for Differences<'_> {
    type Output = Option<usize>;

    #[inline(always)]
    fn call(self) -> Option<usize> {
        let Self { bits, table, mut at, line } = self;
        let (pairs, rest) = line.as_chunks_mut();
        for [one, other] in pairs {
            let word = bits.word(at)?;
            let (difference, n_bits) = table.difference(word)?;
            *one = difference;
            at += n_bits as usize;
            // One word holds two differences but for the longest.
            let word = if n_bits <= Bits::N_CERTAIN - MAX_BITS { word << n_bits } else { bits.word(at)? };
            let (difference, n_bits) = table.difference(word)?;
            *other = difference;
            at += n_bits as usize;
        }
        for last in rest {
            let (difference, n_bits) = table.difference(bits.word(at)?)?;
            *last = difference;
            at += n_bits as usize;
        }
        Some(at)
    }
}

/// Adds to each difference the sample before it.
fn add_left(line: &mut [u16], first: u16) {
    line.iter_mut().fold(first, |ra, sample| {
        *sample = sample.wrapping_add(ra);
        *sample
    });
}

/// Adds to each difference of a line what its neighbours predict; to the first the sample above.
fn add_prediction(line: &mut [u16], above: &[u16], selection: u8) {
    match selection {
        1 => add_left(line, above[0]),
        2 => add_predicted(line, above, |_, rb, _| rb),
        3 => add_predicted(line, above, |_, _, rc| rc),
        4 => add_predicted(line, above, |ra, rb, rc| ra + rb - rc),
        5 => add_predicted(line, above, |ra, rb, rc| ra + ((rb - rc) >> 1)),
        6 => add_predicted(line, above, |ra, rb, rc| rb + ((ra - rc) >> 1)),
        _ => add_predicted(line, above, |ra, rb, _| (ra + rb) >> 1),
    }
}

#[inline(always)]
fn add_predicted(line: &mut [u16], above: &[u16], predicted: impl Fn(i32, i32, i32) -> i32) {
    let mut ra = line[0].wrapping_add(above[0]);
    line[0] = ra;
    for (sample, neighbours) in line[1..].iter_mut().zip(above.windows(2)) {
        let (rb, rc) = (neighbours[1], neighbours[0]);
        ra = sample.wrapping_add(predicted(ra.into(), rb.into(), rc.into()) as u16);
        *sample = ra;
    }
}
