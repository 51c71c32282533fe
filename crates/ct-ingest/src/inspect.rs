//! `ct-ingest inspect`: what is below a folder, patient by patient and series by
//! series, and what `dicom` would make of it. Writes nothing, and tells no identity:
//! patients and studies are numbered in the order of their first file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use ct_read::Fault;
use ct_read::case::same_pixels;
use ct_read::dicom::{self, Header};
use ct_read::picture;
use ct_read::scan::{self, Format, Scan};
use ct_read::slice::MIN_SLICES;
use ct_read::source::{ListedFile, Listing};
use ct_read::stack::{self, ImageRef, Stack};
use ct_read::volume;
use ct_read::words::{HeaderText, ScannerText, ScannerWords};
use diag_data::units::{Mm, Spacing};
use serde::Serialize;

use crate::IngestError;

/// A longer SeriesNumber may be the number of somebody.
const MAX_SHOWN_NUMBER: i64 = 1_000_000;

/// What a folder holds.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// Files below the folder, entries of archives among them.
    pub n_files: usize,
    /// Their length in bytes.
    pub n_bytes: u64,
    /// Folders (and archives) that hold them.
    pub n_folders: usize,
    /// Patients by PatientID, in the order of their first file.
    pub patients: Vec<PatientLine>,
    /// Distinct studies.
    pub n_studies: usize,
    /// CT series, by patient, study and series number.
    pub series: Vec<SeriesLine>,
    /// Volumes (NIfTI, MetaImage, NRRD), which `nifti` reads.
    pub volumes: Vec<VolumeLine>,
    /// Files that are no CT images, by reason.
    pub others: BTreeMap<String, usize>,
    /// Files that are broken.
    pub broken: Vec<BrokenFile>,
    /// What needs a decision, in words.
    pub advice: Vec<String>,
    /// What a label table may name: folders of CT objects, and volumes. May name somebody.
    #[serde(skip)]
    pub case_ids: BTreeSet<String>,
    /// Pictures, which `images` reads.
    pub n_pictures: usize,
}

impl Inspection {
    /// A label table to fill in.
    pub fn labels_template(&self) -> String {
        let quoted = |case: &String| {
            let is_plain = !case.contains([',', '"', '\n', '\r']);
            if is_plain { case.clone() } else { format!("\"{}\"", case.replace('"', "\"\"")) }
        };
        let rows = self.case_ids.iter().map(|case| format!("{},,\n", quoted(case)));
        std::iter::once("case_id,label,patient_id\n".to_string()).chain(rows).collect()
    }
}

/// One patient, as far as shards would tell.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PatientLine {
    /// Whether the files name a PatientID at all.
    pub has_id: bool,
    /// PatientSex: M, F or O.
    pub sex: Option<String>,
    /// PatientAge in whole years; 90 stands for 90 and over.
    pub age_years: Option<i32>,
    /// Studies.
    pub n_studies: usize,
}

/// One stack of slices.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SeriesLine {
    /// Index of its patient, from 0.
    pub patient: usize,
    /// Number of its study, from 1, over all patients.
    pub study: usize,
    /// SeriesNumber.
    pub number: Option<i64>,
    /// Folder of its first file, below the root: may name somebody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// Folders that its files lie in.
    pub n_folders: usize,
    /// Images.
    pub n_images: usize,
    /// Rows and columns.
    pub size: (usize, usize),
    /// "axial", "coronal", "sagittal" or "oblique".
    pub plane: &'static str,
    /// Pixel spacing.
    pub spacing: Option<Spacing>,
    /// SliceThickness.
    pub slice_thickness: Option<Mm>,
    /// Usual distance between slices.
    pub step: Option<Mm>,
    /// Lowest and highest position.
    pub extent: Option<(Mm, Mm)>,
    /// Manufacturer and model; those that are not on the list of words are numbered.
    pub scanner: String,
    /// ConvolutionKernel; likewise.
    pub kernel: Option<String>,
    /// KVP in kV.
    pub kvp: Option<f32>,
    /// Transfer syntaxes by name.
    pub transfer_syntaxes: BTreeSet<String>,
    /// Whether the pixels went through lossy compression.
    pub lossy: bool,
    /// Whether `dicom` would take it of all series of its patient and folder.
    pub is_first_choice: bool,
    /// Why `dicom` would not use it; absent when it would.
    pub unusable: Option<String>,
    /// What is odd, in words.
    pub warnings: Vec<String>,
    /// Whether it says that it is synthetic.
    pub synthetic: bool,
}

