//! The one error type of this crate.

use std::path::PathBuf;

use diag_data::DataError;
use diag_metrics::MetricsError;

/// Why there is no rule, or it was not applied.
#[derive(Debug, thiserror::Error)]
pub enum DecisionError {
    /// A file could not be read or written.
    #[error("decision file")]
    Data(#[from] DataError),
    /// Numbers that cannot be measured.
    #[error("predictions")]
    Metrics(#[from] MetricsError),
    /// The file is of another version of the format.
    #[error("decision of format version {got}, where this program knows {want}: {}", file.display())]
    Version {
        /// What the file says; 0 where it says nothing.
        got: u64,
        /// The version of this program.
        want: u32,
        /// The file.
        file: PathBuf,
    },
    /// The file was made for other classes.
    #[error("decision for the classes {got:?}, but the model has {want:?}: {}", file.display())]
    Labels {
        /// Classes of the decision.
        got: Vec<String>,
        /// Classes of the model.
        want: Vec<String>,
        /// The file.
        file: PathBuf,
    },
    /// The file was made for other weights.
    #[error("decision for the weights {got}, but the model's weights are {want}: {}", file.display())]
    Weights {
        /// Hash that the decision names.
        got: String,
        /// Hash of the weights.
        want: String,
        /// The file.
        file: PathBuf,
    },
    /// A value in the file, or of a rule under construction, breaks the rule's invariant.
    #[error("decision is not valid: {why}")]
    Invalid {
        /// What is wrong.
        why: String,
    },
    /// A setting of the fit is outside its range.
    #[error("`{key}` is {value}, but must be {expected}")]
    Setting {
        /// Name of the setting.
        key: &'static str,
        /// What was given.
        value: String,
        /// What is possible.
        expected: String,
    },
    /// The slices of a case are not what a network says of it.
    #[error("slice predictions cannot be used: {why}")]
    Slices {
        /// What is wrong.
        why: String,
    },
    /// One case carries two labels, or one slice twice.
    #[error("case {case_id} {why}")]
    Case {
        /// The case.
        case_id: String,
        /// What is wrong.
        why: &'static str,
    },
}

impl DecisionError {
    /// What the user can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Data(err) => err.remedy(),
            Self::Metrics(_) | Self::Slices { .. } | Self::Case { .. } => {
                "make the predictions again with diag-train evaluate".into()
            }
            Self::Version { .. } | Self::Weights { .. } | Self::Labels { .. } => {
                "delete the decision file and run diag-train evaluate again, or take the decision and the weights from the same run".into()
            }
            Self::Invalid { .. } => {
                "the file was changed by hand or damaged: delete it and run diag-train evaluate again".into()
            }
            Self::Setting { key, expected, .. } => format!("set `{key}` to {expected}"),
        }
    }
}
