//! What reading a case takes and gives.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use diag_data::reader::ReaderSettings;
use diag_data::units::HuWindow;

use crate::dicom::Rescale;
use crate::dicom::header::PixelFormat;
use crate::error::ReadError;
use crate::fault::Fault;
use crate::pseudonyms::Pseudonyms;
use crate::slice::pictures::CaseSlice;
use crate::slice::statistics::WordTables;
use crate::source::Listing;

/// A case to be read.
#[derive(Clone, Debug)]
pub struct CaseFiles {
    /// Its files, by index in the listing.
    pub files: Vec<usize>,
    /// Its name in the input, which may be somebody's: it leaves with no text of a header.
    pub name: Option<String>,
    /// Where its contact sheet goes, as PNG; absent where none is wanted.
    pub preview: Option<PathBuf>,
}

/// What reads cases, one or many at a time.
#[derive(Debug)]
pub struct Reader<'a> {
    /// The files.
    pub listing: &'a Listing,
    /// What is asked for.
    pub settings: &'a ReaderSettings,
    /// The hashes.
    pub pseudonyms: &'a Pseudonyms,
    /// Whether HU are kept beside the grey levels.
    pub with_hu: bool,
    /// HU range that becomes 0..255.
    pub(super) window: HuWindow,
    /// The tables of stored words.
    pub(super) tables: TableCache,
}

impl<'a> Reader<'a> {
    /// A reader of volumes.
    ///
    /// # Errors
    /// As [`check_volume_settings`].
    pub fn new(
        listing: &'a Listing,
        settings: &'a ReaderSettings,
        pseudonyms: &'a Pseudonyms,
        with_hu: bool,
    ) -> Result<Self, ReadError> {
        let window = check_volume_settings(settings)?;
        Ok(Self { listing, settings, pseudonyms, with_hu, window, tables: TableCache::default() })
    }
}

/// A case that was read.
#[derive(Clone, Debug)]
pub struct ReadCase {
    /// Its kept slices, lowest first.
    pub slices: Vec<CaseSlice>,
    /// Slices of the used series.
    pub n_source_slices: usize,
    /// Mean lung fraction of all slices of the series, 0 to 1; absent where it was not measured.
    pub lung_fraction_source: Option<f64>,
    /// Mean lung fraction of the kept slices.
    pub lung_fraction: Option<f64>,
    /// What the header of the used series says.
    pub series: SeriesFacts,
    /// What was odd about the case, in words.
    pub warnings: Vec<String>,
    /// Whether every used file bears the mark of synthetic images.
    pub synthetic: bool,
    /// Whether nothing says of a used file that no text is burned into its pixels.
    pub burned_in_unknown: bool,
    /// Files that are not in the used series, with the reason.
    pub files_aside: Vec<(usize, &'static str)>,
    /// Reasons of the series that were not used.
    pub series_aside: Vec<&'static str>,
    /// Reasons of the slices of the used series that were not kept.
    pub slices_aside: Vec<&'static str>,
}

/// What the header of a series says, without naming anybody.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SeriesFacts {
    /// Keyed hash of StudyInstanceUID.
    pub study_uid_hash: Option<String>,
    /// Keyed hash of SeriesInstanceUID.
    pub series_uid_hash: Option<String>,
    /// Manufacturer (0008,0070).
    pub manufacturer: Option<String>,
    /// ManufacturerModelName (0008,1090).
    pub model: Option<String>,
    /// ConvolutionKernel (0018,1210).
    pub kernel: Option<String>,
    /// SliceThickness in mm.
    pub slice_thickness_mm: Option<f64>,
    /// PatientSex: M, F or O.
    pub patient_sex: Option<String>,
    /// PatientAge in whole years; 90 stands for 90 and over.
    pub patient_age_years: Option<i32>,
}

/// Why a case cannot be used, and the file at fault where it is one.
pub type CaseFault = (Option<usize>, Fault);

/// Why a series is not used whose numbers are not those of CT.
pub(super) const NOT_HU: &str = "values other than HU";

/// Why slices of a used series are not kept.
pub(super) const TOO_LITTLE_LUNG: &str = "shows too little lung, or thinned out";

/// Whether this version reads volumes by these settings: what it always does the same
/// way must be asked for in that way. Returns the HU window.
///
/// # Errors
/// [`ReadError::Settings`] that names the first setting that it cannot follow.
pub fn check_volume_settings(reader: &ReaderSettings) -> Result<HuWindow, ReadError> {
    let wanted = ReaderSettings {
        series: reader.series,
        refuse_gaps: reader.refuse_gaps,
        min_slices: reader.min_slices,
        select: reader.select,
        crop: reader.crop,
        window: reader.window,
        size: reader.size,
        ..ReaderSettings::DEFAULT
    };
    if let Some(difference) = wanted.differences(reader).first() {
        return Err(ReadError::Settings {
            why: format!(
                "this program reads volumes with {} {} only, not {}",
                difference.setting, difference.here, difference.there
            ),
            fix: "use the version that made the shards or the model".into(),
        });
    }
    reader.window.ok_or_else(|| ReadError::Settings {
        why: "volumes need a HU window".into(),
        fix: "use shards or a model made from volumes".into(),
    })
}

/// The tables of the last few ways to store pixels. Most series of a cohort share one;
/// series that change it with every slice (PET does, CT hardly) make new ones.
#[derive(Debug, Default)]
pub(super) struct TableCache {
    /// Latest first.
    known: Mutex<Vec<Arc<Tables>>>,
}

/// HU and grey levels of every stored word, for one rescale and the run's window.
#[derive(Debug)]
pub(super) struct Tables {
    format: PixelFormat,
    rescale: Rescale,
    pub(super) words: WordTables,
}

impl TableCache {
    const MAX_TABLES: usize = 4;

    pub(super) fn get(&self, format: PixelFormat, rescale: &Rescale, window: HuWindow) -> Arc<Tables> {
        let is_wanted = |tables: &Arc<Tables>| tables.format == format && tables.rescale == *rescale;
        // Nothing can break off while it is held, and its tables never change.
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known().iter().find(|tables| is_wanted(tables)) {
            return found.clone();
        }
        let words = WordTables::new(format, rescale, window);
        let made = Arc::new(Tables { format, rescale: rescale.clone(), words });
        let mut known = known();
        known.insert(0, made.clone());
        known.truncate(Self::MAX_TABLES);
        made
    }
}
