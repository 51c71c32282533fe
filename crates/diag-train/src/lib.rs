//! Slice shards to a trained network and its run folder.
//!
//! In: a shard folder and a recipe ([`TrainSpec`]). Out: a run folder as
//! [`diag_data::run`] describes it, by [`fit`](fit::fit) and then
//! [`evaluate`](evaluate::evaluate), which [`explain`](explain::explain) may follow.
//!
//! The same seed and shards give the same epochs and weights, byte for byte, on
//! any number of threads; a run that was stopped goes on as if it had not been.
//!
//! This crate refuses to know DICOM, and what the network and the loss are made
//! of. It never prints: progress goes to a [`Progress`](progress::Progress).

mod augment;
mod checkpoint;
mod dataset;
mod error;
pub mod evaluate;
pub mod explain;
pub mod fit;
mod inference;
mod loader;
mod localise;
mod lung_field;
mod optimiser;
mod plan;
pub mod progress;
mod random;
mod recipe;
mod run_info;
mod schedule;
mod tensorboard;

pub use error::TrainError;
pub use plan::{TrainPlan, ValidationSource};
pub use recipe::{
    AugmentationSpec, DeviceChoice, Initialisation, OptimiserName, OptimiserSpec, ScheduleSpec, Selection,
    TrainSpec,
};