/// One volume.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeLine {
    /// Its path below the root: may name somebody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Slices, rows and columns of its axial slices.
    pub shape: [usize; 3],
    /// Pixel spacing.
    pub spacing: Spacing,
    /// Distance between slices.
    pub step: Mm,
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
    /// What can be done about it.
    pub remedy: String,
}

/// Reads all headers below a folder. Paths are given only on request; `allow_values` is a file of
/// makers, models and kernels that are shown beside those that are known.
///
/// # Errors
/// When the folder cannot be read or holds no file, or the list of words is none.
pub fn inspect(
    root: &Path,
    with_paths: bool,
    allow_values: Option<&Path>,
) -> Result<Inspection, IngestError> {
    let words = ScannerWords::known()?;
    let words = match allow_values {
        Some(path) => words.with_file(path)?,
        None => words,
    };
    let mut texts = ShownTexts { words, unlisted: BTreeMap::new() };
    let listing = Listing::of(root)?;
    if listing.files.is_empty() && listing.closed.is_empty() {
        return Err(IngestError::Empty { what: "files", path: root.into() });
    }
    let mut scans = scan::scan(&listing, Format::Dicom);
    for (file, scan) in scans.iter_mut().enumerate() {
        let listed = &listing.files[file];
        if volume::is_named_as_volume(&listed.relative) {
            *scan = match volume::scan_file(listed) {
                Ok(header) => Scan::Volume(header.into()),
                Err(fault) => Scan::Broken { fault, series_uid: None },
            };
        }
    }
    let shown = |path: &str| with_paths.then(|| path.to_string());
    let broken_file = |path: &str, fault: &Fault| BrokenFile {
        path: shown(path),
        reason: fault.code(),
        detail: fault.to_string(),
        remedy: fault.remedy(),
    };
    let mut broken: Vec<BrokenFile> =
        listing.closed.iter().map(|(path, fault)| broken_file(path, fault)).collect();
    let mut others: BTreeMap<String, usize> = BTreeMap::new();
    let mut volumes = Vec::new();
    let mut placed = Vec::new();
    let mut people = People::default();
    let mut case_ids = BTreeSet::new();
    for (file, scan) in scans.iter().enumerate() {
        let path = &listing.files[file].relative;
        match scan {
            Scan::Other(reason) => *others.entry((*reason).into()).or_default() += 1,
            Scan::Broken { fault, .. } => broken.push(broken_file(path, fault)),
            Scan::Volume(header) => match volume::Axial::of(header) {
                Ok(axial) => {
                    case_ids.insert(path.to_string());
                    volumes.push(VolumeLine {
                        path: shown(path),
                        shape: [axial.n_slices, axial.rows, axial.cols],
                        spacing: axial.spacing,
                        step: axial.step,
                    });
                }
                Err(fault) => broken.push(broken_file(path, &fault)),
            },
            Scan::Ct(header) => {
                case_ids.insert(folder_of(path).to_string());
                people.meet(header);
                let image = |frame| ImageRef { file, frame, header: header.clone() };
                placed.extend((0..header.frames.len()).map(image));
            }
        }
    }
    let (groups, unplaced) = stack::group(placed);
    for (image, fault) in &unplaced {
        broken.push(broken_file(&listing.files[image.file].relative, fault));
    }
    let mut lines: Vec<SeriesLine> = Vec::new();
    for group in groups {
        lines.extend(series_lines(group, &listing, &people, &mut texts, with_paths));
    }
    lines.sort_by_key(|line| (line.patient, line.study, line.number.unwrap_or(i64::MAX)));
    mark_first_choices(&mut lines);
    let folders: BTreeSet<&str> = listing.files.iter().map(|file| folder_of(&file.relative)).collect();
    let mut found = Inspection {
        n_files: listing.files.len(),
        n_bytes: listing.files.iter().map(ListedFile::n_bytes).sum(),
        n_folders: folders.len(),
        n_studies: people.studies.len(),
        patients: people.lines,
        series: lines,
        volumes,
        others,
        broken,
        advice: Vec::new(),
        case_ids,
        n_pictures: listing.files.iter().filter(|file| picture::is_named_as_image(&file.relative)).count(),
    };
    found.advice = advice(&found, texts.unlisted.len());
    Ok(found)
}

