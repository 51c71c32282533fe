//! Explanation: a run and some slices to heat maps of what the network used.
//!
//! The choice of slices does not depend on what they show: they are evenly spread over the
//! height of each case. The predicted class of the case is explained, and its true class where
//! that differs.

mod agreement;
mod lung_field;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use diag_data::case::{CaseId, Label, Split};
use diag_data::external::External;
use diag_data::files;
use diag_data::heatmaps::{self, Agreement, Explanations, Heatmap, Method};
use diag_data::lesions::Lesions;
use diag_data::place;
use diag_data::predictions::Predictions;
use diag_data::reader::Crop;
use diag_data::run::RunDir;
use diag_data::shard::ShardSet;
use diag_data::slice::CtSlice;
use diag_decision::{Decision, cases_of};
use diag_model::explain::{HeadCams, Map, OcclusionSpec, cams, occlusion};
use diag_model::{FINAL_HEAD, Network, SavedModel, input};

use crate::device::DeviceChoice;
use crate::error::TrainError;
use crate::evaluate::own_shards;
use crate::run::plan::TrainPlan;
use crate::threads::{available_threads, thread_pool};
use agreement::{agreement, rank_correlation};
use lung_field::{LungField, lung_field};

/// Pictures of one pass.
const BATCH_SIZE: usize = 8;
/// Windows of the occlusion along one side of the picture.
const OCCLUSION_CELLS: usize = 14;
/// Added to the run's seed for the random weights of the sanity check.
const RANDOMISED_SEED_OFFSET: u64 = 1_000_003;

/// What to explain.
#[derive(Clone, Debug)]
pub struct ExplainJob {
    /// Folder of the run, evaluated before; the maps are written into it.
    pub run: PathBuf,
    /// Where the shards are now that it was trained on, or, with `external`, the other cohort;
    /// absent: where they were.
    pub shards: Option<PathBuf>,
    /// Folder of an external validation of the run: its cohort is explained, and the maps are
    /// written into it.
    pub external: Option<PathBuf>,
    /// Split of the data.
    pub split: Split,
    /// `truth.json` of the phantoms behind the shards: maps are held against its lesions.
    pub truth: Option<PathBuf>,
    /// Most slices of a case.
    pub slices_per_case: usize,
    /// Most slices of a case with an occlusion map, which costs some 200 passes each.
    pub occlusion_slices_per_case: usize,
    /// Device to run on.
    pub device: DeviceChoice,
    /// Command line without paths, for the report.
    pub command: String,
}

/// What was explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// Maps written, without references.
    pub n_maps: usize,
    /// Slices that have maps.
    pub n_slices: usize,
    /// Cases of these.
    pub n_cases: usize,
    /// Slices whose maps were held against a known lesion.
    pub n_with_lesion: usize,
}

