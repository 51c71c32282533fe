//! One pass over a slice: its grey levels, and all that is measured on its HU.
//! No whole slice of HU is made unless it is stored: memory traffic is what this costs.

use std::cell::Cell;

use diag_data::units::HuWindow;
use pulp::{Arch, NullaryFnOnce};

use crate::dicom::header::PixelFormat;
use crate::dicom::{HuTable, Rescale, StoredPixels};
use crate::slice::lung::{Grid, GridBuilder};
use crate::slice::render::{self, Image};

/// Lanes of minimum and maximum that run side by side.
const N_LANES: usize = 16;

/// What one pass finds. HU are without padding.
#[derive(Clone, Debug)]
pub struct SliceStatistics {
    /// Grey levels at source size.
    pub grey: Image<u8>,
    /// HU at source size, where asked for.
    pub hu: Option<Image<f32>>,
    /// The slice reduced to a grid.
    pub grid: Grid,
    /// Lowest HU.
    pub hu_min: f32,
    /// Highest HU.
    pub hu_max: f32,
    /// Mean HU.
    pub hu_mean: f32,
}

thread_local! {
    /// Grey levels that were given back: fresh memory for every slice costs more than filling it.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Longest picture that a thread keeps for the next slice.
const MAX_SPARE: usize = 1 << 20;

/// Keeps the room of grey levels that nobody needs any more for the next slice of this thread.
pub fn give_back(grey: Image<u8>) {
    if grey.values.capacity() <= MAX_SPARE {
        SPARE.set(grey.values);
    }
}

/// HU and grey level of every stored word.
#[derive(Clone, Debug)]
pub struct WordTables {
    hu: HuTable,
    grey: Vec<u8>,
    /// How HU follow from words, where they do by a straight line.
    line: Option<Line>,
}

impl WordTables {
    /// Windows the HU of every word.
    pub fn new(format: PixelFormat, rescale: &Rescale, window: HuWindow) -> Self {
        let hu = HuTable::new(format, rescale);
        let grey = hu.map(render::grey_level(window));
        let line = rescale.line().and_then(|rescale| Line::new(format, rescale, &hu));
        let line = line.map(|line| Line { grey: GreyLine::find(line, &hu, &grey, window), ..line });
        Self { hu, grey, line }
    }

    /// Measures a slice of `rows * cols` pixels; returns the number of padding pixels too.
    pub fn measure(
        &self,
        pixels: &StoredPixels<'_>,
        (rows, cols): (usize, usize),
        keep_hu: bool,
    ) -> (SliceStatistics, usize) {
        match self.line {
            Some(line) if !keep_hu => {
                let mut grey = SPARE.take();
                grey.resize(rows * cols, 0);
                Arch::new().dispatch(LineStatistics {
                    grey_table: &self.grey,
                    line,
                    pixels,
                    rows,
                    cols,
                    grey,
                })
            }
            _ => self.measure_by_table(pixels, (rows, cols), keep_hu),
        }
    }

    fn measure_by_table(
        &self,
        pixels: &StoredPixels<'_>,
        (rows, cols): (usize, usize),
        keep_hu: bool,
    ) -> (SliceStatistics, usize) {
        let mut builder = StatisticsBuilder::new((rows, cols), keep_hu);
        let (mut words, mut hu, mut n_padding) = (vec![0; cols], vec![0.0; cols], 0);
        for row in 0..rows {
            pixels.row(row, &mut words);
            n_padding += words.iter().filter(|word| self.hu.is_padding(**word)).count();
            builder.grey.extend(words.iter().map(|word| self.grey[usize::from(*word)]));
            self.hu.fill(&words, &mut hu);
            builder.add_hu(&hu);
        }
        (builder.finish(), n_padding)
    }
}

/// HU of stored values: `slope * value + intercept`.
#[derive(Clone, Copy, Debug)]
struct Line {
    slope: f64,
    intercept: f64,
    /// High bits of a word that are no part of its value.
    unused: u32,
    signed: bool,
    /// Ranges of biased values that are padding, ends included.
    padding: [Option<(i16, i16)>; 2],
    /// How grey levels follow from biased values, where they do by a straight line.
    grey: Option<GreyLine>,
}

impl Line {
    /// `None` where padding does not show in the value itself, or in more than two ranges of it.
    fn new(format: PixelFormat, (slope, intercept): (f64, f64), hu: &HuTable) -> Option<Self> {
        let unused = 16 - u32::from(format.bits_stored);
        let mut line =
            Self { slope, intercept, unused, signed: format.signed, padding: [None; 2], grey: None };
        let mut words: Vec<(i16, bool)> =
            (0..=u16::MAX).map(|word| (line.biased(word), hu.is_padding(word))).collect();
        words.sort_unstable();
        words.dedup();
        let mut ranges = words.chunk_by(|a, b| a.1 == b.1).filter(|range| range[0].1);
        line.padding = [(); 2].map(|()| ranges.next().map(|range| (range[0].0, range[range.len() - 1].0)));
        let is_told_by_value = words.windows(2).all(|pair| pair[0].0 != pair[1].0);
        (is_told_by_value && ranges.next().is_none()).then_some(line)
    }

    /// The value of a word, lowered where it is unsigned.
    fn biased(self, word: u16) -> i16 {
        if self.signed { biased::<true>(word, self.unused) } else { biased::<false>(word, self.unused) }
    }

    /// What is taken from unsigned values, so that all fit into 16 signed bits.
    fn bias(self) -> i32 {
        if self.signed { 0 } else { 1 << 15 }
    }

    fn hu(self, biased: i16) -> f32 {
        (f64::from(i32::from(biased) + self.bias()) * self.slope + self.intercept) as f32
    }

    /// Sum of HU over `n_valid` values of that biased sum, and `n_padded` pixels of padding.
    #[inline(always)]
    fn sum(self, biased_sum: f64, n_valid: f64, n_padded: f64) -> f64 {
        let offset = self.slope * f64::from(self.bias()) + self.intercept;
        self.slope * biased_sum + offset * n_valid + f64::from(HuTable::PADDING_HU) * n_padded
    }
}

/// Grey levels by whole numbers: a straight line between two biased values, and level beyond
/// them. Invariant: it says of every word what the table says.
#[derive(Clone, Copy, Debug)]
struct GreyLine {
    first: i16,
    last: i16,
    /// In steps of `2^-FRACTION_BITS` of a grey level; so is `start`, which belongs to a biased 0.
    slope: i32,
    start: i32,
    padding: u8,
}

impl GreyLine {
    const FRACTION_BITS: u32 = 22;

    /// `None` where the table is no such line: its rounding in f32 need not be one.
    fn find(line: Line, hu: &HuTable, table: &[u8], window: HuWindow) -> Option<Self> {
        let words = (0..=u16::MAX).zip(table).filter(|(word, _)| !hu.is_padding(*word));
        let mut known: Vec<(i16, u8)> = words.map(|(word, grey)| (line.biased(word), *grey)).collect();
        known.sort_unstable();
        let (&(lowest, start), &(highest, end)) = (known.first()?, known.last()?);
        // Where the window ends before the values do, nothing changes beyond.
        let is_end = |grey: u8| matches!(grey, 0 | u8::MAX);
        let first = known.iter().take_while(|(_, grey)| *grey == start && is_end(start)).last();
        let last = known.iter().rev().take_while(|(_, grey)| *grey == end && is_end(end)).last();
        let first = first.map_or(lowest, |(biased, _)| *biased);
        let last = last.map_or(highest, |(biased, _)| *biased).max(first);
        let (lo, hi) = (f64::from(window.lo().0), f64::from(window.hi().0));
        let one = f64::from(1 << Self::FRACTION_BITS);
        let per_hu = 255.0 * one / (hi - lo);
        let slope = (line.slope * per_hu).round() as i64;
        let exact = (line.slope * f64::from(i32::from(first) + line.bias()) + line.intercept - lo) * per_hu;
        // What is halfway between two levels goes up or down.
        [1e-3, -1e-3].into_iter().find_map(|nudge| {
            let start = (exact + (0.5 + nudge) * one).round() as i64 - slope * i64::from(first);
            // Only the low bits of products and sums matter, since every result fits.
            let (slope, start) = (slope as i32, start as i32);
            let padding = render::grey_level(window)(HuTable::PADDING_HU);
            let found = Self { first, last, slope, start, padding };
            known.iter().all(|(biased, grey)| found.level(*biased) == *grey).then_some(found)
        })
    }

    #[inline(always)]
    fn level(self, biased: i16) -> u8 {
        let within = i32::from(biased.max(self.first).min(self.last));
        (within.wrapping_mul(self.slope).wrapping_add(self.start) >> Self::FRACTION_BITS) as u8
    }
}

/// The value of a word whose `unused` high bits are no part of it, as [`Line::biased`].
#[inline(always)]
fn biased<const SIGNED: bool>(word: u16, unused: u32) -> i16 {
    let value = word << unused;
    if SIGNED { (value as i16) >> unused } else { ((value >> unused) ^ (1 << 15)) as i16 }
}

/// Measures stored values as the whole numbers they are, many at once, and turns only
/// the results into HU; compiled for the vector instructions of several processors.
struct LineStatistics<'a> {
    grey_table: &'a [u8],
    line: Line,
    pixels: &'a StoredPixels<'a>,
    rows: usize,
    cols: usize,
    /// Room for the grey levels, all of which are set.
    grey: Vec<u8>,
}

