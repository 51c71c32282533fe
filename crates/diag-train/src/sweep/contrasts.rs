//! Tables of differences of balanced accuracy whose error is of seeds and of patients, from the
//! `calls.csv` and `cases.csv` of a sweep.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use diag_data::calls::{self, CallRow, CalledCase};
use diag_data::files;
use diag_metrics::{CrossedDifference, CrossedPlan, CrossedRuns, crossed_bootstrap, patients_needed};

use super::markdown::{index_or_push, line, setting_titles};
use crate::error::TrainError;

type Setting = (Option<String>, f64);

/// Predicted classes of some variants on one split, of the seeds that all of them have under all
/// settings.
struct Study {
    variants: Vec<String>,
    settings: Vec<Setting>,
    seeds: Vec<i64>,
    runs: CrossedRuns,
}

/// What a table says before all seeds are finished: no number, so that nobody stops or goes on
/// because of one.
fn unfinished(n: usize, wanted: usize) -> String {
    format!("{n} of {wanted} seeds are finished; this table is made when all are.\n")
}

/// `contrasts FOLDER SPLIT VARIANT SEEDS OTHER...`: the variant less each other one in every
/// setting, with simultaneous intervals over the whole table.
pub(super) fn contrasts(folder: &Path, words: &[&str]) -> Result<Result<String, String>, TrainError> {
    let [split, own, n_seeds, others @ ..] = words else {
        return Ok(Err("contrasts needs a folder, a split, a variant, a number of seeds, others".to_owned()));
    };
    with_study(folder, split, n_seeds, [&[*own], others].concat(), |study| {
        let found = study.bootstrap(&study.all_against_first())?;
        let mut text = setting_titles(&study.settings, &format!("{own} less"), None);
        for (row, other) in found.chunks(study.settings.len()).zip(others) {
            text += &line(other, row.iter().map(difference_text));
        }
        Ok(text)
    })
}

/// `pair FOLDER SPLIT VARIANT SEEDS OTHER`: the variant less the other one, mean over the
/// settings, with an interval by itself.
pub(super) fn pair(folder: &Path, words: &[&str]) -> Result<Result<String, String>, TrainError> {
    let [split, own, n_seeds, other] = words else {
        return Ok(Err("pair needs a folder, a split, a variant, a number of seeds, another".to_owned()));
    };
    with_study(folder, split, n_seeds, vec![own, other], |study| {
        let found = study.bootstrap(&[study.mean_contrast(0, 1)])?;
        let mut text =
            "| mean over the settings | difference | SE | 95 % interval | by seeds | by patients |\n\
                        | --- | --- | --- | --- | --- | --- |\n"
                .to_owned();
        for one in found {
            let (low, high) = one.interval;
            let cells = [
                format!("{:+.4}", one.difference),
                format!("{:.4}", one.standard_error),
                format!("{low:+.4} to {high:+.4}"),
                format!("{:.4}", one.seed_error),
                format!("{:.4}", one.patient_error),
            ];
            text += &line(&format!("{own} less {other}"), cells);
        }
        Ok(text)
    })
}

/// `interaction FOLDER SPLIT SEEDS A B C D`: what A gains over B less what C gains over D, in every
/// setting, with simultaneous intervals.
pub(super) fn interaction(folder: &Path, words: &[&str]) -> Result<Result<String, String>, TrainError> {
    let [split, n_seeds, variants @ ..] = words else {
        return Ok(Err("interaction needs a folder, a split, a number of seeds, four variants".to_owned()));
    };
    let [a, b, c, d] = variants else {
        return Ok(Err("interaction is of four variants".to_owned()));
    };
    with_study(folder, split, n_seeds, variants.to_vec(), |study| {
        let weights = [(0, 1.0), (1, -1.0), (2, -1.0), (3, 1.0)];
        let of_setting = |s: usize| weights.map(|(v, weight)| (study.series(v, s), weight)).to_vec();
        let found = study.bootstrap(&(0..study.settings.len()).map(of_setting).collect::<Vec<_>>())?;
        let mut text = setting_titles(&study.settings, "interaction", None);
        text += &line(&format!("({a} less {b}) less ({c} less {d})"), found.iter().map(difference_text));
        Ok(text)
    })
}

