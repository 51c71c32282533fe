//! The mean loss of an epoch or of a split.

use std::collections::BTreeMap;

use diag_data::run::LossRecord;
use serde::{Deserialize, Serialize};

/// Mean of loss records over slices.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct MeanLoss {
    n_slices: usize,
    total: f64,
    heads: BTreeMap<String, BTreeMap<String, f64>>,
}

impl MeanLoss {
    pub fn add(&mut self, record: &LossRecord, n_slices: usize) {
        self.n_slices += n_slices;
        self.total += record.total * n_slices as f64;
        for (head, parts) in &record.heads {
            let sums = self.heads.entry(head.clone()).or_default();
            for (part, value) in parts {
                *sums.entry(part.clone()).or_default() += value * n_slices as f64;
            }
        }
    }

    /// Adds the slices of another mean.
    pub fn merge(&mut self, other: Self) {
        self.n_slices += other.n_slices;
        self.total += other.total;
        for (head, parts) in other.heads {
            let sums = self.heads.entry(head).or_default();
            for (part, value) in parts {
                *sums.entry(part).or_default() += value;
            }
        }
    }

    pub fn record(mut self) -> LossRecord {
        let n_slices = self.n_slices.max(1) as f64;
        for value in self.heads.values_mut().flat_map(BTreeMap::values_mut) {
            *value /= n_slices;
        }
        LossRecord { total: self.total / n_slices, heads: self.heads }
    }
}
