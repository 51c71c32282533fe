//! Are these numbers HU? A header can say so and be wrong: public volumes and exports are
//! shifted by 1024, cut to a window, scaled to 0..1 or 0..255, negated, or masks.
//!
//! A chest has three things at known HU: air around -1000, lung below -600, and soft tissue
//! with its peak at fat (-100) or muscle (50). The shares of each are
//! counted over a whole series, on the means of 4 x 4 pixels, in bins of 10 HU, and held
//! against limits that the eleven real series of the shared test data keep. What was tried is in
//! `docs/input.md`.

use std::ops::Range;

use super::lung::Grid;
use crate::fault::Fault;

/// HU below this are filling outside the reconstruction circle.
pub(crate) const OUTSIDE_CIRCLE_HU: f32 = -1500.0;
/// What filling becomes.
pub(crate) const PADDING_HU: f32 = -1024.0;
/// Metal in an extended scale stays below.
pub(crate) const MAX_HU: f32 = 70_000.0;

const BIN_HU: i32 = 10;
const LOWEST: i32 = -1500;
/// All that is higher is in the last bin.
const HIGHEST: i32 = 1000;
const N_BINS: usize = ((HIGHEST - LOWEST) / BIN_HU) as usize + 1;

const AIR: Range<i32> = -1070..-930;
const BELOW_AIR: Range<i32> = LOWEST..-1100;
const LUNG: Range<i32> = -930..-600;
/// Between lung and fat, where little of a chest lies.
const BETWEEN: Range<i32> = -600..-300;
const SOFT: Range<i32> = -150..150;
const SOLID: Range<i32> = -300..HIGHEST + BIN_HU;
const HARD: Range<i32> = 500..HIGHEST + BIN_HU;

/// Real series have 0.010 (a narrow crop of the lungs) to 0.55 of air.
const MIN_AIR: f64 = 0.002;
/// Share of what lies below -500 HU that lies below -1100; real series have none.
const MAX_BELOW_AIR: f64 = 0.1;
/// Real series have at most 0.039, and never more than of lung.
const MAX_BETWEEN: f64 = 0.1;
/// Real series have 0.24 to 0.60 of soft tissue.
const MIN_SOFT: f64 = 0.01;
/// Share of what lies above -300 HU that is soft tissue; real series have 0.63 or more.
const MIN_SOFT_OF_SOLID: f64 = 0.45;
/// Real series have at most 0.072 above 500 HU.
const MAX_HARD: f64 = 0.15;

/// Counts of the values of a series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HuHistogram {
    bins: [u32; N_BINS],
}

impl Default for HuHistogram {
    fn default() -> Self {
        Self { bins: [0; N_BINS] }
    }
}

impl HuHistogram {
    /// Of a slice whose padding is -1024 HU; with padding, cells of nothing else are left out.
    pub(crate) fn of_grid(grid: &Grid, has_padding: bool) -> Self {
        let mut histogram = Self::default();
        for &hu in grid.cells().iter().filter(|hu| !has_padding || **hu != PADDING_HU) {
            let bin = ((hu - LOWEST as f32) / BIN_HU as f32) as i32;
            histogram.bins[bin.clamp(0, N_BINS as i32 - 1) as usize] += 1;
        }
        histogram
    }

    /// Of `rows * cols` HU of a slice; values below -1500 HU are padding.
    pub fn of_hu(hu: &[f32], (rows, cols): (usize, usize)) -> Self {
        let mut grid = Grid::builder(rows, cols);
        let is_padding = |hu: &f32| *hu < OUTSIDE_CIRCLE_HU;
        let clean = |hu: &f32| if is_padding(hu) { PADDING_HU } else { *hu };
        for row in hu.chunks_exact(cols) {
            grid.add_row(&row.iter().map(clean).collect::<Vec<_>>());
        }
        Self::of_grid(&grid.finish().0, hu.iter().any(is_padding))
    }

    /// Adds the counts of another slice.
    pub fn add(&mut self, other: &Self) {
        self.bins.iter_mut().zip(&other.bins).for_each(|(bin, count)| *bin += count);
    }

    /// Whether the counted values can be the HU of a chest.
    ///
    /// # Errors
    /// [`Fault::NotHu`].
    pub fn judge(&self) -> Result<(), Fault> {
        self.contradiction().map_or(Ok(()), |why| Err(Fault::NotHu { why }))
    }

