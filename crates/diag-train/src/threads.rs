//! Thread pools: the operations run on the pool that they are called in.

use crate::error::TrainError;

/// A pool with its own number of threads.
pub(crate) fn thread_pool(n_threads: usize) -> Result<rayon::ThreadPool, TrainError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(n_threads)
        .build()
        .map_err(|err| TrainError::Threads { n_threads, reason: err.to_string() })
}

/// Number of cores that this process may use.
pub(crate) fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
