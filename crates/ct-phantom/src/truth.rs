//! What is truly in a cohort: the contents of `truth.json`.

use crate::{
    cohort::{CohortSpec, Label, Split},
    lesion::Opacity,
    noise::SIZE,
    scanner::Vendor,
};
use serde::{Deserialize, Serialize};

/// Width and height of a lesion mask over the whole 512x512 field of view.
pub const MASK_SIZE: usize = 128;

/// The whole of `truth.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Truth {
    /// Always true: no patient is behind these images.
    pub synthetic: bool,
    /// Seed of the cohort.
    pub seed: u64,
    /// Version of ct-phantom that made it.
    pub generator: String,
    /// The cohort as resolved from its file.
    pub cohort: CohortSpec,
    /// Width and height of every `mask`; one mask cell covers 4x4 pixels.
    pub mask_size: usize,
    /// One entry a case, in the order of `labels.csv`.
    pub cases: Vec<CaseTruth>,
}

/// One case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CaseTruth {
    /// Folder name.
    pub case_id: String,
    /// What is in the pixels.
    pub true_label: Label,
    /// What `labels.csv` says.
    pub given_label: Label,
    /// Fixed split, if any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub split: Option<Split>,
    /// 0 for normal, else 0 (faint) to 1 (extensive).
    pub severity: f32,
    /// Whether the pattern leans towards the other pneumonia.
    pub atypical: bool,
    /// Vendor whose habits the files follow.
    pub vendor: Vendor,
    /// Reconstruction kernel.
    pub kernel: String,
    /// SeriesInstanceUID.
    pub series_uid: String,
    /// Width and height of a pixel in millimetres.
    pub pixel_spacing_mm: f32,
    /// Lesion volume of the slices made, in millilitres (their own 5 mm each, no interpolation).
    pub lesion_ml: f32,
    /// Share of the lungs in these slices that is lesion, 0 to 1.
    pub lesion_share: f32,
    /// Axial slices from the base to the apex.
    pub slices: Vec<SliceTruth>,
}

/// One axial slice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SliceTruth {
    /// File name in the case's folder.
    pub file: String,
    /// SOPInstanceUID.
    pub sop_uid: String,
    /// ImagePositionPatient z in millimetres.
    pub z_mm: f32,
    /// Volume of lung (with lesions) in this slice.
    pub lung_ml: f32,
    /// Volume of all lesions: pixels at least half covered.
    pub lesion_ml: f32,
    /// Volume of ground glass, by share of pixel.
    pub ground_glass_ml: f32,
    /// Volume of consolidation, by share of pixel.
    pub consolidation_ml: f32,
    /// Volume of pleural fluid, by share of pixel.
    pub effusion_ml: f32,
    /// Mean HU, before blur and noise, of pixels wholly ground glass.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ground_glass_hu: Option<f32>,
    /// Mean HU, before blur and noise, of pixels wholly consolidated, without open bronchi.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub consolidation_hu: Option<f32>,
    /// Lesion mask of 128x128 cells as runs `[start, length]` of row-major cells; empty: no lesion.
    pub mask: Vec<[u32; 2]>,
    #[serde(skip)]
    sums: Sums,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    ground_glass: f64,
    solid: f64,
    fluid: f64,
    ground_glass_hu: [f64; 2],
    solid_hu: [f64; 2],
}

impl SliceTruth {
    /// Adds one pixel; `weight` is 1 inside the lung and 0 outside.
    pub(crate) fn count(&mut self, opacity: &Opacity, weight: f32) {
        let weight = f64::from(weight);
        let solid = f64::from(opacity.solid.max(0.0) * (1.0 - opacity.fluid)) * weight;
        let hazy = f64::from(opacity.ground_glass * (1.0 - opacity.solid) * (1.0 - opacity.fluid)) * weight;
        let sums = &mut self.sums;
        sums.solid += solid;
        sums.fluid += f64::from(opacity.fluid) * weight;
        sums.ground_glass += hazy;
        if hazy > 0.999 {
            sums.ground_glass_hu[0] += f64::from(opacity.ground_glass_hu);
            sums.ground_glass_hu[1] += 1.0;
        }
        if solid > 0.999 {
            sums.solid_hu[0] += f64::from(opacity.solid_hu);
            sums.solid_hu[1] += 1.0;
        }
    }

    /// Turns the sums into volumes and the lesion plane into the mask.
    pub(crate) fn measure(&mut self, lesion: &[f32], lung: &[f32], spacing_mm: f32, slice_mm: f32) {
        let pixel_ml = f64::from(spacing_mm * spacing_mm * slice_mm) / 1000.0;
        let ml = |pixels: f64| ((pixels * pixel_ml * 1000.0).round() / 1000.0) as f32;
        let hit = |idx: usize| lesion[idx] > 0.5 && lung[idx] > 0.5;
        let mut n_lesion = 0u32;
        let mut cells = [0u8; MASK_SIZE * MASK_SIZE];
        let step = SIZE / MASK_SIZE;
        for idx in (0..lesion.len()).filter(|&idx| hit(idx)) {
            n_lesion += 1;
            cells[idx / SIZE / step * MASK_SIZE + idx % SIZE / step] += 1;
        }
        self.lesion_ml = ml(f64::from(n_lesion));
        self.lung_ml = ml(lung.iter().filter(|&&share| share > 0.5).count() as f64);
        self.ground_glass_ml = ml(self.sums.ground_glass);
        self.consolidation_ml = ml(self.sums.solid);
        self.effusion_ml = ml(self.sums.fluid);
        let mean = |[sum, n]: [f64; 2]| (n > 0.0).then(|| (sum / n).round() as f32);
        self.ground_glass_hu = mean(self.sums.ground_glass_hu);
        self.consolidation_hu = mean(self.sums.solid_hu);
        let mut end = 0;
        for (start, &cell) in cells.iter().enumerate() {
            if usize::from(cell) * 2 < step * step {
                continue;
            }
            match self.mask.last_mut() {
                Some(run) if start == end => run[1] += 1,
                _ => self.mask.push([start as u32, 1]),
            }
            end = start + 1;
        }
    }

    /// The mask as `[128 * 128]` row-major booleans.
    pub fn mask_cells(&self) -> Vec<bool> {
        let mut cells = vec![false; MASK_SIZE * MASK_SIZE];
        for &[start, length] in &self.mask {
            let range = start as usize..(start + length).min((MASK_SIZE * MASK_SIZE) as u32) as usize;
            if let Some(run) = cells.get_mut(range) {
                run.fill(true);
            }
        }
        cells
    }
}
