//! The runs of a sweep in few numbers: mean and spread of every setting, and
//! paired tests against the reference variant.

use std::collections::BTreeMap;
use std::fmt::Write;

use diag_data::results::ResultRow;
use diag_metrics::{PairedTest, holm, paired_test};
use serde::Serialize;

use super::spec::SweepSpec;

/// Level of the intervals.
pub(super) const LEVEL: f64 = 0.95;

/// `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Version of this form.
    pub format_version: u32,
    /// Runs of the sweep that are done.
    pub n_runs: usize,
    /// Names of runs that failed; their messages are in `logs/`.
    pub failed: Vec<String>,
    /// Mean and spread.
    pub settings: Vec<Setting>,
    /// Variants against the reference, paired by seed and fold.
    pub comparisons: Vec<Compared>,
}

/// What is the same for all runs of a comparison.
#[derive(Clone, Debug, PartialEq, PartialOrd, Serialize)]
pub struct Condition {
    /// Ratio of the classes' training cases.
    pub class_ratio: Option<String>,
    /// Share of wrong training labels.
    pub label_noise: f64,
    /// Name of the measure.
    pub measure: String,
}

/// One variant under one condition, over seeds and folds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// The condition.
    #[serde(flatten)]
    pub condition: Condition,
    /// Name of the variant.
    pub variant: String,
    /// Number of runs.
    pub n: usize,
    /// Mean over the runs.
    pub mean: f64,
    /// Standard deviation, n - 1; absent for one run.
    pub deviation: Option<f64>,
    /// Lowest value.
    pub lowest: f64,
    /// Highest value.
    pub highest: f64,
}

/// One variant less the reference under one condition.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// The condition.
    #[serde(flatten)]
    pub condition: Condition,
    /// Name of the variant.
    pub variant: String,
    /// Name of the reference.
    pub reference: String,
    /// Variant less reference, run by run.
    pub difference: PairedTest,
    /// The t test's p value after Holm's adjustment over all comparisons of the measure.
    pub adjusted_p_value: Option<f64>,
}

/// Seed and fold: what runs are paired by.
pub(super) type Pair = (i64, Option<i64>);

pub(super) fn summarise(spec: &SweepSpec, rows: &[ResultRow], n_runs: usize, failed: Vec<String>) -> Summary {
    let wanted = &spec.summary;
    let of_summary = |row: &&ResultRow| wanted.is_about(row);
    let mut conditions: Vec<Condition> = Vec::new();
    let mut values: Vec<BTreeMap<String, BTreeMap<Pair, f64>>> = Vec::new();
    for measure in &wanted.measures {
        for row in rows.iter().filter(of_summary).filter(|row| row.measure == *measure) {
            let condition = Condition {
                class_ratio: row.class_ratio.clone(),
                label_noise: row.label_noise,
                measure: measure.clone(),
            };
            let at = conditions.iter().position(|known| *known == condition).unwrap_or_else(|| {
                conditions.push(condition);
                values.push(BTreeMap::new());
                values.len() - 1
            });
            values[at].entry(row.variant.clone()).or_default().insert((row.seed, row.fold), row.value);
        }
    }
    let (mut settings, mut comparisons) = (Vec::new(), Vec::new());
    for (condition, by_variant) in conditions.iter().zip(&values) {
        for variant in &spec.variants {
            let Some(of_variant) = by_variant.get(&variant.name) else {
                continue;
            };
            settings.push(setting(condition, &variant.name, of_variant));
            let reference = spec.reference();
            let Some(of_reference) = by_variant.get(reference).filter(|_| variant.name != reference) else {
                continue;
            };
            let pairs = of_variant.iter().filter_map(|(pair, value)| Some(value - of_reference.get(pair)?));
            if let Some(difference) = paired_test(&pairs.collect::<Vec<_>>(), LEVEL) {
                comparisons.push(Compared {
                    condition: condition.clone(),
                    variant: variant.name.clone(),
                    reference: reference.to_owned(),
                    difference,
                    adjusted_p_value: None,
                });
            }
        }
    }
    for measure in &wanted.measures {
        let tested = |compared: &Compared| {
            compared.condition.measure == *measure && compared.difference.t_p_value.is_some()
        };
        let p_values: Vec<f64> =
            comparisons.iter().filter(|c| tested(c)).filter_map(|c| c.difference.t_p_value).collect();
        let mut adjusted = holm(&p_values).into_iter();
        for compared in comparisons.iter_mut().filter(|compared| tested(compared)) {
            compared.adjusted_p_value = adjusted.next();
        }
    }
    Summary { format_version: 1, n_runs, failed, settings, comparisons }
}

fn setting(condition: &Condition, variant: &str, values: &BTreeMap<Pair, f64>) -> Setting {
    let (mean, deviation) = mean_and_deviation(values.values().copied());
    let extreme = |pick: fn(f64, f64) -> f64| values.values().copied().reduce(pick).unwrap_or(f64::NAN);
    Setting {
        condition: condition.clone(),
        variant: variant.to_owned(),
        n: values.len(),
        mean,
        deviation,
        lowest: extreme(f64::min),
        highest: extreme(f64::max),
    }
}

/// Mean, and standard deviation (n - 1) of more than one value.
pub(super) fn mean_and_deviation(values: impl Iterator<Item = f64> + Clone) -> (f64, Option<f64>) {
    let n = values.clone().count();
    let mean = values.clone().sum::<f64>() / n as f64;
    let squares: f64 = values.map(|value| (value - mean).powi(2)).sum();
    (mean, (n > 1).then(|| (squares / (n - 1) as f64).sqrt()))
}

impl Summary {
    /// The summary as Markdown tables.
    pub fn markdown(&self) -> String {
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
        let ratio = |condition: &Condition| condition.class_ratio.clone().unwrap_or_else(|| "all".to_owned());
        let mut text = String::from(
            "| measure | class ratio | label noise | variant | runs | mean | sd | lowest | highest |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
        );
        for Setting { condition, variant, n, mean, deviation, lowest, highest } in &self.settings {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "| {} | {} | {} | {variant} | {n} | {mean:.3} | {} | {lowest:.3} | {highest:.3} |",
                condition.measure,
                ratio(condition),
                condition.label_noise,
                number(*deviation),
            );
        }
        if !self.comparisons.is_empty() {
            text += "\n| measure | class ratio | label noise | variant less reference | pairs | difference | \
                     95 % interval | p, t test | p, Holm | p, signs |\n\
                     | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
        }
        for compared in &self.comparisons {
            let Compared { condition, variant, reference, difference, adjusted_p_value } = compared;
            let interval =
                difference.interval.map_or("-".to_owned(), |(low, high)| format!("{low:+.3} to {high:+.3}"));
            let _ = writeln!(
                text,
                "| {} | {} | {} | {variant} - {reference} | {} | {:+.3} | {interval} | {} | {} | {} |",
                condition.measure,
                ratio(condition),
                condition.label_noise,
                difference.n,
                difference.mean,
                number(difference.t_p_value),
                number(*adjusted_p_value),
                number(difference.sign_p_value),
            );
        }
        text
    }
}
