//! Deeply supervised networks, their losses and the saved model.
//!
//! In: grey-level images as a tensor ([`input`]) and a [`NetworkSpec`]. Out: the
//! logits of every head by name ([`HeadLogits`]), a loss taken apart by head and
//! part ([`LossTerms`]), and a model that can be saved and loaded
//! ([`SavedModel`]; [`OpenModel`] with all that a run or a one-file model keeps beside it).
//!
//! This crate refuses to know shards, epochs, optimisers and command lines.
//! Which parts of the method are from the literature and which are our own
//! reading stands in `docs/method.md`.

mod backbone;
mod error;
pub mod explain;
mod heads;
pub mod input;
mod loading;
pub mod loss;
mod network;
mod parameters;
mod pointwise;
mod population;
mod saved;
pub mod tensors;

pub use backbone::Backbone;
pub use error::ModelError;
pub use heads::{FINAL_HEAD, Fusion, HeadLogits, softmax};
pub use loading::{LoadReport, Loaded};
pub use loss::{Loss, LossSpec, LossTerms};
pub use network::{Answer, FoldedNetwork, Network, NetworkSpec, Pass, SideStages};
pub use saved::{
    FORMAT_VERSION, InputSpec, ModelCard, OpenModel, Part, SavedModel, SavedNetwork, TrainingData, WEIGHTS,
};
