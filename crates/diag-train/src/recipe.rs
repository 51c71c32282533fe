//! The recipe: what a TOML file says should be trained. Unknown keys are refused.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use diag_data::files;
use diag_model::{Backbone, LossSpec};
use serde::{Deserialize, Serialize};

use crate::TrainError;

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
    /// it; f32 elsewhere.
    #[serde(default)]
    pub bf16: bool,
    /// Feature extractor.
    pub backbone: Backbone,
    /// Whether every stage has a side head.
    pub deep_supervision: bool,
    /// "random", or a safetensors file with weights under torchvision's names.
    #[serde(default)]
    pub init: Initialisation,
    /// Share of the training cases set aside for validation, in [0, 0.5]; not
    /// used where the shards have a validation part.
    pub validation_share: f64,
    /// Which epoch's weights are kept.
    pub selection: Selection,
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
    /// The last epoch, whatever it measures.
    Last,
}

impl Selection {
    /// The rule in words.
    pub fn describe(self) -> &'static str {
        match self {
            Self::ValidationLoss => "lowest validation cross entropy of the final head",
            Self::MacroF1 => "highest macro F1 by validation case",
            Self::Last => "last epoch",
        }
    }
}

/// Settings of the optimiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimiserSpec {
    /// Which one.
    pub name: OptimiserName,
    /// Highest learning rate, reached after the warm-up.
    pub learning_rate: f64,
    /// Weight decay of convolutions and linear layers.
    pub weight_decay: f64,
    /// Momentum of SGD, in [0, 1); not used by AdamW.
    #[serde(default = "default_momentum")]
    pub momentum: f64,
    /// Largest gradient norm; a longer gradient is scaled down. Absent: no limit.
    #[serde(default)]
    pub max_gradient_norm: Option<f64>,
    /// Learning rate of what the loss learns, as a multiple of the network's.
    #[serde(default = "default_loss_factor")]
    pub loss_learning_rate_factor: f64,
}

fn default_momentum() -> f64 {
    0.9
}

fn default_loss_factor() -> f64 {
    10.0
}

/// Which optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimiserName {
    /// Adam with decoupled weight decay.
    AdamW,
    /// Stochastic gradient descent with Nesterov momentum.
    Sgd,
}

/// How the learning rate moves over the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleSpec {
    /// Epochs (may be a fraction) over which the rate rises linearly from 0.
    pub warmup_epochs: f64,
    /// Whether the rate then falls along half a cosine; else it stays.
    pub cosine: bool,
    /// Share of the highest rate at which the cosine ends, in [0, 1].
    pub final_share: f64,
}

impl Default for ScheduleSpec {
    fn default() -> Self {
        Self { warmup_epochs: 0.0, cosine: true, final_share: 0.0 }
    }
}

/// Largest deviations of the augmentation; each is drawn uniformly. 0 turns it off.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AugmentationSpec {
    /// Rotation in degrees, either way, up to 45.
    pub rotation_degrees: f64,
    /// Shift along each axis as a share of the side, up to 0.5.
    pub shift: f64,
    /// Relative change of size, up to 0.5.
    pub scale: f64,
    /// Whether half of the images are mirrored left to right. Off by default:
    /// the heart does not change sides.
    pub flip: bool,
    /// Relative change of contrast, and change of brightness as a share of the range, up to 0.5.
    pub intensity: f64,
    /// Change of ln gamma, up to 1.
    pub gamma: f64,
    /// Standard deviation of white noise as a share of the range, up to 0.5.
    pub noise: f64,
}