impl NullaryFnOnce for LineStatistics<'_> {
    type Output = (SliceStatistics, usize);

    #[inline(always)]
    fn call(self) -> (SliceStatistics, usize) {
        let Self { grey_table, line, pixels, rows, cols, mut grey } = self;
        let mut grid = Grid::new(rows, cols);
        let block = grid.block();
        let mut words = vec![0; block * cols];
        let mut tally = Tally::new(cols, grid.width());
        let (mut total, mut n_padding) = (0, 0);
        for (i, grey) in grey.chunks_mut(block * cols).enumerate() {
            let words = &mut words[..grey.len()];
            words.chunks_exact_mut(cols).enumerate().for_each(|(y, row)| pixels.row(i * block + y, row));
            if line.grey.is_none() {
                look_up(grey_table, words, grey);
            }
            if line.signed {
                tally.add_block::<true>(words, line, grey);
            } else {
                tally.add_block::<false>(words, line, grey);
            }
            let (sum, n_padded) = tally.close_block(line, words.len() / cols, &mut grid);
            total += sum;
            n_padding += n_padded;
        }
        let n_valid = rows * cols - n_padding;
        let hu_mean = line.sum(total as f64, n_valid as f64, n_padding as f64) / (rows * cols) as f64;
        let ends = [tally.lowest(), tally.highest()].map(|biased| line.hu(biased));
        let padding = (n_padding > 0).then_some(HuTable::PADDING_HU);
        let found = || ends.into_iter().filter(|_| n_valid > 0).chain(padding);
        let statistics = SliceStatistics {
            grey: Image { rows, cols, values: grey },
            hu: None,
            grid,
            hu_min: found().fold(f32::INFINITY, f32::min),
            hu_max: found().fold(f32::NEG_INFINITY, f32::max),
            hu_mean: hu_mean as f32,
        };
        (statistics, n_padding)
    }
}

