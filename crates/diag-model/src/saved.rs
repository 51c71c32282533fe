//! A model on disk: `model.safetensors` and `model.json`.

use std::path::Path;

use candle_core::Device;
use diag_data::case::LabelSet;
use diag_data::files;
use diag_data::units::HuWindow;
use serde::{Deserialize, Serialize};

use crate::{ModelError, Network, NetworkSpec, tensors};

/// Version of `model.json`. Rises whenever a reader of the old one would fail.
pub const FORMAT_VERSION: u32 = 1;

/// `model.json`: everything that is needed to use the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// Architecture.
    pub network: NetworkSpec,
    /// Class names in the order of the logits.
    pub labels: LabelSet,
    /// Names of the heads, shallowest first; the last one is the final output.
    pub heads: Vec<String>,
    /// What the network expects.
    pub input: InputSpec,
}

/// How a slice becomes the network's input.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputSpec {
    /// Height in pixels.
    pub height: u32,
    /// Width in pixels.
    pub width: u32,
    /// HU range mapped to black and white; absent when the source was already grey levels.
    pub window: Option<HuWindow>,
    /// Resize filter, by name.
    pub resize: String,
    /// Value of a black and of a white pixel.
    pub range: (f32, f32),
    /// Settings with which the training slices were made, as their shards state them.
    pub ingest: serde_json::Value,
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

    /// Reads `model.json` and `model.safetensors`.
    ///
    /// # Errors
    /// When a file is missing, of another version, or the weights are of another architecture.
    pub fn read(card_path: &Path, weights_path: &Path) -> Result<Self, ModelError> {
        Self::read_to(card_path, weights_path, &Device::Cpu)
    }

    /// As [`read`](Self::read), with the network on a device: see [`Network::on_device`].
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_to(card_path: &Path, weights_path: &Path, device: &Device) -> Result<Self, ModelError> {
        let card: ModelCard = files::read_json(card_path)?;
        if card.format_version != FORMAT_VERSION {
            return Err(ModelError::Version {
                file: card_path.into(),
                found: card.format_version,
                supported: FORMAT_VERSION,
            });
        }
        let network = Network::on_device(&card.network, 0, device)?;
        let (state, _) = tensors::read(weights_path)?;
        network
            .load_state(&state)
            .map_err(|err| ModelError::Weights { file: weights_path.into(), problem: err.to_string() })?;
        Ok(Self { card, network })
    }
}