/// Explains a run; writes `heatmaps.parquet` and `explanations.json`.
///
/// # Errors
/// A folder without an evaluated run, shards that are not those of the run, a rule for other
/// weights, a truth of other data, a stop by request.
pub fn explain(job: &ExplainJob, stop: &AtomicBool) -> Result<Explained, TrainError> {
    let run = RunDir::new(&job.run);
    let folder = job.external.as_ref().map_or_else(|| run.clone(), RunDir::new);
    for (what, path, of) in [
        ("run.json", run.info(), &run),
        ("model.safetensors", run.weights(), &run),
        ("predictions.parquet (run diag-train evaluate)", folder.predictions(), &folder),
        ("decision.json (run diag-train evaluate)", folder.decision(), &folder),
    ] {
        if !path.exists() {
            return Err(TrainError::NoRun { what, run: of.root().into() });
        }
    }
    let (info, plan) = (run.read_info()?, TrainPlan::read(&run.plan())?);
    plan.recipe.set_arithmetic();
    let model = SavedModel::read_to(&run.model(), &run.weights(), &job.device.open()?)?;
    let (shards, shards_sha256) = shards_of(job, &run, &folder, &plan)?;
    let spec = &shards.manifest().spec;
    let decision = Decision::read(&folder.decision(), &model.card.labels, &model.card.networks[0].sha256)?;
    let predictions = Predictions::read(&folder.predictions(), &info.labels)?;
    let predicted = predicted_classes(&predictions, job.split, &decision)?;
    let truth = job.truth.as_deref().map(|path| read_truth(path, &shards, &predicted)).transpose()?;
    let slices = chosen(&shards, &predicted, job.slices_per_case)?;
    if slices.is_empty() {
        return Err(TrainError::NoSlices { what: job.split.to_string() });
    }
    let random = Network::on_device(model.network.spec(), randomised_seed(&plan), model.network.device())?;
    let explainer = Explainer { job, stop, model: &model, random: &random, truth, shards: &shards };
    let pool = thread_pool(plan.recipe.threads.unwrap_or_else(available_threads))?;
    let rows = pool.install(|| explainer.rows(&slices, &predicted))?;
    heatmaps::write(&folder.heatmaps(), &spec.labels, &rows)?;
    let lesion_share = explainer.truth.iter().flat_map(|truth| {
        predicted.keys().filter_map(|case| Some((case.clone(), truth.lesions.case(case)?.lesion_share)))
    });
    let description = Explanations {
        format_version: heatmaps::FORMAT_VERSION,
        tool: format!("diag-train {}", env!("CARGO_PKG_VERSION")),
        command: job.command.clone(),
        split: job.split,
        slices_per_case: job.slices_per_case,
        occlusion_slices_per_case: job.occlusion_slices_per_case,
        occlusion_window_px: 2 * explainer.stride_px(),
        occlusion_stride_px: explainer.stride_px(),
        randomised_seed: randomised_seed(&plan),
        model_sha256: files::sha256_file(&run.weights())?,
        shards_sha256,
        truth_sha256: job.truth.as_deref().map(files::sha256_file).transpose()?,
        heatmaps_sha256: files::sha256_file(&folder.heatmaps())?,
        lesion_share: lesion_share.collect(),
    };
    files::write_json(&folder.explanations(), &description)?;
    let with_lesion: BTreeSet<_> = rows
        .iter()
        .filter(|row| row.agreement.is_some())
        .map(|row| (&row.case_id, row.slice_index))
        .collect();
    Ok(Explained {
        n_maps: rows.iter().filter(|row| !row.method.is_reference()).count(),
        n_slices: slices.len(),
        n_cases: slices.iter().map(|(slice, _)| &slice.case_id).collect::<BTreeSet<_>>().len(),
        n_with_lesion: with_lesion.len(),
    })
}

/// The shards to explain and their hash: those of the run, or those of its external validation.
fn shards_of(
    job: &ExplainJob,
    run: &RunDir,
    folder: &RunDir,
    plan: &TrainPlan,
) -> Result<(ShardSet, String), TrainError> {
    if job.external.is_none() {
        let path = job.shards.clone().map_or_else(|| run.read_info().map(|info| run.shards(&info)), Ok)?;
        let shards = ShardSet::open(&path)?;
        let sha256 = own_shards(&shards, path, plan)?;
        return Ok((shards, sha256));
    }
    let Some(external) = External::read(&folder.external())? else {
        return Err(TrainError::NoRun {
            what: "external.json (run diag-train evaluate with --shards and --out)",
            run: folder.root().into(),
        });
    };
    let recorded = external.shards;
    let path = job.shards.clone().unwrap_or_else(|| place::seen_from(folder.root(), &recorded.path));
    let shards = ShardSet::open(&path)?;
    let found = shards.sha256()?;
    if found != recorded.sha256 {
        return Err(TrainError::OtherShards { shards: path, found, recorded: recorded.sha256 });
    }
    Ok((shards, found))
}

fn randomised_seed(plan: &TrainPlan) -> u64 {
    plan.recipe.seed.wrapping_add(RANDOMISED_SEED_OFFSET)
}

/// The true lesions.
struct Truth {
    lesions: Lesions,
    /// Mean mask of the cases that are not explained.
    prior: Option<Map>,
}

/// A mask covers the whole source image, so the stored image must do so, too.
fn read_truth(
    path: &Path,
    shards: &ShardSet,
    predicted: &BTreeMap<CaseId, (Label, usize)>,
) -> Result<Truth, TrainError> {
    let refused = |problem: &str| TrainError::Truth { file: path.into(), problem: problem.to_owned() };
    if shards.manifest().spec.reader.crop != Crop::None {
        return Err(refused("the shards were cropped, so masks and pictures do not match"));
    }
    let lesions = Lesions::read(path)?;
    if !predicted.keys().any(|case| lesions.case(case).is_some()) {
        return Err(refused("it knows none of the cases"));
    }
    let side = lesions.mask_size;
    let prior = lesions.mean_mask(|case| !predicted.contains_key(case)).map(|mask| Map {
        height: side,
        width: side,
        values: mask.into_iter().map(f64::from).collect(),
    });
    Ok(Truth { lesions, prior })
}

