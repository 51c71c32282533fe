//! One DICOM study, a saved model and its decided rule to a class.
//!
//! In: an evaluated run folder of `diag-train` and a folder with the files of one study.
//! Out: a [`StudyReport`] with the class, calibrated probabilities and set of the rule that
//! the evaluation published, and probabilities by slice, without anything that names the
//! patient.
//!
//! Slices are chosen, windowed and resized by the settings with which the
//! training slices were made; they lie in the model's description.
//!
//! Research software: the numbers are not for clinical use.

mod error;
mod report;

use std::path::PathBuf;

use ct_read::case::{self, CaseFiles, ReadCase, Reader};
use ct_read::pseudonyms::Pseudonyms;
use ct_read::scan::{self, Format, Scan};
use ct_read::source::Listing;
use diag_data::reader::{ReaderSettings, Source};
use diag_data::run::RunDir;
use diag_decision::Decision;
use diag_model::{FINAL_HEAD, SavedModel, input, softmax};

pub use error::PredictError;
pub use report::{INTENDED_USE, SYNTHETIC, SliceReport, StudyReport};

/// Slices of one pass through the network.
const BATCH_SIZE: usize = 16;

/// What to predict, and from what.
#[derive(Clone, Debug)]
pub struct PredictJob {
    /// Run folder with `model.json`, `model.safetensors` and `decision.json`.
    pub run: PathBuf,
    /// Folder with the DICOM files of one study.
    pub study: PathBuf,
    /// Whether errors name files below that folder; their paths may name patients.
    pub keep_paths: bool,
}

/// Predicts the classes of one study.
///
/// # Errors
/// A run without a model or a rule for it, a model that was trained on plain images, a
/// folder without a usable CT series or with more than one study.
pub fn predict(job: &PredictJob) -> Result<StudyReport, PredictError> {
    let run = RunDir::new(&job.run);
    let model = SavedModel::read(&run.model(), &run.weights())?;
    let card = &model.card;
    if !run.decision().exists() {
        return Err(PredictError::NoDecision { run: job.run.clone() });
    }
    // The hash was held against the weights when they were read.
    let decision = Decision::read(&run.decision(), &card.labels, &card.networks[0].sha256)?;
    let settings = &card.input.reader;
    if settings.source == Source::Images {
        return Err(PredictError::PlainImages);
    }
    let case = read_study(job, settings)?;
    let network = model.network.folded()?;
    let (height, width) = (settings.size as usize, settings.size as usize);
    let mut slices = Vec::with_capacity(case.slices.len());
    for batch in case.slices.chunks(BATCH_SIZE) {
        let images = batch.iter().map(|slice| slice.pixels.as_slice());
        let image_nchw = input::from_grey(images, height, width)?;
        let logits = network.forward(&image_nchw)?;
        let Some(logits_nk) = logits.get(FINAL_HEAD) else {
            return Err(PredictError::NoFinalHead);
        };
        for (slice, row) in batch.iter().zip(logits_nk.to_vec2::<f32>()?) {
            slices.push(SliceReport {
                slice_index: slices.len() as i32,
                z_mm: slice.geometry.z.map(|z| z.0),
                probabilities: softmax(&row),
            });
        }
    }
    Ok(StudyReport::new(&decision, card.training.synthetic, slices, &case)?)
}

/// Reads the slices of a folder as one case.
fn read_study(job: &PredictJob, settings: &ReaderSettings) -> Result<ReadCase, PredictError> {
    let folder = job.study.as_path();
    let listing = Listing::of(folder)?;
    let scans = scan::scan(&listing, Format::Dicom);
    let mut studies: Vec<_> = scans
        .iter()
        .filter_map(|scan| match scan {
            Scan::Ct(header) => Some(&header.identity.study_uid),
            Scan::Broken { .. } | Scan::Other(_) | Scan::Volume(_) => None,
        })
        .collect();
    studies.sort();
    studies.dedup();
    if studies.len() > 1 {
        return Err(PredictError::ManyStudies { n_studies: studies.len(), folder: folder.into() });
    }
    // Hashes are made, but none is shown: any key will do.
    let pseudonyms = Pseudonyms::public()?;
    let reader = Reader::new(&listing, settings, &pseudonyms, false)?;
    let case = CaseFiles { files: (0..listing.files.len()).collect(), name: None, preview: None };
    case::read_volume(&case, Format::Dicom, &reader).map_err(|(file, fault)| PredictError::Study {
        remedy: fault.remedy(),
        why: fault.to_string(),
        place: match file.filter(|_| job.keep_paths) {
            Some(file) => listing.files[file].path().into_owned(),
            None => folder.into(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_files_below_the_study_only_on_request() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("Zbigniew.dcm"), b"broken").unwrap();
        let error = |keep_paths| {
            let job = PredictJob { run: PathBuf::new(), study: folder.path().into(), keep_paths };
            read_study(&job, &ReaderSettings::DEFAULT).unwrap_err().to_string()
        };
        assert!(error(true).ends_with("Zbigniew.dcm"), "{}", error(true));
        assert!(!error(false).contains("Zbigniew"), "{}", error(false));
    }
}
