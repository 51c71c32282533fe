//! CT studies, a saved model and its decided rule to classes.
//!
//! In: a model (an evaluated run folder of `diag-train`, or a file that it exported) and the
//! files of one study ([`predict`]) or of many ([`predict_each`]). Out: a [`StudyReport`] with
//! the class, calibrated probabilities and set of the rule that the evaluation published; or
//! tables of them with the columns of [`diag_data::case_predictions`]. Nothing in them names a
//! patient, unless folders' names are asked for.
//!
//! Slices are chosen, windowed and resized by the settings with which the
//! training slices were made; they lie in the model's description.
//!
//! Research software: the numbers are not for clinical use.

mod batch;
mod error;
mod predictor;
mod refusal;
mod report;
mod stored;
mod study;

use std::path::PathBuf;

use diag_data::reader::ReaderSettings;

use crate::predictor::Predictor;
use crate::study::Study;

pub use batch::{BatchControl, BatchEvent, BatchJob, BatchReport, predict_each};
pub use ct_read::key::KeySource;
pub use error::PredictError;
pub use report::{INTENDED_USE, SYNTHETIC, SliceReport, StudyReport};

/// What to predict, and from what.
#[derive(Clone, Debug)]
pub struct PredictJob {
    /// Run folder with `model.json`, `model.safetensors` and `decision.json`, or a one-file model.
    pub model: PathBuf,
    /// A folder with the files of one study, an archive of them, or one file.
    pub study: PathBuf,
    /// Whether errors name files below that folder; their paths may name patients.
    pub keep_paths: bool,
}

/// Predicts the classes of one study.
///
/// # Errors
/// A model without a rule, or of plain images; an input without a usable CT series, or with
/// more than one patient or study.
pub fn predict(job: &PredictJob) -> Result<StudyReport, PredictError> {
    let predictor = Predictor::open(&job.model)?;
    let case = read_study(job, predictor.settings())?;
    let slices = predictor.slices(&case)?;
    Ok(StudyReport::new(predictor.decision(), predictor.card().training.synthetic, slices, &case)?)
}

fn read_study(job: &PredictJob, settings: &ReaderSettings) -> Result<ct_read::case::ReadCase, PredictError> {
    let study = Study::scan(study::list(&job.study)?);
    study.read(settings)?.map_err(|(file, refusal)| PredictError::Study {
        remedy: refusal.remedy(),
        why: refusal.words(),
        place: match file.filter(|_| job.keep_paths) {
            Some(file) => study.path(file),
            None => job.study.clone(),
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
            let job = PredictJob { model: PathBuf::new(), study: folder.path().into(), keep_paths };
            read_study(&job, &ReaderSettings::DEFAULT).unwrap_err().to_string()
        };
        assert!(error(true).ends_with("Zbigniew.dcm"), "{}", error(true));
        assert!(!error(false).contains("Zbigniew"), "{}", error(false));
    }
}
