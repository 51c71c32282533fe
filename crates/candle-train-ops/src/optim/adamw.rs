//! Adam with decoupled weight decay (Loshchilov and Hutter 2019).

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var, backprop::GradStore};

use super::moments::{self, Slot};

/// Constants of [`AdamW`]; the defaults are PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWParams {
    /// Decay of the mean of the gradients, in [0, 1).
    pub beta1: f64,
    /// Decay of the mean of their squares, in [0, 1).
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Fraction of each weight taken away per step and unit of learning rate.
    pub weight_decay: f64,
}

impl Default for AdamWParams {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// Adam with decoupled weight decay, one pass per variable.
pub struct AdamW {
    slots: Vec<Slot<2>>,
    params: AdamWParams,
    n_steps: usize,
}

const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

impl AdamW {
    /// Decays every variable.
    ///
    /// # Errors
    /// A variable that is not f32 on the CPU (or, with the feature `cuda`, on a GPU); two of the same name.
    pub fn new(named_vars: Vec<(String, Var)>, params: AdamWParams) -> Result<Self> {
        Self::with_decay(named_vars, params, |_, _| true)
    }

    /// Decays the variables for which `decays(name, variable)` is true; biases and
    /// normalisation usually are not: `|_, variable| variable.rank() > 1`.
    ///
    /// # Errors
    /// As [`AdamW::new`].
    pub fn with_decay(
        named_vars: Vec<(String, Var)>,
        params: AdamWParams,
        decays: impl Fn(&str, &Tensor) -> bool,
    ) -> Result<Self> {
        Ok(Self { slots: moments::slots("AdamW", named_vars, decays)?, params, n_steps: 0 })
    }

    /// Updates every variable that has a gradient, with learning rate `lr`.
    ///
    /// # Errors
    /// A gradient of another shape or type than its variable.
    pub fn step(&mut self, grads: &GradStore, lr: f64) -> Result<()> {
        self.n_steps += 1;
        let AdamWParams { beta1, beta2, eps, weight_decay } = self.params;
        let exponent = i32::try_from(self.n_steps).unwrap_or(i32::MAX);
        let step_size = (lr / (1.0 - beta1.powi(exponent))) as f32;
        let root_scale = (1.0 / (1.0 - beta2.powi(exponent)).sqrt()) as f32;
        let (keep1, keep2, eps) = (beta1 as f32, beta2 as f32, eps as f32);
        let (take1, take2) = ((1.0 - beta1) as f32, (1.0 - beta2) as f32);
        let keep = |decays| if decays { 1.0 - lr * weight_decay } else { 1.0 } as f32;
        #[cfg(feature = "cuda")]
        moments::on_gpu("AdamW", &self.slots, grads, |decays| (keep(decays), 0.0))?.adamw(
            crate::cuda::AdamWStep { keep: [keep1, keep2], take: [take1, take2], step_size, root_scale, eps },
        )?;
        moments::update_all("AdamW", &mut self.slots, grads, |decays| {
            let keep = keep(decays);
            move |weight: &mut [f32], gradient: &[f32], [mean, square]: [&mut [f32]; 2]| {
                let moments = mean.iter_mut().zip(square);
                for ((weight, gradient), (mean, square)) in weight.iter_mut().zip(gradient).zip(moments) {
                    *mean = *mean * keep1 + gradient * take1;
                    *square = *square * keep2 + gradient * gradient * take2;
                    *weight = *weight * keep - step_size * *mean / (square.sqrt() * root_scale + eps);
                }
            }
        })
    }

    /// Steps taken so far; save it with [`AdamW::state`].
    pub fn n_steps(&self) -> usize {
        self.n_steps
    }

    /// `<variable>.exp_avg` and `<variable>.exp_avg_sq` of every variable, f32 in
    /// the variable's shape.
    ///
    /// # Errors
    /// None of its own; candle's if memory cannot be had.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        moments::save(&self.slots, MOMENTS)
    }

    /// Goes on exactly where [`AdamW::state`] was taken, after `n_steps` steps.
    ///
    /// # Errors
    /// State of other variables; nothing is changed then.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>, n_steps: usize) -> Result<()> {
        moments::load(&mut self.slots, MOMENTS, state)?;
        self.n_steps = n_steps;
        Ok(())
    }
}
