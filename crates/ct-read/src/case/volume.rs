//! A case of volumes in files of their own: NIfTI, MetaImage, NRRD.

use diag_data::reader::SeriesRule;
use diag_data::slice::{Acquisition, Geometry, Provenance};
use rayon::prelude::*;

use super::task::{CaseFault, CaseFiles, NOT_HU, ReadCase, Reader, SeriesFacts, TOO_LITTLE_LUNG};
use crate::fault::Fault;
use crate::scan::{self, Format, Scan};
use crate::slice::hu_check::{OUTSIDE_CIRCLE_HU, PADDING_HU};
use crate::slice::pictures::{self, Measured, SourceSlice};
use crate::slice::statistics;
use crate::source::guard::guarded;
use crate::stack::TILT_WARNING_DEG;
use crate::volume::{self, Volume};

/// Reads a case. Of several volumes, those whose values are no HU (masks lie
/// beside most public volumes) are left out; of the rest [`SeriesRule`] takes one.
///
/// # Errors
/// The [`Fault`] that sets the whole case aside.
pub fn read(case: &CaseFiles, reader: &Reader<'_>) -> Result<ReadCase, CaseFault> {
    let settings = reader.settings;
    let min_slices = settings.min_slices as usize;
    let mut files_aside = Vec::new();
    let mut candidates = Vec::new();
    let mut first_fault = None;
    for (file, scan) in scan::scan_case(reader.listing, &case.files, Format::Nifti) {
        match scan {
            // A kind of volume that no CT has, as segmentations and maps beside it do.
            Scan::Broken { fault: fault @ Fault::Volume { .. }, .. } => {
                files_aside.push((file, fault.code()));
                first_fault.get_or_insert((Some(file), fault));
            }
            Scan::Broken { fault, .. } => return Err((Some(file), fault)),
            Scan::Volume(_) => candidates.push(file),
            Scan::Other(reason) => files_aside.push((file, reason)),
            Scan::Ct(_) => files_aside.push((file, "not a volume")),
        }
    }
    let mut volumes = Vec::new();
    let mut series_aside = Vec::new();
    for file in candidates {
        let broken = Fault::Volume { why: "reading it broke off".into() };
        match guarded(broken, || measured(file, case.preview.is_some(), reader)) {
            Err(fault @ Fault::NotHu { .. }) => {
                files_aside.push((file, NOT_HU));
                series_aside.push(NOT_HU);
                first_fault.get_or_insert((Some(file), fault));
            }
            Err(fault) => return Err((Some(file), fault)),
            Ok(volume) if volume.stack.len() < min_slices => {
                files_aside.push((file, "too few slices"));
                series_aside.push("too few slices");
            }
            Ok(volume) => volumes.push((file, volume)),
        }
    }
    let n_usable = volumes.len();
    if settings.series == SeriesRule::Only && n_usable > 1 {
        return Err((None, Fault::SeveralSeries { count: n_usable }));
    }
    volumes.sort_by_key(|(file, volume)| {
        let step = if settings.series == SeriesRule::Thickest { volume.step_um } else { 0 };
        (std::cmp::Reverse((step, volume.stack.len())), *file)
    });
    let mut volumes = volumes.into_iter();
    let Some((file, used)) = volumes.next() else {
        let none = || (None, Fault::NoSeries { n_min: min_slices, why: "no volume".into() });
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
    let kept = pictures::keep(used.stack, used.spacing, settings, case.preview.as_deref())
        .map_err(|fault| (Some(file), fault))?;
    Ok(ReadCase {
        n_source_slices,
        lung_fraction_source: Some(kept.lung_fraction_source),
        lung_fraction: Some(kept.lung_fraction),
        series: SeriesFacts::default(),
        warnings,
        slices_aside: vec![TOO_LITTLE_LUNG; n_source_slices - kept.slices.len()],
        slices: kept.slices,
        synthetic: used.synthetic,
        burned_in_unknown: true,
        files_aside,
        series_aside,
    })
}

/// A volume, measured slice by slice.
struct MeasuredVolume {
    stack: Vec<Measured>,
    spacing: diag_data::units::Spacing,
    /// Distance between slices in micrometres, so that it can be ordered.
    step_um: i64,
    warnings: Vec<String>,
    synthetic: bool,
}

fn measured(file: usize, with_tile: bool, reader: &Reader<'_>) -> Result<MeasuredVolume, Fault> {
    let listed = &reader.listing.files[file];
    let (volume, beside) = volume::read_file(listed, reader.listing)?;
    let mut source = Vec::new();
    listed.append_as_stored(&mut source)?;
    beside.iter().try_for_each(|file| file.append_as_stored(&mut source))?;
    let source_blake3 = reader.pseudonyms.hash_file(&source);
    drop(source);
    let one = |index| measured_slice((&volume, &source_blake3), index, with_tile, reader);
    let results: Vec<_> = (0..volume.axial().n_slices).into_par_iter().map(one).collect();
    let stack = results.into_iter().collect::<Result<Vec<Measured>, Fault>>()?;
    pictures::check_hu(&stack)?;
    let axial = volume.axial();
    let mut warnings = volume.header().warnings.clone();
    warnings.extend(axial.view.describe());
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
    (volume, source_blake3): (&Volume, &str),
    index: usize,
    with_tile: bool,
    reader: &Reader<'_>,
) -> Result<Measured, Fault> {
    let axial = volume.axial();
    let (rows, cols) = (axial.rows, axial.cols);
    let mut hu = volume.slice(index);
    let n_padding = fill_padding(&mut hu)?;
    let source = SourceSlice {
        statistics: statistics::of_hu(&hu, (rows, cols), reader.window, reader.with_hu),
        geometry: Geometry {
            z: Some(axial.z(index)),
            gap_before: (index > 0).then_some(axial.step),
            spacing: Some(axial.spacing),
            // These formats know the distance between slices, not how thick they are.
            slice_thickness: None,
            tilt_deg: Some(axial.tilt_deg as f32),
            source_rows: rows as i32,
            source_cols: cols as i32,
        },
        acquisition: Acquisition {
            transfer_syntax: volume.header().format.into(),
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
    pictures::measure(source, axial.spacing, reader.settings, with_tile)
}

/// Replaces filling (below -1500 HU, or not a number) by -1024 HU. Returns how many values it were.
fn fill_padding(hu: &mut [f32]) -> Result<usize, Fault> {
    let mut n_padding = 0;
    for value in hu {
        if value.is_infinite() {
            return Err(Fault::NotHu { why: "some are infinite".into() });
        }
        if value.is_nan() || *value < OUTSIDE_CIRCLE_HU {
            *value = PADDING_HU;
            n_padding += 1;
        }
    }
    Ok(n_padding)
}
