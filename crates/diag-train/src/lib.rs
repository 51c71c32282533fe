//! Slice shards to a trained network and its run folder.
//!
//! In: a shard folder and a recipe ([`TrainSpec`]). Out: a run folder as
//! [`diag_data::run`] describes it, by [`fit`](fit::fit) and then
//! [`evaluate`](evaluate::evaluate), which [`explain`](explain::explain) and
//! [`export`](export::export) may follow;
//! many of them by [`sweep`](sweep::sweep).
//!
//! The same seed and shards give the same epochs and weights, byte for byte, on
//! any number of threads; a run that was stopped continues as if it had not been.
//! Several processes ([`Ranks`]) may share the batches of one run.
//!
//! This crate refuses to know DICOM, and what the network and the loss are made
//! of. It never prints: progress goes to a [`Progress`](progress::Progress).
//!
//! Files import downwards only. From the bottom:
//!
//! | module | holds |
//! | --- | --- |
//! | `error`, `random`, `threads`, `device`, `progress`, `recipe` | what every other module may use |
//! | `sync` | the processes of one run: all-reduce, all-gather, launchers |
//! | `data` | slices, splits, augmentation, batches |
//! | `step` | network, loss and optimisers: forward, backward, update |
//! | `run` | the run folder: plan, checkpoint, logs, `run.json` |
//! | `evaluate`, `fit`, `find_rate`, `explain`, `export`, `audit`, `sweep` | the commands |

pub mod audit;
mod data;
mod device;
mod error;
pub mod evaluate;
pub mod explain;
pub mod export;
pub mod find_rate;
pub mod fit;
pub mod progress;
mod random;
mod recipe;
mod run;
mod step;
pub mod sweep;
mod sync;
mod threads;

pub use device::DeviceChoice;
pub use error::TrainError;
pub use recipe::{
    AugmentationSpec, BatchNorm, DataSpec, DecisionSpec, FoldSpec, Freeze, Initialisation, MixingSpec,
    NoiseUnit, OptimiserName, OptimiserSpec, Sampling, ScheduleSpec, Selection, SplitUnit, TrainSpec,
};
pub use run::plan::{TrainPlan, ValidationSource};
pub use sync::ranks::Ranks;
