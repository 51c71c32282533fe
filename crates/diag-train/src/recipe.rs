//! The recipe: what a TOML file says should be trained. Unknown keys are refused.

mod tables;

use std::path::{Path, PathBuf};

use diag_data::files;
use diag_model::{Backbone, Fusion, LossSpec, NetworkSpec, SideStages};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
pub use tables::{
    AugmentationSpec, BatchNorm, DataSpec, DecisionSpec, FoldSpec, Freeze, MixingSpec, NoiseUnit,
    OptimiserName, OptimiserSpec, Sampling, ScheduleSpec, SplitUnit,
};

/// A recipe as its file says it. `data/recipes/README.md` explains the keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSpec {
    /// Seed of the weights, the validation part, the order of slices and the augmentation.
    pub seed: u64,
    /// Passes over the training slices, at least 1.
    pub epochs: u32,
    /// Slices of one step, at least 2.
    pub batch_size: usize,
    /// Threads; absent: all cores. The result does not depend on it.
    #[serde(default)]
    pub threads: Option<usize>,
    /// Whether 3x3 convolutions may go by Winograd's algorithm: faster, with a little
    /// more rounding.
    #[serde(default = "default_winograd")]
    pub winograd: bool,
    /// Whether convolutions round their factors to bf16, where the processor multiplies
    /// it; f32 elsewhere. On a GPU activations are then stored in bf16.
    #[serde(default)]
    pub bf16: bool,
    /// Whether a GPU gives the same bits every time, more slowly. The CPU always does.
    #[serde(default)]
    pub deterministic: bool,
    /// Feature extractor.
    pub backbone: Backbone,
    /// Whether the chosen stages have side heads.
    pub deep_supervision: bool,
    /// The stages that have a side head, from 1; absent: all.
    #[serde(default)]
    pub side_stages: SideStages,
    /// How the side heads take part in the final logits.
    #[serde(default)]
    pub fusion: Fusion,
    /// Chance of each pooled feature to be left out of a training step, in [0, 1).
    #[serde(default)]
    pub dropout: f64,
    /// "random", or a safetensors file with weights under the names that the
    /// backbone is published with; a relative path is seen from the recipe's folder.
    #[serde(default)]
    pub init: Initialisation,
    /// Up to which part the network does not learn.
    #[serde(default)]
    pub freeze: Freeze,
    /// Epochs for which `freeze` holds; absent: all.
    #[serde(default)]
    pub freeze_epochs: Option<u32>,
    /// Share of the training cases set aside for validation, in [0, 0.5]; not
    /// used where the shards have a validation part.
    pub validation_share: f64,
    /// One part of a cross-validation, in place of `validation_share` and of the
    /// shards' own validation part.
    #[serde(default)]
    pub fold: Option<FoldSpec>,
    /// Which epoch's weights are kept.
    pub selection: Selection,
    /// Stops after so many epochs without a better one; absent: never.
    #[serde(default)]
    pub patience: Option<u32>,
    /// Batches whose gradients are averaged to one step, at least 1.
    #[serde(default = "default_accumulate")]
    pub accumulate: usize,
    /// Parts in which every sum over a batch is taken, at least 1: one process then gets
    /// bit for bit what so many get together.
    #[serde(default = "default_batch_parts")]
    pub batch_parts: usize,
    /// Which statistics the normalisations use in validation and in the saved weights.
    #[serde(default)]
    pub batch_norm: BatchNorm,
    /// Which slices an epoch sees.
    #[serde(default)]
    pub sampling: Sampling,
    /// Decay of a running average of the weights, in (0, 1), which then is what is
    /// validated and kept; absent: none.
    #[serde(default)]
    pub ema_decay: Option<f64>,
    /// Control experiment: gives the training cases each other's labels, so that
    /// nothing can be learned.
    #[serde(default)]
    pub shuffle_labels: bool,
    /// Slices per case in the top-k mean of the evaluation, at least 1.
    #[serde(default = "default_top_k")]
    pub top_k: usize,
    /// What is minimised.
    pub loss: LossSpec,
    /// How it is minimised.
    pub optimiser: OptimiserSpec,
    /// How the learning rate moves.
    #[serde(default)]
    pub schedule: ScheduleSpec,
    /// How training images are varied.
    #[serde(default)]
    pub augmentation: AugmentationSpec,
    /// Whether images of a batch are mixed.
    #[serde(default)]
    pub mixing: MixingSpec,
    /// How the training cases are changed before training.
    #[serde(default)]
    pub data: DataSpec,
    /// How slices make a case and when a case is called.
    #[serde(default)]
    pub decision: DecisionSpec,
}