/// Entries of a table. Never part of vector code: picking words out of vectors and putting
/// entries into them takes three times as long.
#[inline(never)]
fn look_up(table: &[u8], words: &[u16], entries: &mut [u8]) {
    // The table's length is said once, not checked at every word.
    let table = &table[..1 << 16];
    entries.iter_mut().zip(words).for_each(|(entry, word)| *entry = table[usize::from(*word)]);
}

/// Measures of each column; those of a block of rows begin anew with every block.
struct Tally {
    lowest: Vec<i16>,
    highest: Vec<i16>,
    block_sum: Vec<i32>,
    block_n_padded: Vec<i32>,
    /// Sums of the cells of a block.
    cells: Vec<[i32; 2]>,
}

impl Tally {
    fn new(cols: usize, n_cells: usize) -> Self {
        Self {
            lowest: vec![i16::MAX; cols],
            highest: vec![i16::MIN; cols],
            block_sum: vec![0; cols],
            block_n_padded: vec![0; cols],
            cells: vec![[0; 2]; n_cells],
        }
    }

    /// Takes the rows of a block, a tile of columns at a time: in registers, since added up in
    /// place every number would pass through memory once a row. Makes the grey levels that
    /// follow a line.
    #[inline(always)]
    fn add_block<const SIGNED: bool>(&mut self, words: &[u16], line: Line, grey: &mut [u8]) {
        const TILE: usize = 32;
        let cols = self.lowest.len();
        let (lowest, lowest_rest) = self.lowest.as_chunks_mut::<TILE>();
        let (highest, highest_rest) = self.highest.as_chunks_mut::<TILE>();
        let (sums, sums_rest) = self.block_sum.as_chunks_mut::<TILE>();
        let (n_padded, n_padded_rest) = self.block_n_padded.as_chunks_mut::<TILE>();
        for (i, lowest) in lowest.iter_mut().enumerate() {
            let words = words.chunks_exact(cols).map(|row| &row.as_chunks::<TILE>().0[i]);
            let grey = grey.chunks_exact_mut(cols).map(|row| &mut row.as_chunks_mut::<TILE>().0[i]);
            let ends = (lowest, &mut highest[i]);
            add_tile::<TILE, SIGNED>(words.zip(grey), line, ends, (&mut sums[i], &mut n_padded[i]));
        }
        let from = cols - lowest_rest.len();
        for (i, lowest) in lowest_rest.iter_mut().enumerate() {
            let words = words.chunks_exact(cols).map(|row| std::array::from_ref(&row[from + i]));
            let grey = grey.chunks_exact_mut(cols).map(|row| std::array::from_mut(&mut row[from + i]));
            let ends = (std::array::from_mut(lowest), std::array::from_mut(&mut highest_rest[i]));
            let (sum, n) = (&mut sums_rest[i], &mut n_padded_rest[i]);
            let counts = (std::array::from_mut(sum), std::array::from_mut(n));
            add_tile::<1, SIGNED>(words.zip(grey), line, ends, counts);
        }
    }

