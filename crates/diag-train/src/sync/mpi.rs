//! Ranks linked by MPI.

use std::time::{Duration, Instant};

use ::mpi::Threading;
use ::mpi::environment::{Universe, initialize_with_threading};
use ::mpi::point_to_point::{Destination, Source};
use ::mpi::request::{Request, Scope, scope};
use ::mpi::topology::{Communicator, SimpleCommunicator};

use super::channel::Channel;
use crate::error::TrainError;

/// All ranks of the job. Dropping it finalises MPI, which must happen on the thread that
/// started it.
pub(crate) struct World {
    rank: usize,
    n_ranks: usize,
    _universe: Universe,
}

impl World {
    /// Starts MPI with support for several threads.
    pub fn start() -> Result<Self, TrainError> {
        let refused = |problem: &str| TrainError::Launch {
            problem: problem.to_owned(),
            remedy: "start one training a process, on an MPI built with MPI_THREAD_MULTIPLE; \
                     Debian's Open MPI is",
        };
        let (universe, threading) = initialize_with_threading(Threading::Multiple)
            .ok_or_else(|| refused("MPI runs in this process already"))?;
        if threading != Threading::Multiple {
            return Err(refused("this MPI supports one communicating thread only"));
        }
        let world = universe.world();
        let (rank, n_ranks) = (world.rank() as usize, world.size() as usize);
        Ok(Self { rank, n_ranks, _universe: universe })
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn n_ranks(&self) -> usize {
        self.n_ranks
    }

    /// Sends bytes to a rank and receives as many as it sends at the same time. MPI ends
    /// the whole job where that fails.
    pub fn send_receive(&self, peer: usize, channel: Channel, sent: &[u8], received: &mut [u8]) {
        let world = SimpleCommunicator::world();
        let (peer, tag) = (world.process_at_rank(peer as i32), channel as i32);
        scope(|messages| {
            let received = peer.immediate_receive_into_with_tag(messages, received, tag);
            let sent = peer.immediate_send_with_tag(messages, sent, tag);
            finish(received);
            finish(sent);
        });
    }

    /// Ends all processes of the job; the launcher names this rank.
    pub fn abort(&self) {
        SimpleCommunicator::world().abort(1);
    }
}

/// How long a wait spins before it sleeps, as most answers come at once.
const SPIN_TIME: Duration = Duration::from_micros(50);

/// Waits for a message. MPI's own wait spins without end, on a core that the other thread
/// of this rank, or another rank, may need.
fn finish<'a, D: ?Sized, S: Scope<'a>>(mut message: Request<'a, D, S>) {
    let started = Instant::now();
    while let Err(waiting) = message.test() {
        message = waiting;
        if started.elapsed() > SPIN_TIME {
            std::thread::sleep(SPIN_TIME);
        }
    }
}
