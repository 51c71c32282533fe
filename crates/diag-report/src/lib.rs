//! Run folders to one offline HTML file.
//!
//! **In:** run folders as `diag-train` leaves them (`run.json`, `epochs.jsonl`,
//! `predictions.parquet`, `plan.toml`) and, where they can be found, the slice
//! shards behind them. **Out:** one HTML document without any outside reference
//! ([`render`]), and the same numbers as data ([`compute`]).
//!
//! **Not known here:** tensors, DICOM, and how a probability was made. The page
//! shows nothing that the run folder or the shards do not hold; what is missing
//! is called missing. Equal input gives equal bytes.

mod card;
mod chart;
mod compare;
mod csv_tables;
mod decision;
mod error;
mod evidence;
mod explanations;
mod load;
mod numbers;
mod page;
mod pictures;
mod subgroups;

pub use card::Card;
pub use compare::{AgainstFirst, Test};
pub use csv_tables::csv_tables;
pub use decision::OperatingPoint;
pub use diag_data::run::RunDir;
pub use error::ReportError;
pub use evidence::{Leakage, Link, LinkState};
pub use explanations::{ExplanationNumbers, MapNumbers, Mean};
pub use numbers::{
    CalibrationBin, CaseResult, ClassCalibration, HeadNumbers, NamedEstimate, Numbers, RunNumbers,
    UnitNumbers,
};
pub use subgroups::Subgroup;

use diag_data::case::Split;
pub use diag_metrics::IntervalKind;
use diag_metrics::{Bootstrap, IntervalMethod};

/// What may be chosen about a report.
#[derive(Clone, Debug)]
pub struct Options {
    /// Part of the data that is reported on.
    pub split: Split,
    /// Bootstrap samples behind the 95 % intervals, at least 100.
    pub n_resamples: usize,
    /// Seed of the bootstrap.
    pub seed: u64,
    /// Text supplied by the authors for the reporting checklist.
    pub card: Card,
    /// Bytes that embedded slices may take, all runs together. Worst cases come first.
    pub picture_budget: usize,
}

impl Options {
    /// Level and method are fixed, because the page states them in words.
    fn bootstrap(&self) -> Bootstrap {
        Bootstrap {
            n_resamples: self.n_resamples,
            level: 0.95,
            seed: self.seed,
            method: IntervalMethod::Percentile,
        }
    }
}

impl Default for Options {
    /// Test part, 2000 resamples, no supplied text, 9 MiB of pictures.
    fn default() -> Self {
        Self {
            split: Split::Test,
            n_resamples: Bootstrap::default().n_resamples,
            seed: 0,
            card: Card::default(),
            picture_budget: 9 << 20,
        }
    }
}

/// Makes the page.
///
/// # Errors
/// When no run is given, a run folder lacks a file, or it has no predictions for
/// the part reported on. Missing shards are no error: the page says so.
pub fn render(runs: &[RunDir], options: &Options) -> Result<String, ReportError> {
    render_with_numbers(runs, options).map(|(page, _)| page)
}

/// Makes the page and returns the numbers on it, computed once.
///
/// # Errors
/// As [`render`].
pub fn render_with_numbers(runs: &[RunDir], options: &Options) -> Result<(String, Numbers), ReportError> {
    let runs = load::load_all(runs, options.split)?;
    let numbers = numbers::measure_all(&runs, options)?;
    let page = page::document(&runs, &numbers, options)?;
    Ok((page, numbers))
}

/// Computes the numbers of the page without the page.
///
/// # Errors
/// As [`render`].
pub fn compute(runs: &[RunDir], options: &Options) -> Result<Numbers, ReportError> {
    numbers::measure_all(&load::load_all(runs, options.split)?, options)
}
