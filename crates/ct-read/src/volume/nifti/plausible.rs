//! Are these numbers HU? NIfTI does not say, and many public volumes are shifted
//! by 1024, cut to a window, scaled to 0..1 or 0..255, or masks.

use crate::fault::Fault;

/// HU below this is filling outside the reconstruction circle, as for DICOM.
const OUTSIDE_CIRCLE_HU: f32 = -1500.0;
/// What filling becomes.
const PADDING_HU: f32 = -1024.0;
/// Air and lung.
const AIRY: std::ops::RangeInclusive<f32> = -1200.0..=-500.0;
/// Fat, water, muscle, blood.
const SOFT: std::ops::RangeInclusive<f32> = -200.0..=250.0;
/// A chest has more of both than this, even in a narrow crop.
const MIN_SHARE: f64 = 0.01;
/// Metal in an extended scale stays below.
const MAX_HU: f32 = 70_000.0;

/// Counts voxels slice by slice, and judges them in the end.
#[derive(Clone, Copy, Debug)]
pub struct HuCheck {
    n_values: u64,
    n_airy: u64,
    n_soft: u64,
    n_infinite: u64,
    lowest: f32,
    highest: f32,
}

impl Default for HuCheck {
    fn default() -> Self {
        Self {
            n_values: 0,
            n_airy: 0,
            n_soft: 0,
            n_infinite: 0,
            lowest: f32::INFINITY,
            highest: f32::NEG_INFINITY,
        }
    }
}

impl HuCheck {
    /// Counts a slice, and replaces filling (below -1500 HU, or not a number) by
    /// -1024 HU. Returns the number of such pixels.
    pub fn clean(&mut self, hu: &mut [f32]) -> usize {
        let mut n_padding = 0;
        for value in hu {
            if value.is_infinite() {
                self.n_infinite += 1;
            } else if value.is_nan() || *value < OUTSIDE_CIRCLE_HU {
                *value = PADDING_HU;
                n_padding += 1;
            } else {
                self.n_values += 1;
                self.n_airy += u64::from(AIRY.contains(value));
                self.n_soft += u64::from(SOFT.contains(value));
                self.lowest = self.lowest.min(*value);
                self.highest = self.highest.max(*value);
            }
        }
        n_padding
    }

    /// Adds what another one counted.
    pub fn merge(&mut self, other: &Self) {
        self.n_values += other.n_values;
        self.n_airy += other.n_airy;
        self.n_soft += other.n_soft;
        self.n_infinite += other.n_infinite;
        self.lowest = self.lowest.min(other.lowest);
        self.highest = self.highest.max(other.highest);
    }

    /// Whether the counted values can be the HU of a chest.
    ///
    /// # Errors
    /// [`Fault::NotHu`].
    pub fn judge(&self) -> Result<(), Fault> {
        let share = |count: u64| count as f64 / self.n_values.max(1) as f64;
        let range = format!("they run from {} to {}", self.lowest, self.highest);
        let why = if self.n_infinite > 0 {
            "some are infinite".into()
        } else if self.n_values == 0 {
            "none is above -1500".into()
        } else if self.highest > MAX_HU {
            range
        } else if share(self.n_airy) < MIN_SHARE {
            format!("{range}, and hardly any is that of air or lung (-1200 to -500)")
        } else if share(self.n_soft) < MIN_SHARE {
            format!("{range}, and hardly any is that of soft tissue (-200 to 250)")
        } else {
            return Ok(());
        };
        Err(Fault::NotHu { why })
    }
}
