//! Audits of a run: labels that look wrong, attributes that its features encode, and what a
//! classifier gets that never looks at the lung.
//!
//! The third audit, how much leakage between slices inflates a result, is a sweep
//! of two variants: see [`leakage`].

mod noise;
mod probe;
mod run;
mod shortcut;
mod trivial;

use std::path::Path;

use crate::sweep::{SummarySpec, SweepSpec, Variant};
pub use noise::{NoiseAudit, SuspectSlice, label_noise};
pub use run::AuditJob;
pub use shortcut::{Attribute, ShortcutAudit, shortcut};
pub use trivial::trivial;

/// The sweep that measures leakage: the recipe with cases kept whole, and with
/// slices assigned one by one, so that slices of a test case are trained on. How much
/// better the latter looks on its test slices is the inflation.
pub fn leakage(shards: &Path, recipe: &Path, seeds: Vec<u64>) -> SweepSpec {
    let by_slice = toml::Table::from_iter([("split_by".to_owned(), toml::Value::from("slice"))]);
    let set = toml::Table::from_iter([("data".to_owned(), toml::Value::Table(by_slice))]);
    SweepSpec {
        recipe: recipe.into(),
        shards: shards.into(),
        processes: None,
        seeds,
        folds: None,
        class_ratios: Vec::new(),
        label_noise: Vec::new(),
        settings: Vec::new(),
        variants: vec![
            Variant { name: "split-by-case".to_owned(), set: toml::Table::new(), corrected: None },
            Variant { name: "split-by-slice".to_owned(), set, corrected: None },
        ],
        reference: None,
        summary: SummarySpec {
            unit: "slice".to_owned(),
            measures: ["accuracy", "balanced_accuracy", "macro_f1", "macro_auroc"]
                .map(str::to_owned)
                .to_vec(),
            ..SummarySpec::default()
        },
    }
}