    /// Adds the cells of a block of rows to the grid; returns the sum of its biased
    /// values, and the number of its padding pixels.
    #[inline(always)]
    fn close_block(&mut self, line: Line, n_rows: usize, grid: &mut Grid) -> (i64, usize) {
        let block = grid.block();
        sum_cells(&self.block_sum, block, &mut self.cells, 0);
        sum_cells(&self.block_n_padded, block, &mut self.cells, 1);
        let (mut total, mut n_padding) = (0, 0);
        for [sum, n_padded] in &self.cells {
            total += i64::from(*sum);
            n_padding += *n_padded as usize;
        }
        let mean = |[sum, n_padded]: [i32; 2], n_cols: usize| {
            let n_pixels = (n_rows * n_cols) as i32;
            let hu = line.sum(sum.into(), (n_pixels - n_padded).into(), n_padded.into());
            (hu / f64::from(n_pixels)) as f32
        };
        // The last cell may be narrower.
        let n_last = (self.block_sum.len() - 1) % block + 1;
        if let Some((last, others)) = self.cells.split_last() {
            grid.extend(others.iter().map(|cell| mean(*cell, block)));
            grid.extend(std::iter::once(mean(*last, n_last)));
        }
        (total, n_padding)
    }

    fn lowest(&self) -> i16 {
        self.lowest.iter().copied().min().unwrap_or_default()
    }

    fn highest(&self) -> i16 {
        self.highest.iter().copied().max().unwrap_or_default()
    }
}

/// Measures `N` columns: lowest and highest of all that was seen of them, sums and numbers of
/// padding pixels of these rows alone.
#[inline(always)]
fn add_tile<'a, const N: usize, const SIGNED: bool>(
    rows: impl Iterator<Item = (&'a [u16; N], &'a mut [u8; N])>,
    line: Line,
    ends: (&mut [i16; N], &mut [i16; N]),
    counts: (&mut [i32; N], &mut [i32; N]),
) {
    // A range as its first value and its length: one comparison tells. Without padding, the
    // range of everything is asked for and turned round.
    let as_length = |(first, last): (i16, i16)| (first as u16, (last as u16).wrapping_sub(first as u16));
    let has_padding = line.padding[0].is_some();
    let one = line.padding[0].map_or((0, u16::MAX), as_length);
    let other = line.padding[1].map_or(one, as_length);
    let (mut lowest, mut highest) = (*ends.0, *ends.1);
    let (mut sums, mut n_padded) = ([0i32; N], [0i16; N]);
    for (words, grey) in rows {
        let (mut values, mut is_padding) = ([0; N], [false; N]);
        for lane in 0..N {
            let value = biased::<SIGNED>(words[lane], line.unused);
            let is_in = |(first, length): (u16, u16)| (value as u16).wrapping_sub(first) <= length;
            (values[lane], is_padding[lane]) = (value, (is_in(one) | is_in(other)) & has_padding);
        }
        for lane in 0..N {
            lowest[lane] = lowest[lane].min(if is_padding[lane] { i16::MAX } else { values[lane] });
            highest[lane] = highest[lane].max(if is_padding[lane] { i16::MIN } else { values[lane] });
            sums[lane] += i32::from(if is_padding[lane] { 0 } else { values[lane] });
            n_padded[lane] += i16::from(is_padding[lane]);
        }
        if let Some(line) = line.grey {
            for lane in 0..N {
                grey[lane] = if is_padding[lane] { line.padding } else { line.level(values[lane]) };
            }
        }
    }
    (*ends.0, *ends.1) = (lowest, highest);
    *counts.0 = sums;
    counts.1.iter_mut().zip(n_padded).for_each(|(count, n_padded)| *count = n_padded.into());
}

