//! The run folder: what it begins with, its checkpoint, and what is written while training runs.

pub(crate) mod checkpoint;
pub(crate) mod clock;
pub(crate) mod info;
pub(crate) mod log;
pub(crate) mod notes;
pub(crate) mod plan;
pub(crate) mod selection;
pub(crate) mod start;
pub(crate) mod tensorboard;
