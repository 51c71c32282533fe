//! What the heat maps are worth, as numbers.

use std::collections::{BTreeMap, BTreeSet};

use diag_data::case::CaseId;
use diag_data::heatmaps::{Agreement, Heatmap, Method};
use diag_metrics::{Bootstrap, MetricsError, mean_by_case};
use serde::Serialize;

use crate::load::{Maps, Run};

/// Maps of a run, measured. Unit of analysis: case; each case's slices are averaged first.
#[derive(Debug, Serialize)]
pub struct ExplanationNumbers {
    /// Command line that made the maps, without paths.
    pub command: String,
    /// Most slices of a case with gradient maps.
    pub slices_per_case: usize,
    /// Most slices of a case with an occlusion map.
    pub occlusion_slices_per_case: usize,
    /// Side of the replaced window in pixels.
    pub occlusion_window_px: usize,
    /// Slices that have maps.
    pub n_slices: usize,
    /// Cases of these.
    pub n_cases: usize,
    /// Slices whose maps were held against a known lesion.
    pub n_slices_with_lesion: usize,
    /// Cases of these.
    pub n_cases_with_lesion: usize,
    /// Mean share of the picture that is lesion: what a map without knowledge gets.
    pub chance: Option<f64>,
    /// One entry a head and method, then the references.
    pub maps: Vec<MapNumbers>,
}

/// Maps of one head and method.
#[derive(Debug, Serialize)]
pub struct MapNumbers {
    /// Head; "none" for a reference.
    pub head: String,
    /// [`Method::as_str`].
    pub method: &'static str,
    /// Whether it looks at no network.
    pub reference: bool,
    /// Maps made.
    pub n_maps: usize,
    /// Maps in which nothing spoke for the class, or, under occlusion, no single place.
    pub n_empty: usize,
    /// Slices held against a known lesion.
    pub n_slices: usize,
    /// Cases of these.
    pub n_cases: usize,
    /// Share of slices whose highest point is in the lesion.
    pub pointing: Option<Mean>,
    /// Share of the map's sum within the lesion.
    pub mass: Option<Mean>,
    /// Dice overlap with the map's highest part of the lesion's area.
    pub overlap: Option<Mean>,
    /// Overlap less that of the lungs as a whole, on the same slices.
    pub overlap_above_lungs: Option<Mean>,
    /// Overlap less that of the usual place of lesions, on the same slices.
    pub overlap_above_prior: Option<Mean>,
    /// Rank correlation with the same map of a network with random weights, over all its slices.
    pub randomised_correlation: Option<Mean>,
}

/// A mean over cases with its 95 % interval by case.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Mean {
    /// Mean over cases of each case's own mean.
    pub value: f64,
    /// Lower bound.
    pub low: Option<f64>,
    /// Upper bound.
    pub high: Option<f64>,
}

/// `None` without maps.
pub(crate) fn measure(run: &Run, plan: &Bootstrap) -> Result<Option<ExplanationNumbers>, MetricsError> {
    let Ok(Maps { how, rows }) = &run.maps else { return Ok(None) };
    let mut groups: BTreeMap<(bool, usize, Method), Vec<&Heatmap>> = BTreeMap::new();
    let place = |head: &str| run.heads().iter().position(|name| name == head).unwrap_or(run.heads().len());
    for row in rows {
        groups.entry((row.method.is_reference(), place(&row.head), row.method)).or_default().push(row);
    }
    let references: BTreeMap<Method, BTreeMap<(&CaseId, i32), f64>> =
        [Method::LungField, Method::LesionPrior]
            .map(|method| {
                let rows = rows.iter().filter(|row| row.method == method);
                let overlap = rows.filter_map(|row| Some((slice(row), f64::from(row.agreement?.overlap))));
                (method, overlap.collect())
            })
            .into();
    let mut maps = Vec::new();
    for ((reference, _, method), group) in &groups {
        let by = |value: fn(&Agreement) -> f32| {
            mean(group, plan, |row| row.agreement.as_ref().map(|a| f64::from(value(a))))
        };
        let above = |against: Method| {
            if *reference {
                return Ok(None);
            }
            mean(group, plan, |row| {
                Some(f64::from(row.agreement?.overlap) - references[&against].get(&slice(row))?)
            })
        };
        let held: Vec<&&Heatmap> = group.iter().filter(|row| row.agreement.is_some()).collect();
        maps.push(MapNumbers {
            head: group[0].head.clone(),
            method: method.as_str(),
            reference: *reference,
            n_maps: group.len(),
            n_empty: group.iter().filter(|row| row.peak == 0.0).count(),
            n_slices: held.len(),
            n_cases: held.iter().map(|row| &row.case_id).collect::<BTreeSet<_>>().len(),
            pointing: by(|a| a.pointing)?,
            mass: by(|a| a.mass)?,
            overlap: by(|a| a.overlap)?,
            overlap_above_lungs: above(Method::LungField)?,
            overlap_above_prior: above(Method::LesionPrior)?,
            randomised_correlation: mean(group, plan, |row| row.randomised_correlation.map(f64::from))?,
        });
    }
    let slices: BTreeSet<_> = rows.iter().map(slice).collect();
    let held: BTreeMap<_, f64> =
        rows.iter().filter_map(|row| Some((slice(row), f64::from(row.agreement?.lesion_share)))).collect();
    let n_cases = |slices: &mut dyn Iterator<Item = &(&CaseId, i32)>| {
        slices.map(|(case, _)| *case).collect::<BTreeSet<_>>().len()
    };
    Ok(Some(ExplanationNumbers {
        command: how.command.clone(),
        slices_per_case: how.slices_per_case,
        occlusion_slices_per_case: how.occlusion_slices_per_case,
        occlusion_window_px: how.occlusion_window_px,
        n_slices: slices.len(),
        n_cases: n_cases(&mut slices.iter()),
        n_slices_with_lesion: held.len(),
        n_cases_with_lesion: n_cases(&mut held.keys()),
        chance: (!held.is_empty()).then(|| held.values().sum::<f64>() / held.len() as f64),
        maps,
    }))
}

fn slice(row: &Heatmap) -> (&CaseId, i32) {
    (&row.case_id, row.slice_index)
}

/// Mean by case of what some of the rows have; `None` when none has it.
fn mean(
    rows: &[&Heatmap],
    plan: &Bootstrap,
    value: impl Fn(&Heatmap) -> Option<f64>,
) -> Result<Option<Mean>, MetricsError> {
    let mut numbers: BTreeMap<&CaseId, usize> = BTreeMap::new();
    let (mut values, mut cases, mut classes) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        let Some(value) = value(row) else { continue };
        let next = numbers.len();
        let case = *numbers.entry(&row.case_id).or_insert(next);
        if case == classes.len() {
            classes.push(row.label.index());
        }
        values.push(value);
        cases.push(case);
    }
    if values.is_empty() {
        return Ok(None);
    }
    let estimate = mean_by_case(&values, &cases, &classes, plan)?;
    // One case alone, or equal ones, say nothing about their spread.
    let (low, high) = if estimate.degenerate { (None, None) } else { (estimate.low, estimate.high) };
    Ok(estimate.value.map(|value| Mean { value, low, high }))
}
