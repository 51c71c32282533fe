//! Losses over all heads, taken apart by head and part.
//!
//! Every loss is a sum over heads of a mean over the batch, computed in f64. What
//! a loss learns beside the network (alpha, beta, head weights) are variables of
//! its own, trained by the same kind of optimiser. See `docs/method.md` for the
//! formulas and where they are from.

mod fixed;
mod parts;
mod saal;
mod spec;

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};
use candle_train_ops::BatchSum;
use diag_data::case::LabelSet;
use diag_data::run::LossRecord;

use crate::{HeadLogits, ModelError};
use parts::{Parts, one_hot};
pub use saal::{Form, Part, SaalSpec};
pub use spec::{
    ClassBalancedFocalSpec, ClassBalancedSpec, FocalSpec, GeneralisedSpec, GhmSpec, LabelSmoothingSpec,
    LdamSpec, LogitAdjustmentSpec, LossSpec, NoSettings, SymmetricSpec,
};

/// What a batch costs.
#[derive(Clone, Debug)]
pub struct LossTerms {
    /// What is minimised: an f64 scalar with a gradient.
    pub total: Tensor,
    /// Mean over the batch by head and part, before weighting: always
    /// `cross_entropy`, and the loss's own part where it is another.
    pub heads: BTreeMap<String, BTreeMap<String, f64>>,
}

impl LossTerms {
    /// The numbers without the graph.
    ///
    /// # Errors
    /// None of its own.
    pub fn record(&self) -> candle_core::Result<LossRecord> {
        Ok(LossRecord { total: number(&self.total)?, heads: self.heads.clone() })
    }

    /// `share` of these terms and the rest of `other`.
    fn blend(mut self, other: &Self, share: f64) -> candle_core::Result<Self> {
        for (head, parts) in &mut self.heads {
            for (part, value) in parts {
                let other = other.heads.get(head).and_then(|parts| parts.get(part)).unwrap_or(value);
                *value = share * *value + (1.0 - share) * other;
            }
        }
        let total = ((self.total * share)? + (&other.total * (1.0 - share))?)?;
        Ok(Self { total, heads: self.heads })
    }
}

/// A loss with whatever it learns.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use diag_data::case::LabelSet;
/// use diag_model::loss::{Loss, LossSpec, SaalSpec};
/// use diag_model::HeadLogits;
/// # fn main() -> Result<(), diag_model::ModelError> {
/// let heads = ["stage1".to_owned(), "final".to_owned()];
/// let loss = Loss::new(&LossSpec::Saal(SaalSpec::default()), &heads, &LabelSet::paper(), &[1256, 2674, 980])?;
/// let logits_nk = Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?;
/// let logits = HeadLogits::new(heads.into_iter().map(|head| (head, logits_nk.clone())).collect());
/// let terms = loss.terms(&logits, &[0, 2])?;
/// assert!((terms.heads["final"]["cross_entropy"] - 3f64.ln()).abs() < 1e-6);
/// # Ok(())
/// # }
/// ```
pub struct Loss {
    kind: Kind,
    heads: Vec<String>,
    class_names: Vec<String>,
}

enum Kind {
    Fixed(fixed::Fixed),
    Saal(Box<saal::Saal>),
}

/// A head with what it says of the labels.
type Head<'a> = (&'a str, Parts);

impl Loss {
    /// Prepares a loss for the heads of a network.
    ///
    /// `slices_per_class`: training slices of each class, in the order of `labels`;
    /// a class without slices takes no part in the weighting.
    ///
    /// # Errors
    /// A setting outside its range; counts that do not fit the labels.
    pub fn new(
        spec: &LossSpec,
        heads: &[String],
        labels: &LabelSet,
        slices_per_class: &[u64],
    ) -> Result<Self, ModelError> {
        spec.check()?;
        if slices_per_class.len() != labels.len() || slices_per_class.iter().all(|&n| n == 0) {
            let reason =
                format!("{} counts, or none above 0, for {} classes", slices_per_class.len(), labels.len());
            return Err(ModelError::Setting { setting: "slices per class", reason });
        }
        let kind = match (spec, fixed::Fixed::new(spec, slices_per_class)?) {
            (_, Some(fixed)) => Kind::Fixed(fixed),
            (LossSpec::Saal(spec), None) => {
                Kind::Saal(Box::new(saal::Saal::new(spec, heads, slices_per_class)?))
            }
            (_, None) => {
                let reason = "it is neither fixed nor learned".to_owned();
                return Err(ModelError::Setting { setting: "loss", reason });
            }
        };
        Ok(Self { kind, heads: heads.to_vec(), class_names: labels.names().to_vec() })
    }

