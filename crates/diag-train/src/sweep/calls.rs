//! Which class every finished run predicts for every case, and the runs of which results are
//! already there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use diag_data::calls::{self, CallRow, CalledCase};
use diag_data::case::{CaseId, Label, LabelSet, Split};
use diag_data::case_predictions::{self, CasePrediction};
use diag_data::files;
use diag_data::results::ResultRow;
use diag_data::run::RunDir;
use diag_data::shard::ShardSet;
use diag_decision::PriorCorrection;
use diag_metrics::{Measures, Scores, evaluate as measure};

use super::spec::{Cell, SweepSpec, ratio_of};
use crate::error::TrainError;
use crate::run::plan::TrainPlan;

/// Cases of a run as the plain mean over the slices has them.
pub(super) struct MeanCases {
    rows: Vec<CasePrediction>,
    n_classes: usize,
    plan: TrainPlan,
}

impl MeanCases {
    pub fn read(run: &RunDir, labels: &LabelSet) -> Result<Self, TrainError> {
        let rows = case_predictions::read_parquet(&run.case_predictions(), labels)?;
        Ok(Self { rows, n_classes: labels.len(), plan: TrainPlan::read(&run.plan())? })
    }

    /// The division by the class shares of the training slices.
    pub fn correction(&self) -> Result<PriorCorrection, TrainError> {
        Ok(PriorCorrection::of_counts(&self.plan.slices_per_class)?)
    }

    fn of_split(&self, split: Split) -> impl Iterator<Item = &CasePrediction> {
        self.rows.iter().filter(move |row| row.split == Some(split))
    }

    /// Measures by case after a correction; `None` where the split has no cases.
    pub fn measures(
        &self,
        split: Split,
        correction: &PriorCorrection,
    ) -> Result<Option<Measures>, TrainError> {
        let (mut probs, mut label_n) = (Vec::new(), Vec::new());
        for row in self.of_split(split) {
            probs.extend(correction.apply(&row.mean_probability_k));
            label_n.extend(row.label.map(Label::index));
        }
        if label_n.is_empty() {
            return Ok(None);
        }
        Ok(Some(measure(&Scores::new(&probs, self.n_classes, &label_n)?)))
    }

    fn calls(&self, split: Split, correction: &PriorCorrection) -> String {
        let most_probable = |row: &CasePrediction| {
            let prob_k = correction.apply(&row.mean_probability_k);
            let better = |best: usize, class: usize| if prob_k[class] > prob_k[best] { class } else { best };
            Label((1..prob_k.len()).fold(0, better) as u8)
        };
        calls::encode(self.of_split(split).map(most_probable))
    }

    /// The cases of a split in order of their names, and their labels.
    fn cases(&self, split: Split) -> Vec<(String, Label)> {
        self.of_split(split).filter_map(|row| Some((row.case_id.clone(), row.label?))).collect()
    }
}

/// `calls.csv` and `cases.csv` in the making.
pub(super) struct Calls {
    patients: BTreeMap<CaseId, Option<String>>,
    cases_of: BTreeMap<Split, Option<Vec<(String, Label)>>>,
    /// Cases of the runs of which results were already there.
    had: Vec<CalledCase>,
    rows: Vec<CallRow>,
}

impl Calls {
    pub fn new(shards: &ShardSet) -> Result<Self, TrainError> {
        let patients = shards.cases()?.into_iter().map(|row| (row.case_id, row.patient_hash)).collect();
        Ok(Self { patients, cases_of: BTreeMap::new(), had: Vec::new(), rows: Vec::new() })
    }

    /// What is known of the patient of a case.
    pub fn patient(&self, case: &CaseId) -> Option<&str> {
        self.patients.get(case)?.as_deref()
    }

    /// Adds what a run, or its correction under another name, says of all splits but the
    /// training split.
    pub fn add(
        &mut self,
        name: &str,
        variant: &str,
        cell: &Cell,
        cases: &MeanCases,
        correction: &PriorCorrection,
    ) {
        for split in [Split::Validation, Split::Test] {
            let of_split = cases.cases(split);
            if of_split.is_empty() {
                continue;
            }
            let known = self.cases_of.entry(split).or_insert_with(|| Some(of_split.clone()));
            // Runs that differ in their cases have no common table.
            if known.as_ref() != Some(&of_split) {
                *known = None;
            }
            self.rows.push(CallRow {
                run: name.to_owned(),
                variant: variant.to_owned(),
                seed: cell.recipe.seed as i64,
                class_ratio: ratio_of(&cell.recipe),
                label_noise: cell.recipe.data.label_noise,
                recipe_sha256: cases.plan.recipe_sha256.clone(),
                shards_sha256: cases.plan.shards_sha256.clone(),
                split: split.to_string(),
                calls: cases.calls(split, correction),
            });
        }
    }

