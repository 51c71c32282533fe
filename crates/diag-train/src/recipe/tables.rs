//! The tables of a recipe.

use serde::{Deserialize, Serialize};

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
    /// Factor of the learning rate from each part of the network to the part before
    /// it (heads, stage 4, ... stem), in (0, 1]; 1: all parts learn alike.
    #[serde(default = "one")]
    pub layer_decay: f64,
}

fn one() -> f64 {
    1.0
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

/// Mixing of the images of a batch; both off by default. Where both are on, each
/// batch takes either with even chance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MixingSpec {
    /// Mixup (Zhang et al., ICLR 2018): both parameters of the beta distribution of
    /// the share, up to 10; 0: off.
    pub mixup: f64,
    /// CutMix (Yun et al., ICCV 2019): likewise, of the area that is kept.
    pub cutmix: f64,
}

/// How the training cases are changed before training, for experiments.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataSpec {
    /// Training cases of each class in this ratio, in the order of the label set;
    /// the others are left out. Absent: all.
    pub class_ratio: Option<Vec<u32>>,
    /// With `class_ratio`, training cases in all, so that ratios can be compared at
    /// one size; absent: as many as there are.
    pub n_cases: Option<usize>,
    /// Share of the training cases (or slices) that get another class's label, in [0, 1).
    pub label_noise: f64,
    /// What gets a wrong label as a whole.
    pub label_noise_unit: NoiseUnit,
    /// Whether cases or slices are dealt to the parts of the data. Slices: a
    /// control that measures what leakage between slices of a case is worth.
    pub split_by: SplitUnit,
    /// Manufacturer whose cases are tested on and on no account trained on.
    pub leave_out_manufacturer: Option<String>,
}

/// What gets a wrong label as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NoiseUnit {
    /// All slices of a case.
    #[default]
    Case,
    /// Each slice on its own.
    Slice,
}

/// What is dealt to training, validation and test as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SplitUnit {
    /// As the shards say: by case.
    #[default]
    Case,
    /// Every slice anew, in the proportions of the shards: leaks on purpose.
    Slice,
}

/// One part of a cross-validation over the training and validation cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FoldSpec {
    /// Which part validates, from 0.
    pub index: usize,
    /// Number of parts, at least 2.
    pub of: usize,
}

/// What the decided rule is to reach; see `crates/diag-decision`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DecisionSpec {
    /// The class that the operating threshold calls; absent: the first.
    pub positive: Option<String>,
    /// Sensitivity that the threshold is to have on further cases, in (0, 1).
    pub sensitivity: f64,
    /// Share of further cases whose set is to hold their class, in (0, 1).
    pub coverage: f64,
    /// Whether the rule divides the joined probabilities by the class shares of the training
    /// slices; for plain cross entropy on uneven classes.
    // A recipe that leaves it out is written as before.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub prior_correction: bool,
    /// Whether an attention-pooling head is trained on the frozen features and measured as a
    /// variant; it is never the rule.
    pub attention: bool,
}

impl Default for DecisionSpec {
    fn default() -> Self {
        Self { positive: None, sensitivity: 0.95, coverage: 0.9, prior_correction: false, attention: false }
    }
}

/// Which statistics the normalisations use in validation and in the saved weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BatchNorm {
    /// Recomputed after every epoch over many training batches with the weights of that moment
    /// (Wu and Johnson 2021).
    #[default]
    Precise,
    /// Moving averages over the steps, as PyTorch's.
    Running,
}

/// Which slices an epoch sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sampling {
    /// Every training slice once.
    #[default]
    Uniform,
    /// As many slices, from each class the same number; those of rare classes repeat.
    ClassBalanced,
    /// As many slices, from each case the same number.
    CaseBalanced,
}

/// Up to which part the network does not learn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Freeze {
    /// All parts learn.
    #[default]
    None,
    /// All but the stem.
    Stem,
    /// All behind stage 1.
    Stage1,
    /// All behind stage 2.
    Stage2,
    /// All behind stage 3.
    Stage3,
    /// The heads alone.
    Stage4,
}

impl Freeze {
    /// Number of parts that do not learn.
    pub(crate) fn n_parts(self) -> usize {
        self as usize
    }
}
