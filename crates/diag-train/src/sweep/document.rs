//! Tables of a Markdown document, made from the `results.csv` of sweeps.
//!
//! A table stands between two markers, with the file seen from the document's folder:
//!
//! ```text
//! <!-- table: means experiments/imbalance.csv balanced_accuracy -->
//! <!-- end of table -->
//! ```
//!
//! | marker | makes |
//! | --- | --- |
//! | `means FILE MEASURE` | variants by settings: mean, deviation, number of runs |
//! | `gains FILE MEASURE VARIANT` | that variant less each other one, paired by seed and fold |
//! | `runs FILE MEASURE...` | run by run, with the bounds that the file holds, and means |
//! | `contrasts FOLDER SPLIT VARIANT SEEDS OTHER...` | that variant less the others in every setting: balanced accuracy, simultaneous intervals over seeds and patients |
//! | `pair FOLDER SPLIT VARIANT SEEDS OTHER` | the same of two variants, mean over the settings |
//! | `interaction FOLDER SPLIT SEEDS A B C D` | what A gains over B less what C gains over D |
//! | `ranking FOLDER SPLIT SEEDS VARIANT...` | balanced accuracy, mean over the settings, and which one is chosen |
//! | `power FOLDER SPLIT VARIANT SEEDS OTHER...` | test patients and seeds that make a difference visible |
//!
//! FOLDER holds `calls.csv` and `cases.csv`; tables from it are not made before all SEEDS are
//! finished.

use std::collections::BTreeMap;
use std::path::Path;

use diag_data::files;
use diag_data::results::ResultRow;
use diag_metrics::{holm, paired_test};

use super::contrasts;
use super::markdown::{index_or_push, line, setting_titles};
use super::summary::{LEVEL, Pair, mean_and_deviation};
use crate::error::TrainError;

const BEGIN: &str = "<!-- table: ";
const END: &str = "<!-- end of table -->";

/// Adjusted p values below this get a star.
const SIGNIFICANT: f64 = 0.05;

/// The document with every marked table made anew.
///
/// # Errors
/// A document or table file that cannot be read, a marker without an end, of an unknown
/// kind, or of a measure or variant that the file lacks.
pub fn fill_tables(document: &Path) -> Result<String, TrainError> {
    let text = String::from_utf8_lossy(&files::read(document)?).into_owned();
    let folder = document.parent().unwrap_or(Path::new(""));
    let mut filled = String::with_capacity(text.len());
    let mut lines = text.lines().enumerate();
    while let Some((i, line)) = lines.next() {
        filled += line;
        filled.push('\n');
        let Some(marker) = line.trim().strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix("-->")) else {
            continue;
        };
        let bad = |reason: String| TrainError::Document { file: document.into(), line: i + 1, reason };
        let words: Vec<&str> = marker.split_whitespace().collect();
        let [kind, file, rest @ ..] = words.as_slice() else {
            return Err(bad("a marker names a kind of table and a file".to_owned()));
        };
        let path = folder.join(file);
        let table = match *kind {
            "contrasts" => contrasts::contrasts(&path, rest)?,
            "pair" => contrasts::pair(&path, rest)?,
            "interaction" => contrasts::interaction(&path, rest)?,
            "ranking" => contrasts::ranking(&path, rest)?,
            "power" => contrasts::power(&path, rest)?,
            _ => of_results(&files::read_csv(&path)?, kind, rest)
                .unwrap_or_else(|| Err(format!("`{}` is no table", marker.trim()))),
        };
        filled += &table.map_err(bad)?;
        filled += END;
        filled.push('\n');
        if !lines.by_ref().any(|(_, line)| line.trim() == END) {
            return Err(bad(format!("`{END}` is missing")));
        }
    }
    Ok(filled)
}

/// A table of `results.csv`; `None` for a kind that is not known.
fn of_results(rows: &[ResultRow], kind: &str, rest: &[&str]) -> Option<Result<String, String>> {
    Some(match (kind, rest) {
        ("means" | "gains" | "runs", _) if rows.is_empty() => Ok("No run is finished yet.\n".to_owned()),
        ("means", [measure]) => Grid::new(rows, measure).map(|grid| grid.means()),
        ("gains", [measure, variant]) => Grid::new(rows, measure).and_then(|grid| grid.gains(variant)),
        ("runs", [_, ..]) => runs(rows, rest),
        _ => return None,
    })
}

/// One measure of all runs of a sweep, by variant and setting.
struct Grid {
    variants: Vec<String>,
    settings: Vec<(Option<String>, f64)>,
    /// By place of variant and setting.
    values: BTreeMap<(usize, usize), BTreeMap<Pair, f64>>,
}

impl Grid {
    fn new(rows: &[ResultRow], measure: &str) -> Result<Self, String> {
        let mut grid = Self { variants: Vec::new(), settings: Vec::new(), values: BTreeMap::new() };
        for row in rows.iter().filter(|row| row.measure == measure) {
            let variant = index_or_push(&mut grid.variants, row.variant.clone());
            let setting = index_or_push(&mut grid.settings, (row.class_ratio.clone(), row.label_noise));
            grid.values.entry((variant, setting)).or_default().insert((row.seed, row.fold), row.value);
        }
        if grid.values.is_empty() { Err(format!("the file has no `{measure}`")) } else { Ok(grid) }
    }

    /// Title line and rule of a table with a column a setting.
    fn head(&self, first: &str, last: Option<&str>) -> String {
        setting_titles(&self.settings, first, last)
    }