impl TrainSpec {
    /// Reads and checks a recipe.
    ///
    /// # Errors
    /// When it cannot be read, has an unknown or missing key, or a value out of range.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let bad = |reason: String| TrainError::Recipe { file: path.into(), reason };
        let text = String::from_utf8(files::read(path)?).map_err(|err| bad(err.to_string()))?;
        let spec: Self = toml::from_str(&text).map_err(|err| bad(one_line(&err, &text)))?;
        spec.check()?;
        Ok(spec)
    }

    /// Makes the whole process compute as the recipe says.
    pub(crate) fn set_arithmetic(&self) {
        candle_train_ops::set_winograd(self.winograd);
        candle_train_ops::set_bf16(self.bf16);
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// At the first value out of range; the message names its key.
    pub fn check(&self) -> Result<(), TrainError> {
        let Self { optimiser, schedule, augmentation, .. } = self;
        let between = |low: f64, high: f64| move |value: f64| value >= low && value <= high;
        let small = between(0.0, 0.5);
        let rate = |value: f64| value > 0.0 && value.is_finite();
        let rules: [(&'static str, f64, bool, &'static str); 16] = [
            ("epochs", self.epochs.into(), self.epochs > 0, "at least 1"),
            ("batch_size", self.batch_size as f64, self.batch_size > 1, "at least 2"),
            ("threads", self.threads.unwrap_or(1) as f64, self.threads != Some(0), "at least 1"),
            ("top_k", self.top_k as f64, self.top_k > 0, "at least 1"),
            ("validation_share", self.validation_share, small(self.validation_share), "0 to 0.5"),
            ("optimiser.learning_rate", optimiser.learning_rate, rate(optimiser.learning_rate), "above 0"),
            (
                "optimiser.weight_decay",
                optimiser.weight_decay,
                between(0.0, 1.0)(optimiser.weight_decay),
                "0 to 1",
            ),
            (
                "optimiser.momentum",
                optimiser.momentum,
                between(0.0, 0.9999)(optimiser.momentum),
                "0 to 0.9999",
            ),
            (
                "optimiser.max_gradient_norm",
                optimiser.max_gradient_norm.unwrap_or(1.0),
                rate(optimiser.max_gradient_norm.unwrap_or(1.0)),
                "above 0",
            ),
            (
                "optimiser.loss_learning_rate_factor",
                optimiser.loss_learning_rate_factor,
                rate(optimiser.loss_learning_rate_factor),
                "above 0",
            ),
            (
                "schedule.warmup_epochs",
                schedule.warmup_epochs,
                between(0.0, self.epochs.into())(schedule.warmup_epochs),
                "0 to `epochs`",
            ),
            ("schedule.final_share", schedule.final_share, between(0.0, 1.0)(schedule.final_share), "0 to 1"),
            (
                "augmentation.rotation_degrees",
                augmentation.rotation_degrees,
                between(0.0, 45.0)(augmentation.rotation_degrees),
                "0 to 45",
            ),
            ("augmentation.shift", augmentation.shift, small(augmentation.shift), "0 to 0.5"),
            ("augmentation.scale", augmentation.scale, small(augmentation.scale), "0 to 0.5"),
            ("augmentation.gamma", augmentation.gamma, between(0.0, 1.0)(augmentation.gamma), "0 to 1"),
        ];
        let intensities = [
            ("augmentation.intensity", augmentation.intensity, small(augmentation.intensity), "0 to 0.5"),
            ("augmentation.noise", augmentation.noise, small(augmentation.noise), "0 to 0.5"),
        ];
        if let Some((key, value, _, expected)) =
            rules.into_iter().chain(intensities).find(|(_, _, fits, _)| !fits)
        {
            return Err(TrainError::Setting { key, value: value.to_string(), expected });
        }
        Ok(self.loss.check()?)
    }
}

/// The parser's message on one line, with the line of the recipe instead of its picture.
fn one_line(err: &toml::de::Error, text: &str) -> String {
    let line =
        err.span().and_then(|span| text.get(..span.start)).map(|before| before.matches('\n').count() + 1);
    let place = line.map_or(String::new(), |line| format!("line {line}: "));
    format!("{place}{}", err.message().replace('\n', " "))
}

/// `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The best device that the training operations support.
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    /// Reads `auto`, `cpu` or `cuda:N`.
    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("cuda:").map(str::parse)) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            (_, Some(Ok(index))) => Ok(Self::Cuda(index)),
            _ => Err(format!("`{text}` is not auto, cpu or cuda:N")),
        }
    }
}

impl DeviceChoice {
    /// Refuses what the training operations cannot run on.
    ///
    /// # Errors
    /// For a CUDA device.
    pub fn check(self) -> Result<(), TrainError> {
        match self {
            Self::Auto | Self::Cpu => Ok(()),
            Self::Cuda(index) => Err(TrainError::Device { device: format!("cuda:{index}") }),
        }
    }
}
