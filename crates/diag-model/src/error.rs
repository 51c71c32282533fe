//! The one error type of this crate.

use std::path::PathBuf;

use diag_data::DataError;

/// Why a network, a loss or a saved model was refused.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// An operation refused its tensors.
    #[error("a tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    /// A file could not be read or written.
    #[error("a model file could not be read or written")]
    Data(#[from] DataError),
    /// A setting of the network or the loss is outside its range.
    #[error("{setting}: {reason}")]
    Setting {
        /// Name of the setting, as in the recipe.
        setting: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The weights do not belong to this architecture.
    #[error("{problem} in {}", file.display())]
    Weights {
        /// The safetensors file.
        file: PathBuf,
        /// Which tensor, and what is wrong with it.
        problem: String,
    },
    /// `model.json` does not describe a model that can be used.
    #[error("{problem} in {}", file.display())]
    Card {
        /// The file.
        file: PathBuf,
        /// What is wrong in it.
        problem: String,
    },
    /// The rule is not the one whose numbers are published.
    #[error("{} was changed after {} was made", file.display(), metrics.display())]
    Unpublished {
        /// The rule.
        file: PathBuf,
        /// The published numbers.
        metrics: PathBuf,
    },
    /// `model.json` was written by another version.
    #[error("model format {}, this program reads {supported}: {}", found.map_or("unknown".into(), |found| found.to_string()), file.display())]
    Version {
        /// The file.
        file: PathBuf,
        /// The version that it states, if any.
        found: Option<u64>,
        /// The version that can be read.
        supported: u32,
    },
}

impl ModelError {
    /// What the user can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Tensor(_) => {
                "check the image size (at least 32x32) and the free memory; else report it as a bug".into()
            }
            Self::Data(err) => err.remedy(),
            Self::Setting { setting, .. } => format!("change `{setting}` in the recipe"),
            Self::Weights { .. } => {
                "pass weights that were saved for this architecture and not changed since".into()
            }
            Self::Card { .. } => "restore the run folder as diag-train wrote it, or train again".into(),
            Self::Unpublished { .. } => {
                "run `diag-train evaluate RUN`, which publishes the numbers of the rule that is there".into()
            }
            Self::Version { .. } => "train again with this version, or use the version that wrote it".into(),
        }
    }
}
