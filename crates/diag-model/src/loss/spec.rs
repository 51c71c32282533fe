//! Which loss, with its settings: the `[loss]` table of a recipe.

use serde::{Deserialize, Serialize};

use super::saal::{Form, SaalSpec};
use crate::ModelError;

/// Which loss, with its settings; `[loss]` of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum LossSpec {
    /// Plain cross entropy on every head.
    CrossEntropy(NoSettings),
    /// Cross entropy against labels that leave a share to every class (Szegedy et al., CVPR 2016).
    LabelSmoothing(LabelSmoothingSpec),
    /// Cross entropy weighted by 1 / n_c.
    InverseFrequency(NoSettings),
    /// Cross entropy weighted by inverse effective number of samples (Cui et al., CVPR 2019).
    ClassBalanced(ClassBalancedSpec),
    /// Focal loss (Lin et al., ICCV 2017).
    Focal(FocalSpec),
    /// Focal loss with the weights of `class-balanced` (Cui et al., CVPR 2019).
    ClassBalancedFocal(ClassBalancedFocalSpec),
    /// Label-distribution-aware margins with deferred re-weighting (Cao et al., NeurIPS 2019).
    Ldam(LdamSpec),
    /// Gradient harmonising (Li et al., AAAI 2019), read for several classes.
    Ghm(GhmSpec),
    /// Cross entropy of logits raised by ln n_c (Ren et al., NeurIPS 2020).
    BalancedSoftmax(NoSettings),
    /// Cross entropy of logits raised by a multiple of ln(n_c / n) (Menon et al., ICLR 2021).
    LogitAdjustment(LogitAdjustmentSpec),
    /// Cross entropy plus reverse cross entropy, both with fixed weights (Wang et al., ICCV 2019).
    SymmetricCrossEntropy(SymmetricSpec),
    /// Generalised cross entropy (Zhang and Sabuncu, NeurIPS 2018).
    GeneralisedCrossEntropy(GeneralisedSpec),
    /// The self-adaptive auxiliary loss.
    Saal(SaalSpec),
}

/// A loss without settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoSettings {}

/// Settings of `label-smoothing`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LabelSmoothingSpec {
    /// Share of each label spread evenly over all classes, in [0, 1).
    pub smoothing: f64,
}

impl Default for LabelSmoothingSpec {
    fn default() -> Self {
        Self { smoothing: 0.1 }
    }
}

/// Settings of `class-balanced`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClassBalancedSpec {
    /// The beta of Cui et al., in (0, 1); called alpha as in the self-adaptive loss.
    pub alpha: f64,
}

impl Default for ClassBalancedSpec {
    fn default() -> Self {
        Self { alpha: 0.999 }
    }
}

/// Settings of `focal`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FocalSpec {
    /// Power of 1 - p_y, in [0, 10].
    pub gamma: f64,
}

impl Default for FocalSpec {
    fn default() -> Self {
        Self { gamma: 2.0 }
    }
}

/// Settings of `class-balanced-focal`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClassBalancedFocalSpec {
    /// As in [`ClassBalancedSpec`].
    pub alpha: f64,
    /// As in [`FocalSpec`].
    pub gamma: f64,
}

impl Default for ClassBalancedFocalSpec {
    fn default() -> Self {
        Self { alpha: ClassBalancedSpec::default().alpha, gamma: FocalSpec::default().gamma }
    }
}

/// Settings of `ldam`. The paper's heads are cosines scaled by 30; ours are plain
/// logits, hence the scale of 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LdamSpec {
    /// Margin of the smallest class; the others have it times (n_min / n_c)^(1/4). Positive.
    pub largest_margin: f64,
    /// Factor of the logits after the margin was taken off; positive.
    pub scale: f64,
    /// Share of the run after which `class-balanced` weights set in, in [0, 1]; 1 is never.
    pub reweight_from: f64,
    /// The alpha of these weights, in (0, 1).
    pub alpha: f64,
}

impl Default for LdamSpec {
    fn default() -> Self {
        Self { largest_margin: 0.5, scale: 1.0, reweight_from: 0.8, alpha: 0.9999 }
    }
}

/// Settings of `ghm`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GhmSpec {
    /// Bins of 1 - p_y over [0, 1]; 1 to 1000.
    pub bins: usize,
}

impl Default for GhmSpec {
    fn default() -> Self {
        Self { bins: 10 }
    }
}

/// Settings of `logit-adjustment`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogitAdjustmentSpec {
    /// The tau of Menon et al., in [0, 10]; 1 is `balanced-softmax`.
    pub strength: f64,
}

