//! Two vendors and their habits: kernels, grain, rescale, padding, header words.

use crate::seed;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Maker of the scanner that a case imitates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vendor {
    /// `SIEMENS`: unsigned pixels; kernels B31f and B70f.
    Siemens,
    /// `GE MEDICAL SYSTEMS`: signed pixels, padding -2000 outside the circle; STANDARD and LUNG.
    Ge,
}

impl Vendor {
    /// Value of Manufacturer (0008,0070).
    pub fn manufacturer(self) -> &'static str {
        match self {
            Self::Siemens => "SIEMENS",
            Self::Ge => "GE MEDICAL SYSTEMS",
        }
    }
}

/// Reconstruction kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    B31f,
    B70f,
    Standard,
    Lung,
}

impl Kernel {
    pub(crate) const ALL: [Self; 4] = [Self::B31f, Self::B70f, Self::Standard, Self::Lung];

    /// Value of ConvolutionKernel (0018,1210).
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::B31f => "B31f",
            Self::B70f => "B70f",
            Self::Standard => "STANDARD",
            Self::Lung => "LUNG",
        }
    }

    pub(crate) fn grain_sigma_px(self) -> f32 {
        match self {
            Self::B31f => 1.15,
            Self::B70f => 0.62,
            Self::Standard => 0.95,
            Self::Lung => 0.55,
        }
    }

    /// Standard deviation of the noise in HU inside a 300 mm body.
    pub(crate) fn noise_hu(self) -> f32 {
        match self {
            Self::B31f => 11.0,
            Self::B70f => 38.0,
            Self::Standard => 14.0,
            Self::Lung => 44.0,
        }
    }

    /// Width of the edge response (0 to 100 %), in pixels.
    pub(crate) fn edge_px(self) -> f32 {
        match self {
            Self::B31f => 2.6,
            Self::Standard => 2.2,
            Self::B70f | Self::Lung => 1.5,
        }
    }

    /// Strength of the edge overshoot that a sharp kernel makes.
    pub(crate) fn overshoot(self) -> f32 {
        match self {
            Self::B31f => 0.0,
            Self::Standard => 0.12,
            Self::B70f => 0.38,
            Self::Lung => 0.45,
        }
    }
}

/// How one series was "acquired": everything the header and the grain need.
#[derive(Clone, Debug)]
pub(crate) struct Scanner {
    pub vendor: Vendor,
    pub model: &'static str,
    pub kernel: Kernel,
    pub kvp: u32,
    pub tube_current_ma: u32,
    /// HU = stored + intercept; the slope is 1.
    pub intercept: i32,
    pub signed: bool,
    pub bits_stored: u16,
    /// Stored value of pixels outside the reconstruction circle, where the vendor marks them.
    pub padding: Option<i32>,
    /// Whether InstanceNumber counts from the apex down.
    pub from_apex: bool,
}

impl Scanner {
    pub(crate) fn draw(vendor: Vendor, rng: &mut ChaCha8Rng) -> Self {
        let sharp = seed::chance(rng, 0.5);
        let from_apex = seed::chance(rng, 0.6);
        let tube_current_ma = rng.random_range(90..320);
        let wide = seed::chance(rng, 0.2);
        match vendor {
            // Newer software stores an extended range with intercept -8192 and marks the corners.
            Vendor::Siemens => Self {
                vendor,
                model: if wide { "SOMATOM Force" } else { "Sensation 64" },
                kernel: if sharp { Kernel::B70f } else { Kernel::B31f },
                kvp: if seed::chance(rng, 0.3) { 100 } else { 120 },
                tube_current_ma,
                intercept: if wide { -8192 } else { -1024 },
                signed: false,
                bits_stored: if wide { 16 } else { 12 },
                padding: wide.then_some(0),
                from_apex,
            },
            Vendor::Ge => Self {
                vendor,
                model: if wide { "Revolution CT" } else { "LightSpeed VCT" },
                kernel: if sharp { Kernel::Lung } else { Kernel::Standard },
                kvp: if seed::chance(rng, 0.2) { 140 } else { 120 },
                tube_current_ma,
                intercept: if wide { 0 } else { -1024 },
                signed: true,
                bits_stored: 16,
                padding: Some(-2000),
                from_apex,
            },
        }
    }

    /// Stored value of a HU, clamped to what the bits hold.
    pub(crate) fn store(&self, hu: f32) -> i32 {
        let stored = hu.round() as i32 - self.intercept;
        match (self.signed, self.bits_stored) {
            (false, bits) => stored.clamp(0, (1 << bits) - 1),
            (true, bits) => stored.clamp(-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
        }
    }
}
