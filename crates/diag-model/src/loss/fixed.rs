//! Losses that learn nothing: a rule for each slice and a weight for each class.

use std::collections::BTreeMap;

use candle_core::{D, Device, Result, Tensor};
use candle_train_ops::BatchSum;

use super::parts::Parts;
use super::spec::{
    ClassBalancedFocalSpec, ClassBalancedSpec, FocalSpec, GeneralisedSpec, GhmSpec, LabelSmoothingSpec,
    LdamSpec, LogitAdjustmentSpec, LossSpec, SymmetricSpec,
};
use super::{Head, LossTerms, number};
use crate::ModelError;
use crate::pointwise::Pointwise;

/// A loss without parameters of its own.
pub(crate) struct Fixed {
    /// Name of the part in the record; absent where the rule is plain cross entropy.
    part: Option<&'static str>,
    rule: Rule,
    /// `[K]`; they sum to the number of classes that have slices. Absent: all 1.
    weight_k: Option<Tensor>,
    /// Share of the run from which the weights count.
    weights_from: f64,
    share_done: f64,
}

/// What one slice costs before its class weight.
enum Rule {
    CrossEntropy,
    Smoothed {
        smoothing: f64,
    },
    Focal {
        gamma: f64,
    },
    /// Cross entropy of `scale * (logits - margin of the label)`.
    Margin {
        margin_k: Tensor,
        scale: f64,
    },
    /// Cross entropy of `logits + offset`.
    Offset {
        offset_k: Tensor,
    },
    Harmonised {
        n_bins: usize,
    },
    Symmetric {
        cross_entropy: f64,
        reverse: f64,
    },
    Generalised {
        q: f64,
    },
}

impl Fixed {
    /// `None` for the loss that learns. A class without slices weighs nothing; its
    /// margin and its offset are those of one slice.
    pub fn new(spec: &LossSpec, slices_per_class: &[u64]) -> Result<Option<Self>> {
        let device = &Device::Cpu;
        let count_k: Vec<f64> = slices_per_class.iter().map(|&n| n.max(1) as f64).collect();
        let n_slices: f64 = count_k.iter().sum();
        let (mut weight_k, mut weights_from) = (None, 0.0);
        let mut effective = |alpha: f64| -> Result<()> {
            let weight = count_k.iter().map(|n| (1.0 - alpha) / -(n * alpha.ln()).exp_m1());
            weight_k = Some(normalised(weight, slices_per_class)?);
            Ok(())
        };
        let rule = match *spec {
            LossSpec::Saal(_) => return Ok(None),
            LossSpec::CrossEntropy(_) => Rule::CrossEntropy,
            LossSpec::LabelSmoothing(LabelSmoothingSpec { smoothing }) => Rule::Smoothed { smoothing },
            LossSpec::InverseFrequency(_) => {
                weight_k = Some(normalised(count_k.iter().map(|n| 1.0 / n), slices_per_class)?);
                Rule::CrossEntropy
            }
            LossSpec::ClassBalanced(ClassBalancedSpec { alpha }) => {
                effective(alpha)?;
                Rule::CrossEntropy
            }
            LossSpec::Focal(FocalSpec { gamma }) => Rule::Focal { gamma },
            LossSpec::ClassBalancedFocal(ClassBalancedFocalSpec { alpha, gamma }) => {
                effective(alpha)?;
                Rule::Focal { gamma }
            }
            LossSpec::Ldam(LdamSpec { largest_margin, scale, reweight_from, alpha }) => {
                effective(alpha)?;
                weights_from = reweight_from;
                let fewest = count_k.iter().copied().fold(f64::INFINITY, f64::min);
                let margin: Vec<f64> =
                    count_k.iter().map(|n| largest_margin * (fewest / n).powf(0.25)).collect();
                Rule::Margin { margin_k: Tensor::new(margin, device)?, scale }
            }
            LossSpec::Ghm(GhmSpec { bins }) => Rule::Harmonised { n_bins: bins },
            LossSpec::BalancedSoftmax(_) => {
                let offset: Vec<f64> = count_k.iter().map(|n| n.ln()).collect();
                Rule::Offset { offset_k: Tensor::new(offset, device)? }
            }
            LossSpec::LogitAdjustment(LogitAdjustmentSpec { strength }) => {
                let offset: Vec<f64> = count_k.iter().map(|n| strength * (n / n_slices).ln()).collect();
                Rule::Offset { offset_k: Tensor::new(offset, device)? }
            }
            LossSpec::SymmetricCrossEntropy(SymmetricSpec { cross_entropy, reverse, log_zero }) => {
                Rule::Symmetric { cross_entropy, reverse: -reverse * log_zero }
            }
            LossSpec::GeneralisedCrossEntropy(GeneralisedSpec { q }) => Rule::Generalised { q },
        };
        let part = (!matches!(rule, Rule::CrossEntropy)).then(|| part_name(&rule));
        Ok(Some(Self { part, rule, weight_k, weights_from, share_done: 0.0 }))
    }

    /// Which share of the run lies behind, in [0, 1].
    pub fn set_share_done(&mut self, share: f64) {
        self.share_done = share;
    }

