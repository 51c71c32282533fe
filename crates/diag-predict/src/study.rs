//! The files of one study to its slices.

use std::collections::BTreeSet;
use std::path::Path;

use ct_read::case::{self, CaseFiles, ReadCase, Reader};
use ct_read::pseudonyms::Pseudonyms;
use ct_read::scan::{self, Format, Scan};
use ct_read::source::{Listing, archive};
use ct_read::volume;
use ct_read::{Fault, ReadError};
use diag_data::files;
use diag_data::reader::ReaderSettings;

use crate::error::PredictError;
use crate::refusal::Refusal;

/// Why a case has files that are not in the used series, where a volume is one.
const ANOTHER_VOLUME: &str = "another series of the case was used";

/// The files of one study.
pub(crate) struct Study {
    listing: Listing,
    format: Format,
    scans: Vec<Scan>,
}

/// Why a study gets no prediction, and the file at fault where it is one.
pub(crate) type StudyRefusal = (Option<usize>, Refusal);

/// Whether a file is a study by its name: an archive, or a volume. Returns the name without the
/// extension.
pub(crate) fn study_of_file(name: &str) -> Option<&str> {
    archive::stem(name).or_else(|| volume::stem(name))
}

/// Lists a folder, an archive or a file.
///
/// # Errors
/// When it is not there or cannot be read.
pub(crate) fn list(place: &Path) -> Result<Listing, ReadError> {
    Listing::of(place)
}

/// Hash of what the files of a study hold and how they are named below it. Files that cannot
/// be read have their place in it, too.
pub(crate) fn content_sha256(listing: &Listing) -> String {
    let mut text = String::new();
    let mut before = None;
    for file in &listing.files {
        let path = file.path();
        // An archive is hashed once, not entry by entry.
        if before.as_deref() != Some(&*path) {
            // Opening what is no plain file may wait for ever.
            let hash = path.is_file().then(|| files::sha256_file(&path).ok()).flatten();
            let hash = hash.unwrap_or_else(|| "unreadable".into());
            text.push_str(&format!("{hash} {:?}\n", file.relative));
        }
        before = Some(path.into_owned());
    }
    // A volume by itself may have its voxels in a file beside it, which is not listed.
    if let [file] = &listing.files[..]
        && let Some(voxels) = volume::voxel_file(file, listing)
    {
        let hash = files::sha256_file(&voxels.path()).unwrap_or_else(|_| "unreadable".into());
        text.push_str(&format!("{hash} voxels\n"));
    }
    for (path, fault) in &listing.closed {
        text.push_str(&format!("closed {path:?} {}\n", fault.code()));
    }
    files::sha256_hex(text.as_bytes())
}

impl Study {
    /// Reads the headers of a study.
    pub fn scan(listing: Listing) -> Self {
        let scans = scan::scan(&listing, Format::Dicom);
        // A volume beside DICOM files is a copy of them; one beside nothing else is the study.
        let is_dicom = scans.iter().any(|scan| matches!(scan, Scan::Ct(_) | Scan::Broken { .. }));
        let has_volume = listing.files.iter().any(|file| volume::is_named_as_volume(&file.relative));
        if is_dicom || !has_volume {
            return Self { listing, format: Format::Dicom, scans };
        }
        let scans = scan::scan(&listing, Format::Nifti);
        Self { listing, format: Format::Nifti, scans }
    }

    /// Whether every image bears the mark of synthetic ones; `false` where there is none.
    pub fn is_synthetic(&self) -> bool {
        let marks = self.scans.iter().filter_map(|scan| match scan {
            Scan::Ct(header) => Some(header.identity.synthetic),
            Scan::Volume(header) => Some(header.synthetic),
            Scan::Broken { .. } | Scan::Other(_) => None,
        });
        let marks: Vec<bool> = marks.collect();
        !marks.is_empty() && marks.iter().all(|synthetic| *synthetic)
    }

    /// Path of a file of the study on this machine.
    pub fn path(&self, file: usize) -> std::path::PathBuf {
        self.listing.files[file].path().into_owned()
    }

    /// Reads its slices by the settings of the model.
    ///
    /// # Errors
    /// [`PredictError`] for settings that this version cannot follow.
    pub fn read(&self, settings: &ReaderSettings) -> Result<Result<ReadCase, StudyRefusal>, PredictError> {
        // Hashes are made, but none is shown: any key will do.
        let pseudonyms = Pseudonyms::public()?;
        let reader = Reader::new(&self.listing, settings, &pseudonyms, false)?;
        if let Err(refusal) = self.one_study() {
            return Ok(Err((None, refusal)));
        }
        let files = (0..self.listing.files.len()).collect();
        let case = CaseFiles { files, name: None, preview: None };
        let read = case::read_volume(&case, self.format, &reader);
        Ok(read.map_err(|(file, fault)| (file, fault.into())).and_then(|case| self.checked(case)))
    }

    /// One patient, one examination: nobody may read whose the prediction is into it.
    fn one_study(&self) -> Result<(), Refusal> {
        if self.listing.files.is_empty() {
            let closed = self.listing.closed.first();
            return Err(closed.map_or(Refusal::NoImages, |(_, fault)| fault.clone().into()));
        }
        let headers = || {
            self.scans.iter().filter_map(|scan| match scan {
                Scan::Ct(header) => Some(&header.identity),
                Scan::Broken { .. } | Scan::Other(_) | Scan::Volume(_) => None,
            })
        };
        let patients: BTreeSet<String> =
            headers().filter_map(|identity| Some(identity.patient_id.as_ref()?.to_lowercase())).collect();
        if patients.len() > 1 {
            return Err(Refusal::SeveralPatients { count: patients.len() });
        }
        let studies: BTreeSet<_> = headers().map(|identity| &identity.study_uid).collect();
        if studies.len() > 1 {
            return Err(Refusal::SeveralStudies { count: studies.len() });
        }
        Ok(())
    }

    fn checked(&self, mut case: ReadCase) -> Result<ReadCase, StudyRefusal> {
        let n_others = case.series_aside.iter().filter(|reason| **reason == ANOTHER_VOLUME).count();
        if self.format == Format::Nifti && n_others > 0 {
            return Err((None, Refusal::SeveralVolumes { count: n_others + 1 }));
        }
        for (_, fault) in &self.listing.closed {
            case.warnings.push(format!("a part of the study was not read: {}", closed_words(fault)));
        }
        Ok(case)
    }
}

fn closed_words(fault: &Fault) -> String {
    Refusal::from(fault.clone()).words()
}
