//! A case of DICOM files.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use diag_data::reader::SeriesRule;
use diag_data::slice::{Acquisition, Geometry, Provenance};
use diag_data::units::Mm;
use rayon::prelude::*;

use super::task::{CaseFault, CaseFiles, NOT_HU, ReadCase, Reader, SeriesFacts, TOO_LITTLE_LUNG};
use crate::dicom::{self, Header, StoredPixels};
use crate::fault::Fault;
use crate::pseudonyms::Kind;
use crate::scan::{self, Format, Scan};
use crate::slice::pictures::{self, Measured, SourceSlice};
use crate::source::Listing;
use crate::source::guard::guarded;
use crate::stack::{self, ImageRef, PlacedImage, Stack};
use crate::words::{HeaderText, ScannerText};

/// Reads a case: finds its stack, decodes it in parallel, keeps and renders slices.
///
/// # Errors
/// The [`Fault`] that sets the whole case aside.
pub fn read(case: &CaseFiles, reader: &Reader<'_>) -> Result<ReadCase, CaseFault> {
    let mut found = Found::of(case, reader)?;
    let (stack, decoded) = choose(&mut found, case, reader)?;
    let n_synthetic = stack.slices.iter().filter(|slice| slice.image.header.identity.synthetic).count();
    let synthetic = n_synthetic == stack.slices.len();
    if n_synthetic > 0 && !synthetic {
        return Err((None, Fault::MixedOrigin));
    }
    let kept = pictures::keep(decoded, stack.spacing, reader.settings, case.preview.as_deref())
        .map_err(|fault| (None, fault))?;
    let Found { mut files_aside, series_aside, mut warnings, .. } = found;
    files_aside.extend(stack.repeated.iter().map(|file| (*file, "repeats another file")));
    // One frame of a file may be used and another not: then the file is used.
    let used: BTreeSet<usize> = stack.slices.iter().map(|slice| slice.image.file).collect();
    files_aside.retain(|(file, _)| !used.contains(file));
    files_aside.sort_unstable();
    files_aside.dedup_by_key(|aside| aside.0);
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
        files_aside,
        series_aside,
    })
}

const ANOTHER_SERIES: &str = "another series of the case was used";

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

/// What the files of a case hold.
struct Found {
    /// Axial stacks, the first choice first.
    stacks: Vec<Stack>,
    /// Groups that could not be stacked: how many images each has, and why.
    unstacked: Vec<(usize, Fault)>,
    /// Broken files, with their series where it could be read.
    broken: Vec<Broken>,
    files_aside: Vec<(usize, &'static str)>,
    series_aside: Vec<&'static str>,
    warnings: Vec<String>,
}

struct Broken {
    file: usize,
    series_uid: Option<String>,
    fault: Fault,
}

impl Found {
    fn of(case: &CaseFiles, reader: &Reader<'_>) -> Result<Self, CaseFault> {
        let min_slices = reader.settings.min_slices as usize;
        let mut found = Self {
            stacks: Vec::new(),
            unstacked: Vec::new(),
            broken: Vec::new(),
            files_aside: Vec::new(),
            series_aside: Vec::new(),
            warnings: Vec::new(),
        };
        let mut images = Vec::new();
        for (file, scan) in scan::scan_case(reader.listing, &case.files, Format::Dicom) {
            match scan {
                Scan::Broken { fault, series_uid } => found.broken.push(Broken { file, series_uid, fault }),
                Scan::Other(reason) => found.files_aside.push((file, reason)),
                Scan::Volume(_) => found.files_aside.push((file, "not a DICOM file")),
                Scan::Ct(header) => images.extend((0..header.frames.len()).map(|frame| ImageRef {
                    file,
                    frame,
                    header: header.clone(),
                })),
            }
        }
        one_patient(&images)?;
        let (groups, unplaced) = stack::group(images);
        for (image, fault) in unplaced {
            let series_uid = image.header.identity.series_uid.clone();
            found.broken.push(Broken { file: image.file, series_uid, fault });
        }
        for group in groups {
            let files: Vec<usize> = group.images.iter().map(|image| image.file).collect();
            let reason = if group.is_projection() {
                "projection of several slices"
            } else if !group.is_axial() {
                "not axial"
            } else if group.images.len() < min_slices {
                "too few slices"
            } else {
                match stack::stack(group, &|a, b| same_pixels(reader.listing, a, b)) {
                    Ok(stacks) => found.stacks.extend(stacks),
                    Err(fault) => found.unstacked.push((files.len(), fault)),
                }
                continue;
            };
            found.files_aside.extend(files.into_iter().map(|file| (file, reason)));
            found.series_aside.push(reason);
        }
        found.stacks.sort_by_cached_key(|stack| rank(stack, reader));
        Ok(found)
    }

