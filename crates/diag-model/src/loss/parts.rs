//! What a head says of each slice's label, in a form that no logit can break.

use candle_core::{D, Result, Tensor};

/// Parts of one head's loss, per slice.
pub(crate) struct Parts {
    /// `-ln p_y`, `[N]`.
    pub cross_entropy_n: Tensor,
    /// `1 - p_y`, `[N]`: reverse cross entropy per unit of its floor.
    pub doubt_n: Tensor,
}

impl Parts {
    pub fn new(logits_nk: &Tensor, one_hot_nk: &Tensor) -> Result<Self> {
        let log_prob_n = (log_softmax(logits_nk)? * one_hot_nk)?.sum(D::Minus1)?;
        Ok(Self { cross_entropy_n: log_prob_n.neg()?, doubt_n: log_prob_n.exp()?.affine(-1.0, 1.0)? })
    }
}

/// `x - max - ln sum exp(x - max)`: the sum is at least 1, so nothing overflows or vanishes.
fn log_softmax(logits_nk: &Tensor) -> Result<Tensor> {
    let highest = logits_nk.detach().max_keepdim(D::Minus1)?;
    let shifted = logits_nk.broadcast_sub(&highest)?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

/// Labels as rows with a single 1, of the logits' shape and type.
pub(crate) fn one_hot(label_n: &[usize], like_nk: &Tensor) -> Result<Tensor> {
    let (n, k) = like_nk.dims2()?;
    if n != label_n.len() || label_n.iter().any(|&label| label >= k) {
        candle_core::bail!("{} labels do not fit logits [{n}, {k}], or one is out of range", label_n.len());
    }
    let mut rows = vec![0f64; n * k];
    for (row, &label) in rows.chunks_exact_mut(k).zip(label_n) {
        row[label] = 1.0;
    }
    Tensor::from_vec(rows, (n, k), like_nk.device())?.to_dtype(like_nk.dtype())
}
