//! One case of NIfTI volumes: from its files to rendered slices.

use diag_data::manifest::CaseRow;
use diag_data::reader::SeriesRule;
use diag_data::slice::{Acquisition, Geometry, Provenance};
use rayon::prelude::*;

use crate::fault::Fault;
use crate::guard::guarded;
use crate::intake::{self, Scan};
use crate::nifti::{self, HuCheck, Volume};
use crate::select::MIN_SLICES;
use crate::settings::Format;
use crate::slices::{self, Measured, SourceSlice};
use crate::study::{CaseFault, CaseTask, ReadCase, Reading, TILT_WARNING_DEG, TOO_LITTLE_LUNG};
use crate::survey;

/// Reads a case. Of several volumes, those whose values are no HU (masks lie
/// beside most public volumes) are left out; of the rest [`SeriesRule`] takes one.
///
/// # Errors
/// The [`Fault`] that sets the whole case aside.
pub fn read(task: &CaseTask, reading: &Reading<'_>) -> Result<ReadCase, CaseFault> {
    let settings = reading.settings;
    let mut files_aside = Vec::new();
    let mut candidates = Vec::new();
    for (file, scan) in intake::scan_case(reading.listing, &task.files, Format::Nifti) {
        match scan {
            Scan::Broken(fault) => return Err((Some(file), fault)),
            Scan::Volume(_) => candidates.push(file),
            Scan::Other(reason) => files_aside.push((file, reason)),
            Scan::Ct(_) => files_aside.push((file, "not a NIfTI volume")),
        }
    }
    let mut volumes = Vec::new();
    let mut series_aside = Vec::new();
    let mut first_fault = None;
    for file in candidates {
        let broken = Fault::Volume { why: "reading it broke off".into() };
        match guarded(broken, || measured(file, reading)) {
            Err(fault @ Fault::NotHu { .. }) => {
                files_aside.push((file, NOT_HU));
                series_aside.push(NOT_HU);
                first_fault.get_or_insert((Some(file), fault));
            }
            Err(fault) => return Err((Some(file), fault)),
            Ok(volume) if volume.stack.len() < MIN_SLICES => {
                files_aside.push((file, "too few slices"));
                series_aside.push("too few slices");
            }
            Ok(volume) => volumes.push((file, volume)),
        }
    }
    let n_usable = volumes.len();
    if settings.reader.series == SeriesRule::Only && n_usable > 1 {
        return Err((None, Fault::SeveralSeries { count: n_usable }));
    }
    volumes.sort_by_key(|(file, volume)| {
        let step = if settings.reader.series == SeriesRule::Thickest { volume.step_um } else { 0 };
        (std::cmp::Reverse((step, volume.stack.len())), *file)
    });
    let mut volumes = volumes.into_iter();
    let Some((file, used)) = volumes.next() else {
        let none = || (None, Fault::NoSeries { n_min: MIN_SLICES, why: "no NIfTI volume".into() });
        return Err(first_fault.unwrap_or_else(none));
    };
    for (file, _) in volumes {
        files_aside.push((file, "another series of the case was used"));
        series_aside.push("another series of the case was used");
    }
    files_aside.sort_unstable();
    let mut warnings = used.warnings;
    if n_usable > 1 {
        warnings.push(format!("{n_usable} volumes; one was chosen by the rule of the manifest"));
    }
    let n_source_slices = used.stack.len();
    let kept = slices::keep(task, used.stack, used.spacing, settings).map_err(|fault| (Some(file), fault))?;
    Ok(ReadCase {
        row: CaseRow {
            case_id: task.case_id.clone(),
            label: task.label,
            split: task.split,
            n_slices: kept.slices.len() as i32,
            n_source_slices: n_source_slices as i32,
            lung_fraction_source: Some(kept.lung_fraction_source),
            lung_fraction: Some(kept.lung_fraction),
            patient_hash: task.patient_hash.clone(),
            study_uid_hash: None,
            series_uid_hash: None,
            manufacturer: None,
            model: None,
            kernel: None,
            slice_thickness_mm: None,
            patient_sex: None,
            patient_age_years: None,
            warnings,
        },
        slices_aside: vec![TOO_LITTLE_LUNG; n_source_slices - kept.slices.len()],
        slices: kept.slices,
        synthetic: used.synthetic,
        files_aside,
        series_aside,
    })
}

const NOT_HU: &str = "values other than HU";

/// A volume, measured slice by slice.
struct MeasuredVolume {
    stack: Vec<Measured>,
    spacing: diag_data::units::Spacing,
    /// Distance between slices in micrometres, so that it can be ordered.
    step_um: i64,
    warnings: Vec<String>,
    synthetic: bool,
}

fn measured(file: usize, reading: &Reading<'_>) -> Result<MeasuredVolume, Fault> {
    let listed = &reading.listing.files[file];
    let volume = nifti::read_file(listed)?;
    let source_blake3 = reading.pseudonyms.hash_file(&listed.read()?);
    let one = |index| measured_slice(&volume, index, &source_blake3, reading);
    let results: Vec<_> = (0..volume.axial().n_slices).into_par_iter().map(one).collect();
    let mut check = HuCheck::default();
    let mut stack = Vec::with_capacity(results.len());
    for result in results {
        let (slice, counts) = result?;
        check.merge(&counts);
        stack.push(slice);
    }
    check.judge()?;
    let axial = volume.axial();
    let mut warnings = volume.header().warnings.clone();
    if axial.tilt_deg > TILT_WARNING_DEG {
        warnings.push(format!("gantry tilt of {:.1} degrees, not corrected", axial.tilt_deg));
    }
    Ok(MeasuredVolume {
        stack,
        spacing: axial.spacing,
        step_um: (axial.step.0 * 1e3).round() as i64,
        warnings,
        synthetic: volume.header().synthetic,
    })
}

fn measured_slice(
    volume: &Volume,
    index: usize,
    source_blake3: &str,
    reading: &Reading<'_>,
) -> Result<(Measured, HuCheck), Fault> {
    let axial = volume.axial();
    let (rows, cols) = (axial.rows, axial.cols);
    let mut hu = volume.slice(index);
    let mut check = HuCheck::default();
    let n_padding = check.clean(&mut hu);
    let source = SourceSlice {
        survey: survey::survey_hu(&hu, (rows, cols), reading.window, reading.settings.with_hu),
        geometry: Geometry {
            z: Some(axial.z(index)),
            gap_before: (index > 0).then_some(axial.step),
            spacing: Some(axial.spacing),
            // NIfTI knows the distance between slices, not how thick they are.
            slice_thickness: None,
            tilt_deg: Some(axial.tilt_deg as f32),
            source_rows: rows as i32,
            source_cols: cols as i32,
        },
        acquisition: Acquisition {
            transfer_syntax: "NIfTI-1".into(),
            rescale_slope: volume.header().rescale.map(|(slope, _)| slope),
            rescale_intercept: volume.header().rescale.map(|(_, intercept)| intercept),
            padding_px: n_padding as i32,
            ..Acquisition::default()
        },
        provenance: Provenance {
            source_blake3: source_blake3.into(),
            pixel_sha256: String::new(),
            sop_uid_hash: None,
            series_uid_hash: None,
            warnings: Vec::new(),
        },
    };
    Ok((slices::measure(source, axial.spacing, reading.settings)?, check))
}