    /// Leaves a stack out.
    fn leave_out(&mut self, stack: &Stack, reason: &'static str) {
        let files = stack.slices.iter().map(|slice| slice.image.file).chain(stack.repeated.iter().copied());
        self.files_aside.extend(files.map(|file| (file, reason)));
        self.series_aside.push(reason);
    }
}

/// Whose images these are must be one person: whose scan it is, and which patient the split
/// must keep together, would else not be known.
fn one_patient(images: &[ImageRef]) -> Result<(), CaseFault> {
    let distinct = |value: fn(&Header) -> Option<&str>| {
        let values = images.iter().filter_map(|image| value(&image.header));
        values.map(str::to_lowercase).collect::<BTreeSet<_>>().len()
    };
    let by_id = distinct(|header| header.identity.patient_id.as_deref());
    let by_sex = distinct(|header| header.identity.patient_sex.as_deref().filter(|sex| *sex != "O"));
    let hashes = |value: fn(&Header) -> Option<u64>| {
        images.iter().filter_map(|image| value(&image.header)).collect::<BTreeSet<_>>().len()
    };
    let by_birth = hashes(|header| header.identity.birth_date);
    // A name is written in many ways: it only counts where there is no other identifier.
    let by_name = if by_id == 0 { hashes(|header| header.identity.name) } else { 0 };
    let count = by_id.max(by_sex).max(by_birth).max(by_name);
    if count > 1 { Err((None, Fault::SeveralPatients { count })) } else { Ok(()) }
}

/// Orders stacks: long enough, with a rescale, of original pixels, then by the rule.
fn rank(stack: &Stack, reader: &Reader<'_>) -> impl Ord + use<> {
    let image = &stack.slices[0].image;
    let header = &image.header;
    let thickness = header.scanner.slice_thickness.map_or(0.0, |thickness| thickness.0);
    let is_thickest_first = reader.settings.series == SeriesRule::Thickest;
    // Micrometres, so that it can be ordered.
    let thickness = if is_thickest_first { (thickness * 1e3).round() as i64 } else { 0 };
    let number = header.scanner.series_number.unwrap_or(i64::MAX);
    let n_slices = stack.slices.len();
    // Too short a stack comes last, however thick.
    let is_long = n_slices >= reader.settings.min_slices as usize;
    let has_rescale = stack.slices.iter().all(|slice| slice.image.frame().rescale.is_ok());
    let rank = (is_long, has_rescale, image.frame().is_original(), thickness, n_slices);
    (std::cmp::Reverse(rank), number, header.identity.series_uid.clone())
}

/// The stack that [`SeriesRule`] names, decoded: the first one whose values are HU.
fn choose(
    found: &mut Found,
    case: &CaseFiles,
    reader: &Reader<'_>,
) -> Result<(Stack, Vec<Measured>), CaseFault> {
    let min_slices = reader.settings.min_slices as usize;
    let stacks = std::mem::take(&mut found.stacks);
    let n_candidates = stacks.len();
    let n_usable = stacks.iter().filter(|stack| stack.slices.len() >= min_slices).count();
    if reader.settings.series == SeriesRule::Only && n_usable > 1 {
        return Err((None, Fault::SeveralSeries { count: n_usable }));
    }
    let studies: BTreeSet<Option<String>> =
        stacks.iter().map(|stack| stack.slices[0].image.header.identity.study_uid.clone()).collect();
    let (mut chosen, mut not_hu) = (None, None);
    for stack in stacks {
        if chosen.is_some() || stack.slices.len() < min_slices {
            found.leave_out(&stack, ANOTHER_SERIES);
            continue;
        }
        faults_of(&stack, found)?;
        if let Some((count, largest)) = stack.gaps().filter(|_| reader.settings.refuse_gaps) {
            return Err((None, Fault::Gaps { count, largest_mm: format!("{:.1}", largest.0) }));
        }
        let decoded = decode_stack(&stack, case, reader)?;
        // The entries of a table are not negative: air is not among them.
        let has_table = stack
            .slices
            .iter()
            .any(|slice| slice.image.frame().rescale.as_ref().is_ok_and(|rescale| rescale.line().is_none()));
        match if has_table { Ok(()) } else { pictures::check_hu(&decoded) } {
            Ok(()) => chosen = Some((stack, decoded)),
            Err(fault) => {
                found.leave_out(&stack, NOT_HU);
                not_hu.get_or_insert(fault);
            }
        }
    }
    // What could not be stacked may be what the rule would have named.
    let n_chosen = chosen.as_ref().map_or(0, |(stack, _)| stack.slices.len());
    if let Some((_, fault)) = found.unstacked.iter().find(|(n_images, _)| *n_images >= n_chosen) {
        return Err((None, fault.clone()));
    }
    let Some(chosen) = chosen else {
        if let Some(fault) = not_hu {
            return Err((None, fault));
        }
        if let Some(broken) = found.broken.first() {
            return Err((Some(broken.file), broken.fault.clone()));
        }
        let mut reasons: Vec<&str> = found.files_aside.iter().map(|(_, reason)| *reason).collect();
        reasons.sort_unstable();
        reasons.dedup();
        let why = if reasons.is_empty() { "too few slices".into() } else { reasons.join(", ") };
        return Err((None, Fault::NoSeries { n_min: min_slices, why }));
    };
    for broken in &found.broken {
        found.files_aside.push((broken.file, broken.fault.code()));
    }
    if n_candidates > 1 {
        let rule = match reader.settings.series {
            SeriesRule::MostSlices | SeriesRule::Only => "the one with most slices was used",
            SeriesRule::Thickest => "the one with the thickest slices was used",
        };
        found.warnings.push(format!("{n_candidates} axial series; {rule}"));
    }
    if studies.len() > 1 {
        found.warnings.push(format!("{} studies; one series of one of them was used", studies.len()));
    }
    Ok(chosen)
}

/// A broken file costs its case where it is, or may be, a part of the stack.
fn faults_of(stack: &Stack, found: &Found) -> Result<(), CaseFault> {
    let series: BTreeSet<Option<&str>> =
        stack.slices.iter().map(|slice| slice.image.header.identity.series_uid.as_deref()).collect();
    let concerns =
        |broken: &&Broken| broken.series_uid.is_none() || series.contains(&broken.series_uid.as_deref());
    match found.broken.iter().find(concerns) {
        Some(broken) => Err((Some(broken.file), broken.fault.clone())),
        None => Ok(()),
    }
}

/// Whether two images hold the same stored values and turn them into the same HU.
pub fn same_pixels(listing: &Listing, a: &ImageRef, b: &ImageRef) -> bool {
    let words = |image: &ImageRef| {
        guarded(Fault::Truncated, || {
            let bytes = listing.files[image.file].read()?;
            dicom::stored_words(&dicom::inflate(&bytes)?, &image.header, image.frame)
        })
    };
    a.header.format == b.header.format
        && a.frame().rescale == b.frame().rescale
        && words(a).is_ok_and(|a| words(b).is_ok_and(|b| a == b))
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
    let stored = (header.format.rows, header.format.cols);
    let (rows, cols) = stack.view.size(stored);
    let pixels = if stack.view.is_usual() {
        pixels
    } else {
        let words = pixels.words(stored.0);
        StoredPixels::of_words(stack.view.turned(&words, stored).into_owned(), cols)
    };
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