fn default_accumulate() -> usize {
    1
}

fn default_batch_parts() -> usize {
    1
}

fn default_winograd() -> bool {
    true
}

fn default_top_k() -> usize {
    5
}

/// Where the weights start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Initialisation {
    /// Drawn from the seed.
    #[default]
    Random,
    /// A safetensors file; what does not match keeps its random start.
    File(PathBuf),
}

impl From<String> for Initialisation {
    fn from(text: String) -> Self {
        if text == "random" { Self::Random } else { Self::File(text.into()) }
    }
}

impl From<Initialisation> for String {
    fn from(init: Initialisation) -> Self {
        match init {
            Initialisation::Random => "random".to_owned(),
            Initialisation::File(path) => path.display().to_string(),
        }
    }
}

/// Which epoch's weights are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// Lowest cross entropy of the final head on the validation slices. Not the
    /// whole loss: its learned weights move from epoch to epoch.
    ValidationLoss,
    /// Highest macro F1 by validation case; on a tie the lower cross entropy.
    MacroF1,
    /// Highest macro area under the ROC curve by validation case; on a tie the lower cross entropy.
    MacroAuroc,
    /// The last epoch, whatever it measures.
    Last,
}

impl Selection {
    /// The rule in words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::ValidationLoss => "lowest validation cross entropy of the final head",
            Self::MacroF1 => "highest macro F1 by validation case",
            Self::MacroAuroc => "highest macro AUROC by validation case",
            Self::Last => "last epoch",
        }
    }
}

