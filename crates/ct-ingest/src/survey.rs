//! One pass over a slice: its grey levels, and all that is measured on its HU.
//! No whole slice of HU is made unless it is stored: memory traffic is what this costs.

use diag_data::units::HuWindow;
use pulp::{Arch, NullaryFnOnce};

use crate::decode::header::PixelFormat;
use crate::decode::{HuTable, Rescale, StoredPixels};
use crate::render::{self, Image};
use crate::select::{Grid, GridBuilder};

/// Lanes of minimum and maximum that run side by side.
const N_LANES: usize = 16;

/// What one pass finds. HU are without padding.
#[derive(Clone, Debug)]
pub struct Survey {
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

/// HU and grey level of every stored word.
#[derive(Clone, Debug)]
pub struct WordTables {
    hu: HuTable,
    /// Grey level in the low byte, 1 in the high byte where the word is padding.
    shade: Vec<u16>,
    /// How HU follow from words, where they do by a straight line.
    line: Option<Line>,
}

impl WordTables {
    /// Windows the HU of every word.
    pub fn new(format: PixelFormat, rescale: &Rescale, window: HuWindow) -> Self {
        let hu = HuTable::new(format, rescale);
        let grey = hu.map(render::grey_level(window));
        let shade = (0..=u16::MAX).zip(grey);
        let shade = shade.map(|(word, grey)| u16::from(hu.is_padding(word)) << 8 | u16::from(grey)).collect();
        let line = rescale.line().map(|(slope, intercept)| Line {
            slope,
            intercept,
            unused: 16 - u32::from(format.bits_stored),
            signed: format.signed,
        });
        Self { hu, shade, line }
    }

    /// Surveys a slice of `rows * cols` pixels; returns the number of padding pixels too.
    pub fn survey(
        &self,
        pixels: &StoredPixels<'_>,
        (rows, cols): (usize, usize),
        keep_hu: bool,
    ) -> (Survey, usize) {
        match self.line {
            Some(line) if !keep_hu => {
                Arch::new().dispatch(LineSurvey { shade: &self.shade, line, pixels, rows, cols })
            }
            _ => self.survey_by_table(pixels, (rows, cols), keep_hu),
        }
    }

    fn survey_by_table(
        &self,
        pixels: &StoredPixels<'_>,
        (rows, cols): (usize, usize),
        keep_hu: bool,
    ) -> (Survey, usize) {
        let mut surveyor = Surveyor::new((rows, cols), keep_hu);
        let (mut words, mut hu, mut n_padding) = (vec![0; cols], vec![0.0; cols], 0);
        for row in 0..rows {
            pixels.row(row, &mut words);
            let shades = words.iter().map(|word| self.shade[usize::from(*word)]);
            surveyor.grey.extend(shades.map(|shade| {
                n_padding += usize::from(shade >> 8);
                shade as u8
            }));
            self.hu.fill(&words, &mut hu);
            surveyor.add_hu(&hu);
        }
        (surveyor.finish(), n_padding)
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
}

impl Line {
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

/// Measures stored values as the whole numbers they are, many at once, and turns only
/// the results into HU; compiled for the vector instructions of several processors.
struct LineSurvey<'a> {
    shade: &'a [u16],
    line: Line,
    pixels: &'a StoredPixels<'a>,
    rows: usize,
    cols: usize,
}

impl NullaryFnOnce for LineSurvey<'_> {
    type Output = (Survey, usize);

