//! A model on disk: `model.safetensors` and `model.json`, in a run folder or in one file.

use std::path::{Path, PathBuf};

use candle_core::Device;
use diag_data::case::LabelSet;
use diag_data::model_file::ModelFile;
use diag_data::reader::ReaderSettings;
use diag_data::run::RunDir;
use diag_data::{DataError, files, place};
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
        card_of(&files::read(path)?, path)
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
        let card = Part { bytes: files::read(card_path)?, place: card_path.into() };
        let weights = Part { bytes: files::read(weights_path)?, place: weights_path.into() };
        Self::of_parts(&card, &weights, device)
    }

    fn of_parts(card: &Part, weights: &Part, device: &Device) -> Result<Self, ModelError> {
        let Part { place: file, .. } = card;
        let card = card_of(&card.bytes, file)?;
        let [saved] = &card.networks[..] else {
            let problem = format!("{} networks where this version uses one", card.networks.len());
            return Err(ModelError::Card { file: file.clone(), problem });
        };
        let unfit = |problem: String| ModelError::Weights { file: weights.place.clone(), problem };
        let found = files::sha256_hex(&weights.bytes);
        if found != saved.sha256 {
            return Err(unfit(format!("its hash is {found}, where model.json records {}", saved.sha256)));
        }
        let network = Network::on_device(&saved.spec, 0, device)?;
        let (state, _) = tensors::from_bytes(&weights.bytes, &weights.place)?;
        network.load_state(&state).map_err(|err| unfit(err.to_string()))?;
        Ok(Self { card, network })
    }
}

fn card_of(json: &[u8], file: &Path) -> Result<ModelCard, ModelError> {
    let refused = |problem: String| ModelError::Card { file: file.into(), problem };
    // The version first: a description of another one has other fields.
    let value: serde_json::Value = serde_json::from_slice(json)
        .map_err(|err| DataError::Malformed { path: file.into(), why: err.to_string() })?;
    let found = value.get("format_version").and_then(serde_json::Value::as_u64);
    if found != Some(FORMAT_VERSION.into()) {
        return Err(ModelError::Version { file: file.into(), found, supported: FORMAT_VERSION });
    }
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

/// The content of a file of a run, and where it lies; both may be inside a
/// [`ModelFile`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The bytes of the file.
    pub bytes: Vec<u8>,
    /// The file; in a one-file model, that one.
    pub place: PathBuf,
}

/// A model as a user names it: a run folder, or a file that `diag-train export` made of one.
pub struct OpenModel {
    /// Description and network.
    pub model: SavedModel,
    /// `decision.json`; absent where the run was not evaluated.
    pub decision: Option<Part>,
    /// `seen.json`: hashes of what the network has seen; absent where there are none.
    pub seen: Option<Part>,
    /// Absent for a file.
    run: Option<RunDir>,
}

impl OpenModel {
    /// Opens a model, with its network on a device. The weights are held against the hash that
    /// `model.json` records; a one-file model also against those that it records itself. What
    /// the rule says is not read here: `diag_decision::Decision::from_json` checks that it
    /// belongs to these weights.
    ///
    /// # Errors
    /// A missing, damaged or changed part.
    pub fn at(place: &Path, device: &Device) -> Result<Self, ModelError> {
        let part = |bytes, place: &Path| Part { bytes, place: place.into() };
        if place.is_file() {
            let ModelFile { card, decision, seen, weights } = ModelFile::read(place)?;
            let model = SavedModel::of_parts(&part(card, place), &part(weights, place), device)?;
            let (decision, seen) = (Some(part(decision, place)), seen.map(|seen| part(seen, place)));
            return Ok(Self { model, decision, seen, run: None });
        }
        let run = RunDir::new(place);
        let model = SavedModel::read_to(&run.model(), &run.weights(), device)?;
        let read = |path: PathBuf| -> Result<Option<Part>, ModelError> {
            let is_there = place::exists(&path)?;
            Ok(if is_there { Some(part(files::read(&path)?, &path)) } else { None })
        };
        let (decision, seen) = (read(run.decision())?, read(run.seen())?);
        Ok(Self { model, decision, seen, run: Some(run) })
    }

    /// Hash of the weights, which was checked.
    pub fn sha256(&self) -> &str {
        &self.model.card.networks[0].sha256
    }

    /// Refuses a rule that is not the one whose numbers the run publishes in `metrics.json`. A
    /// run without that file publishes none; a one-file model was checked when it was made.
    ///
    /// # Errors
    /// When the rule was changed after the evaluation, or `metrics.json` cannot be read.
    pub fn check_published(&self) -> Result<(), ModelError> {
        let (Some(run), Some(decision)) = (&self.run, &self.decision) else { return Ok(()) };
        let file = run.metrics();
        if !place::exists(&file)? {
            return Ok(());
        }
        let metrics: serde_json::Value = files::read_json(&file)?;
        if metrics["decision_sha256"].as_str() != Some(&files::sha256_hex(&decision.bytes)) {
            return Err(ModelError::Unpublished { file: decision.place.clone(), metrics: file });
        }
        Ok(())
    }
}