/// `power FOLDER SPLIT VARIANT SEEDS OTHER...`: how many test patients make a difference visible,
/// from the scatter by seeds and by patients of the variant less the others (the median over
/// them and the settings).
pub(super) fn power(folder: &Path, words: &[&str]) -> Result<Result<String, String>, TrainError> {
    let [split, own, n_seeds, others @ ..] = words else {
        return Ok(Err("power needs a folder, a split, a variant, a number of seeds, others".to_owned()));
    };
    with_study(folder, split, n_seeds, [&[*own], others].concat(), |study| {
        let found = study.bootstrap(&study.all_against_first())?;
        let n_patients = study.runs.patient_n.iter().max().map_or(0, |max| max + 1);
        let median = |value: fn(&CrossedDifference) -> f64, n: usize| {
            let mut values: Vec<f64> = found.iter().map(|one| value(one) * (n as f64).sqrt()).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let seed_sd = median(|one| one.seed_error, study.seeds.len());
        let patient_sd = median(|one| one.patient_error, n_patients);
        let mut text = format!(
            "| seeds (deviation {seed_sd:.3} by seed, {patient_sd:.3} by patient) | 0.02 | 0.05 | 0.10 |\n"
        );
        text += "| --- | --- | --- | --- |\n";
        for n_seeds in [3, 5, 10, 20, 40] {
            let cells = [0.02, 0.05, 0.1].map(|difference| {
                let needed = patients_needed(seed_sd, patient_sd, n_seeds, difference);
                needed.map_or("no number".to_owned(), |n| n.to_string())
            });
            text += &line(&n_seeds.to_string(), cells);
        }
        Ok(text)
    })
}

/// A difference between its simultaneous bounds, with a star where zero lies outside.
fn difference_text(one: &CrossedDifference) -> String {
    let CrossedDifference { difference, simultaneous: (low, high), .. } = one;
    let star = if low * high > 0.0 { " *" } else { "" };
    format!("{difference:+.3}, {low:+.3} to {high:+.3}{star}")
}

/// `ranking FOLDER SPLIT SEEDS VARIANT...`, simplest first: balanced accuracy of each, mean over
/// the settings, what it is below the best one, and which one is chosen: the first that is at
/// most one standard error of the difference below.
pub(super) fn ranking(folder: &Path, words: &[&str]) -> Result<Result<String, String>, TrainError> {
    let [split, n_seeds, variants @ ..] = words else {
        return Ok(Err("ranking needs a folder, a split, a number of seeds, variants".to_owned()));
    };
    with_study(folder, split, n_seeds, variants.to_vec(), |study| {
        let n_settings = study.settings.len() as f64;
        let alone = |v: usize| -> Vec<(usize, f64)> {
            (0..study.settings.len()).map(|s| (study.series(v, s), 1.0 / n_settings)).collect()
        };
        let n = study.variants.len();
        let means = study.bootstrap(&(0..n).map(alone).collect::<Vec<_>>())?;
        let best =
            (0..n).fold(0, |best, v| if means[v].difference > means[best].difference { v } else { best });
        let below = study.bootstrap(&(0..n).map(|v| study.mean_contrast(best, v)).collect::<Vec<_>>())?;
        let chosen = below.iter().position(|one| one.difference <= one.standard_error).unwrap_or(best);
        let mut text = "| method | balanced accuracy | SE | below the best | SE of that | |\n\
                        | --- | --- | --- | --- | --- | --- |\n"
            .to_owned();
        for (v, variant) in study.variants.iter().enumerate() {
            let mark = if v == chosen {
                "chosen"
            } else if v == best {
                "best"
            } else {
                ""
            };
            let cells = [
                format!("{:.3}", means[v].difference),
                format!("{:.4}", means[v].standard_error),
                format!("{:.4}", below[v].difference),
                format!("{:.4}", below[v].standard_error),
                mark.to_owned(),
            ];
            text += &line(variant, cells);
        }
        Ok(text)
    })
}

/// Reads a study and makes its table when all seeds are there.
fn with_study(
    folder: &Path,
    split: &str,
    n_seeds: &str,
    variants: Vec<&str>,
    table: impl FnOnce(&Study) -> Result<String, String>,
) -> Result<Result<String, String>, TrainError> {
    let rows: Vec<CallRow> = files::read_csv(&folder.join("calls.csv"))?;
    let cases: Vec<CalledCase> = files::read_csv(&folder.join("cases.csv"))?;
    let Ok(wanted) = n_seeds.parse::<usize>() else {
        return Ok(Err(format!("`{n_seeds}` is no number of seeds")));
    };
    Ok(Study::new(&rows, &cases, split, &variants).and_then(|study| {
        if study.seeds.len() < wanted { Ok(unfinished(study.seeds.len(), wanted)) } else { table(&study) }
    }))
}

impl Study {
    fn new(rows: &[CallRow], cases: &[CalledCase], split: &str, variants: &[&str]) -> Result<Self, String> {
        let cases: Vec<&CalledCase> = cases.iter().filter(|case| case.split == split).collect();
        let mut settings: Vec<Setting> = Vec::new();
        let mut calls: BTreeMap<(usize, usize, i64), &str> = BTreeMap::new();
        for row in rows.iter().filter(|row| row.split == split) {
            let setting = index_or_push(&mut settings, (row.class_ratio.clone(), row.label_noise));
            for (v, _) in variants.iter().enumerate().filter(|(_, name)| **name == row.variant) {
                calls.insert((v, setting, row.seed), &row.calls);
            }
        }
        let mut seeds: BTreeSet<i64> = calls.keys().map(|(.., seed)| *seed).collect();
        let all = |seed: &i64| {
            (0..variants.len()).all(|v| (0..settings.len()).all(|s| calls.contains_key(&(v, s, *seed))))
        };
        seeds.retain(all);
        let class_n: Vec<usize> = cases.iter().map(|case| usize::from(case.label)).collect();
        let mut right_srn = Vec::new();
        for v in 0..variants.len() {
            for s in 0..settings.len() {
                let mut right_rn = Vec::new();
                for &seed in &seeds {
                    let called = calls::decode(calls[&(v, s, seed)]).filter(|c| c.len() == cases.len());
                    let called = called
                        .ok_or_else(|| format!("the calls of {}, seed {seed}, are damaged", variants[v]))?;
                    let right = called.iter().zip(&class_n).map(|(call, class)| call.index() == *class);
                    right_rn.push(right.collect());
                }
                right_srn.push(right_rn);
            }
        }
        let patients: Option<Vec<usize>> = cases.iter().map(|case| case.patient).collect();
        // Where a patient is not known every case counts as one.
        let patient_n = patients.unwrap_or_else(|| (0..cases.len()).collect());
        let variants = variants.iter().map(|variant| (*variant).to_owned()).collect();
        let runs = CrossedRuns { class_n, patient_n, right_srn };
        Ok(Self { variants, settings, seeds: seeds.into_iter().collect(), runs })
    }

    fn series(&self, variant: usize, setting: usize) -> usize {
        variant * self.settings.len() + setting
    }

    /// The first variant less each other one in every setting.
    fn all_against_first(&self) -> Vec<Vec<(usize, f64)>> {
        let pairs = (1..self.variants.len()).flat_map(|v| (0..self.settings.len()).map(move |s| (v, s)));
        pairs.map(|(v, s)| vec![(self.series(0, s), 1.0), (self.series(v, s), -1.0)]).collect()
    }

    fn mean_contrast(&self, own: usize, other: usize) -> Vec<(usize, f64)> {
        let share = 1.0 / self.settings.len() as f64;
        (0..self.settings.len())
            .flat_map(|s| [(self.series(own, s), share), (self.series(other, s), -share)])
            .collect()
    }

    fn bootstrap(&self, contrasts: &[Vec<(usize, f64)>]) -> Result<Vec<CrossedDifference>, String> {
        crossed_bootstrap(&self.runs, contrasts, &CrossedPlan::default()).map_err(|err| err.to_string())
    }
}
