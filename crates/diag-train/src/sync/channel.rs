//! The two message streams between a pair of ranks.

/// Which thread communicates: messages of different channels never wait for each other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Channel {
    /// The thread that runs the network.
    Network,
    /// The thread that all-reduces gradients.
    Gradients,
}