impl Default for LogitAdjustmentSpec {
    fn default() -> Self {
        Self { strength: 1.0 }
    }
}

/// Settings of `symmetric-cross-entropy`; the defaults are the paper's for CIFAR-10.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SymmetricSpec {
    /// Weight of cross entropy; not negative.
    pub cross_entropy: f64,
    /// Weight of reverse cross entropy; not negative.
    pub reverse: f64,
    /// A, what log 0 stands for; negative.
    pub log_zero: f64,
}

impl Default for SymmetricSpec {
    fn default() -> Self {
        Self { cross_entropy: 0.1, reverse: 1.0, log_zero: -4.0 }
    }
}

/// Settings of `generalised-cross-entropy`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GeneralisedSpec {
    /// (1 - p_y^q) / q with q in (0, 1]: near 0 cross entropy, at 1 the mean absolute error.
    pub q: f64,
}

impl Default for GeneralisedSpec {
    fn default() -> Self {
        Self { q: 0.7 }
    }
}

impl LossSpec {
    /// Name in run folders and reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CrossEntropy(_) => "cross-entropy",
            Self::LabelSmoothing(_) => "label-smoothing",
            Self::InverseFrequency(_) => "inverse-frequency",
            Self::ClassBalanced(_) => "class-balanced",
            Self::Focal(_) => "focal",
            Self::ClassBalancedFocal(_) => "class-balanced-focal",
            Self::Ldam(_) => "ldam",
            Self::Ghm(_) => "ghm",
            Self::BalancedSoftmax(_) => "balanced-softmax",
            Self::LogitAdjustment(_) => "logit-adjustment",
            Self::SymmetricCrossEntropy(_) => "symmetric-cross-entropy",
            Self::GeneralisedCrossEntropy(_) => "generalised-cross-entropy",
            Self::Saal(SaalSpec { form: Form::Stabilised, .. }) => "saal-stabilised",
            Self::Saal(SaalSpec { form: Form::Literal, .. }) => "saal-literal",
        }
    }

    /// Checks the ranges of the settings.
    ///
    /// # Errors
    /// A setting outside its range; the message names it.
    pub fn check(&self) -> Result<(), ModelError> {
        let share = |value: f64| value > 0.0 && value < 1.0;
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let power = |value: f64| (0.0..=10.0).contains(&value);
        let weight = |value: f64| value >= 0.0 && value.is_finite();
        let rules = match *self {
            Self::CrossEntropy(_) | Self::InverseFrequency(_) | Self::BalancedSoftmax(_) => vec![],
            Self::LabelSmoothing(LabelSmoothingSpec { smoothing }) => {
                vec![("smoothing", smoothing, (0.0..1.0).contains(&smoothing))]
            }
            Self::ClassBalanced(ClassBalancedSpec { alpha }) => vec![("alpha", alpha, share(alpha))],
            Self::Focal(FocalSpec { gamma }) => vec![("gamma", gamma, power(gamma))],
            Self::ClassBalancedFocal(ClassBalancedFocalSpec { alpha, gamma }) => {
                vec![("alpha", alpha, share(alpha)), ("gamma", gamma, power(gamma))]
            }
            Self::Ldam(LdamSpec { largest_margin, scale, reweight_from, alpha }) => vec![
                ("largest_margin", largest_margin, positive(largest_margin)),
                ("scale", scale, positive(scale)),
                ("reweight_from", reweight_from, (0.0..=1.0).contains(&reweight_from)),
                ("alpha", alpha, share(alpha)),
            ],
            Self::Ghm(GhmSpec { bins }) => vec![("bins", bins as f64, (1..=1000).contains(&bins))],
            Self::LogitAdjustment(LogitAdjustmentSpec { strength }) => {
                vec![("strength", strength, power(strength))]
            }
            Self::SymmetricCrossEntropy(SymmetricSpec { cross_entropy, reverse, log_zero }) => vec![
                ("cross_entropy", cross_entropy, weight(cross_entropy)),
                ("reverse", reverse, weight(reverse)),
                ("log_zero", log_zero, log_zero < 0.0 && log_zero.is_finite()),
            ],
            Self::GeneralisedCrossEntropy(GeneralisedSpec { q }) => {
                vec![("q", q, q > 0.0 && q <= 1.0)]
            }
            Self::Saal(spec) => return spec.check(),
        };
        match rules.into_iter().find(|(_, _, fits)| !fits) {
            Some((setting, value, _)) => {
                Err(ModelError::Setting { setting, reason: format!("{value} is outside its range") })
            }
            None => Ok(()),
        }
    }
}