    /// `sum` joins the processes that hold the other parts of the batch.
    pub fn terms(
        &self,
        heads: &[Head<'_>],
        sum: Option<&BatchSum>,
    ) -> std::result::Result<LossTerms, ModelError> {
        let mut record = BTreeMap::new();
        let mut total: Option<Tensor> = None;
        for (head, parts) in heads {
            let mut values =
                BTreeMap::from([("cross_entropy".to_owned(), number(&parts.cross_entropy_n.mean_all()?)?)]);
            let mut loss_n = self.rule.per_slice(parts, sum)?;
            if let Some(part) = self.part {
                values.insert(part.to_owned(), number(&loss_n.mean_all()?)?);
            }
            if let Some(weight_k) = self.weights() {
                loss_n = (loss_n * parts.of_label(weight_k)?)?;
            }
            let mean = loss_n.mean_all()?;
            record.insert((*head).to_owned(), values);
            total = Some(match total {
                Some(sum) => (sum + mean)?,
                None => mean,
            });
        }
        let total =
            total.ok_or(ModelError::Setting { setting: "heads", reason: "there is none".to_owned() })?;
        Ok(LossTerms { total, heads: record })
    }

    /// The class weights in force, `[K]`.
    pub fn weights(&self) -> Option<&Tensor> {
        self.weight_k.as_ref().filter(|_| self.share_done >= self.weights_from)
    }
}

impl Rule {
    /// `[N]`.
    fn per_slice(&self, parts: &Parts, sum: Option<&BatchSum>) -> Result<Tensor> {
        match self {
            Self::CrossEntropy => Ok(parts.cross_entropy_n.clone()),
            Self::Smoothed { smoothing } => {
                let even_n = parts.log_prob_nk.mean(D::Minus1)?.neg()?;
                (&parts.cross_entropy_n * (1.0 - smoothing))? + (even_n * *smoothing)?
            }
            Self::Focal { gamma } => (parts.log_doubt_n()? * *gamma)?.exp()? * &parts.cross_entropy_n,
            Self::Margin { margin_k, scale } => {
                let apart_nk = (&parts.logits_nk - parts.one_hot_nk.broadcast_mul(margin_k)?)?;
                Ok(parts.with_logits(&(apart_nk * *scale)?)?.cross_entropy_n)
            }
            Self::Offset { offset_k } => {
                Ok(parts.with_logits(&parts.logits_nk.broadcast_add(offset_k)?)?.cross_entropy_n)
            }
            Self::Harmonised { n_bins } => &parts.cross_entropy_n * harmony(&parts.doubt_n, *n_bins, sum)?,
            Self::Symmetric { cross_entropy, reverse } => {
                (&parts.cross_entropy_n * *cross_entropy)? + (&parts.doubt_n * *reverse)?
            }
            Self::Generalised { q } => {
                // (1 - p^q) / q = -expm1(q ln p) / q.
                Pointwise::ExpM1.of(&(&parts.cross_entropy_n * -q)?)? * (-1.0 / q)
            }
        }
    }
}

fn part_name(rule: &Rule) -> &'static str {
    match rule {
        Rule::CrossEntropy => "cross_entropy",
        Rule::Smoothed { .. } => "smoothed_cross_entropy",
        Rule::Focal { .. } => "focal",
        Rule::Margin { .. } => "margin_cross_entropy",
        Rule::Offset { .. } => "adjusted_cross_entropy",
        Rule::Harmonised { .. } => "harmonised_cross_entropy",
        Rule::Symmetric { .. } => "symmetric_cross_entropy",
        Rule::Generalised { .. } => "generalised_cross_entropy",
    }
}

/// Scales weights so that those of classes with slices sum to their number; the others become 0.
fn normalised(weights: impl Iterator<Item = f64>, slices_per_class: &[u64]) -> Result<Tensor> {
    let present = slices_per_class.iter().map(|&n| f64::from(u8::from(n > 0)));
    let weights: Vec<f64> = weights.zip(present.clone()).map(|(weight, there)| weight * there).collect();
    let scale = present.sum::<f64>() / weights.iter().sum::<f64>();
    Tensor::new(weights.into_iter().map(|weight| weight * scale).collect::<Vec<f64>>(), &Device::Cpu)
}

/// Weight of each slice: N over the population of its bin and the number of bins
/// in use. Without the running average over batches that Li et al. offer, so that
/// a batch's loss depends on nothing but the batch.
fn harmony(doubt_n: &Tensor, n_bins: usize, sum: Option<&BatchSum>) -> Result<Tensor> {
    let doubts = doubt_n.to_vec1::<f64>()?;
    let bin = |doubt: f64| ((doubt * n_bins as f64) as usize).min(n_bins - 1);
    let mut population = vec![0f64; n_bins];
    for &doubt in &doubts {
        population[bin(doubt)] += 1.0;
    }
    if let Some(sum) = sum {
        sum.add_up(&mut population)?;
    }
    let n_slices: f64 = population.iter().sum();
    let n_used = population.iter().filter(|&&n| n > 0.0).count() as f64;
    let weights = doubts.iter().map(|&doubt| n_slices / (population[bin(doubt)] * n_used));
    Tensor::from_iter(weights.collect::<Vec<f64>>(), doubt_n.device())
}
