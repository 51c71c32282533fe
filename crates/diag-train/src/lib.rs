//! Slice shards to a trained network and its run folder.
//!
//! In: a shard folder and a recipe ([`TrainSpec`]). Out: a run folder as
//! [`diag_data::run`] describes it, by [`fit`](fit::fit) and then
//! [`evaluate`](evaluate::evaluate), which [`explain`](explain::explain) may follow;
//! many of them by [`sweep`](sweep::sweep).
//!
//! The same seed and shards give the same epochs and weights, byte for byte, on
//! any number of threads; a run that was stopped goes on as if it had not been.
//! Several processes ([`Ranks`]) may share the batches of one run.
//!
//! This crate refuses to know DICOM, and what the network and the loss are made
//! of. It never prints: progress goes to a [`Progress`](progress::Progress).

mod attention;
pub mod audit;
mod augment;
mod average;
mod checkpoint;
mod clock;
mod dataset;
pub mod decision;
mod device;
mod error;
pub mod evaluate;
mod experiment;
pub mod explain;
pub mod find_rate;
pub mod fit;
mod gpu_sum;
mod inference;
mod joint;
mod learner;
mod loader;
mod localise;
mod lung_field;
mod message;
mod mixing;
mod optimiser;
mod plan;
pub mod progress;
mod random;
mod ranks;
mod recipe;
mod run_info;
mod sampling;
mod schedule;
pub mod sweep;
mod tensorboard;
mod trail;

pub use device::DeviceChoice;
pub use error::TrainError;
pub use plan::{TrainPlan, ValidationSource};
pub use ranks::Ranks;
pub use recipe::{
    AugmentationSpec, DataSpec, DecisionSpec, FoldSpec, Freeze, Initialisation, MixingSpec, NoiseUnit,
    OptimiserName, OptimiserSpec, Sampling, ScheduleSpec, Selection, SplitUnit, TrainSpec,
};