/// Patients and studies, numbered in the order of their first file.
#[derive(Default)]
struct People {
    patients: BTreeMap<Option<String>, usize>,
    studies: BTreeMap<Option<String>, usize>,
    met: BTreeSet<(usize, usize)>,
    lines: Vec<PatientLine>,
}

impl People {
    fn meet(&mut self, header: &Header) {
        let identity = &header.identity;
        let n_patients = self.patients.len();
        let patient = *self.patients.entry(identity.patient_id.clone()).or_insert(n_patients);
        if patient == self.lines.len() {
            // Files without PatientID may be of several people.
            let has_id = identity.patient_id.is_some();
            self.lines.push(PatientLine {
                has_id,
                sex: identity.patient_sex.clone().filter(|_| has_id),
                age_years: identity.patient_age_years.filter(|_| has_id),
                n_studies: 0,
            });
        }
        let n_studies = self.studies.len();
        let study = *self.studies.entry(identity.study_uid.clone()).or_insert(n_studies);
        if self.met.insert((patient, study)) {
            self.lines[patient].n_studies += 1;
        }
    }

    fn numbers(&self, header: &Header) -> (usize, usize) {
        let find = |map: &BTreeMap<Option<String>, usize>, key| map.get(key).copied().unwrap_or(0);
        let identity = &header.identity;
        (find(&self.patients, &identity.patient_id), find(&self.studies, &identity.study_uid) + 1)
    }
}

