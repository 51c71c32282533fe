//! One case: a person, a scanner, a disease; its slices rendered and written.

use crate::{
    PhantomError,
    anatomy::Anatomy,
    cohort::{CasePlan, CohortSpec, Label, Placement},
    dicom::{ImageHeader, SeriesHeader, write},
    geometry::{Grid, SLICE_MM},
    incidental::Parenchyma,
    lesion::Disease,
    noise::{Grain, SIZE},
    render::{Canvas, Chest, slice},
    scanner::Scanner,
    scout,
    seed::{between, stream, uid},
    truth::CaseTruth,
    vessels::{LungSampler, TreeStyle, grow},
};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::path::Path;

/// Makes the folder of one case. `keep_going` is asked before every slice.
pub(crate) fn make(
    spec: &CohortSpec,
    plan: &CasePlan,
    cohort_seed: u64,
    grain: &Grain,
    dir: &Path,
    canvas: &mut Canvas,
    keep_going: &dyn Fn() -> bool,
) -> Result<CaseTruth, PhantomError> {
    let named = |part: &str| stream(cohort_seed, &[&plan.case_id, part]);
    let uid = |part: &str| uid(cohort_seed, &[&spec.name, &plan.case_id, part]);

    let [low, high] = spec.z_coverage;
    let length = (plan.n_slices - 1) as f32 * SLICE_MM;
    let anatomy = Anatomy::draw(&mut named("anatomy"), length / (high - low) + 1.0);
    let scanner = Scanner::draw(plan.vendor, &mut named("scanner"));
    let heights = slice_heights(spec, plan.n_slices, anatomy.height, &mut named("heights"));
    let sampler = LungSampler::new(&anatomy);
    let chest = Chest {
        grid: Grid::fit(&anatomy),
        scanner: &scanner,
        parenchyma: Parenchyma::draw(&mut named("parenchyma"), &sampler, &anatomy),
        disease: draw_disease(spec, plan, &heights, &sampler, &anatomy, &mut named("disease")),
        vessels: grow_vessels(&sampler, &anatomy, &mut named("vessels")),
        bronchi: grow_bronchi(&sampler, &anatomy, &mut named("bronchi")),
        anatomy: &anatomy,
    };

    std::fs::create_dir_all(dir).map_err(|source| PhantomError::File {
        action: "create",
        path: dir.into(),
        source,
    })?;
    let number = plan.case_id.rsplit('-').next().unwrap_or_default();
    let header = SeriesHeader {
        scanner: &scanner,
        implicit_vr: plan.implicit_vr,
        patient_id: patient_id(&spec.name, cohort_seed, plan),
        patient_name: format!("SYNTHETIC^CASE-{number}"),
        study_uid: uid("study"),
        series_uid: uid("series"),
        frame_uid: uid("frame"),
        series_description: format!("SYNTHETIC CHEST 5.0 {}", scanner.kernel.name()),
        spacing_mm: chest.grid.spacing,
    };

    let mut rng = named("slices");
    let table_z = (between(&mut rng, -420.0, -180.0) * 2.0).round() / 2.0;
    let corner = -(SIZE as f32 - 1.0) * 0.5 * chest.grid.spacing;
    let mut slices = Vec::with_capacity(heights.len());
    for (idx, &z) in heights.iter().enumerate() {
        if !keep_going() {
            return Err(PhantomError::Interrupted);
        }
        let mut rng = named(&format!("slice {idx}"));
        let mut truth = slice(&chest, z, grain, &mut rng, canvas);
        let order = if scanner.from_apex { heights.len() - 1 - idx } else { idx };
        let instance_number = order as u32 + 1;
        truth.file = format!("{instance_number:04}.dcm");
        truth.sop_uid = uid(&truth.file);
        truth.z_mm = z + table_z;
        let image = ImageHeader {
            sop_uid: truth.sop_uid.clone(),
            instance_number,
            kind: "AXIAL",
            position: [corner, corner, truth.z_mm],
            orientation: [1, 0, 0, 0, 1, 0],
        };
        write(&dir.join(&truth.file), &header, &image, &store(&scanner, &canvas.hu))?;
        slices.push(truth);
    }
    if plan.localizer {
        scout::write_localizer(&sampler, &header, uid("localizer"), table_z, dir)?;
    }
    let lesion_ml: f32 = slices.iter().map(|s| s.lesion_ml).sum();
    let lung_ml: f32 = slices.iter().map(|s| s.lung_ml).sum();
    Ok(CaseTruth {
        case_id: plan.case_id.clone(),
        true_label: plan.true_label,
        given_label: plan.given_label,
        split: plan.split,
        severity: plan.severity,
        atypical: plan.atypical,
        vendor: plan.vendor,
        kernel: scanner.kernel.name().into(),
        series_uid: header.series_uid,
        pixel_spacing_mm: chest.grid.spacing,
        lesion_ml,
        lesion_share: lesion_ml / lung_ml.max(1.0),
        slices,
    })
}

