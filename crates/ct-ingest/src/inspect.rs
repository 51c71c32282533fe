//! `ct-ingest inspect`: what is below a folder, series by series. Writes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use diag_data::units::{Mm, Spacing};
use serde::Serialize;

use crate::IngestError;
use crate::fault::Fault;
use crate::intake::{self, Scan};
use crate::listing::Listing;
use crate::series::{self, ImageRef};
use crate::settings::Format;

/// What a folder holds.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// Files below the folder.
    pub n_files: usize,
    /// Distinct patients by PatientID.
    pub n_patients: usize,
    /// Distinct studies.
    pub n_studies: usize,
    /// CT series, ordered by their first file.
    pub series: Vec<SeriesLine>,
    /// Files that are no CT images, by reason.
    pub others: BTreeMap<&'static str, usize>,
    /// Files that are broken.
    pub broken: Vec<BrokenFile>,
}

/// One stack of slices.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SeriesLine {
    /// Folder of its first file, below the root: may name somebody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// Images.
    pub n_images: usize,
    /// Rows and columns.
    pub size: (usize, usize),
    /// Pixel spacing.
    pub spacing: Option<Spacing>,
    /// SliceThickness.
    pub slice_thickness: Option<Mm>,
    /// Usual distance between slices.
    pub step: Option<Mm>,
    /// Lowest and highest position.
    pub extent: Option<(Mm, Mm)>,
    /// Manufacturer and model.
    pub scanner: String,
    /// ConvolutionKernel.
    pub kernel: Option<String>,
    /// Transfer syntax UIDs.
    pub transfer_syntaxes: BTreeSet<String>,
    /// Why `dicom` would not use it; absent when it would.
    pub unusable: Option<String>,
    /// What is odd, in words.
    pub warnings: Vec<String>,
    /// Whether it says that it is synthetic.
    pub synthetic: bool,
}

/// A file that cannot be used.
#[derive(Clone, Debug, Serialize)]
pub struct BrokenFile {
    /// Its path below the root: may name somebody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Short fixed name of the reason.
    pub reason: &'static str,
    /// The reason in words.
    pub detail: String,
}

/// Reads all headers below a folder. Paths are given only on request.
///
/// # Errors
/// When the folder cannot be read or holds no file.
pub fn inspect(root: &Path, with_paths: bool) -> Result<Inspection, IngestError> {
    let listing = Listing::of(root)?;
    if listing.files.is_empty() && listing.closed.is_empty() {
        return Err(IngestError::Empty { what: "files", path: root.into() });
    }
    let scans = intake::scan(&listing, Format::Dicom);
    let mut images = Vec::new();
    let mut others: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut broken = Vec::new();
    let broken_file = |path: &str, fault: &Fault| BrokenFile {
        path: with_paths.then(|| path.to_string()),
        reason: fault.code(),
        detail: fault.to_string(),
    };
    broken.extend(listing.closed.iter().map(|(path, fault)| broken_file(path, fault)));
    let (mut patients, mut studies) = (BTreeSet::new(), BTreeSet::new());
    for (file, scan) in scans.iter().enumerate() {
        match scan {
            Scan::Other(reason) => *others.entry(reason).or_default() += 1,
            Scan::Volume(_) => *others.entry("NIfTI volume").or_default() += 1,
            Scan::Broken(fault) => broken.push(broken_file(&listing.files[file].relative, fault)),
            Scan::Ct(header) => {
                patients.extend(header.identity.patient_id.as_deref());
                studies.extend(header.identity.study_uid.as_deref());
                let frames = 0..header.frames.len();
                images.extend(frames.map(|frame| ImageRef { file, frame, header: header.clone() }));
            }
        }
    }
    let mut placed = Vec::new();
    for image in images {
        match series::group(vec![image.clone()]) {
            Ok(_) => placed.push(image),
            Err((file, fault)) => broken.push(broken_file(&listing.files[file].relative, &fault)),
        }
    }
    let groups = series::group(placed).unwrap_or_default();
    let mut lines: Vec<SeriesLine> = Vec::new();
    for group in groups {
        lines.extend(series_lines(group, &listing, with_paths));
    }
    Ok(Inspection {
        n_files: listing.files.len(),
        n_patients: patients.len(),
        n_studies: studies.len(),
        series: lines,
        others,
        broken,
    })
}

fn series_lines(group: series::Group, listing: &Listing, with_paths: bool) -> Vec<SeriesLine> {
    let is_axial = group.is_axial();
    let all = group.images.clone();
    let describe = |images: &[ImageRef]| -> SeriesLine {
        let Some(first) = images.first() else { return SeriesLine::default() };
        let header = &first.header;
        let path = &listing.files[first.file].relative;
        let scanner = [header.scanner.manufacturer.as_deref(), header.scanner.model.as_deref()];
        SeriesLine {
            folder: with_paths.then(|| path.rsplit_once('/').map_or(".", |(folder, _)| folder).into()),
            n_images: images.len(),
            size: (header.format.rows, header.format.cols),
            spacing: first.frame().spacing.clone().ok(),
            slice_thickness: header.scanner.slice_thickness,
            scanner: scanner.into_iter().flatten().collect::<Vec<_>>().join(" "),
            kernel: header.scanner.kernel.clone(),
            transfer_syntaxes: images.iter().map(|image| image.header.transfer_syntax.clone()).collect(),
            synthetic: header.identity.synthetic,
            ..SeriesLine::default()
        }
    };
    let same_bytes = |a: usize, b: usize| {
        let bytes = |file: usize| std::fs::read(&listing.files[file].path).ok();
        bytes(a).is_some_and(|a| Some(a) == bytes(b))
    };
    match series::stack(group, &same_bytes) {
        Err(fault) => vec![SeriesLine { unusable: Some(fault.to_string()), ..describe(&all) }],
        Ok(stacks) => stacks
            .into_iter()
            .map(|stack| {
                let images: Vec<ImageRef> = stack.slices.iter().map(|slice| slice.image.clone()).collect();
                let rescale = images.iter().find_map(|image| image.frame().rescale.clone().err());
                let unusable = match rescale {
                    Some(fault) => Some(fault.to_string()),
                    None if !is_axial => Some("it is not axial".into()),
                    None if images.len() < crate::select::MIN_SLICES => Some("it has too few slices".into()),
                    None => None,
                };
                let extent = stack.slices.first().zip(stack.slices.last()).map(|(a, b)| (a.z, b.z));
                SeriesLine {
                    step: stack.step,
                    extent,
                    unusable,
                    warnings: stack.warnings,
                    ..describe(&images)
                }
            })
            .collect(),
    }
}