    /// Computes the loss of a batch.
    ///
    /// # Shapes
    /// - `logits`: every head `[N, K]`, f32 or f64, any finite values
    /// - `label_n`: `[N]`, each below K
    ///
    /// # Errors
    /// A head that the loss was not made for, a label out of range, another shape.
    pub fn terms(&self, logits: &HeadLogits, label_n: &[usize]) -> Result<LossTerms, ModelError> {
        self.terms_of_part(logits, label_n, None)
    }

    /// As [`terms`](Self::terms) for a part of a batch whose other parts lie in the
    /// processes that `sum` joins: means are over the part, but weights that follow from
    /// the batch are those of the whole, and so are gradients of what the loss learns.
    ///
    /// # Errors
    /// As [`terms`](Self::terms), and those of `sum`.
    pub fn terms_of_part(
        &self,
        logits: &HeadLogits,
        label_n: &[usize],
        sum: Option<&BatchSum>,
    ) -> Result<LossTerms, ModelError> {
        let mut heads = Vec::with_capacity(self.heads.len());
        for head in &self.heads {
            let Some(logits_nk) = logits.get(head) else {
                let reason = format!("the network has no head `{head}`");
                return Err(ModelError::Setting { setting: "heads", reason });
            };
            let logits_nk = logits_nk.to_dtype(DType::F64)?;
            heads.push((head.as_str(), Parts::new(&logits_nk, &one_hot(label_n, &logits_nk)?)?));
        }
        match &self.kind {
            Kind::Fixed(fixed) => fixed.terms(&heads, sum),
            Kind::Saal(saal) => saal.terms(&heads, sum),
        }
    }

    /// The loss of a batch of mixed images: `share` of it against `label_n`, the
    /// rest against `partner_n` (mixup, Zhang et al. 2018; CutMix, Yun et al. 2019).
    /// `sum` as for [`terms_of_part`](Self::terms_of_part).
    ///
    /// # Shapes
    /// As [`terms`](Self::terms); `share` in [0, 1].
    ///
    /// # Errors
    /// As [`terms`](Self::terms).
    pub fn mixed_terms(
        &self,
        logits: &HeadLogits,
        label_n: &[usize],
        partner_n: &[usize],
        share: f64,
        sum: Option<&BatchSum>,
    ) -> Result<LossTerms, ModelError> {
        let own = self.terms_of_part(logits, label_n, sum)?;
        Ok(own.blend(&self.terms_of_part(logits, partner_n, sum)?, share)?)
    }

    /// Says how much of the run lies behind, in [0, 1]: some weights set in late.
    pub fn set_share_done(&mut self, share: f64) {
        if let Kind::Fixed(fixed) = &mut self.kind {
            fixed.set_share_done(share);
        }
    }

    /// What the loss learns, by name: f32 scalars, to be trained without weight decay.
    pub fn named_vars(&self) -> &[(String, Var)] {
        match &self.kind {
            Kind::Fixed(_) => &[],
            Kind::Saal(saal) => saal.named_vars(),
        }
    }

    /// `alpha`, `beta/HEAD`, `head_weight/HEAD` and `class_weight/CLASS` as they
    /// are now, where the loss has them.
    ///
    /// # Errors
    /// None of its own.
    pub fn state(&self) -> candle_core::Result<BTreeMap<String, f64>> {
        let (mut state, weight_k) = match &self.kind {
            Kind::Fixed(fixed) => (BTreeMap::new(), fixed.weights().cloned()),
            Kind::Saal(saal) => (saal.state()?, Some(saal.class_weights(None)?)),
        };
        if let Some(weight_k) = weight_k {
            for (name, weight) in self.class_names.iter().zip(weight_k.to_vec1::<f64>()?) {
                state.insert(format!("class_weight/{name}"), weight);
            }
        }
        Ok(state)
    }
}

fn number(scalar: &Tensor) -> candle_core::Result<f64> {
    scalar.to_dtype(DType::F64)?.to_scalar()
}
