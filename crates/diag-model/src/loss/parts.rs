//! What a head says of each slice's label, in a form that no logit can break.

use candle_core::{D, Result, Tensor};
use candle_nn::ops::log_softmax;

use crate::pointwise::Pointwise;

/// One head's logits and what follows from them and the labels; f64.
pub(crate) struct Parts {
    /// `[N, K]`.
    pub logits_nk: Tensor,
    /// Labels as rows with a single 1, `[N, K]`.
    pub one_hot_nk: Tensor,
    /// `ln p_k`, `[N, K]`: the largest logit is taken off first, so nothing overflows or vanishes.
    pub log_prob_nk: Tensor,
    /// `-ln p_y`, `[N]`.
    pub cross_entropy_n: Tensor,
    /// `1 - p_y`, `[N]`: reverse cross entropy per unit of its floor.
    pub doubt_n: Tensor,
}

impl Parts {
    /// `logits_nk` in f64.
    pub fn new(logits_nk: &Tensor, one_hot_nk: &Tensor) -> Result<Self> {
        let log_prob_nk = log_softmax(logits_nk, D::Minus1)?;
        let log_prob_n = (&log_prob_nk * one_hot_nk)?.sum(D::Minus1)?;
        Ok(Self {
            logits_nk: logits_nk.clone(),
            one_hot_nk: one_hot_nk.clone(),
            cross_entropy_n: log_prob_n.neg()?,
            // 1 - exp(x) keeps its digits where p_y is near 1.
            doubt_n: Pointwise::ExpM1.of(&log_prob_n)?.neg()?,
            log_prob_nk,
        })
    }

    /// The same labels under other logits.
    pub fn with_logits(&self, logits_nk: &Tensor) -> Result<Self> {
        Self::new(logits_nk, &self.one_hot_nk)
    }

    /// Each label's entry of a vector over classes, `[N]`.
    pub fn of_label(&self, value_k: &Tensor) -> Result<Tensor> {
        self.one_hot_nk.broadcast_mul(value_k)?.sum(D::Minus1)
    }

    /// `ln(1 - p_y)`, `[N]`, from the other classes' probabilities: finite even where p_y rounds to 1.
    pub fn log_doubt_n(&self) -> Result<Tensor> {
        /// Below every other entry, so that the label's own term vanishes from the sum.
        const APART: f64 = -1e30;
        (&self.log_prob_nk + (&self.one_hot_nk * APART)?)?.log_sum_exp(D::Minus1)
    }
}

/// Labels as rows with a single 1, of the logits' shape, f64.
pub(crate) fn one_hot(label_n: &[usize], like_nk: &Tensor) -> Result<Tensor> {
    let (n, k) = like_nk.dims2()?;
    if n != label_n.len() || label_n.iter().any(|&label| label >= k) {
        candle_core::bail!("{} labels do not fit logits [{n}, {k}], or one is out of range", label_n.len());
    }
    let labels = Tensor::from_iter(label_n.iter().map(|&label| label as u32), like_nk.device())?;
    candle_nn::encoding::one_hot::<f64>(labels, k, 1.0, 0.0)
}
