//! The optimiser of the network and that of what the loss learns.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};
use candle_train_ops::optim::{AdamW, AdamWParams, Sgd, SgdParams};

use crate::recipe::{OptimiserName, OptimiserSpec};

/// Updates variables from gradients; its state can be saved.
pub(crate) enum Optimiser {
    AdamW(AdamW),
    Sgd(Sgd),
}

impl Optimiser {
    /// Decays convolutions and linear layers; scales, shifts and scalars are left alone.
    pub fn new(spec: &OptimiserSpec, named_vars: &[(String, Var)]) -> Result<Self> {
        let named_vars = named_vars.to_vec();
        let decays = |_: &str, variable: &Tensor| variable.rank() > 1;
        match spec.name {
            OptimiserName::AdamW => {
                let params = AdamWParams { weight_decay: spec.weight_decay, ..AdamWParams::default() };
                AdamW::with_decay(named_vars, params, decays).map(Self::AdamW)
            }
            OptimiserName::Sgd => {
                let params = SgdParams {
                    momentum: spec.momentum,
                    nesterov: spec.momentum > 0.0,
                    weight_decay: spec.weight_decay,
                };
                Sgd::with_decay(named_vars, params, decays).map(Self::Sgd)
            }
        }
    }

    pub fn step(&mut self, gradients: &GradStore, learning_rate: f64) -> Result<()> {
        match self {
            Self::AdamW(optimiser) => optimiser.step(gradients, learning_rate),
            Self::Sgd(optimiser) => optimiser.step(gradients, learning_rate),
        }
    }

    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        match self {
            Self::AdamW(optimiser) => optimiser.state(),
            Self::Sgd(optimiser) => optimiser.state(),
        }
    }

    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>, n_steps: u64) -> Result<()> {
        match self {
            Self::AdamW(optimiser) => optimiser.load_state(state, n_steps as usize),
            Self::Sgd(optimiser) => optimiser.load_state(state, n_steps as usize),
        }
    }
}