impl TrainSpec {
    /// Reads and checks a recipe.
    ///
    /// # Errors
    /// When it cannot be read, has an unknown or missing key, or a value out of range.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let bad = |reason: String| TrainError::Recipe { file: path.into(), reason };
        let text = String::from_utf8(files::read(path)?).map_err(|err| bad(err.to_string()))?;
        let mut spec: Self = toml::from_str(&text).map_err(|err| bad(one_line(&err, &text)))?;
        if let (Initialisation::File(file), Some(folder)) = (&mut spec.init, path.parent()) {
            *file = folder.join(&file);
        }
        spec.check()?;
        Ok(spec)
    }

    /// Makes the whole process compute as the recipe says.
    pub(crate) fn set_arithmetic(&self) {
        candle_train_ops::set_winograd(self.winograd);
        candle_train_ops::set_bf16(self.bf16);
        candle_train_ops::set_batch_parts(self.batch_parts);
        #[cfg(feature = "cuda")]
        candle_train_ops::cuda::set_deterministic(self.deterministic);
    }

    /// The network that the recipe asks for.
    pub(crate) fn network(&self, n_classes: usize) -> NetworkSpec {
        NetworkSpec {
            backbone: self.backbone,
            n_classes,
            deep_supervision: self.deep_supervision,
            side_stages: self.side_stages,
            fusion: self.fusion,
            dropout: self.dropout,
        }
    }

    /// Number of parts of the network that do not learn in an epoch, counted from 1.
    pub(crate) fn n_frozen(&self, epoch: u32) -> usize {
        let holds = self.freeze_epochs.is_none_or(|last| epoch <= last);
        if holds { self.freeze.n_parts() } else { 0 }
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// At the first value out of range; the message names its key.
    pub fn check(&self) -> Result<(), TrainError> {
        let Self { optimiser, schedule, augmentation, mixing, data, decision, .. } = self;
        let share = |value: f64| value > 0.0 && value < 1.0;
        let rate = |value: f64| value > 0.0 && value.is_finite();
        let count = |n: usize| (n as f64, n > 0);
        let rules: [(&'static str, (f64, bool), &'static str); 31] = [
            ("epochs", count(self.epochs as usize), "at least 1"),
            ("batch_size", (self.batch_size as f64, self.batch_size > 1), "at least 2"),
            ("threads", count(self.threads.unwrap_or(1)), "at least 1"),
            ("top_k", count(self.top_k), "at least 1"),
            ("accumulate", count(self.accumulate), "at least 1"),
            ("batch_parts", count(self.batch_parts), "at least 1"),
            ("patience", count(self.patience.unwrap_or(1) as usize), "at least 1"),
            ("freeze_epochs", count(self.freeze_epochs.unwrap_or(1) as usize), "at least 1"),
            ("dropout", (self.dropout, self.dropout == 0.0 || share(self.dropout)), "0 to below 1"),
            (
                "ema_decay",
                (self.ema_decay.unwrap_or(0.5), share(self.ema_decay.unwrap_or(0.5))),
                "above 0 and below 1",
            ),
            ("validation_share", ranged(self.validation_share, 0.5), "0 to 0.5"),
            ("optimiser.learning_rate", (optimiser.learning_rate, rate(optimiser.learning_rate)), "above 0"),
            ("optimiser.weight_decay", ranged(optimiser.weight_decay, 1.0), "0 to 1"),
            ("optimiser.momentum", ranged(optimiser.momentum, 0.9999), "0 to 0.9999"),
            (
                "optimiser.max_gradient_norm",
                (
                    optimiser.max_gradient_norm.unwrap_or(1.0),
                    rate(optimiser.max_gradient_norm.unwrap_or(1.0)),
                ),
                "above 0",
            ),
            (
                "optimiser.loss_learning_rate_factor",
                (optimiser.loss_learning_rate_factor, rate(optimiser.loss_learning_rate_factor)),
                "above 0",
            ),
            (
                "optimiser.layer_decay",
                (optimiser.layer_decay, optimiser.layer_decay > 0.0 && optimiser.layer_decay <= 1.0),
                "above 0, up to 1",
            ),
            ("schedule.warmup_epochs", ranged(schedule.warmup_epochs, self.epochs.into()), "0 to `epochs`"),
            ("schedule.final_share", ranged(schedule.final_share, 1.0), "0 to 1"),
            ("augmentation.rotation_degrees", ranged(augmentation.rotation_degrees, 45.0), "0 to 45"),
            ("augmentation.shift", ranged(augmentation.shift, 0.5), "0 to 0.5"),
            ("augmentation.scale", ranged(augmentation.scale, 0.5), "0 to 0.5"),
            ("augmentation.gamma", ranged(augmentation.gamma, 1.0), "0 to 1"),
            ("augmentation.intensity", ranged(augmentation.intensity, 0.5), "0 to 0.5"),
            ("augmentation.noise", ranged(augmentation.noise, 0.5), "0 to 0.5"),
            ("mixing.mixup", ranged(mixing.mixup, 10.0), "0 to 10"),
            ("mixing.cutmix", ranged(mixing.cutmix, 10.0), "0 to 10"),
            (
                "data.label_noise",
                (data.label_noise, data.label_noise == 0.0 || share(data.label_noise)),
                "0 to below 1",
            ),
            ("data.n_cases", count(data.n_cases.unwrap_or(1)), "at least 1"),
            (
                "decision.sensitivity",
                (decision.sensitivity, share(decision.sensitivity)),
                "above 0 and below 1",
            ),
            ("decision.coverage", (decision.coverage, share(decision.coverage)), "above 0 and below 1"),
        ];
        let refuse = |key, value: String, expected| Err(TrainError::Setting { key, value, expected });
        if let Some((key, (value, _), expected)) = rules.into_iter().find(|(_, (_, fits), _)| !fits) {
            return refuse(key, value.to_string(), expected);
        }
        if let Some(FoldSpec { index, of }) = self.fold
            && (of < 2 || index >= of)
        {
            return refuse("fold", format!("{index} of {of}"), "an index from 0 below a count of at least 2");
        }
        if self.patience.is_some() && self.selection == Selection::Last {
            return refuse("patience", "with selection = \"last\"".to_owned(), "another selection");
        }
        if data.n_cases.is_some() && data.class_ratio.is_none() {
            return refuse("data.n_cases", "without data.class_ratio".to_owned(), "both");
        }
        Ok(self.loss.check()?)
    }
}

/// A value and whether it lies between 0 and `highest`.
fn ranged(value: f64, highest: f64) -> (f64, bool) {
    (value, value >= 0.0 && value <= highest)
}

/// The parser's message on one line, with the line of the recipe instead of its picture.
pub(crate) fn one_line(err: &toml::de::Error, text: &str) -> String {
    let line =
        err.span().and_then(|span| text.get(..span.start)).map(|before| before.matches('\n').count() + 1);
    let place = line.map_or(String::new(), |line| format!("line {line}: "));
    format!("{place}{}", err.message().replace('\n', " "))
}
