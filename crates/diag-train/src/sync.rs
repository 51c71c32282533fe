//! Several processes that train one network.

pub(crate) mod all_reduce;
pub(crate) mod channel;
pub(crate) mod gpu_all_reduce;
pub(crate) mod launch;
#[cfg(feature = "mpi")]
pub(crate) mod mpi;
pub(crate) mod ranks;
pub(crate) mod share;
pub(crate) mod tcp;
