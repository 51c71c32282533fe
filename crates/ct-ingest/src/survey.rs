//! One pass over a slice: its grey levels, and all that is measured on its HU.
//! No whole slice of HU is made unless it is stored: memory traffic is what this costs.

use diag_data::units::HuWindow;

use crate::decode::HuTable;
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
}

impl WordTables {
    /// Windows the HU of every word.
    pub fn new(hu: HuTable, window: HuWindow) -> Self {
        let grey = hu.map(render::grey_level(window));
        let shade = (0..=u16::MAX).zip(grey);
        let shade = shade.map(|(word, grey)| u16::from(hu.is_padding(word)) << 8 | u16::from(grey)).collect();
        Self { hu, shade }
    }

    /// Surveys a slice of `rows * cols` stored words; returns the number of padding pixels too.
    pub fn survey(&self, words: &[u16], (rows, cols): (usize, usize), keep_hu: bool) -> (Survey, usize) {
        let mut surveyor = Surveyor::new((rows, cols), keep_hu);
        let (mut hu, mut n_padding) = (vec![0.0; cols], 0);
        for row in words.chunks_exact(cols) {
            n_padding += self.shade(row, &mut surveyor.grey);
            self.hu.fill(row, &mut hu);
            surveyor.add_hu(&hu);
        }
        (surveyor.finish(), n_padding)
    }

    /// Adds the grey levels of a row; returns the number of padding pixels.
    fn shade(&self, row: &[u16], grey: &mut Vec<u8>) -> usize {
        // The table's length is said once, not checked at every pixel.
        let shade = &self.shade[..1 << 16];
        let mut n_padding = 0;
        grey.extend(row.iter().map(|word| {
            let both = shade[usize::from(*word)];
            n_padding += usize::from(both >> 8);
            both as u8
        }));
        n_padding
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
    use crate::decode::Rescale;
    use crate::decode::header::PixelFormat;

    /// Checks a row of stored words, padding value 7, intercept -1000.
    #[track_caller]
    fn check(words: &[u16], (hu_min, hu_max, hu_mean): (f32, f32, f32), n_padding: usize) {
        let size = (1, words.len());
        let format = PixelFormat {
            rows: size.0,
            cols: size.1,
            bits_allocated: 16,
            bits_stored: 12,
            signed: false,
            padding: Some(7),
            padding_limit: None,
        };
        let rescale = Rescale::Linear { slope: 1.0, intercept: -1000.0 };
        let tables = WordTables::new(HuTable::new(format, &rescale), HuWindow::LUNG);
        let (found, found_padding) = tables.survey(words, size, true);
        assert_eq!((found.hu_min, found.hu_max, found.hu_mean), (hu_min, hu_max, hu_mean), "{words:?}");
        assert_eq!(found_padding, n_padding, "{words:?}");
        let want: Vec<f32> =
            words.iter().map(|word| if *word == 7 { -1024.0 } else { f32::from(*word) - 1000.0 }).collect();
        let of_hu = survey_hu(&want, size, HuWindow::LUNG, true);
        assert_eq!(found.hu, Some(Image { rows: 1, cols: words.len(), values: want }));
        assert_eq!((&of_hu.grey, &of_hu.hu, &of_hu.grid), (&found.grey, &found.hu, &found.grid));
        assert_eq!((of_hu.hu_min, of_hu.hu_max, of_hu.hu_mean), (hu_min, hu_max, hu_mean));
    }

    #[test]
    fn padding_is_counted_and_taken_as_air() {
        check(&[7, 1000, 7], (-1024.0, 0.0, -2048.0 / 3.0), 2);
    }

    #[test]
    fn every_lane_counts() {
        for at in 0..40 {
            let mut words = [1000; 40];
            words[at] = 1040;
            check(&words, (0.0, 40.0, 1.0), 0);
        }
    }
}
