//! The self-adaptive auxiliary loss, in two forms.
//!
//! `L = sum_s mean_i w_y(alpha) (CE_si + beta_s RCE_si)`, with
//! - w_c = (1 - alpha) / (1 - alpha^n_c): inverse effective number of samples
//!   (Cui et al., CVPR 2019), for the overlap between slices;
//! - RCE = -A (1 - p_y): reverse cross entropy (Wang et al., ICCV 2019), for noisy
//!   labels; bounded by -A;
//! - alpha and beta_s learned with the network.
//!
//! Taken literally, descent drives alpha to 1 and every beta to 0. The stabilised
//! form bounds both, adds log-barriers, and may learn a weight for each head. That
//! form is ours: `docs/method.md`.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_train_ops::BatchSum;
use serde::{Deserialize, Serialize};

use super::{Head, LossTerms, number};
use crate::ModelError;
use crate::pointwise::Pointwise;

/// Bounds of k in the stabilised alpha = 1 - 10^-k.
const EXPONENT_BOUNDS: (f64, f64) = (2.0, 5.0);
/// Upper bound of a learned head weight; it starts at half of it, 1.
const HIGHEST_HEAD_WEIGHT: f64 = 2.0;
/// Where the free numbers stop to count, so that sigmoids stay off their bounds
/// and 1 - alpha keeps its digits.
const RAW_LIMIT: f64 = 27.0;

/// How far the formula is taken at its word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// Weights normalised, alpha and beta bounded, log-barriers: our reading that can be trained.
    Stabilised,
    /// The bare formula with alpha = sigmoid(a), beta = softplus(b): there to be studied.
    Literal,
}

/// How one term of the loss is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Its parameter is learned.
    Learned,
    /// Its parameter stays where it starts.
    Fixed,
    /// The part is left out.
    Off,
}

/// Settings of the loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SaalSpec {
    /// Which form.
    pub form: Form,
    /// Class weights by effective number of samples, with alpha.
    pub effective_number: Part,
    /// Reverse cross entropy, with one beta a head.
    pub reverse: Part,
    /// A weight for each head, in (0, 2) from 1 on; learned or off, stabilised form only.
    pub head_weights: Part,
    /// Where alpha starts; stabilised: inside (0.99, 0.99999), literal: inside (0, 1).
    pub initial_alpha: f64,
    /// Where every beta starts; positive, stabilised: below `highest_beta`.
    pub initial_beta: f64,
    /// A, what log 0 stands for in reverse cross entropy; negative.
    pub log_zero: f64,
    /// Upper bound of beta; stabilised form only.
    pub highest_beta: f64,
    /// Weight of alpha's log-barrier; stabilised form only; positive.
    pub alpha_barrier: f64,
    /// Weight of each beta's log-barrier; stabilised form only; positive.
    pub beta_barrier: f64,
    /// Weight of each head weight's log-barrier; positive.
    pub head_weight_barrier: f64,
}

impl Default for SaalSpec {
    fn default() -> Self {
        Self {
            form: Form::Stabilised,
            effective_number: Part::Learned,
            reverse: Part::Learned,
            head_weights: Part::Off,
            initial_alpha: 0.999,
            initial_beta: 0.5,
            log_zero: -4.0,
            highest_beta: 2.0,
            alpha_barrier: 1.0,
            beta_barrier: 0.5,
            head_weight_barrier: 0.5,
        }
    }
}

impl SaalSpec {
    pub(super) fn check(&self) -> std::result::Result<(), ModelError> {
        let stabilised = self.form == Form::Stabilised;
        let (lowest, highest) = EXPONENT_BOUNDS;
        let exponent = -(1.0 - self.initial_alpha).log10();
        let alpha_fits = if stabilised {
            exponent > lowest && exponent < highest
        } else {
            self.initial_alpha > 0.0 && self.initial_alpha < 1.0
        };
        let highest_beta = if stabilised { self.highest_beta } else { f64::INFINITY };
        let off = self.head_weights == Part::Off;
        if self.head_weights == Part::Fixed || !(stabilised || off) {
            let reason = "head weights are learned in the stabilised form, or off".to_owned();
            return Err(ModelError::Setting { setting: "head_weights", reason });
        }
        let rules = [
            ("initial_alpha", self.initial_alpha, alpha_fits),
            ("initial_beta", self.initial_beta, self.initial_beta > 0.0 && self.initial_beta < highest_beta),
            ("log_zero", self.log_zero, self.log_zero < 0.0 && self.log_zero.is_finite()),
            ("highest_beta", self.highest_beta, self.highest_beta > 0.0 && self.highest_beta.is_finite()),
            ("alpha_barrier", self.alpha_barrier, self.alpha_barrier > 0.0 && self.alpha_barrier.is_finite()),
            ("beta_barrier", self.beta_barrier, self.beta_barrier > 0.0 && self.beta_barrier.is_finite()),
            (
                "head_weight_barrier",
                self.head_weight_barrier,
                self.head_weight_barrier > 0.0 && self.head_weight_barrier.is_finite(),
            ),
        ];
        match rules.into_iter().find(|(_, _, fits)| !fits) {
            Some((setting, value, _)) => {
                Err(ModelError::Setting { setting, reason: format!("{value} is outside its range") })
            }
            None => Ok(()),
        }
    }

