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
mod error;
mod load;
mod numbers;
mod page;
mod pictures;
mod subgroups;

pub use card::Card;
pub use compare::{AgainstFirst, Test};
pub use diag_data::run::RunDir;
pub use error::ReportError;
pub use numbers::{
    CaseResult, ClassCalibration, HeadNumbers, Interval, NamedEstimate, Numbers, RunNumbers, UnitNumbers,
};
pub use subgroups::Subgroup;

use diag_data::case::Split;
use diag_metrics::Bootstrap;

/// What may be chosen about a report.
#[derive(Clone, Debug)]
pub struct Options {
    /// Part of the data that is reported on.
    pub split: Split,
    /// Resampling plan of the intervals.
    pub bootstrap: Bootstrap,
    /// Text supplied by the authors for the reporting checklist.
    pub card: Card,
    /// Bytes that embedded slices may take, all runs together. Worst cases come first.
    pub picture_budget: usize,
}

impl Default for Options {
    /// Test part, 2000 resamples, no supplied text, 10 MiB of pictures.
    fn default() -> Self {
        Self {
            split: Split::Test,
            bootstrap: Bootstrap::default(),
            card: Card::default(),
            picture_budget: 10 << 20,
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