    fn contradiction(&self) -> Option<String> {
        let total = f64::from(self.bins.iter().sum::<u32>());
        let (Some(lowest), Some(highest)) =
            (self.bins.iter().position(|count| *count > 0), self.bins.iter().rposition(|count| *count > 0))
        else {
            return Some("none is above -1500".into());
        };
        let index = |hu: i32| ((hu - LOWEST) / BIN_HU) as usize;
        let count =
            |range: Range<i32>| -> u32 { self.bins[index(range.start)..index(range.end)].iter().sum() };
        let share = |range: Range<i32>| f64::from(count(range)) / total;
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let hu = |bin: usize| LOWEST + bin as i32 * BIN_HU;
        let seen = format!("they run from about {} to {}", hu(lowest), hu(highest) + BIN_HU);
        // Where a volume is cut to a range, what lay beyond is heaped up at its ends.
        let at_lowest = if BELOW_AIR.contains(&hu(lowest)) { self.bins[lowest] } else { 0 };
        let below = f64::from(count(BELOW_AIR) - at_lowest) / total;
        if share(AIR) < MIN_AIR {
            return Some(format!("{seen}, and hardly any is that of air (-1070 to -930)"));
        }
        if below > MAX_BELOW_AIR * share(LOWEST..-500) {
            return Some(format!("{} lie below -1100, where there is nothing", percent(below)));
        }
        if share(BETWEEN) > MAX_BETWEEN.max(share(LUNG)) {
            let many = percent(share(BETWEEN));
            return Some(format!("{many} lie between lung and soft tissue (-600 to -300)"));
        }
        if share(SOFT) < MIN_SOFT {
            return Some(format!("{seen}, and hardly any is that of soft tissue (-150 to 150)"));
        }
        if share(SOFT) < MIN_SOFT_OF_SOLID * share(SOLID) {
            let few = percent(share(SOFT) / share(SOLID));
            return Some(format!("only {few} of those above -300 are those of soft tissue (-150 to 150)"));
        }
        if share(HARD) > MAX_HARD {
            return Some(format!("{} lie above 500, as bone and metal do", percent(share(HARD))));
        }
        let end = if SOFT.contains(&hu(highest)) { highest + 1 } else { highest };
        let peak = hu(self.peak(index(SOLID.start)..end));
        let is_soft = SOFT.contains(&peak);
        (!is_soft).then(|| format!("most of those above -300 are near {peak}, where no soft tissue is"))
    }

    /// The bin with most values around it.
    fn peak(&self, bins: Range<usize>) -> usize {
        const WEIGHTS: [u32; 5] = [1, 2, 3, 2, 1];
        let smoothed = |bin: usize| -> u32 {
            let near = WEIGHTS.iter().enumerate().filter_map(|(i, weight)| {
                let at = (bin + i).checked_sub(2).filter(|at| bins.contains(at))?;
                Some(weight * self.bins[at])
            });
            near.sum()
        };
        bins.clone().max_by_key(|bin| (smoothed(*bin), std::cmp::Reverse(*bin))).unwrap_or(bins.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shares of a chest: HU, and how many of a thousand values.
    const CHEST: [(f32, usize); 8] = [
        (-1000.0, 250),
        (-850.0, 200),
        (-750.0, 60),
        (-450.0, 20),
        (-100.0, 180),
        (50.0, 230),
        (200.0, 40),
        (700.0, 20),
    ];

    /// Judges the chest after a change of every value.
    #[track_caller]
    fn check(name: &str, change: impl Fn(f32) -> f32, want: Option<&str>) {
        let values = CHEST.iter().flat_map(|(hu, n)| {
            // Noise of 15 HU.
            (0..*n).map(move |i| hu + [-15.0, -5.0, 0.0, 5.0, 15.0][i % 5])
        });
        let hu: Vec<f32> = values.map(change).collect();
        let why = HuHistogram::of_hu(&hu, (1, hu.len())).contradiction();
        match want {
            None => assert_eq!(why, None, "{name}"),
            Some(part) => assert!(why.as_ref().is_some_and(|why| why.contains(part)), "{name}: {why:?}"),
        }
    }

    #[test]
    fn a_chest_passes_whole_cropped_and_cut_to_a_range() {
        check("as it is", |hu| hu, None);
        check("cut", |hu| hu.clamp(-1000.0, 400.0), None);
        check("cut to the lung window", |hu| hu.clamp(-1350.0, 150.0), None);
        check("with filling", |hu| if hu < -995.0 { -2000.0 } else { hu }, None);
        check("one soft tissue", |hu| if hu > -300.0 { 109.0 } else { hu }, None);
        check("without fat", |hu| if hu < -80.0 && hu > -120.0 { 40.0 } else { hu }, None);
    }

    #[test]
    fn what_is_no_hu_is_refused_by_name() {
        check("plus 1024", |hu| hu + 1024.0, Some("air"));
        check("plus 300", |hu| hu + 300.0, Some("air"));
        check("minus 300", |hu| hu - 300.0, Some("below -1100"));
        check("1.5 times", |hu| hu * 1.5, Some("below -1100"));
        check("twice", |hu| hu * 2.0, Some("air"));
        check("half", |hu| hu * 0.5, Some("air"));
        check("negated", |hu| -hu, Some("air"));
        check("window of 8 bits", |hu| ((hu + 1350.0) / 1500.0).clamp(0.0, 1.0) * 255.0, Some("air"));
        check("0 to 1", |hu| ((hu + 1000.0) / 1400.0).clamp(0.0, 1.0), Some("air"));
        check("a mask", |hu| f32::from(u8::from(hu < -600.0)), Some("air"));
        check("soft tissue too high", |hu| if hu > -300.0 { hu + 300.0 } else { hu }, Some("soft tissue"));
        check("all bone", |hu| if hu > -300.0 && hu < 100.0 { 900.0 } else { hu }, Some("soft tissue"));
        check("nothing", |_| -3000.0, Some("none"));
    }
}
