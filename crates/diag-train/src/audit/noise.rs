//! Which training slices look mislabelled.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use diag_data::case::Split;
use diag_data::predictions::Predictions;
use serde::Serialize;

use super::run::{AuditJob, AuditedRun};
use crate::data::experiment;
use crate::error::TrainError;

/// Training slices in the order of how wrong their labels look.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NoiseAudit {
    /// Most suspect first.
    pub slices: Vec<SuspectSlice>,
    /// Slices whose label the recipe made wrong on purpose; 0 when it made none.
    pub n_known_wrong: usize,
    /// Share of known wrong labels among the first k, by k: 10, 20, 50, 100 and as
    /// many as there are wrong ones. Empty when none is known.
    pub precision_at: BTreeMap<usize, f64>,
    /// Share of wrong labels among all training slices: what a random order would find.
    pub chance: f64,
}

/// A training slice and its label.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SuspectSlice {
    /// Its case.
    pub case_id: String,
    /// Position among the kept slices of its case.
    pub slice_index: i32,
    /// The label that was trained on.
    pub given: String,
    /// The class that the network finds most probable of the others.
    pub suggested: String,
    /// Probability of the given label less that of the suggested one, mean over
    /// the slice and its case, in [-1, 1]; lowest first.
    pub margin: f64,
    /// Whether the recipe made the label wrong; absent where it made none wrong.
    pub known_wrong: Option<bool>,
}

/// Ranks the training slices of a run by the margin of their labels under the
/// final head (Northcutt et al. 2021 call its counterpart self-confidence). A
/// slice shares the evidence of its case, whose slices have one label.
///
/// # Errors
/// A folder without a finished run, other shards, a stop by request.
pub fn label_noise(job: &AuditJob, stop: &AtomicBool) -> Result<NoiseAudit, TrainError> {
    let audited = AuditedRun::read(job)?;
    let (mut dataset, inference) = audited.infer(Split::Train, stop)?;
    let recipe = &audited.plan.recipe;
    experiment::add_label_noise(&mut dataset, &recipe.data, recipe.seed);
    let labels = dataset.labels.clone();
    let name = |class: usize| labels.names().get(class).cloned().unwrap_or_default();
    let made_wrong = audited.plan.n_wrong_labels > 0;
    let mut slices = Vec::with_capacity(dataset.items.len());
    for (item, row) in dataset.items.iter().zip(&inference.predictions) {
        let prob_k = Predictions::final_probabilities(row);
        let given = item.label.index();
        let others = prob_k.iter().enumerate().filter(|(class, _)| *class != given);
        let Some((suggested, highest)) = others.max_by(|a, b| a.1.total_cmp(b.1)) else {
            continue;
        };
        slices.push(SuspectSlice {
            case_id: item.case_id.to_string(),
            slice_index: item.slice_index,
            given: name(given),
            suggested: name(suggested),
            margin: f64::from(prob_k[given]) - f64::from(*highest),
            known_wrong: made_wrong.then(|| item.label != item.stored_label),
        });
    }
    let mut by_case: BTreeMap<(String, String), (f64, f64)> = BTreeMap::new();
    for slice in &slices {
        let sum = by_case.entry((slice.case_id.clone(), slice.given.clone())).or_default();
        *sum = (sum.0 + slice.margin, sum.1 + 1.0);
    }
    for slice in &mut slices {
        if let Some((sum, n)) = by_case.get(&(slice.case_id.clone(), slice.given.clone())) {
            slice.margin = 0.5 * (slice.margin + sum / n);
        }
    }
    slices.sort_by(|a, b| a.margin.total_cmp(&b.margin));
    let is_wrong = |slice: &SuspectSlice| slice.known_wrong == Some(true);
    let n_known_wrong = slices.iter().filter(|slice| is_wrong(slice)).count();
    let mut precision_at = BTreeMap::new();
    if n_known_wrong > 0 {
        for k in [10, 20, 50, 100, n_known_wrong] {
            if k <= slices.len() {
                let hits = slices[..k].iter().filter(|slice| is_wrong(slice)).count();
                precision_at.insert(k, hits as f64 / k as f64);
            }
        }
    }
    let chance = n_known_wrong as f64 / slices.len().max(1) as f64;
    Ok(NoiseAudit { slices, n_known_wrong, precision_at, chance })
}