/// Sums `block` columns each into one place of every cell.
#[inline(always)]
fn sum_cells(columns: &[i32], block: usize, cells: &mut [[i32; 2]], place: usize) {
    match columns.as_chunks::<4>() {
        // Blocks of the usual 512 columns, without an inner loop.
        (fours, []) if block == 4 => {
            cells.iter_mut().zip(fours).for_each(|(cell, [a, b, c, d])| cell[place] = (a + b) + (c + d));
        }
        _ => {
            let sums = columns.chunks(block).map(|columns| columns.iter().sum());
            cells.iter_mut().zip(sums).for_each(|(cell, sum)| cell[place] = sum);
        }
    }
}

/// Measures a slice of `rows * cols` HU.
pub fn of_hu(hu: &[f32], (rows, cols): (usize, usize), window: HuWindow, keep_hu: bool) -> SliceStatistics {
    let mut builder = StatisticsBuilder::new((rows, cols), keep_hu);
    let grey_level = render::grey_level(window);
    for row in hu.chunks_exact(cols) {
        builder.grey.extend(row.iter().map(|hu| grey_level(*hu)));
        builder.add_hu(row);
    }
    builder.finish()
}

/// Takes the rows of a slice as they pass by.
struct StatisticsBuilder {
    size: (usize, usize),
    grey: Vec<u8>,
    hu: Option<Vec<f32>>,
    grid: GridBuilder,
    lowest: [f32; N_LANES],
    highest: [f32; N_LANES],
}

impl StatisticsBuilder {
    fn new((rows, cols): (usize, usize), keep_hu: bool) -> Self {
        Self {
            size: (rows, cols),
            grey: Vec::with_capacity(rows * cols),
            hu: keep_hu.then(|| Vec::with_capacity(rows * cols)),
            grid: Grid::builder(rows, cols),
            lowest: [f32::INFINITY; N_LANES],
            highest: [f32::NEG_INFINITY; N_LANES],
        }
    }

    fn add_hu(&mut self, row: &[f32]) {
        let (pieces, rest) = row.as_chunks::<N_LANES>();
        for piece in pieces {
            for lane in 0..N_LANES {
                let hu = piece[lane];
                self.lowest[lane] = if hu < self.lowest[lane] { hu } else { self.lowest[lane] };
                self.highest[lane] = if hu > self.highest[lane] { hu } else { self.highest[lane] };
            }
        }
        for &hu in rest {
            self.lowest[0] = self.lowest[0].min(hu);
            self.highest[0] = self.highest[0].max(hu);
        }
        self.grid.add_row(row);
        if let Some(kept) = &mut self.hu {
            kept.extend_from_slice(row);
        }
    }