    /// The free number that stands for the initial alpha.
    fn raw_alpha(&self) -> f64 {
        let share = match self.form {
            Form::Stabilised => {
                let (lowest, highest) = EXPONENT_BOUNDS;
                (-(1.0 - self.initial_alpha).log10() - lowest) / (highest - lowest)
            }
            Form::Literal => self.initial_alpha,
        };
        logit(share)
    }

    /// The free number that stands for the initial beta.
    fn raw_beta(&self) -> f64 {
        match self.form {
            Form::Stabilised => logit(self.initial_beta / self.highest_beta),
            Form::Literal => self.initial_beta.exp_m1().ln(),
        }
    }
}

fn logit(share: f64) -> f64 {
    (share / (1.0 - share)).ln()
}

/// The loss with its variables. All of its own arithmetic is in f64.
pub(crate) struct Saal {
    spec: SaalSpec,
    raw_alpha: Tensor,
    raw_betas: BTreeMap<String, Tensor>,
    raw_head_weights: BTreeMap<String, Tensor>,
    vars: Vec<(String, Var)>,
    /// Weight of each variable's log-barrier, in the order of `vars`.
    barriers: Vec<f64>,
    /// n_c; 1 where a class has no slices.
    count_k: Tensor,
    /// 1 where a class has slices, else 0.
    present_k: Tensor,
    n_present: f64,
}

impl Saal {
    pub fn new(spec: &SaalSpec, heads: &[String], slices_per_class: &[u64]) -> Result<Self> {
        let (mut vars, mut barriers) = (Vec::new(), Vec::new());
        let mut parameter = |name: String, part: Part, raw: f64, barrier: f64| -> Result<Tensor> {
            let tensor = Tensor::new(raw as f32, &Device::Cpu)?;
            if part != Part::Learned {
                return Ok(tensor);
            }
            let var = Var::from_tensor(&tensor)?;
            let tensor = var.as_tensor().clone();
            vars.push((name, var));
            barriers.push(barrier);
            Ok(tensor)
        };
        let raw_alpha =
            parameter("loss.alpha".to_owned(), spec.effective_number, spec.raw_alpha(), spec.alpha_barrier)?;
        let (mut raw_betas, mut raw_head_weights) = (BTreeMap::new(), BTreeMap::new());
        for head in heads {
            let raw =
                parameter(format!("loss.beta.{head}"), spec.reverse, spec.raw_beta(), spec.beta_barrier)?;
            raw_betas.insert(head.clone(), raw);
        }
        for head in heads {
            let name = format!("loss.head_weight.{head}");
            let raw = parameter(name, spec.head_weights, 0.0, spec.head_weight_barrier)?;
            raw_head_weights.insert(head.clone(), raw);
        }
        let counts: Vec<f64> = slices_per_class.iter().map(|&n| n.max(1) as f64).collect();
        let present: Vec<f64> = slices_per_class.iter().map(|&n| f64::from(u8::from(n > 0))).collect();
        Ok(Self {
            spec: *spec,
            raw_alpha,
            raw_betas,
            raw_head_weights,
            vars,
            barriers,
            n_present: present.iter().sum(),
            count_k: Tensor::new(counts, &Device::Cpu)?,
            present_k: Tensor::new(present, &Device::Cpu)?,
        })
    }

    pub fn named_vars(&self) -> &[(String, Var)] {
        &self.vars
    }

