//! Optimisers that update each variable in one pass and whose state can be saved
//! and restored exactly.

mod adamw;
mod clip;
mod moments;
mod sgd;

pub use adamw::{AdamW, AdamWParams};
pub use clip::clip_grad_norm;
pub use sgd::{Sgd, SgdParams};