    fn finish(self) -> SliceStatistics {
        let (rows, cols) = self.size;
        let (grid, hu_mean) = self.grid.finish();
        SliceStatistics {
            grey: Image { rows, cols, values: self.grey },
            hu: self.hu.map(|values| Image { rows, cols, values }),
            grid,
            hu_min: self.lowest.into_iter().fold(f32::INFINITY, f32::min),
            hu_max: self.highest.into_iter().fold(f32::NEG_INFINITY, f32::max),
            hu_mean,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(signed: bool, bits_stored: u16, (rows, cols): (usize, usize)) -> PixelFormat {
        let padding = Some(7);
        PixelFormat { rows, cols, bits_allocated: 16, bits_stored, signed, padding, padding_limit: None }
    }

    /// Checks a row of stored words, padding value 7, intercept -1000.
    #[track_caller]
    fn check(words: &[u16], (hu_min, hu_max, hu_mean): (f32, f32, f32), n_padding: usize) {
        let size = (1, words.len());
        let rescale = Rescale::Linear { slope: 1.0, intercept: -1000.0 };
        let tables = WordTables::new(format(false, 12, size), &rescale, HuWindow::LUNG);
        let pixels = StoredPixels::of_words(words.to_vec(), size.1);
        let (found, found_padding) = tables.measure(&pixels, size, true);
        assert_eq!((found.hu_min, found.hu_max, found.hu_mean), (hu_min, hu_max, hu_mean), "{words:?}");
        assert_eq!(found_padding, n_padding, "{words:?}");
        let want: Vec<f32> =
            words.iter().map(|word| if *word == 7 { -1024.0 } else { f32::from(*word) - 1000.0 }).collect();
        let by_hu = of_hu(&want, size, HuWindow::LUNG, true);
        assert_eq!(found.hu, Some(Image { rows: 1, cols: words.len(), values: want }));
        for other in [by_hu, tables.measure(&pixels, size, false).0] {
            assert_eq!((&other.grey, &other.grid), (&found.grey, &found.grid));
            assert_eq!((other.hu_min, other.hu_max, other.hu_mean), (hu_min, hu_max, hu_mean));
        }
    }

    #[test]
    fn padding_is_counted_and_taken_as_air() {
        check(&[7, 1000, 7], (-1024.0, 0.0, -2048.0 / 3.0), 2);
        check(&[7; 20], (-1024.0, -1024.0, -1024.0), 20);
    }

    #[test]
    fn every_lane_counts() {
        for at in 0..40 {
            let mut words = [1000; 40];
            words[at] = 1040;
            check(&words, (0.0, 40.0, 1.0), 0);
        }
    }

    /// The line and the table say the same of random words.
    #[track_caller]
    fn check_line(signed: bool, bits_stored: u16, size: (usize, usize), (slope, intercept): (f64, f64)) {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as u16 >> (state >> 60)
        };
        let words = (0..size.0 * size.1).map(|_| random()).collect();
        let pixels = StoredPixels::of_words(words, size.1);
        let rescale = Rescale::Linear { slope, intercept };
        let tables = WordTables::new(format(signed, bits_stored, size), &rescale, HuWindow::LUNG);
        let (line, n_line) = tables.measure(&pixels, size, false);
        let (table, n_table) = tables.measure_by_table(&pixels, size, false);
        let case = (signed, bits_stored, size, slope, intercept);
        assert_eq!((line.grey, n_line), (table.grey, n_table), "{case:?}");
        assert_eq!((line.hu_min, line.hu_max), (table.hu_min, table.hu_max), "{case:?}");
        // The table adds up rounded HU in f32; how far that is off follows from the largest HU.
        let largest = 65_536.0 * slope.abs() + intercept.abs();
        let near = |a: f32, b: f32| f64::from(a - b).abs() <= 1e-6 * largest;
        assert!(near(line.hu_mean, table.hu_mean), "{case:?}: {} or {}", line.hu_mean, table.hu_mean);
        assert_eq!(line.grid.width(), table.grid.width());
        let cells = line.grid.cells().iter().zip(table.grid.cells());
        assert_eq!(line.grid.cells().len(), table.grid.cells().len());
        let is_whole = slope.fract() == 0.0 && bits_stored <= 12;
        assert!(cells.into_iter().all(|(a, b)| if is_whole { a == b } else { near(*a, *b) }), "{case:?}");
    }

    #[test]
    fn usual_slices_need_no_table() {
        for (signed, bits_stored) in [(false, 12), (false, 16), (true, 12), (true, 16)] {
            let rescale = Rescale::Linear { slope: 1.0, intercept: -1024.0 };
            let tables = WordTables::new(format(signed, bits_stored, (1, 1)), &rescale, HuWindow::LUNG);
            let line = tables.line.expect("padding of one value is told by it");
            assert!(line.grey.is_some(), "signed {signed}, {bits_stored} bits");
        }
    }

    #[test]
    fn the_line_agrees_with_the_table() {
        for signed in [false, true] {
            for bits_stored in [1, 8, 12, 15, 16] {
                for size in [(1, 1), (3, 5), (256, 256), (300, 130), (17, 515)] {
                    for line in [(1.0, -1024.0), (2.0, 0.0), (-1.0, 100.0), (0.37, -1000.5)] {
                        check_line(signed, bits_stored, size, line);
                    }
                }
            }
        }
    }
}
