//! An external validation: what a network gets on a cohort that it was not made with
//! (`external.json`). The file makes its folder one; beside it lie the frozen rule, the
//! predictions and metrics of that cohort, and copies of what the run says of itself.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::DataError;
use crate::files;
use crate::run::ShardSource;
use crate::seen::Overlap;

/// Version of `external.json`.
pub const FORMAT_VERSION: u32 = 1;

/// `external.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct External {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// Name and version of the program.
    pub tool: String,
    /// Hash of the weights.
    pub model_sha256: String,
    /// Whether the network was trained on synthetic data.
    pub trained_on_synthetic: bool,
    /// The cohort.
    pub shards: ShardSource,
    /// What the cohort shares with the cases that the network has seen.
    pub overlap: Overlap,
    /// What calibration on cases of this cohort that are not tested would change; absent where
    /// there are none.
    pub recalibration: Option<LocalCalibration>,
}

/// The frozen rule beside one fitted on cases of the cohort itself, on the same test cases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalCalibration {
    /// Training and validation cases of the cohort that the local rule was fitted on.
    pub n_local_cases: usize,
    /// Test cases of both columns.
    pub n_test_cases: usize,
    /// The rule of the run.
    pub frozen: RuleQuality,
    /// A rule of the same form, fitted on the local cases.
    pub local: RuleQuality,
}

/// What a rule is worth. Unit of analysis: case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleQuality {
    /// Joined probabilities are taken to the power 1 / temperature.
    pub temperature: f64,
    /// Mean negative log-likelihood.
    pub log_loss: Option<f64>,
    /// Brier score over all classes, 0 to 2.
    pub brier: Option<f64>,
    /// Share of cases called right, class by class, in the mean.
    pub balanced_accuracy: Option<f64>,
}

impl External {
    /// Reads `external.json`; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is of another form or version.
    pub fn read(path: &Path) -> Result<Option<Self>, DataError> {
        if !path.exists() {
            return Ok(None);
        }
        let external: Self = files::read_json(path)?;
        if external.format_version != FORMAT_VERSION {
            let found = external.format_version;
            let why = format!("format version {found} where this program reads {FORMAT_VERSION}");
            return Err(DataError::malformed(path, why));
        }
        Ok(Some(external))
    }
}