    fn means(&self) -> String {
        let mut text = self.head("loss", None);
        for (v, variant) in self.variants.iter().enumerate() {
            let cells = (0..self.settings.len()).map(|s| {
                self.values.get(&(v, s)).map_or("-".to_owned(), |values| {
                    format!("{} ({})", mean_text(values.values().copied()), values.len())
                })
            });
            text += &line(variant, cells);
        }
        text
    }

    fn gains(&self, of: &str) -> Result<String, String> {
        let own = self.variants.iter().position(|variant| variant == of);
        let own = own.ok_or_else(|| format!("the file has no variant `{of}`"))?;
        let others: Vec<usize> = (0..self.variants.len()).filter(|&v| v != own).collect();
        let mut tests = Vec::new();
        for &other in &others {
            for s in 0..self.settings.len() {
                let differences: Vec<f64> = self.differences(own, other, s).into_values().collect();
                tests.push(paired_test(&differences, LEVEL));
            }
        }
        let p_values: Vec<f64> = tests.iter().filter_map(|test| test.as_ref()?.t_p_value).collect();
        let mut adjusted = holm(&p_values).into_iter();
        let mut cells = tests.iter().map(|test| {
            let Some(test) = test else { return "-".to_owned() };
            let p_value = test.t_p_value.and_then(|_| adjusted.next());
            let star = if p_value.is_some_and(|p| p < SIGNIFICANT) { " *" } else { "" };
            format!("{} ({}){star}", gain_text(test.mean, test.interval), test.n)
        });
        let mut text = self.head(&format!("{of} less"), Some("mean over the settings"));
        for &other in &others {
            let mut cells: Vec<String> = cells.by_ref().take(self.settings.len()).collect();
            let overall = paired_test(&self.mean_differences(own, other), LEVEL);
            cells.push(overall.map_or("-".to_owned(), |test| {
                format!("{} ({})", gain_text(test.mean, test.interval), test.n)
            }));
            text += &line(&self.variants[other], cells);
        }
        Ok(text)
    }

    fn differences(&self, own: usize, other: usize, setting: usize) -> BTreeMap<Pair, f64> {
        let of = |variant| self.values.get(&(variant, setting));
        let (Some(own), Some(other)) = (of(own), of(other)) else {
            return BTreeMap::new();
        };
        own.iter().filter_map(|(pair, value)| Some((*pair, value - other.get(pair)?))).collect()
    }

    /// Mean over the settings of each seed's differences, of the seeds that have them all:
    /// runs of one seed share cases and start, so that they are not counted as several.
    fn mean_differences(&self, own: usize, other: usize) -> Vec<f64> {
        let mut by_pair: BTreeMap<Pair, Vec<f64>> = BTreeMap::new();
        for setting in 0..self.settings.len() {
            for (pair, difference) in self.differences(own, other, setting) {
                by_pair.entry(pair).or_default().push(difference);
            }
        }
        let n_settings = self.settings.len();
        by_pair.retain(|_, differences| differences.len() == n_settings);
        by_pair.values().map(|differences| differences.iter().sum::<f64>() / n_settings as f64).collect()
    }
}

/// Run by run, variant after variant.
fn runs(rows: &[ResultRow], measures: &[&str]) -> Result<String, String> {
    let mut by_run: BTreeMap<&str, BTreeMap<&str, f64>> = BTreeMap::new();
    let (mut variants, mut order) = (Vec::new(), Vec::new());
    for row in rows {
        index_or_push(&mut variants, row.variant.as_str());
        index_or_push(&mut order, (row.variant.as_str(), row.run.as_str(), row.seed, row.best_epoch));
        by_run.entry(&row.run).or_default().insert(&row.measure, row.value);
    }
    let mut text = format!("| variant | seed | epoch kept | {} |\n", measures.join(" | "));
    text += &format!("| --- | --- | --- |{}\n", " --- |".repeat(measures.len()));
    for variant in variants {
        let of_variant: Vec<_> = order.iter().filter(|(name, ..)| *name == variant).collect();
        for (_, run, seed, epoch) in &of_variant {
            let values = &by_run[run];
            let mut cells = vec![seed.to_string(), epoch.to_string()];
            for measure in measures {
                let value = values.get(measure).ok_or_else(|| format!("{run} has no `{measure}`"))?;
                let bound = |end: &str| values.get(format!("{measure}:{end}").as_str());
                let interval = match (bound("low"), bound("high")) {
                    (Some(low), Some(high)) => format!(" ({low:.3} to {high:.3})"),
                    _ => String::new(),
                };
                cells.push(format!("{value:.3}{interval}"));
            }
            text += &line(variant, cells);
        }
        let of_measure = |measure: &&str| {
            mean_text(of_variant.iter().filter_map(|(_, run, ..)| by_run[run].get(measure).copied()))
        };
        let means: Vec<String> = measures.iter().map(of_measure).collect();
        text += &line(variant, ["mean".to_owned(), "-".to_owned()].into_iter().chain(means));
    }
    Ok(text)
}

fn mean_text(values: impl Iterator<Item = f64> + Clone) -> String {
    let (mean, deviation) = mean_and_deviation(values);
    deviation.map_or(format!("{mean:.3}"), |deviation| format!("{mean:.3} ± {deviation:.3}"))
}

fn gain_text(mean: f64, interval: Option<(f64, f64)>) -> String {
    interval.map_or(format!("{mean:+.3}"), |(low, high)| format!("{mean:+.3}, {low:+.3} to {high:+.3}"))
}
