//! What is known of a case without looking at the lung.

use std::collections::{BTreeMap, BTreeSet};

use diag_data::manifest::CaseRow;
use diag_data::slice::CtSlice;

/// Percentiles of the grey levels that are taken.
const PERCENTILES: [f64; 9] = [0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99];
/// Grey levels below this are black, and from 255 minus it on white.
const NEAR_END: u8 = 8;
/// Width of the border in pixels.
const BORDER: usize = 4;
/// Number of grey statistics of a picture.
pub const N_GREY: usize = 20;

/// How the slices of a case were acquired and stored: means over its slices.
#[derive(Clone, Debug, Default)]
pub struct CaseFeatures {
    /// Numbers that a header or file states; absent where it does not.
    numbers: Vec<Option<f64>>,
    /// Words: file format, manufacturer, model, kernel.
    words: Vec<Option<String>>,
    /// Statistics of the grey levels, [`N_GREY`] of them.
    grey: Vec<f64>,
}

/// Adds up the slices of a case.
#[derive(Clone, Debug, Default)]
pub struct CaseSums {
    n_slices: f64,
    numbers: Vec<(f64, f64)>,
    format: Option<String>,
    grey: Vec<f64>,
}

impl CaseSums {
    /// Adds a slice of a picture that is `width` pixels wide.
    pub fn add(&mut self, slice: &CtSlice, width: usize) {
        let (geometry, acquisition) = (&slice.geometry, &slice.acquisition);
        let (rows, cols) = (f64::from(geometry.source_rows), f64::from(geometry.source_cols));
        let spacing = geometry.spacing;
        let numbers = [
            Some(rows),
            Some(cols),
            (cols > 0.0).then(|| rows / cols),
            Some(f64::from(u8::from(acquisition.lossy))),
            spacing.map(|spacing| spacing.row.0),
            spacing.map(|spacing| spacing.col.0),
            spacing.map(|spacing| spacing.row.0 * rows),
            spacing.map(|spacing| spacing.col.0 * cols),
            geometry.slice_thickness.map(|thickness| thickness.0),
            geometry.gap_before.map(|gap| gap.0),
            acquisition.kvp.map(f64::from),
        ];
        self.numbers.resize(numbers.len(), (0.0, 0.0));
        for (sum, number) in self.numbers.iter_mut().zip(numbers) {
            if let Some(number) = number.filter(|number| number.is_finite()) {
                *sum = (sum.0 + number, sum.1 + 1.0);
            }
        }
        self.format.get_or_insert_with(|| acquisition.transfer_syntax.clone());
        self.grey.resize(N_GREY, 0.0);
        for (sum, value) in self.grey.iter_mut().zip(grey_statistics(&slice.pixels, width)) {
            *sum += value;
        }
        self.n_slices += 1.0;
    }

    /// The means, and what the case's row adds.
    pub fn finish(self, row: &CaseRow) -> CaseFeatures {
        let mut numbers: Vec<Option<f64>> =
            self.numbers.iter().map(|(sum, n)| (*n > 0.0).then(|| sum / n)).collect();
        numbers.push(Some(f64::from(row.n_source_slices)));
        let grey = self.grey.iter().map(|sum| sum / self.n_slices.max(1.0)).collect();
        let words = vec![self.format, row.manufacturer.clone(), row.model.clone(), row.kernel.clone()];
        CaseFeatures { numbers, words, grey }
    }
}

/// Twenty statistics of the grey levels of one picture, in shares of white: nine percentiles, mean,
/// standard deviation, share of black and of white pixels, entropy in bits, noise (median
/// difference between neighbours), mean gradient, and the means of the four borders.
fn grey_statistics(pixels: &[u8], width: usize) -> [f64; N_GREY] {
    let width = width.clamp(1, pixels.len().max(1));
    let height = pixels.len() / width;
    let n = pixels.len().max(1) as f64;
    let mut counts = [0u64; 256];
    pixels.iter().for_each(|&grey| counts[usize::from(grey)] += 1);
    let mut differences = [0u64; 256];
    for row in pixels.chunks_exact(width) {
        row.windows(2).for_each(|pair| differences[usize::from(pair[0].abs_diff(pair[1]))] += 1);
    }
    let level = |counts: &[u64; 256], share: f64| {
        let wanted = (share * counts.iter().sum::<u64>() as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let at = counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        at.unwrap_or(0) as f64 / 255.0
    };
    let share_of = |range: std::ops::Range<usize>| counts[range].iter().sum::<u64>() as f64 / n;
    let mean_of = |counts: &[u64; 256]| {
        let total = counts.iter().sum::<u64>().max(1) as f64;
        counts.iter().enumerate().map(|(grey, &count)| grey as f64 * count as f64).sum::<f64>()
            / total
            / 255.0
    };
    let mean = mean_of(&counts);
    let square = |(grey, &count): (usize, &u64)| (grey as f64 / 255.0 - mean).powi(2) * count as f64;
    let deviation = (counts.iter().enumerate().map(square).sum::<f64>() / n).sqrt();
    let entropy = |count: &u64| {
        let share = *count as f64 / n;
        if share > 0.0 { -share * share.log2() } else { 0.0 }
    };
    let border = BORDER.min(height).min(width);
    let mean_where = |is_inside: &dyn Fn(usize, usize) -> bool| {
        let inside = pixels.iter().enumerate().filter(|(i, _)| is_inside(i / width, i % width));
        let (sum, count) =
            inside.fold((0.0, 0.0), |(sum, n), (_, &grey)| (sum + f64::from(grey) / 255.0, n + 1.0));
        if count > 0.0 { sum / count } else { 0.0 }
    };
    let mut values = [0.0; N_GREY];
    for (value, share) in values.iter_mut().zip(PERCENTILES) {
        *value = level(&counts, share);
    }
    values[PERCENTILES.len()..].copy_from_slice(&[
        mean,
        deviation,
        share_of(0..usize::from(NEAR_END)),
        share_of(256 - usize::from(NEAR_END)..256),
        counts.iter().map(entropy).sum(),
        level(&differences, 0.5),
        mean_of(&differences),
        mean_where(&|row, _| row < border),
        mean_where(&|row, _| row + border >= height),
        mean_where(&|_, col| col < border),
        mean_where(&|_, col| col + border >= width),
    ]);
    values
}

/// Which features a classifier sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureSet {
    /// How the case was acquired and stored; no pixel is seen.
    Acquisition,
    /// Statistics of the grey levels, without where they lie.
    Grey,
    /// Both.
    Both,
}

