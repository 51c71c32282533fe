//! Known lesions: the part of a phantom's `truth.json` that explanations are held against.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::DataError;
use crate::case::CaseId;
use crate::files;

/// How far a slice's position may be from the truth's, in mm.
const Z_TOLERANCE_MM: f64 = 0.05;

/// Lesions of a cohort by case.
#[derive(Clone, Debug, PartialEq)]
pub struct Lesions {
    /// Rows and columns of every mask; a mask covers the whole source image.
    pub mask_size: usize,
    cases: BTreeMap<CaseId, CaseLesions>,
}

/// Lesions of a case.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseLesions {
    /// Share of the lungs that is lesion, 0 to 1.
    pub lesion_share: f64,
    slices: Vec<SliceLesions>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
struct SliceLesions {
    z_mm: f64,
    mask: Vec<[u32; 2]>,
}

#[derive(Deserialize)]
struct Truth {
    mask_size: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    case_id: CaseId,
    lesion_share: f64,
    slices: Vec<SliceLesions>,
}

impl Lesions {
    /// Reads `truth.json`; keys that are not needed here are passed over.
    ///
    /// # Errors
    /// When it cannot be read or has another form.
    pub fn read(path: &Path) -> Result<Self, DataError> {
        let truth: Truth = files::read_json(path)?;
        if !(1..=4096).contains(&truth.mask_size) {
            return Err(DataError::malformed(path, format!("masks of {} cells a side", truth.mask_size)));
        }
        let cases = truth
            .cases
            .into_iter()
            .map(|case| (case.case_id, CaseLesions { lesion_share: case.lesion_share, slices: case.slices }));
        Ok(Self { mask_size: truth.mask_size, cases: cases.collect() })
    }

    /// One case.
    pub fn case(&self, case_id: &CaseId) -> Option<&CaseLesions> {
        self.cases.get(case_id)
    }

    /// The mask of the slice at `z_mm`, row-major `mask_size * mask_size`; `None`
    /// when the case or the slice is not known.
    pub fn mask(&self, case_id: &CaseId, z_mm: f64) -> Option<Vec<bool>> {
        let slices = &self.cases.get(case_id)?.slices;
        let slice = slices.iter().find(|slice| (slice.z_mm - z_mm).abs() <= Z_TOLERANCE_MM)?;
        Some(self.cells(slice))
    }

    /// Share of lesions in every cell over all sick slices of the cases that `keep`
    /// accepts, row-major; `None` when there is no such slice.
    pub fn mean_mask(&self, keep: impl Fn(&CaseId) -> bool) -> Option<Vec<f32>> {
        let mut sum = vec![0f32; self.mask_size * self.mask_size];
        let mut n_slices = 0u32;
        let kept = self.cases.iter().filter(|(case_id, _)| keep(case_id));
        for slice in kept.flat_map(|(_, case)| &case.slices).filter(|slice| !slice.mask.is_empty()) {
            n_slices += 1;
            for (sum, lesion) in sum.iter_mut().zip(self.cells(slice)) {
                *sum += f32::from(u8::from(lesion));
            }
        }
        (n_slices > 0).then(|| sum.into_iter().map(|sum| sum / n_slices as f32).collect())
    }

    fn cells(&self, slice: &SliceLesions) -> Vec<bool> {
        let n_cells = self.mask_size * self.mask_size;
        let mut cells = vec![false; n_cells];
        for &[start, length] in &slice.mask {
            let start = (start as usize).min(n_cells);
            let end = start.saturating_add(length as usize).min(n_cells);
            cells[start..end].fill(true);
        }
        cells
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_found_by_case_and_position() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("truth.json");
        let truth = r#"{"synthetic": true, "mask_size": 2, "cases": [
            {"case_id": "a", "lesion_share": 0.25, "slices": [
                {"z_mm": 5.0, "mask": [[1, 2]]}, {"z_mm": 10.0, "mask": []}, {"z_mm": 15.0, "mask": [[3, 9]]}]}]}"#;
        std::fs::write(&path, truth).unwrap();
        let lesions = Lesions::read(&path).unwrap();
        let a = CaseId::new("a").unwrap();
        assert_eq!(lesions.mask(&a, 5.001), Some(vec![false, true, true, false]));
        assert_eq!(lesions.mask(&a, 15.0), Some(vec![false, false, false, true]), "a run ends with the mask");
        assert_eq!(lesions.mask(&a, 7.0), None);
        assert_eq!(lesions.mask(&CaseId::new("b").unwrap(), 5.0), None);
        assert_eq!(lesions.mean_mask(|_| true), Some(vec![0.0, 0.5, 0.5, 0.5]));
        assert_eq!(lesions.mean_mask(|_| false), None);
        assert_eq!(lesions.case(&a).unwrap().lesion_share, 0.25);
    }
}