    /// Writes both files; a split whose cases differ from run to run is left out.
    pub fn write(mut self, out: &Path) -> Result<(), TrainError> {
        let mut rows: Vec<CalledCase> = Vec::new();
        for (split, cases) in &self.cases_of {
            let Some(cases) = cases else {
                self.rows.retain(|row| row.split != split.as_str());
                continue;
            };
            let mut number_of: BTreeMap<&str, usize> = BTreeMap::new();
            for (case, (name, label)) in cases.iter().enumerate() {
                let id = CaseId::new(name.clone())?;
                let hash = self.patients.get(&id).and_then(Option::as_deref);
                let patient = hash.map(|hash| {
                    let next = number_of.len();
                    *number_of.entry(hash).or_insert(next)
                });
                rows.push(CalledCase { split: split.to_string(), case, label: label.0, patient });
            }
        }
        if self.cases_of.is_empty() {
            rows.clone_from(&self.had);
        } else if !self.had.is_empty() {
            for split in [Split::Validation, Split::Test].map(Split::as_str) {
                let of_split = |rows: &[CalledCase]| {
                    rows.iter().filter(|row| row.split == split).cloned().collect::<Vec<_>>()
                };
                if of_split(&self.had) != of_split(&rows) {
                    rows.retain(|row| row.split != split);
                    self.rows.retain(|row| row.split != split);
                }
            }
        }
        files::write_csv(&out.join("cases.csv"), &rows)?;
        Ok(files::write_csv(&out.join("calls.csv"), &self.rows)?)
    }
}

/// Results of runs that a folder has, by the name of the run.
#[derive(Default)]
pub(super) struct Had {
    calls: BTreeMap<String, Vec<CallRow>>,
    results: BTreeMap<String, Vec<ResultRow>>,
    cases: Vec<CalledCase>,
    /// Names of the cells of which nothing is missing.
    cells: BTreeSet<String>,
}

impl Had {
    /// Reads `calls.csv`, `cases.csv` and `results.csv` of a folder.
    ///
    /// # Errors
    /// A file that cannot be read; results of another recipe or of other shards under the name of
    /// a cell.
    pub fn read(
        folder: &Path,
        cells: &[Cell],
        spec: &SweepSpec,
        shards_sha256: &str,
    ) -> Result<Self, TrainError> {
        let mut had = Self { cases: files::read_csv(&folder.join("cases.csv"))?, ..Self::default() };
        for row in files::read_csv::<CallRow>(&folder.join("calls.csv"))? {
            had.calls.entry(row.run.clone()).or_default().push(row);
        }
        for row in files::read_csv::<ResultRow>(&folder.join("results.csv"))? {
            had.results.entry(row.run.clone()).or_default().push(row);
        }
        for cell in cells {
            let recipe_sha256 = files::sha256_hex(cell.recipe_text()?.as_bytes());
            let names: Vec<String> = spec.names_of(cell).into_iter().map(|(name, _)| name).collect();
            for row in names.iter().filter_map(|name| had.calls.get(name)).flatten() {
                for (what, before, now) in [
                    ("recipe", &row.recipe_sha256, recipe_sha256.as_str()),
                    ("shards", &row.shards_sha256, shards_sha256),
                ] {
                    if before != now {
                        let how = format!("hash {before} before, {now} now");
                        return Err(TrainError::Changed { what, how, run: folder.join(&row.run) });
                    }
                }
            }
            if names.iter().all(|name| had.calls.contains_key(name) && had.results.contains_key(name)) {
                had.cells.insert(cell.name.clone());
            }
        }
        Ok(had)
    }

    /// Whether nothing of the results of a cell is missing, nor of those of its corrections.
    pub fn has(&self, cell: &Cell) -> bool {
        self.cells.contains(&cell.name)
    }

    /// Adds what is there of a cell and its corrections.
    pub fn add_to(&self, cell: &Cell, spec: &SweepSpec, rows: &mut Vec<ResultRow>, calls: &mut Calls) {
        for (name, _) in spec.names_of(cell) {
            rows.extend(self.results.get(&name).into_iter().flatten().cloned());
            calls.rows.extend(self.calls.get(&name).into_iter().flatten().cloned());
        }
        calls.had.clone_from(&self.cases);
    }
}