/// Longest part of a cohort's name in a PatientID, which has 64 characters.
const MAX_COHORT_LEN: usize = 24;

/// PatientID of a case: fake, and says so; no two cohorts share one.
pub(crate) fn patient_id(cohort: &str, seed: u64, plan: &CasePlan) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let cohort: String = cohort.chars().map(plain).take(MAX_COHORT_LEN).collect();
    let number = plan.case_id.rsplit('-').next().unwrap_or_default();
    format!("SYNTHETIC-{cohort}-{seed}-{number}")
}

/// Heights of the slices above the lungs' lowest edge, rising, in half millimetres.
fn slice_heights(spec: &CohortSpec, n_slices: u32, height: f32, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let [low, high] = spec.z_coverage.map(|share| share * height);
    let n_steps = (n_slices - 1) as f32;
    let step = match spec.placement {
        Placement::Contiguous => SLICE_MM,
        Placement::Thinned => SLICE_MM * ((high - low) / (n_steps * SLICE_MM)).floor().max(1.0),
    };
    let slack = (high - low - n_steps * step).max(0.0);
    let start = ((low + slack * rng.random::<f32>()) * 2.0).round() / 2.0;
    (0..n_slices).map(|i| start + i as f32 * step).collect()
}

/// Places the disease in a part of the covered heights, so that some slices stay clear.
fn draw_disease(
    spec: &CohortSpec,
    plan: &CasePlan,
    heights: &[f32],
    sampler: &LungSampler<'_>,
    anatomy: &Anatomy,
    rng: &mut ChaCha8Rng,
) -> Disease {
    let (lowest, highest) = (heights[0] - SLICE_MM, heights[heights.len() - 1] + SLICE_MM);
    let share = between(rng, spec.sick_slices[0], spec.sick_slices[1]);
    let span = (highest - lowest) * share;
    let at: f32 = rng.random();
    let at = if plan.true_label == Label::Covid19 { at * at } else { at };
    let start = lowest + at * (highest - lowest - span);
    Disease::draw(rng, plan.true_label, plan.severity, plan.atypical, [start, start + span], sampler, anatomy)
}

fn grow_vessels(
    sampler: &LungSampler<'_>,
    anatomy: &Anatomy,
    rng: &mut ChaCha8Rng,
) -> Vec<crate::anatomy::Tube> {
    let arteries = TreeStyle { n_leaves: 850, leaf_radius: 0.66, root_radius: 6.5, margin: 2.5, bend: 3.0 };
    let veins = TreeStyle { n_leaves: 480, leaf_radius: 0.58, root_radius: 5.5, margin: 4.0, bend: 3.0 };
    let mut tubes = Vec::new();
    for side in [-1.0, 1.0] {
        let [artery, vein, _] = anatomy.hilum(side);
        tubes.extend(grow(rng, sampler, side, artery, &arteries));
        tubes.extend(grow(rng, sampler, side, vein, &veins));
    }
    tubes
}

fn grow_bronchi(
    sampler: &LungSampler<'_>,
    anatomy: &Anatomy,
    rng: &mut ChaCha8Rng,
) -> Vec<crate::anatomy::Tube> {
    let style = TreeStyle { n_leaves: 28, leaf_radius: 0.75, root_radius: 4.6, margin: 22.0, bend: 3.0 };
    [-1.0, 1.0]
        .into_iter()
        .flat_map(|side| grow(rng, sampler, side, anatomy.hilum(side)[2], &style))
        .filter(|tube| tube.radius_to > 0.9)
        .collect()
}

/// HU to stored values, with the vendor's padding outside the reconstruction circle.
fn store(scanner: &Scanner, hu: &[f32]) -> Vec<i32> {
    let centre = (SIZE as f32 - 1.0) * 0.5;
    let radius_squared = (SIZE as f32 * 0.5).powi(2);
    hu.iter()
        .enumerate()
        .map(|(idx, &hu)| {
            let (dx, dy) = ((idx % SIZE) as f32 - centre, (idx / SIZE) as f32 - centre);
            match scanner.padding {
                Some(padding) if dx * dx + dy * dy > radius_squared => padding,
                _ => scanner.store(hu.clamp(-1024.0, 3071.0)),
            }
        })
        .collect()
}
