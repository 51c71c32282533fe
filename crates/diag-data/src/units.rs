//! Physical units as types, so that no bare number carries them across a crate.

use serde::{Deserialize, Serialize};

use crate::DataError;

/// CT number in Hounsfield units: air -1000, water 0.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hu(pub f32);

/// Length in millimetres.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mm(pub f64);

impl std::fmt::Display for Hu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} HU", self.0)
    }
}

impl std::fmt::Display for Mm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} mm", self.0)
    }
}

/// Distance between the centres of neighbouring pixels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spacing {
    /// Between rows, that is, downwards.
    pub row: Mm,
    /// Between columns, that is, to the right.
    pub col: Mm,
}

/// Intensity range the network sees. Invariant: `lo < hi`, both finite.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "(f32, f32)", into = "(f32, f32)")]
pub struct HuWindow {
    lo: Hu,
    hi: Hu,
}

impl HuWindow {
    /// The usual lung window: centre -600 HU, width 1500 HU.
    pub const LUNG: Self = Self { lo: Hu(-1350.0), hi: Hu(150.0) };

    /// Checks the bounds.
    ///
    /// # Errors
    /// When a bound is not finite, or `lo >= hi`.
    pub fn new(lo: Hu, hi: Hu) -> Result<Self, DataError> {
        if lo.0.is_finite() && hi.0.is_finite() && lo < hi {
            Ok(Self { lo, hi })
        } else {
            Err(DataError::invalid("HU window", format!("needs finite LO < HI, got {}:{}", lo.0, hi.0)))
        }
    }

    /// Lower bound, shown black.
    pub fn lo(self) -> Hu {
        self.lo
    }

    /// Upper bound, shown white.
    pub fn hi(self) -> Hu {
        self.hi
    }

    /// Position of a CT number inside the window, clamped to [0, 1].
    ///
    /// ```
    /// use diag_data::units::{Hu, HuWindow};
    /// assert_eq!(HuWindow::LUNG.scale(Hu(-600.0)), 0.5);
    /// assert_eq!(HuWindow::LUNG.scale(Hu(3071.0)), 1.0);
    /// ```
    pub fn scale(self, hu: Hu) -> f32 {
        ((hu.0 - self.lo.0) / (self.hi.0 - self.lo.0)).clamp(0.0, 1.0)
    }

    /// [`scale`](Self::scale) as a grey level, 0 to 255, rounded to nearest.
    pub fn grey(self, hu: Hu) -> u8 {
        (self.scale(hu) * 255.0).round() as u8
    }
}

impl TryFrom<(f32, f32)> for HuWindow {
    type Error = DataError;
    fn try_from((lo, hi): (f32, f32)) -> Result<Self, DataError> {
        Self::new(Hu(lo), Hu(hi))
    }
}

impl From<HuWindow> for (f32, f32) {
    fn from(window: HuWindow) -> Self {
        (window.lo.0, window.hi.0)
    }
}

impl std::str::FromStr for HuWindow {
    type Err = DataError;

    /// Reads `LO:HI`, for example `-1350:150`.
    fn from_str(text: &str) -> Result<Self, DataError> {
        let bound = |part: &str| part.trim().parse().map(Hu).ok();
        match text.split_once(':').map(|(lo, hi)| (bound(lo), bound(hi))) {
            Some((Some(lo), Some(hi))) => Self::new(lo, hi),
            _ => Err(DataError::invalid("HU window", format!("`{text}` is not LO:HI"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(hu: f32, want: u8) {
        assert_eq!(HuWindow::LUNG.grey(Hu(hu)), want, "{hu} HU");
    }

    #[test]
    fn air_outside_the_window_is_black() {
        check(-2000.0, 0);
    }

    #[test]
    fn metal_is_clamped() {
        check(3071.0, 255);
    }

    #[test]
    fn lung_tissue_is_dark_grey() {
        check(-850.0, 85);
    }

    #[test]
    fn a_window_is_read_from_text_or_refused() {
        assert_eq!("-1350:150".parse::<HuWindow>().unwrap(), HuWindow::LUNG);
        for bad in ["", "150", "150:-1350", "nan:1", "a:b"] {
            assert!(bad.parse::<HuWindow>().is_err(), "{bad}");
        }
    }
}
