//! A case of DICOM files.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use diag_data::reader::SeriesRule;
use diag_data::slice::{Acquisition, Geometry, Provenance};
use diag_data::units::Mm;
use rayon::prelude::*;

use super::task::{CaseFault, CaseFiles, ReadCase, Reader, SeriesFacts, TOO_LITTLE_LUNG};
use crate::dicom::{self, Header};
use crate::fault::Fault;
use crate::pseudonyms::Kind;
use crate::scan::{self, Format, Scan};
use crate::slice::MIN_SLICES;
use crate::slice::pictures::{self, Measured, SourceSlice};
use crate::source::guard::guarded;
use crate::stack::{self, ImageRef, PlacedImage, Stack};
use crate::words::{HeaderText, ScannerText};

/// Reads a case: finds its stack, decodes it in parallel, keeps and renders slices.
///
/// # Errors
/// The [`Fault`] that sets the whole case aside.
pub fn read(case: &CaseFiles, reader: &Reader<'_>) -> Result<ReadCase, CaseFault> {
    let chosen = choose_stack(case, reader)?;
    let stack = &chosen.stack;
    if let Some((count, largest)) = stack.gaps().filter(|_| reader.settings.refuse_gaps) {
        return Err((None, Fault::Gaps { count, largest_mm: format!("{:.1}", largest.0) }));
    }
    let n_synthetic = stack.slices.iter().filter(|slice| slice.image.header.identity.synthetic).count();
    let synthetic = n_synthetic == stack.slices.len();
    if n_synthetic > 0 && !synthetic {
        return Err((None, Fault::MixedOrigin));
    }
    let decoded = decode_stack(stack, case, reader)?;
    let kept = pictures::keep(decoded, stack.spacing, reader.settings, case.preview.as_deref())
        .map_err(|fault| (None, fault))?;
    let mut warnings = chosen.warnings;
    warnings.extend(stack.warnings.iter().cloned());
    let burned_in_unknown = stack.slices.iter().any(|slice| slice.image.header.burned_in_unknown);
    if burned_in_unknown {
        warnings.push("BurnedInAnnotation is neither YES nor NO: the pixels may show text".into());
    }
    let first: &Header = &stack.slices[0].image.header;
    let hash = |kind, text: &Option<String>| text.as_deref().map(|text| reader.pseudonyms.hash(kind, text));
    let texts = ScannerTexts::of(first, case.name.as_deref(), reader);
    Ok(ReadCase {
        n_source_slices: stack.slices.len(),
        lung_fraction_source: Some(kept.lung_fraction_source),
        lung_fraction: Some(kept.lung_fraction),
        series: SeriesFacts {
            study_uid_hash: hash(Kind::Study, &first.identity.study_uid),
            series_uid_hash: hash(Kind::Series, &first.identity.series_uid),
            manufacturer: texts.manufacturer,
            model: texts.model,
            kernel: texts.kernel,
            slice_thickness_mm: first.scanner.slice_thickness.map(|thickness| thickness.0),
            patient_sex: first.identity.patient_sex.clone(),
            patient_age_years: first.identity.patient_age_years,
        },
        warnings,
        synthetic,
        burned_in_unknown,
        slices_aside: vec![TOO_LITTLE_LUNG; stack.slices.len() - kept.slices.len()],
        slices: kept.slices,
        files_aside: chosen.files_aside,
        series_aside: chosen.series_aside,
    })
}

/// The texts of a header as they may leave.
struct ScannerTexts {
    manufacturer: Option<String>,
    model: Option<String>,
    kernel: Option<String>,
}

impl ScannerTexts {
    fn of(header: &Header, case: Option<&str>, reader: &Reader<'_>) -> Self {
        let shown = |what, text: &Option<HeaderText>| {
            text.as_ref().map(|text| reader.pseudonyms.scanner_text(what, text, case))
        };
        Self {
            manufacturer: shown(ScannerText::Manufacturer, &header.scanner.manufacturer),
            model: shown(ScannerText::Model, &header.scanner.model),
            kernel: shown(ScannerText::Kernel, &header.scanner.kernel),
        }
    }
}