/// The class that the decided rule names and the number of slices of every case of a split.
fn predicted_classes(
    predictions: &Predictions,
    split: Split,
    decision: &Decision,
) -> Result<BTreeMap<CaseId, (Label, usize)>, TrainError> {
    let mut predicted = BTreeMap::new();
    for case in cases_of(&predictions.rows, split)? {
        let class = decision.apply(&case.slice_nk)?.class;
        predicted.insert(case.case_id, (Label(class as u8), case.slice_nk.len()));
    }
    Ok(predicted)
}

/// `n` numbers below `n_all`, evenly spread.
fn spread(n_all: usize, n: usize) -> Vec<usize> {
    let n = n.min(n_all);
    (0..n).map(|i| (2 * i + 1) * n_all / (2 * n)).collect()
}

/// The chosen slices in stored order, each with its index among those of its case.
fn chosen(
    shards: &ShardSet,
    predicted: &BTreeMap<CaseId, (Label, usize)>,
    slices_per_case: usize,
) -> Result<Vec<(CtSlice, usize)>, TrainError> {
    let wanted: BTreeMap<&CaseId, Vec<usize>> =
        predicted.iter().map(|(case, (_, n_slices))| (case, spread(*n_slices, slices_per_case))).collect();
    let mut seen: BTreeMap<CaseId, usize> = BTreeMap::new();
    let mut slices = Vec::new();
    // A run's validation cases may lie in the shards' training part.
    let rows = shards.cases()?;
    let splits: BTreeSet<Split> =
        rows.iter().filter(|row| predicted.contains_key(&row.case_id)).map(|row| row.split).collect();
    for slice in splits.into_iter().flat_map(|split| shards.slices(split)) {
        let slice = slice?;
        let Some(wanted) = wanted.get(&slice.case_id) else { continue };
        let place = seen.entry(slice.case_id.clone()).or_default();
        if let Some(turn) = wanted.iter().position(|wanted| wanted == place) {
            slices.push((slice, turn));
        }
        *place += 1;
    }
    Ok(slices)
}

struct Explainer<'a> {
    job: &'a ExplainJob,
    stop: &'a AtomicBool,
    model: &'a SavedModel,
    random: &'a Network,
    truth: Option<Truth>,
    shards: &'a ShardSet,
}

/// A slice and the class to explain.
struct Target<'a> {
    slice: &'a CtSlice,
    class: Label,
    with_occlusion: bool,
    mask: Option<&'a [bool]>,
    field: &'a LungField,
}

