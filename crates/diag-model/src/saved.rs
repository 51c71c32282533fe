//! A model on disk: `model.safetensors` and `model.json`.

use std::path::Path;

use candle_core::Device;
use diag_data::case::LabelSet;
use diag_data::files;
use diag_data::reader::ReaderSettings;
use serde::{Deserialize, Serialize};

use crate::{ModelError, Network, NetworkSpec, tensors};

/// Version of `model.json`. Rises whenever a reader of the old one would fail.
pub const FORMAT_VERSION: u32 = 2;

/// Name of the weights file beside `model.json`.
pub const WEIGHTS: &str = "model.safetensors";

/// `model.json`: everything that is needed to use the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelCard {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// The networks whose answers are averaged; exactly one in this version.
    pub networks: Vec<SavedNetwork>,
    /// Class names in the order of the logits.
    pub labels: LabelSet,
    /// Names of the heads, shallowest first; the last one is the final output.
    pub heads: Vec<String>,
    /// What the network expects.
    pub input: InputSpec,
    /// What it was trained on.
    pub training: TrainingData,
    /// The class that the operating point calls.
    pub positive: String,
}

/// A network of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedNetwork {
    /// Architecture.
    pub spec: NetworkSpec,
    /// Name of the file with its weights, beside the description.
    pub weights: String,
    /// SHA-256 of that file, checked before it is used.
    pub sha256: String,
}

/// What a model was trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingData {
    /// Whether every training slice is synthetic: then the model says nothing of patients.
    pub synthetic: bool,
    /// Training cases by class, in the order of the labels.
    pub cases: Vec<u64>,
}

/// How a slice becomes the network's input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputSpec {
    /// How the training slices were read, as their shards state it.
    pub reader: ReaderSettings,
    /// Value of a black and of a white pixel.
    pub range: (f32, f32),
}

/// A model that was read back.
pub struct SavedModel {
    /// Its description.
    pub card: ModelCard,
    /// The network with its weights.
    pub network: Network,
}

impl SavedModel {
    /// Writes the description; the weights go through [`tensors::write`].
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn write_card(path: &Path, card: &ModelCard) -> Result<(), ModelError> {
        Ok(files::write_json(path, card)?)
    }

    /// Reads and checks the description alone.
    ///
    /// # Errors
    /// When it is missing, of another version, holds an unknown key or value, or its parts
    /// do not fit each other.
    pub fn read_card(path: &Path) -> Result<ModelCard, ModelError> {
        // The version first: a description of another one has other fields.
        let value: serde_json::Value = files::read_json(path)?;
        let found = value.get("format_version").and_then(serde_json::Value::as_u64);
        if found != Some(FORMAT_VERSION.into()) {
            return Err(ModelError::Version { file: path.into(), found, supported: FORMAT_VERSION });
        }
        let refused = |problem: String| ModelError::Card { file: path.into(), problem };
        let card: ModelCard = serde_json::from_value(value).map_err(|err| refused(err.to_string()))?;
        let n_classes = card.labels.len();
        if card.networks.iter().any(|network| network.spec.n_classes != n_classes) {
            return Err(refused(format!("{n_classes} labels and a network with another number of classes")));
        }
        if card.heads.is_empty() || card.training.cases.len() != n_classes {
            return Err(refused("no heads, or training cases of another number of classes".into()));
        }
        if card.labels.find(&card.positive).is_none() {
            return Err(refused(format!("`positive` is {}, which is no label", card.positive)));
        }
        Ok(card)
    }

    /// Reads `model.json` and `model.safetensors`.
    ///
    /// # Errors
    /// As [`read_card`](Self::read_card); when the weights are missing, have another hash
    /// than the recorded one, or are of another architecture.
    pub fn read(card_path: &Path, weights_path: &Path) -> Result<Self, ModelError> {
        Self::read_to(card_path, weights_path, &Device::Cpu)
    }

    /// As [`read`](Self::read), with the network on a device: see [`Network::on_device`].
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_to(card_path: &Path, weights_path: &Path, device: &Device) -> Result<Self, ModelError> {
        let card = Self::read_card(card_path)?;
        let [saved] = &card.networks[..] else {
            let problem = format!("{} networks where this version uses one", card.networks.len());
            return Err(ModelError::Card { file: card_path.into(), problem });
        };
        let found = files::sha256_file(weights_path)?;
        if found != saved.sha256 {
            let problem = format!("its hash is {found}, where model.json records {}", saved.sha256);
            return Err(ModelError::Weights { file: weights_path.into(), problem });
        }
        let network = Network::on_device(&saved.spec, 0, device)?;
        let (state, _) = tensors::read(weights_path)?;
        network
            .load_state(&state)
            .map_err(|err| ModelError::Weights { file: weights_path.into(), problem: err.to_string() })?;
        Ok(Self { card, network })
    }
}
