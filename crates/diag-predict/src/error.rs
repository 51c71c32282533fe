//! The one error type of this crate.

use std::path::PathBuf;

use ct_read::ReadError;
use diag_data::DataError;
use diag_decision::DecisionError;
use diag_model::ModelError;

/// Why there is no prediction.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    /// A file of the run could not be read.
    #[error("run folder")]
    Data(#[from] DataError),
    /// The saved model was refused.
    #[error("saved model")]
    Model(#[from] ModelError),
    /// The decided rule was refused.
    #[error("decided rule")]
    Decision(#[from] DecisionError),
    /// The run was not evaluated, so that nothing was decided.
    #[error("no decision.json in {}", run.display())]
    NoDecision {
        /// The run folder.
        run: PathBuf,
    },
    /// The folder could not be read.
    #[error("DICOM folder")]
    Read(#[from] ReadError),
    /// A tensor operation failed.
    #[error("a tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    /// The model was trained on pictures, whose window nobody knows.
    #[error("the model was trained on plain images, without a HU window")]
    PlainImages,
    /// The network has no final head.
    #[error("the network has no head named `final`")]
    NoFinalHead,
    /// More than one study in the folder.
    #[error("{n_studies} studies in {}", folder.display())]
    ManyStudies {
        /// How many.
        n_studies: usize,
        /// The folder.
        folder: PathBuf,
    },
    /// The study cannot be used.
    #[error("the study cannot be used, {why}: {}", place.display())]
    Study {
        /// What is wrong.
        why: String,
        /// The folder; or the file at fault, where paths may be shown.
        place: PathBuf,
        /// What can be done about it.
        remedy: String,
    },
}

impl PredictError {
    /// What the user can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Data(err) => err.remedy(),
            Self::Model(err) => err.remedy(),
            Self::Decision(err) => err.remedy(),
            Self::NoDecision { .. } => "run `diag-train evaluate RUN` first".into(),
            Self::Read(err) => err.remedy(),
            Self::Tensor(_) => "report it as a bug".into(),
            Self::PlainImages => "use a model that was trained on shards made by ct-ingest dicom".into(),
            Self::NoFinalHead => "use a model that diag-train made".into(),
            Self::ManyStudies { .. } => "pass the folder of one study".into(),
            Self::Study { remedy, .. } => remedy.clone(),
        }
    }
}