impl Explainer<'_> {
    fn size(&self) -> (usize, usize) {
        let spec = &self.shards.manifest().spec;
        (spec.reader.size as usize, spec.reader.size as usize)
    }

    fn stride_px(&self) -> usize {
        self.size().0.div_ceil(OCCLUSION_CELLS).max(1)
    }

    fn rows(
        &self,
        slices: &[(CtSlice, usize)],
        predicted: &BTreeMap<CaseId, (Label, usize)>,
    ) -> Result<Vec<Heatmap>, TrainError> {
        let window = self.shards.manifest().spec.reader.window;
        let mut rows = Vec::new();
        for batch in slices.chunks(BATCH_SIZE) {
            if self.stop.load(Ordering::Relaxed) {
                return Err(TrainError::Stopped);
            }
            let fields: Vec<LungField> =
                batch.iter().map(|(slice, _)| lung_field(&slice.pixels, self.size(), window)).collect();
            let masks: Vec<Option<Vec<bool>>> = batch.iter().map(|(slice, _)| self.mask(slice)).collect();
            let mut targets = Vec::new();
            for (((slice, turn), field), mask) in batch.iter().zip(&fields).zip(&masks) {
                let (class, n_slices) = predicted[&slice.case_id];
                let of_case = spread(n_slices, self.job.slices_per_case).len();
                let occluded = spread(of_case, self.job.occlusion_slices_per_case).contains(turn);
                let classes = [Some(class), (class != slice.label).then_some(slice.label)];
                for class in classes.into_iter().flatten() {
                    // A true lesion is evidence for the true class only.
                    let mask = mask.as_deref().filter(|_| class == slice.label);
                    targets.push(Target { slice, class, with_occlusion: occluded, mask, field });
                }
            }
            rows.extend(self.maps(&targets)?);
        }
        Ok(rows)
    }

    fn mask(&self, slice: &CtSlice) -> Option<Vec<bool>> {
        self.truth.as_ref()?.lesions.mask(&slice.case_id, slice.geometry.z?.0)
    }

    fn maps(&self, targets: &[Target<'_>]) -> Result<Vec<Heatmap>, TrainError> {
        let (height, width) = self.size();
        let image_nchw = input::from_grey(targets.iter().map(|t| &t.slice.pixels[..]), height, width)?;
        let class_n: Vec<usize> = targets.iter().map(|t| t.class.index()).collect();
        let trained = cams(&self.model.network, &image_nchw, &class_n)?;
        let random = cams(self.random, &image_nchw, &class_n)?;
        let mut rows = Vec::new();
        for ((target, trained), random) in targets.iter().zip(&trained).zip(&random) {
            for (head, random) in trained.iter().zip(random) {
                rows.push(gradient_row(target, head, Method::GradCam, &head.grad_cam, &random.grad_cam));
                let (map, random) = (&head.grad_cam_plus_plus, &random.grad_cam_plus_plus);
                rows.push(gradient_row(target, head, Method::GradCamPlusPlus, map, random));
            }
            if target.with_occlusion {
                let probability = trained.last().map(|head| head.probability);
                rows.push(self.occlusion_row(target, probability)?);
            }
            rows.extend(self.references(target));
        }
        Ok(rows)
    }

    fn occlusion_row(&self, target: &Target<'_>, probability: Option<f32>) -> Result<Heatmap, TrainError> {
        let image: Vec<f32> = target.slice.pixels.iter().map(|&grey| input::scale(f32::from(grey))).collect();
        let spec = OcclusionSpec {
            window_px: 2 * self.stride_px(),
            stride_px: self.stride_px(),
            // Aerated lung: the image as if nothing were there.
            fill: input::scale(f32::from(target.field.median_grey)),
            batch_size: 2 * BATCH_SIZE,
        };
        let mut map = occlusion(&self.model.network, &image, self.size(), &spec, target.class.index())?;
        map.values.iter_mut().for_each(|drop| *drop = drop.max(0.0));
        Ok(Heatmap { probability, ..row(target, FINAL_HEAD, Method::Occlusion, &map) })
    }

    /// Reference maps: their agreement is measured, their values are not stored.
    fn references(&self, target: &Target<'_>) -> Vec<Heatmap> {
        if target.mask.is_none() {
            return Vec::new();
        }
        let (height, width) = self.size();
        let values = target.field.inside.iter().map(|inside| f64::from(u8::from(*inside))).collect();
        let lungs = Some(Map { height, width, values });
        let prior = self.truth.as_ref().and_then(|truth| truth.prior.clone());
        let maps = [(Method::LungField, lungs), (Method::LesionPrior, prior)];
        let reference = |(method, map): (Method, Option<Map>)| {
            let row = row(target, "none", method, &map?);
            row.agreement?;
            Some(Heatmap { height: 0, width: 0, values: Vec::new(), ..row })
        };
        maps.into_iter().filter_map(reference).collect()
    }
}

fn gradient_row(target: &Target<'_>, head: &HeadCams, method: Method, map: &Map, random: &Map) -> Heatmap {
    Heatmap {
        probability: Some(head.probability),
        randomised_correlation: rank_correlation(map, random).map(|r| r as f32),
        ..row(target, &head.head, method, map)
    }
}

fn row(target: &Target<'_>, head: &str, method: Method, map: &Map) -> Heatmap {
    let peak = map.values.iter().copied().fold(0.0, f64::max);
    let byte = |value: &f64| if peak > 0.0 { (255.0 * value / peak).round() as u8 } else { 0 };
    Heatmap {
        case_id: target.slice.case_id.clone(),
        slice_index: target.slice.slice_index,
        split: target.slice.split,
        label: target.slice.label,
        class: target.class,
        head: head.to_owned(),
        method,
        height: map.height as i32,
        width: map.width as i32,
        values: map.values.iter().map(byte).collect(),
        peak: peak as f32,
        probability: None,
        randomised_correlation: None,
        agreement: target.mask.and_then(|mask| -> Option<Agreement> { agreement(map, mask) }),
    }
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn slices_are_spread_evenly_and_never_twice() {
        assert_eq!(spread(12, 3), [2, 6, 10]);
        assert_eq!(spread(2, 6), [0, 1]);
        assert_eq!(spread(5, 1), [2]);
        for n_all in 1..40 {
            for n in 1..8 {
                let places = spread(n_all, n);
                assert_eq!(places.len(), n.min(n_all));
                assert!(places.windows(2).all(|pair| pair[0] < pair[1]) && places[places.len() - 1] < n_all);
            }
        }
    }
}