/// Turns the features of cases into numbers with mean 0 and variance 1 over the fitting cases.
#[derive(Clone, Debug)]
pub struct Encoder {
    set: FeatureSet,
    /// Values of each word that at least two fitting cases have.
    words: Vec<Vec<String>>,
    scale: Vec<(f64, f64)>,
}

impl Encoder {
    /// Learns words, means and deviations from the fitting cases.
    pub fn fit(set: FeatureSet, cases: &[&CaseFeatures]) -> Self {
        let n_words = cases.first().map_or(0, |case| case.words.len());
        let values_of = |word: usize| {
            let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
            for value in cases.iter().filter_map(|case| case.words[word].as_deref()) {
                *counts.entry(value).or_default() += 1;
            }
            let frequent: BTreeSet<&str> =
                counts.into_iter().filter(|(_, n)| *n > 1).map(|(value, _)| value).collect();
            frequent.into_iter().map(str::to_owned).collect()
        };
        let mut encoder = Self { set, words: (0..n_words).map(values_of).collect(), scale: Vec::new() };
        let rows: Vec<Vec<Option<f64>>> = cases.iter().map(|case| encoder.raw(case)).collect();
        let n_columns = rows.first().map_or(0, Vec::len);
        let scale = |column: usize| {
            let known: Vec<f64> = rows.iter().filter_map(|row| row[column]).collect();
            let n = known.len().max(1) as f64;
            let mean = known.iter().sum::<f64>() / n;
            let variance = known.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / n;
            (mean, variance.sqrt())
        };
        encoder.scale = (0..n_columns).map(scale).collect();
        encoder
    }

    /// One row of numbers, without those that never differed; what is unknown is 0.
    pub fn encode(&self, case: &CaseFeatures) -> Vec<f64> {
        let scaled = |(value, (mean, deviation)): (Option<f64>, &(f64, f64))| {
            let varies = *deviation > 1e-9;
            varies.then(|| value.map_or(0.0, |value| (value - mean) / deviation))
        };
        self.raw(case).into_iter().zip(&self.scale).filter_map(scaled).collect()
    }

    fn raw(&self, case: &CaseFeatures) -> Vec<Option<f64>> {
        let mut row = Vec::new();
        if self.set != FeatureSet::Grey {
            for number in &case.numbers {
                // That a header does not state a number is a mark of its own.
                row.extend([*number, Some(f64::from(u8::from(number.is_none())))]);
            }
            for (word, values) in case.words.iter().zip(&self.words) {
                let is = |value: &String| Some(f64::from(u8::from(word.as_ref() == Some(value))));
                row.extend(values.iter().map(is));
            }
        }
        if self.set != FeatureSet::Acquisition {
            row.extend(case.grey.iter().map(|value| Some(*value)));
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grey_statistics_of_a_known_picture() {
        // Left half black, right half white, 8 x 8.
        let pixels: Vec<u8> = (0..64).map(|i| if i % 8 < 4 { 0 } else { 255 }).collect();
        let values = grey_statistics(&pixels, 8);
        let want = [
            0.0,
            0.0,
            0.0,
            0.0,
            0.0,
            1.0,
            1.0,
            1.0,
            1.0, // percentiles
            0.5,
            0.5,
            0.5,
            0.5,
            1.0, // mean, deviation, black, white, entropy
            0.0,
            1.0 / 7.0, // noise, gradient
            0.5,
            0.5,
            0.0,
            1.0, // borders: top, bottom, left, right
        ];
        for (i, (got, want)) in values.iter().zip(want).enumerate() {
            assert!((got - want).abs() < 1e-12, "statistic {i}: {got}, not {want}");
        }
    }

    #[test]
    fn unknown_numbers_and_rare_words_are_zero() {
        let case = |number: Option<f64>, word: &str| CaseFeatures {
            numbers: vec![number],
            words: vec![Some(word.into())],
            grey: vec![0.5; N_GREY],
        };
        let cases = [case(Some(1.0), "a"), case(Some(3.0), "a"), case(None, "b")];
        let encoder = Encoder::fit(FeatureSet::Acquisition, &cases.iter().collect::<Vec<_>>());
        let deviation_of_marks = (2.0f64 / 9.0).sqrt();
        let rows: Vec<Vec<f64>> = cases.iter().map(|case| encoder.encode(case)).collect();
        assert_eq!(rows[0].len(), 3);
        assert!((rows[0][0] + 1.0).abs() < 1e-12 && (rows[1][0] - 1.0).abs() < 1e-12, "{rows:?}");
        assert_eq!(rows[2][0], 0.0);
        assert!((rows[2][1] - 2.0 / 3.0 / deviation_of_marks).abs() < 1e-12);
    }
}
