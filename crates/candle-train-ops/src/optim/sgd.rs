//! Stochastic gradient descent with momentum, as PyTorch's `SGD`.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var, backprop::GradStore};

use super::moments::{self, Slot};
use crate::OpError;

/// Constants of [`Sgd`]; the defaults are plain descent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SgdParams {
    /// Share of the last velocity kept, in [0, 1).
    pub momentum: f64,
    /// Looks ahead along the velocity; needs momentum.
    pub nesterov: bool,
    /// Times the weight is added to the gradient.
    pub weight_decay: f64,
}

/// Gradient descent with momentum, one pass per variable. The velocity starts as
/// the first gradient and grows without dampening.
pub struct Sgd {
    slots: Vec<Slot<1>>,
    params: SgdParams,
    n_steps: usize,
}

const MOMENTS: [&str; 1] = ["momentum_buffer"];

impl Sgd {
    /// Decays every variable.
    ///
    /// # Errors
    /// A variable that is not f32 on the CPU (or, with the feature `cuda`, on a GPU); two of the same name; Nesterov
    /// without momentum.
    pub fn new(named_vars: Vec<(String, Var)>, params: SgdParams) -> Result<Self> {
        Self::with_decay(named_vars, params, |_, _| true)
    }

    /// Decays the variables for which `decays(name, variable)` is true.
    ///
    /// # Errors
    /// As [`Sgd::new`].
    pub fn with_decay(
        named_vars: Vec<(String, Var)>,
        params: SgdParams,
        decays: impl Fn(&str, &Tensor) -> bool,
    ) -> Result<Self> {
        if params.nesterov && params.momentum == 0.0 {
            return Err(OpError::Setting { op: "Sgd", reason: "nesterov needs momentum".to_owned() }.into());
        }
        Ok(Self { slots: moments::slots("Sgd", named_vars, decays)?, params, n_steps: 0 })
    }

    /// Updates every variable that has a gradient, with learning rate `lr`.
    ///
    /// # Errors
    /// A gradient of another shape or type than its variable.
    pub fn step(&mut self, grads: &GradStore, lr: f64) -> Result<()> {
        self.n_steps += 1;
        let (momentum, lr) = (self.params.momentum as f32, lr as f32);
        let nesterov = self.params.nesterov;
        let decay = |decays| if decays { self.params.weight_decay } else { 0.0 } as f32;
        #[cfg(feature = "cuda")]
        moments::on_gpu("Sgd", &self.slots, grads, |decays| (1.0, decay(decays)))?
            .sgd(momentum, nesterov, lr)?;
        moments::update_all("Sgd", &mut self.slots, grads, |decays| {
            let decay = decay(decays);
            move |weight: &mut [f32], gradient: &[f32], [velocity]: [&mut [f32]; 1]| {
                for ((weight, gradient), velocity) in weight.iter_mut().zip(gradient).zip(velocity) {
                    let gradient = gradient + decay * *weight;
                    *velocity = momentum * *velocity + gradient;
                    let direction = if nesterov { gradient + momentum * *velocity } else { *velocity };
                    *weight -= lr * direction;
                }
            }
        })
    }

    /// Steps taken so far.
    pub fn n_steps(&self) -> usize {
        self.n_steps
    }

    /// `<variable>.momentum_buffer` of every variable, f32 in its shape.
    ///
    /// # Errors
    /// None of its own; candle's if memory cannot be had.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        moments::save(&self.slots, MOMENTS)
    }

    /// Goes on exactly where [`Sgd::state`] was taken, after `n_steps` steps.
    ///
    /// # Errors
    /// State of other variables; nothing is changed then.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>, n_steps: usize) -> Result<()> {
        moments::load(&mut self.slots, MOMENTS, state)?;
        self.n_steps = n_steps;
        Ok(())
    }
}
