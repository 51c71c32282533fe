//! The marker segments before the coded data (T.87 annex C).

use super::wrong;
use crate::fault::Fault;

/// Parameters of the one scan.
pub struct Scan<'a> {
    /// Largest sample.
    pub max_value: i32,
    /// Largest error of a sample; 0 for none.
    pub near: i32,
    /// Where the regions of gradients begin.
    pub thresholds: [i32; 3],
    /// After how many errors the statistics are halved.
    pub reset: i32,
    /// The coded data.
    pub data: &'a [u8],
}

impl<'a> Scan<'a> {
    /// Reads the segments up to the coded data.
    ///
    /// # Errors
    /// [`Fault::Pixels`] for what is no plain scan of one component.
    pub fn read(stream: &'a [u8]) -> Result<Self, Fault> {
        let short = || wrong("ends in its header");
        let byte = |at: usize| stream.get(at).copied().map(i32::from).ok_or_else(short);
        let word = |at: usize| Ok::<i32, Fault>(byte(at)? << 8 | byte(at + 1)?);
        let mut at = 2;
        let (mut max_value, mut preset) = (None, None);
        loop {
            while byte(at)? == 0xFF {
                at += 1;
            }
            let (marker, length) = (byte(at)?, word(at + 1)?);
            match marker {
                // Frame header.
                0xF7 => {
                    let precision = byte(at + 3)?;
                    if !(2..=16).contains(&precision) {
                        return Err(wrong("has an impossible precision"));
                    }
                    max_value = Some((1 << precision) - 1);
                }
                // Preset parameters; mapping tables and oversize images do not occur in CT.
                0xF8 if byte(at + 3)? == 1 => {
                    let part = |i: usize| word(at + 4 + 2 * i);
                    preset = Some([part(0)?, part(1)?, part(2)?, part(3)?, part(4)?]);
                }
                0xF8 => return Err(wrong("has a mapping table")),
                0xDD if word(at + 3)? != 0 => return Err(wrong("has restart intervals")),
                0xDA => {
                    if byte(at + 3)? != 1 || byte(at + 7)? != 0 || byte(at + 8)? & 0x0F != 0 {
                        return Err(wrong("is not one plain component"));
                    }
                    let near = byte(at + 6)?;
                    let max_value = max_value.ok_or_else(|| wrong("has no frame header"))?;
                    // The length is the stream's word, not a fact.
                    let data = stream.get(at + 1 + length as usize..).ok_or_else(short)?;
                    return Self::checked(max_value, near, preset, data);
                }
                _ => {}
            }
            at += 1 + length as usize;
        }
    }

    fn checked(max_value: i32, near: i32, preset: Option<[i32; 5]>, data: &'a [u8]) -> Result<Self, Fault> {
        let of_preset = |i: usize| preset.map(|preset| preset[i]).filter(|value| *value != 0);
        let max_value = of_preset(0).unwrap_or(max_value);
        if near > 255.min(max_value / 2) {
            return Err(wrong("has an impossible error bound"));
        }
        let defaults = default_thresholds(max_value, near);
        let thresholds: [i32; 3] = std::array::from_fn(|i| of_preset(i + 1).unwrap_or(defaults[i]));
        let [t1, t2, t3] = thresholds;
        let reset = of_preset(4).unwrap_or(64);
        if !(near < t1
            && t1 <= t2
            && t2 <= t3
            && t3 <= max_value
            && (3..=max_value.max(255)).contains(&reset))
        {
            return Err(wrong("has impossible parameters"));
        }
        Ok(Self { max_value, near, thresholds, reset, data })
    }
}

/// Defaults of C.2.4.1.1.
fn default_thresholds(max_value: i32, near: i32) -> [i32; 3] {
    let clamp = |value: i32, low: i32| if value > max_value || value < low { low } else { value };
    let raw = if max_value >= 128 {
        let factor = (max_value.min(4095) + 128) / 256;
        [factor + 2 + 3 * near, 4 * factor + 3 + 5 * near, 17 * factor + 4 + 7 * near]
    } else {
        let factor = 256 / (max_value + 1);
        [2.max(3 / factor + 3 * near), 3.max(7 / factor + 5 * near), 4.max(21 / factor + 7 * near)]
    };
    let t1 = clamp(raw[0], near + 1);
    let t2 = clamp(raw[1], t1);
    [t1, t2, clamp(raw[2], t2)]
}