/// Makers, models and kernels as they are shown: words of the list, the others by number.
struct ShownTexts {
    words: ScannerWords,
    unlisted: BTreeMap<(&'static str, HeaderText), usize>,
}

impl ShownTexts {
    fn show(&mut self, what: ScannerText, text: &HeaderText, case: Option<&str>) -> String {
        if let Some(word) = text.listed(what, &self.words, case) {
            return word;
        }
        let n_known = self.unlisted.keys().filter(|(known, _)| *known == what.name()).count();
        let number = self.unlisted.entry((what.name(), text.clone())).or_insert(n_known + 1);
        format!("unlisted {} {number}", what.name())
    }
}

fn folder_of(relative: &str) -> &str {
    relative.rsplit_once('/').map_or(".", |(folder, _)| folder)
}

fn series_lines(
    group: stack::Group,
    listing: &Listing,
    people: &People,
    texts: &mut ShownTexts,
    with_paths: bool,
) -> Vec<SeriesLine> {
    let (plane, all) = (group.plane(), group.images.clone());
    let mut describe = |images: &[ImageRef]| -> SeriesLine {
        let Some(first) = images.first() else { return SeriesLine::default() };
        let (header, scanner) = (&first.header, &first.header.scanner);
        let folder = |image: &ImageRef| folder_of(&listing.files[image.file].relative).to_string();
        let (patient, study) = people.numbers(header);
        // In most exports the outermost folder is named after a case.
        let case = listing.files[first.file].relative.split_once('/').map(|(outermost, _)| outermost);
        let mut shown =
            |what, text: &Option<HeaderText>| text.as_ref().map(|text| texts.show(what, text, case));
        let names = [
            shown(ScannerText::Manufacturer, &scanner.manufacturer),
            shown(ScannerText::Model, &scanner.model),
        ];
        let kernel = shown(ScannerText::Kernel, &scanner.kernel);
        SeriesLine {
            patient,
            study,
            number: scanner.series_number.filter(|number| number.abs() < MAX_SHOWN_NUMBER),
            folder: with_paths.then(|| folder(first)),
            n_folders: images.iter().map(folder).collect::<BTreeSet<_>>().len(),
            n_images: images.len(),
            size: (header.format.rows, header.format.cols),
            plane,
            spacing: first.frame().spacing.clone().ok(),
            slice_thickness: scanner.slice_thickness,
            scanner: names.into_iter().flatten().collect::<Vec<_>>().join(" "),
            kernel,
            kvp: scanner.kvp,
            transfer_syntaxes: images.iter().map(|image| dicom::syntax_name(&image.header)).collect(),
            lossy: images.iter().any(|image| image.header.scanner.lossy),
            synthetic: header.identity.synthetic,
            ..SeriesLine::default()
        }
    };
    if group.is_projection() {
        let why = "it is a projection of several slices".into();
        return vec![SeriesLine { unusable: Some(why), ..describe(&all) }];
    }
    match stack::stack(group, &|a, b| same_pixels(listing, a, b)) {
        Err(fault) => vec![SeriesLine { unusable: Some(fault.to_string()), ..describe(&all) }],
        Ok(stacks) => stacks.into_iter().map(|stack| stack_line(stack, plane, &mut describe)).collect(),
    }
}

fn stack_line(
    stack: Stack,
    plane: &'static str,
    describe: &mut dyn FnMut(&[ImageRef]) -> SeriesLine,
) -> SeriesLine {
    let images: Vec<ImageRef> = stack.slices.iter().map(|slice| slice.image.clone()).collect();
    let rescale = images.iter().find_map(|image| image.frame().rescale.clone().err());
    let unusable = match rescale {
        Some(fault) => Some(fault.to_string()),
        None if plane != "axial" => Some(format!("it is {plane}, not axial")),
        None if images.len() < MIN_SLICES => Some("a single image is no series".into()),
        None => None,
    };
    let extent = stack.slices.first().zip(stack.slices.last()).map(|(a, b)| (a.z, b.z));
    SeriesLine { step: stack.step, extent, unusable, warnings: stack.warnings, ..describe(&images) }
}

/// Marks the series that `dicom` would take of each patient, by its default rule.
fn mark_first_choices(lines: &mut [SeriesLine]) {
    let mut best: BTreeMap<usize, usize> = BTreeMap::new();
    for (i, line) in lines.iter().enumerate().filter(|(_, line)| line.unusable.is_none()) {
        let rank = |line: &SeriesLine| (std::cmp::Reverse(line.n_images), line.number.unwrap_or(i64::MAX));
        let known = best.entry(line.patient).or_insert(i);
        if rank(line) < rank(&lines[*known]) {
            *known = i;
        }
    }
    best.into_values().for_each(|i| lines[i].is_first_choice = true);
}

/// What a clerk would ask before filing.
fn advice(found: &Inspection, n_unlisted: usize) -> Vec<String> {
    let mut advice = Vec::new();
    let usable = |patient: usize| {
        found.series.iter().filter(move |line| line.patient == patient && line.unusable.is_none()).count()
    };
    let n_several = (0..found.patients.len()).filter(|&patient| usable(patient) > 1).count();
    let n_without = (0..found.patients.len()).filter(|&patient| usable(patient) == 0).count();
    if n_several > 0 {
        advice.push(format!(
            "{} more than one usable series: one folder a series makes each a case; in one folder, \
             `dicom --series` says which is used",
            count(n_several, "patient has", "patients have")
        ));
    }
    if n_without > 0 {
        advice.push(format!("{} no usable series", count(n_without, "patient has", "patients have")));
    }
    if found.patients.iter().any(|patient| !patient.has_id) {
        advice.push(
            "some files name no PatientID: give a patient_id column in the label table, so that a patient \
             stays on one side of the split"
                .into(),
        );
    }
    if found.patients.len() == 1 && found.n_studies > 2 {
        advice.push(
            "all studies have one PatientID: if that is an anonymiser's placeholder, give a patient_id column"
                .into(),
        );
    }
    if n_unlisted > 0 {
        advice.push(format!(
            "{} not on the list of words, and would be stored as a token: --allow-values FILE adds words",
            count(n_unlisted, "manufacturer, model or kernel is", "manufacturers, models or kernels are")
        ));
    }
    let n_spread = found.series.iter().filter(|line| line.n_folders > 1).count();
    if n_spread > 0 {
        advice.push(format!(
            "{} over several folders: match by --match series-uid or patient-id, or name the folder above",
            count(n_spread, "series is spread", "series are spread")
        ));
    }
    if found.series.is_empty() && !found.volumes.is_empty() {
        advice.push("`ct-ingest nifti` reads these volumes".into());
    }
    if found.series.is_empty() && found.volumes.is_empty() && found.n_pictures > 0 {
        advice.push(format!("`ct-ingest images` reads {}", count(found.n_pictures, "picture", "pictures")));
    }
    if !found.volumes.is_empty() && !found.series.is_empty() {
        advice
            .push("DICOM files and volumes lie side by side: `dicom` and `nifti` each read their own".into());
    }
    if !found.broken.is_empty() {
        advice.push(
            "a broken file of the used series sets its case aside: copy it again, or move it away".into(),
        );
    }
    advice
}

fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}
