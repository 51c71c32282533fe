//! From stored values to HU, as the header says (PS3.3 C.11.1): a straight line,
//! or a table. Neither is ever guessed.

use std::sync::Arc;

use super::elements::{DataSet, TagNumber};
use super::tags;
use crate::fault::Fault;

/// How a stored value becomes a CT number.
#[derive(Clone, Debug, PartialEq)]
pub enum Rescale {
    /// HU = `slope * stored + intercept`.
    Linear {
        /// RescaleSlope; finite, not 0.
        slope: f64,
        /// RescaleIntercept; finite.
        intercept: f64,
    },
    /// The entry of a table.
    Table(Arc<ModalityLut>),
}

/// ModalityLUTSequence of type HU. Invariant: 1 to 65,536 entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModalityLut {
    /// The stored value that the first entry belongs to.
    first: i32,
    /// HU by stored value; the standard has them unsigned.
    entries: Vec<u16>,
}

impl Rescale {
    /// CT number of a stored value. Values beyond a table's ends take its end entries.
    pub fn hu(&self, stored: i32) -> f64 {
        match self {
            Self::Linear { slope, intercept } => f64::from(stored) * slope + intercept,
            Self::Table(lut) => {
                let last = lut.entries.len() as i64 - 1;
                let at = (i64::from(stored) - i64::from(lut.first)).clamp(0, last);
                f64::from(lut.entries[at as usize])
            }
        }
    }

    /// Slope and intercept; `None` for a table.
    pub fn line(&self) -> Option<(f64, f64)> {
        match self {
            Self::Linear { slope, intercept } => Some((*slope, *intercept)),
            Self::Table(_) => None,
        }
    }

    /// Reads what `set` says: the image itself, or the functional group of a frame.
    pub(super) fn read(set: Option<&DataSet<'_>>) -> Result<Self, Fault> {
        let number = |name, tag| -> Result<f64, Fault> {
            match set.filter(|set| set.get(tag).is_some()).map(|set| set.numbers(tag)) {
                None => Err(Fault::Rescale { name, why: "is missing" }),
                Some(Some(values)) if values.len() == 1 => Ok(values[0]),
                Some(_) => Err(Fault::Rescale { name, why: "is not a number" }),
            }
        };
        let slope = number("RescaleSlope", tags::RESCALE_SLOPE)?;
        let intercept = number("RescaleIntercept", tags::RESCALE_INTERCEPT)?;
        if slope == 0.0 {
            return Err(Fault::Rescale { name: "RescaleSlope", why: "is 0" });
        }
        Ok(Self::Linear { slope, intercept })
    }
}

impl ModalityLut {
    /// Reads the table of an image; `None` where it has none. `signed` is the
    /// form of the stored values, which the first one of the table shares.
    pub(super) fn read(set: &DataSet<'_>, signed: bool) -> Result<Option<Self>, Fault> {
        const NAME: &str = "ModalityLUTSequence";
        if set.get(tags::MODALITY_LUT_SEQUENCE).is_none() {
            return Ok(None);
        }
        let wrong = |why| Fault::Rescale { name: NAME, why };
        if [tags::RESCALE_SLOPE, tags::RESCALE_INTERCEPT].into_iter().any(|tag| set.get(tag).is_some()) {
            return Err(wrong("stands beside a linear rescale"));
        }
        let items = set.items(tags::MODALITY_LUT_SEQUENCE)?;
        let [item] = items.as_slice() else {
            return Err(wrong("does not hold one table"));
        };
        if item.text(tags::MODALITY_LUT_TYPE).as_deref() != Some("HU") {
            return Err(wrong("is not of type HU"));
        }
        let words = |tag: TagNumber| -> Option<Vec<u16>> {
            Some(item.numbers(tag)?.into_iter().map(|number| number as i32 as u16).collect())
        };
        let descriptor = words(tags::LUT_DESCRIPTOR).unwrap_or_default();
        let [n_entries, first, n_bits] = descriptor[..] else {
            return Err(wrong("has no descriptor of three numbers"));
        };
        // 0 stands for 65,536, which 16 bits cannot hold (PS3.3 C.11.1.1.1).
        let n_entries = if n_entries == 0 { 65_536 } else { usize::from(n_entries) };
        let first = if signed { i32::from(first as i16) } else { i32::from(first) };
        let entries = words(tags::LUT_DATA).unwrap_or_default();
        let largest = 1u32.checked_shl(u32::from(n_bits)).unwrap_or(0).saturating_sub(1);
        match n_bits {
            8..=16 if entries.len() != n_entries => Err(wrong("has another number of entries than it says")),
            8..=16 if entries.iter().any(|entry| u32::from(*entry) > largest) => {
                Err(wrong("has entries of more bits than it says"))
            }
            8..=16 => Ok(Some(Self { first, entries })),
            _ => Err(wrong("has entries of neither 8 to 16 bits")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_beyond_a_table_take_its_end_entries() {
        let table = Rescale::Table(Arc::new(ModalityLut { first: -2, entries: vec![10, 20, 30] }));
        assert_eq!(
            [-9, -2, -1, 0, 1, 9].map(|stored| table.hu(stored)),
            [10.0, 10.0, 20.0, 30.0, 30.0, 30.0]
        );
    }
}