    /// `sum` joins the processes that hold the other parts of the batch.
    pub fn terms(
        &self,
        heads: &[Head<'_>],
        sum: Option<&BatchSum>,
    ) -> std::result::Result<LossTerms, ModelError> {
        let weight_k = self.class_weights(sum)?;
        let mut record = BTreeMap::new();
        let mut total = self.barrier(sum)?;
        for (head, parts) in heads {
            let reverse_n = (&parts.doubt_n * -self.spec.log_zero)?;
            let mut values =
                BTreeMap::from([("cross_entropy".to_owned(), number(&parts.cross_entropy_n.mean_all()?)?)]);
            let mut loss_n = parts.cross_entropy_n.clone();
            if self.spec.reverse != Part::Off {
                values.insert("reverse_cross_entropy".to_owned(), number(&reverse_n.mean_all()?)?);
                loss_n = (loss_n + reverse_n.broadcast_mul(&self.beta(head, sum)?)?)?;
            }
            let mut mean = (loss_n * parts.of_label(&weight_k)?)?.mean_all()?;
            if self.spec.head_weights != Part::Off {
                mean = (mean * self.head_weight(head, sum)?)?;
            }
            total = (total + mean)?;
            record.insert((*head).to_owned(), values);
        }
        Ok(LossTerms { total, heads: record })
    }

    /// `alpha`, `beta/HEAD` and `head_weight/HEAD`, where they take part.
    pub fn state(&self) -> Result<BTreeMap<String, f64>> {
        let mut state = BTreeMap::new();
        if self.spec.effective_number != Part::Off {
            state.insert("alpha".to_owned(), 1.0 - self.one_minus_alpha(None)?.to_scalar::<f64>()?);
        }
        for head in self.raw_betas.keys() {
            if self.spec.reverse != Part::Off {
                state.insert(format!("beta/{head}"), self.beta(head, None)?.to_scalar()?);
            }
            if self.spec.head_weights != Part::Off {
                state.insert(format!("head_weight/{head}"), self.head_weight(head, None)?.to_scalar()?);
            }
        }
        Ok(state)
    }

    /// w_c, `[K]`, f64; 0 for a class without slices. Stabilised: their sum is the
    /// number of classes that have slices.
    pub fn class_weights(&self, sum: Option<&BatchSum>) -> Result<Tensor> {
        if self.spec.effective_number == Part::Off {
            return Ok(self.present_k.clone());
        }
        let one_minus_alpha = self.one_minus_alpha(sum)?;
        // 1 - alpha^n = -expm1(n ln alpha): neither factor loses digits where alpha is near 1.
        let powers_k = self.count_k.broadcast_mul(&self.log_alpha(&one_minus_alpha, sum)?)?;
        let effective_k = Pointwise::ExpM1.of(&powers_k)?.neg()?;
        let weight_k = (effective_k.recip()?.broadcast_mul(&one_minus_alpha)? * &self.present_k)?;
        match self.spec.form {
            Form::Literal => Ok(weight_k),
            Form::Stabilised => weight_k.broadcast_div(&weight_k.sum_all()?)? * self.n_present,
        }
    }

    fn one_minus_alpha(&self, sum: Option<&BatchSum>) -> Result<Tensor> {
        let raw = limited(&self.raw_alpha, sum)?;
        match self.spec.form {
            Form::Stabilised => {
                let (lowest, highest) = EXPONENT_BOUNDS;
                let exponent = Pointwise::Sigmoid.of(&raw)?.affine(highest - lowest, lowest)?;
                (exponent * -std::f64::consts::LN_10)?.exp()
            }
            Form::Literal => Pointwise::Sigmoid.of(&raw.neg()?),
        }
    }

    fn log_alpha(&self, one_minus_alpha: &Tensor, sum: Option<&BatchSum>) -> Result<Tensor> {
        match self.spec.form {
            Form::Stabilised => Pointwise::Ln1p.of(&one_minus_alpha.neg()?),
            Form::Literal => Pointwise::Softplus.of(&limited(&self.raw_alpha, sum)?.neg()?)?.neg(),
        }
    }

    fn beta(&self, head: &str, sum: Option<&BatchSum>) -> Result<Tensor> {
        let raw = of_head(&self.raw_betas, head)?;
        match self.spec.form {
            Form::Stabilised => Pointwise::Sigmoid.of(&limited(raw, sum)?)? * self.spec.highest_beta,
            Form::Literal => Pointwise::Softplus.of(&free(raw, sum)?),
        }
    }

    fn head_weight(&self, head: &str, sum: Option<&BatchSum>) -> Result<Tensor> {
        let raw = limited(of_head(&self.raw_head_weights, head)?, sum)?;
        Pointwise::Sigmoid.of(&raw)? * HIGHEST_HEAD_WEIGHT
    }

    /// `-lambda (ln(t) + ln(1 - t) + 2 ln 2)` for every learned share t of its
    /// interval: 0 in the middle, infinite at either bound.
    fn barrier(&self, sum: Option<&BatchSum>) -> Result<Tensor> {
        let mut total = Tensor::new(0f64, &Device::Cpu)?;
        if self.spec.form == Form::Literal {
            return Ok(total);
        }
        for ((_, var), &weight) in self.vars.iter().zip(&self.barriers) {
            // Not limited: this is what brings a free number back from beyond the limit.
            let raw = free(var.as_tensor(), sum)?;
            // With t = sigmoid(r): -ln t - ln(1 - t) = softplus(-r) + softplus(r).
            let height = (Pointwise::Softplus.of(&raw)? + Pointwise::Softplus.of(&raw.neg()?)?)?;
            total = (total + height.affine(weight, -weight * 4f64.ln())?)?;
        }
        Ok(total)
    }
}

/// A free number in f64; its gradient is that of the whole batch.
fn free(raw: &Tensor, sum: Option<&BatchSum>) -> Result<Tensor> {
    let raw = raw.to_dtype(DType::F64)?;
    match sum {
        Some(sum) => sum.whole(&raw),
        None => Ok(raw),
    }
}

fn limited(raw: &Tensor, sum: Option<&BatchSum>) -> Result<Tensor> {
    free(raw, sum)?.clamp(-RAW_LIMIT, RAW_LIMIT)
}

fn of_head<'a>(raws: &'a BTreeMap<String, Tensor>, head: &str) -> Result<&'a Tensor> {
    match raws.get(head) {
        Some(raw) => Ok(raw),
        None => candle_core::bail!("the loss has no head {head}"),
    }
}
