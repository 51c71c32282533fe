//! The one error type of this crate.

use std::path::PathBuf;

use ct_read::ReadError;
use diag_data::DataError;
use diag_decision::DecisionError;
use diag_model::ModelError;

/// Why there is no prediction.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    /// A file could not be read or written.
    #[error("model or output")]
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
    /// The input could not be read.
    #[error("studies")]
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
    /// The study cannot be used.
    #[error("the study cannot be used, {why}: {}", place.display())]
    Study {
        /// What is wrong.
        why: String,
        /// The study; or the file at fault, where paths may be shown.
        place: PathBuf,
        /// What can be done about it.
        remedy: String,
    },
    /// A folder of studies without any.
    #[error("no folder, archive or volume lies directly in {}", root.display())]
    NoStudies {
        /// The folder.
        root: PathBuf,
    },
    /// The output would lie inside an input.
    #[error("the output would lie inside a study: {}", out.display())]
    OutputInStudy {
        /// The folder for the output.
        out: PathBuf,
    },
    /// Two studies get one name.
    #[error("two studies get the name {name}")]
    SameName {
        /// The name.
        name: String,
    },
    /// The worker threads could not be started.
    #[error("cannot start the worker threads: {reason}")]
    Threads {
        /// The system's words.
        reason: String,
    },
    /// The user stopped the run.
    #[error("interrupted")]
    Interrupted,
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
            Self::Study { remedy, .. } => remedy.clone(),
            Self::NoStudies { .. } => {
                "pass the folder above the studies; to predict it as one study, leave --each and --out away"
                    .into()
            }
            Self::OutputInStudy { .. } => "choose an --out that is not below a study".into(),
            Self::SameName { .. } => "rename one of them, or give another --key-file".into(),
            Self::Threads { .. } => "use fewer with --jobs".into(),
            Self::Interrupted => {
                "run the same command again: finished studies are kept, and not read again".into()
            }
        }
    }
}
