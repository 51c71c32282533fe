//! One optimiser step: forward pass, loss, gradients, update.

pub(crate) mod ema;
pub(crate) mod learner;
pub(crate) mod mean_loss;
pub(crate) mod optimiser;
pub(crate) mod population;
pub(crate) mod schedule;