struct Chosen {
    stack: Stack,
    files_aside: Vec<(usize, &'static str)>,
    series_aside: Vec<&'static str>,
    warnings: Vec<String>,
}

/// The stack that [`SeriesRule`] names.
fn choose_stack(case: &CaseFiles, reader: &Reader<'_>) -> Result<Chosen, CaseFault> {
    let mut files_aside = Vec::new();
    let mut images = Vec::new();
    for (file, scan) in scan::scan_case(reader.listing, &case.files, Format::Dicom) {
        match scan {
            Scan::Broken(fault) => return Err((Some(file), fault)),
            Scan::Other(reason) => files_aside.push((file, reason)),
            Scan::Volume(_) => files_aside.push((file, "not a DICOM file")),
            Scan::Ct(header) => images.extend((0..header.frames.len()).map(|frame| ImageRef {
                file,
                frame,
                header: header.clone(),
            })),
        }
    }
    let same_bytes = |a: usize, b: usize| {
        let bytes = |file: usize| reader.listing.files[file].read().ok();
        bytes(a).is_some_and(|a| Some(a) == bytes(b))
    };
    let mut series_aside = Vec::new();
    let mut stacks = Vec::new();
    for group in stack::group(images).map_err(|(file, fault)| (Some(file), fault))? {
        let files: Vec<usize> = group.images.iter().map(|image| image.file).collect();
        let reason = if !group.is_axial() {
            "not axial"
        } else if group.images.len() < MIN_SLICES {
            "too few slices"
        } else {
            stacks.extend(stack::stack(group, &same_bytes).map_err(|fault| (None, fault))?);
            continue;
        };
        files_aside.extend(files.into_iter().map(|file| (file, reason)));
        series_aside.push(reason);
    }
    let order = |stack: &Stack| {
        let header = &stack.slices[0].image.header;
        let thickness = header.scanner.slice_thickness.map_or(0.0, |thickness| thickness.0);
        let is_thickest_first = reader.settings.series == SeriesRule::Thickest;
        // Micrometres, so that it can be ordered.
        let thickness = if is_thickest_first { (thickness * 1e3).round() as i64 } else { 0 };
        let number = header.scanner.series_number.unwrap_or(i64::MAX);
        let n_slices = stack.slices.len();
        // Too short a stack comes last, however thick.
        let rank = (n_slices >= MIN_SLICES, thickness, n_slices);
        (std::cmp::Reverse(rank), number, header.identity.series_uid.clone())
    };
    stacks.sort_by_key(order);
    let n_usable = stacks.iter().filter(|stack| stack.slices.len() >= MIN_SLICES).count();
    if reader.settings.series == SeriesRule::Only && n_usable > 1 {
        return Err((None, Fault::SeveralSeries { count: n_usable }));
    }
    let n_candidates = stacks.len();
    let mut stacks = stacks.into_iter();
    let Some(stack) = stacks.next().filter(|stack| stack.slices.len() >= MIN_SLICES) else {
        let mut reasons: Vec<&str> = files_aside.iter().map(|(_, reason)| *reason).collect();
        reasons.sort_unstable();
        reasons.dedup();
        let why = if reasons.is_empty() { "too few slices".into() } else { reasons.join(", ") };
        return Err((None, Fault::NoSeries { n_min: MIN_SLICES, why }));
    };
    for other in stacks {
        let files = other.slices.iter().map(|slice| slice.image.file);
        files_aside.extend(files.map(|file| (file, "another series of the case was used")));
        series_aside.push("another series of the case was used");
    }
    files_aside.extend(stack.repeated.iter().map(|file| (*file, "repeats another file")));
    // One frame of a file may be used and another not: then the file is used.
    let used: BTreeSet<usize> = stack.slices.iter().map(|slice| slice.image.file).collect();
    files_aside.retain(|(file, _)| !used.contains(file));
    files_aside.sort_unstable();
    files_aside.dedup_by_key(|aside| aside.0);
    let warnings = if n_candidates > 1 {
        let rule = match reader.settings.series {
            SeriesRule::MostSlices | SeriesRule::Only => "the one with most slices was used",
            SeriesRule::Thickest => "the one with the thickest slices was used",
        };
        vec![format!("{n_candidates} axial series; {rule}")]
    } else {
        Vec::new()
    };
    Ok(Chosen { stack, files_aside, series_aside, warnings })
}

fn decode_stack(stack: &Stack, case: &CaseFiles, reader: &Reader<'_>) -> Result<Vec<Measured>, CaseFault> {
    let mut frames_of: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (i, slice) in stack.slices.iter().enumerate() {
        frames_of.entry(slice.image.file).or_default().push(i);
        if let Err(fault) = &slice.image.frame().rescale {
            return Err((Some(slice.image.file), fault.clone()));
        }
    }
    let files: Vec<(usize, Vec<usize>)> = frames_of.into_iter().collect();
    // Collected in full, so that the first fault in order is reported, not the
    // first in time.
    let results: Vec<_> =
        files.par_iter().map(|(file, slices)| decode_file((*file, slices), stack, case, reader)).collect();
    let mut decoded: Vec<(usize, Measured)> = Vec::with_capacity(stack.slices.len());
    for result in results {
        decoded.extend(result?);
    }
    decoded.sort_by_key(|(i, _)| *i);
    Ok(decoded.into_iter().map(|(_, decoded)| decoded).collect())
}

/// Longest buffer that a thread keeps for the next file.
const MAX_KEPT_BUFFER: usize = 16 << 20;

/// Hashes a file and decodes its slices.
fn decode_file(
    (file, slices): (usize, &[usize]),
    stack: &Stack,
    case: &CaseFiles,
    reader: &Reader<'_>,
) -> Result<Vec<(usize, Measured)>, CaseFault> {
    thread_local! {
        /// Fresh memory for every file would cost as much as reading it.
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    // What runs on this thread in between finds none, and makes its own.
    let mut buffer = BUFFER.take();
    let broken = Fault::Pixels { why: "decoding it broke off".into() };
    let decoded = guarded(broken, || {
        reader.listing.files[file].read_into(&mut buffer)?;
        let hash = reader.pseudonyms.hash_file(&buffer);
        let inflated = dicom::inflate(&buffer)?;
        let one =
            |&i: &usize| Ok((i, decode_slice(&stack.slices[i], stack, (&inflated, &hash), case, reader)?));
        slices.iter().map(one).collect()
    });
    // The largest multi-frame objects are not kept.
    if buffer.capacity() <= MAX_KEPT_BUFFER {
        BUFFER.set(buffer);
    }
    decoded.map_err(|fault| (Some(file), fault))
}

fn decode_slice(
    slice: &PlacedImage,
    stack: &Stack,
    (file, source_blake3): (&[u8], &str),
    case: &CaseFiles,
    reader: &Reader<'_>,
) -> Result<Measured, Fault> {
    let image = &slice.image;
    let (header, settings) = (&image.header, reader.settings);
    let rescale = image.frame().rescale.clone()?;
    let tables = reader.tables.get(header.format, &rescale, reader.window);
    let pixels = dicom::stored_pixels(file, header, image.frame)?;
    let (rows, cols) = (header.format.rows, header.format.cols);
    let (statistics, n_padding) = tables.words.measure(&pixels, (rows, cols), reader.with_hu);
    let hash = |kind, text: &Option<String>| text.as_deref().map(|text| reader.pseudonyms.hash(kind, text));
    let mut warnings = header.warnings.clone();
    if slice.is_after_gap {
        let gap = slice.gap_before.unwrap_or(Mm(0.0));
        warnings.push(format!("gap of {:.1} mm below", gap.0));
    }
    let texts = ScannerTexts::of(header, case.name.as_deref(), reader);
    let source = SourceSlice {
        statistics,
        geometry: Geometry {
            z: Some(slice.z),
            gap_before: slice.gap_before,
            spacing: Some(stack.spacing),
            slice_thickness: header.scanner.slice_thickness,
            tilt_deg: Some(stack.tilt_deg as f32),
            source_rows: rows as i32,
            source_cols: cols as i32,
        },
        acquisition: Acquisition {
            manufacturer: texts.manufacturer,
            model: texts.model,
            kernel: texts.kernel,
            kvp: header.scanner.kvp,
            transfer_syntax: header.transfer_syntax.clone(),
            lossy: header.scanner.lossy,
            rescale_slope: rescale.line().map(|(slope, _)| slope),
            rescale_intercept: rescale.line().map(|(_, intercept)| intercept),
            padding_px: n_padding as i32,
        },
        provenance: Provenance {
            source_blake3: source_blake3.into(),
            pixel_sha256: String::new(),
            sop_uid_hash: hash(Kind::Sop, &header.identity.sop_uid),
            series_uid_hash: hash(Kind::Series, &header.identity.series_uid),
            warnings,
        },
    };
    pictures::measure(source, stack.spacing, settings, case.preview.is_some())
}
