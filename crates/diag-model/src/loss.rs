//! Losses over all heads, taken apart by head and part.
//!
//! Every loss is a sum over heads of a mean over the batch. What a loss learns
//! beside the network (alpha, beta) are variables of its own, trained by the same
//! kind of optimiser. See `docs/method.md` for the formulas and where they are from.

mod parts;
mod saal;

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};
use diag_data::case::LabelSet;
use diag_data::run::LossRecord;
use serde::{Deserialize, Serialize};

use crate::{HeadLogits, ModelError};
use parts::{Parts, one_hot};
pub use saal::{Form, Part, SaalSpec};

/// Which loss, with its settings; `[loss]` of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum LossSpec {
    /// Plain cross entropy on every head.
    CrossEntropy(CrossEntropySpec),
    /// The self-adaptive auxiliary loss.
    Saal(SaalSpec),
}

/// Settings of cross entropy: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrossEntropySpec {}

impl LossSpec {
    /// Name in run folders and reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::CrossEntropy(_) => "cross-entropy",
            Self::Saal(SaalSpec { form: Form::Stabilised, .. }) => "saal-stabilised",
            Self::Saal(SaalSpec { form: Form::Literal, .. }) => "saal-literal",
        }
    }

    /// Checks the ranges of the settings.
    ///
    /// # Errors
    /// A setting outside its range; the message names it.
    pub fn check(&self) -> Result<(), ModelError> {
        match self {
            Self::CrossEntropy(_) => Ok(()),
            Self::Saal(spec) => spec.check(),
        }
    }
}

/// What a batch costs.
#[derive(Clone, Debug)]
pub struct LossTerms {
    /// What is minimised: a scalar with a gradient.
    pub total: Tensor,
    /// Mean over the batch by head and part, before weighting: `cross_entropy`,
    /// and `reverse_cross_entropy` where the loss has it.
    pub heads: BTreeMap<String, BTreeMap<String, f64>>,
}

impl LossTerms {
    /// The numbers without the graph.
    ///
    /// # Errors
    /// None of its own.
    pub fn record(&self) -> candle_core::Result<LossRecord> {
        let total = self.total.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        Ok(LossRecord { total, heads: self.heads.clone() })
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
}

enum Kind {
    CrossEntropy,
    Saal(saal::Saal),
}

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
        let kind = match spec {
            LossSpec::CrossEntropy(_) => Kind::CrossEntropy,
            LossSpec::Saal(spec) => Kind::Saal(saal::Saal::new(spec, heads, labels, slices_per_class)?),
        };
        Ok(Self { kind, heads: heads.to_vec() })
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
        let mut parts = Vec::with_capacity(self.heads.len());
        for head in &self.heads {
            let Some(logits_nk) = logits.get(head) else {
                let reason = format!("the network has no head `{head}`");
                return Err(ModelError::Setting { setting: "heads", reason });
            };
            let one_hot_nk = one_hot(label_n, logits_nk)?;
            parts.push((head.as_str(), Parts::new(logits_nk, &one_hot_nk)?, one_hot_nk));
        }
        match &self.kind {
            Kind::CrossEntropy => cross_entropy(&parts),
            Kind::Saal(saal) => saal.terms(&parts),
        }
    }

    /// What the loss learns, by name: f32 scalars, to be trained without weight decay.
    pub fn named_vars(&self) -> &[(String, Var)] {
        match &self.kind {
            Kind::CrossEntropy => &[],
            Kind::Saal(saal) => saal.named_vars(),
        }
    }

    /// `alpha`, `beta/HEAD` and `class_weight/CLASS` as they are now.
    ///
    /// # Errors
    /// None of its own.
    pub fn state(&self) -> candle_core::Result<BTreeMap<String, f64>> {
        match &self.kind {
            Kind::CrossEntropy => Ok(BTreeMap::new()),
            Kind::Saal(saal) => saal.state(),
        }
    }
}

/// A head with its parts and its one-hot labels.
type HeadParts<'a> = (&'a str, Parts, Tensor);

fn cross_entropy(heads: &[HeadParts<'_>]) -> Result<LossTerms, ModelError> {
    let mut record = BTreeMap::new();
    let mut total: Option<Tensor> = None;
    for (head, parts, _) in heads {
        let mean = parts.cross_entropy_n.mean_all()?;
        record.insert((*head).to_owned(), BTreeMap::from([("cross_entropy".to_owned(), number(&mean)?)]));
        total = Some(match total {
            Some(sum) => (sum + mean)?,
            None => mean,
        });
    }
    let total = total.ok_or(ModelError::Setting { setting: "heads", reason: "there is none".to_owned() })?;
    Ok(LossTerms { total, heads: record })
}

fn number(scalar: &Tensor) -> candle_core::Result<f64> {
    scalar.to_dtype(DType::F64)?.to_scalar()
}