    #[inline(always)]
    fn call(self) -> (Survey, usize) {
        let Self { shade, line, pixels, rows, cols } = self;
        let mut grid = Grid::new(rows, cols);
        let block = grid.block();
        let mut grey = Vec::with_capacity(rows * cols);
        let (mut words, mut shades) = (vec![0; cols], vec![0; cols]);
        let mut tally = Tally::new(cols, grid.width());
        let (mut total, mut n_padding) = (0, 0);
        for row in 0..rows {
            pixels.row(row, &mut words);
            look_up(shade, &words, &mut shades);
            grey.extend(shades.iter().map(|both| *both as u8));
            if line.signed {
                tally.add_row::<true>(&words, &shades, line.unused);
            } else {
                tally.add_row::<false>(&words, &shades, line.unused);
            }
            let n_rows = row % block + 1;
            if n_rows == block || row + 1 == rows {
                let (sum, n_padded) = tally.close_block(line, n_rows, &mut grid);
                total += sum;
                n_padding += n_padded;
            }
        }
        let n_valid = rows * cols - n_padding;
        let hu_mean = line.sum(total as f64, n_valid as f64, n_padding as f64) / (rows * cols) as f64;
        let ends = [tally.lowest(), tally.highest()].map(|biased| line.hu(biased));
        let padding = (n_padding > 0).then_some(HuTable::PADDING_HU);
        let found = || ends.into_iter().filter(|_| n_valid > 0).chain(padding);
        let survey = Survey {
            grey: Image { rows, cols, values: grey },
            hu: None,
            grid,
            hu_min: found().fold(f32::INFINITY, f32::min),
            hu_max: found().fold(f32::NEG_INFINITY, f32::max),
            hu_mean: hu_mean as f32,
        };
        (survey, n_padding)
    }
}

/// Entries of a table, four at a time in one register. Never part of vector code: picking
/// words out of vectors and putting entries into them takes three times as long.
#[inline(never)]
fn look_up(table: &[u16], words: &[u16], entries: &mut [u16]) {
    // The table's length is said once, not checked at every word.
    let table = &table[..1 << 16];
    let entry = |word: u64| u64::from(table[usize::from(word as u16)]);
    let (fours, rest) = words.as_chunks::<4>();
    let (found, found_rest) = entries.as_chunks_mut::<4>();
    for (words, entries) in fours.iter().zip(found) {
        let [a, b, c, d] = *words;
        let words = u64::from(a) | u64::from(b) << 16 | u64::from(c) << 32 | u64::from(d) << 48;
        let low = entry(words) | entry(words >> 16) << 16;
        let high = entry(words >> 32) | entry(words >> 48) << 16;
        let both = low | high << 32;
        *entries = [both as u16, (both >> 16) as u16, (both >> 32) as u16, (both >> 48) as u16];
    }
    found_rest.iter_mut().zip(rest).for_each(|(entry, word)| *entry = table[usize::from(*word)]);
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

    #[inline(always)]
    fn add_row<const SIGNED: bool>(&mut self, words: &[u16], shades: &[u16], unused: u32) {
        let n = words.len();
        let shades = &shades[..n];
        let (lowest, highest) = (&mut self.lowest[..n], &mut self.highest[..n]);
        let (sums, n_padded) = (&mut self.block_sum[..n], &mut self.block_n_padded[..n]);
        for i in 0..n {
            let value = words[i] << unused;
            let biased =
                if SIGNED { (value as i16) >> unused } else { ((value >> unused) ^ (1 << 15)) as i16 };
            let is_padding = (shades[i] >> 8) as i16;
            // All bits set where the pixel is valid.
            let valid = is_padding - 1;
            lowest[i] = lowest[i].min(biased & valid | i16::MAX & !valid);
            highest[i] = highest[i].max(biased & valid | i16::MIN & !valid);
            sums[i] += i32::from(biased & valid);
            n_padded[i] += i32::from(is_padding);
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
        self.block_sum.fill(0);
        self.block_n_padded.fill(0);
        (total, n_padding)
    }

    fn lowest(&self) -> i16 {
        self.lowest.iter().copied().min().unwrap_or_default()
    }

    fn highest(&self) -> i16 {
        self.highest.iter().copied().max().unwrap_or_default()
    }
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

/// Surveys a slice of `rows * cols` HU.
pub fn survey_hu(hu: &[f32], (rows, cols): (usize, usize), window: HuWindow, keep_hu: bool) -> Survey {
    let mut surveyor = Surveyor::new((rows, cols), keep_hu);
    let grey_level = render::grey_level(window);
    for row in hu.chunks_exact(cols) {
        surveyor.grey.extend(row.iter().map(|hu| grey_level(*hu)));
        surveyor.add_hu(row);
    }
    surveyor.finish()
}

/// Takes the rows of a slice as they pass by.
struct Surveyor {
    size: (usize, usize),
    grey: Vec<u8>,
    hu: Option<Vec<f32>>,
    grid: GridBuilder,
    lowest: [f32; N_LANES],
    highest: [f32; N_LANES],
}

impl Surveyor {
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

    fn finish(self) -> Survey {
        let (rows, cols) = self.size;
        let (grid, hu_mean) = self.grid.finish();
        Survey {
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
        let (found, found_padding) = tables.survey(&pixels, size, true);
        assert_eq!((found.hu_min, found.hu_max, found.hu_mean), (hu_min, hu_max, hu_mean), "{words:?}");
        assert_eq!(found_padding, n_padding, "{words:?}");
        let want: Vec<f32> =
            words.iter().map(|word| if *word == 7 { -1024.0 } else { f32::from(*word) - 1000.0 }).collect();
        let of_hu = survey_hu(&want, size, HuWindow::LUNG, true);
        assert_eq!(found.hu, Some(Image { rows: 1, cols: words.len(), values: want }));
        for other in [of_hu, tables.survey(&pixels, size, false).0] {
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
        let (line, n_line) = tables.survey(&pixels, size, false);
        let (table, n_table) = tables.survey_by_table(&pixels, size, false);
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
