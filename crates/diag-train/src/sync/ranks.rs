//! The process group of one run: the rank of this process, and collective operations.
//!
//! Every collective is built from one operation, send-and-receive with one other rank, which
//! both MPI and plain TCP offer. Sums are taken in the order of the ranks and every rank gets
//! the same bits, so that their networks stay equal and a run can be repeated bit for bit.
//! Numbers are sent in the byte order of the machine: the ranks of a run have the same kind of
//! processor, as they must to compute equal networks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::channel::Channel;
use super::launch::{self, Launch};
#[cfg(feature = "mpi")]
use super::mpi;
use super::share::RankShare;
use super::tcp;
use crate::error::TrainError;

/// All ranks, as seen from one of them. Rank 0 alone writes the run folder.
///
/// Two threads may communicate at once, each on a channel of its own. Every rank must make
/// the same calls on a channel in the same order.
pub struct Ranks {
    rank: usize,
    n_ranks: usize,
    local_rank: usize,
    link: Link,
    wait_nanos: AtomicU64,
    failure: Arc<Mutex<Option<TrainError>>>,
}

/// How the ranks reach each other.
enum Link {
    Alone,
    Tcp(tcp::Mesh),
    #[cfg(feature = "mpi")]
    Mpi(mpi::World),
}

impl Ranks {
    /// A single process.
    pub fn alone() -> Self {
        Self::new(0, 1, Link::Alone)
    }

    /// The ranks that a launcher started: `mpirun` or `srun --mpi` (feature `mpi`), or
    /// whatever sets `RANK` and `WORLD_SIZE`, or Slurm's variables, with `MASTER_ADDR`
    /// and `MASTER_PORT`. Without a launcher: a single process.
    ///
    /// # Errors
    /// A launcher that this build does not support, variables that contradict each other, a
    /// rank that does not connect.
    pub fn from_launcher() -> Result<Self, TrainError> {
        let variable = |name: &str| std::env::var(name).ok();
        let ranks = match Launch::from_environment(&variable)? {
            Launch::Alone => return Ok(Self::alone()),
            Launch::Tcp(rendezvous) => {
                let (rank, n_ranks) = (rendezvous.rank, rendezvous.n_ranks);
                Self::new(rank, n_ranks, Link::Tcp(tcp::Mesh::connect(&rendezvous)?))
            }
            #[cfg(feature = "mpi")]
            Launch::Mpi => {
                let world = mpi::World::start()?;
                Self::new(world.rank(), world.n_ranks(), Link::Mpi(world))
            }
            #[cfg(not(feature = "mpi"))]
            Launch::Mpi => {
                return Err(TrainError::Launch {
                    problem: "an MPI launcher started this process, which was built without MPI".to_owned(),
                    remedy: "build with `cargo build --release --workspace --bin diag-train --features \
                         diag-train/mpi`, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT instead",
                });
            }
        };
        Ok(Self { local_rank: launch::local_rank(&variable), ..ranks })
    }

    fn new(rank: usize, n_ranks: usize, link: Link) -> Self {
        let wait_nanos = AtomicU64::new(0);
        Self { rank, n_ranks, local_rank: 0, link, wait_nanos, failure: Arc::default() }
    }

    /// This process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn n_ranks(&self) -> usize {
        self.n_ranks
    }

    /// Number of this process on its machine, from 0; 0 where the launcher does not set it.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// Whether this rank writes the run folder and reports progress.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// Aborts all ranks, because this one failed. Returns where the link cannot do that (TCP);
    /// the others then see its connections close.
    pub fn abort(&self) {
        #[cfg(feature = "mpi")]
        if let Link::Mpi(world) = &self.link {
            world.abort();
        }
    }

    /// Calls `act`, on a thread of its own, when the TCP connection of a rank closes. Under MPI
    /// the launcher ends all ranks then.
    #[cfg(feature = "nccl")]
    pub(crate) fn on_lost_rank(&self, act: impl Fn() + Send + Sync + 'static) {
        let failure = Arc::clone(&self.failure);
        let act = move |rank, source| {
            record_failure(&failure, TrainError::LostRank { rank, source });
            act();
        };
        if let Link::Tcp(mesh) = &self.link {
            mesh.on_lost_rank(&(Arc::new(act) as _));
        }
    }

    /// How the ranks are linked, for messages.
    pub(crate) fn describe(&self) -> &'static str {
        match &self.link {
            Link::Alone => "alone",
            Link::Tcp(_) => "TCP",
            #[cfg(feature = "mpi")]
            Link::Mpi(_) => "MPI",
        }
    }

    /// The share of this rank in what the ranks divide among them.
    pub(crate) fn share(&self) -> RankShare {
        RankShare { rank: self.rank, n_ranks: self.n_ranks }
    }

    /// Time that the network's thread has waited for other ranks since the last call.
    pub(crate) fn take_wait_time(&self) -> Duration {
        Duration::from_nanos(self.wait_nanos.swap(0, Ordering::Relaxed))
    }

    /// Adds to the time that the network's thread has waited.
    pub(crate) fn add_wait_time(&self, waited: Duration) {
        let nanos = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.wait_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Why the link broke, if it did: candle keeps only the text of an error that passes through it.
    pub(crate) fn take_failure(&self) -> Option<TrainError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Replaces every number by its sum over the ranks, on the network's channel.
    pub(crate) fn all_reduce_sum(&self, numbers: &mut [f64]) -> candle_core::Result<()> {
        if self.n_ranks == 1 {
            return Ok(());
        }
        let started = Instant::now();
        let all = self.gather(Channel::Network, numbers)?;
        numbers.fill(0.0);
        for of_rank in all.chunks_exact(numbers.len().max(1)) {
            for (sum, number) in numbers.iter_mut().zip(of_rank) {
                *sum += number;
            }
        }
        self.add_wait_time(started.elapsed());
        Ok(())
    }

    /// Replaces every number by its sum over the ranks, on the gradients' channel: a
    /// reduce-scatter and an all-gather, so that every number is sent twice, whatever the
    /// number of ranks. `received` is a buffer that is kept between calls.
    pub(crate) fn all_reduce_gradients(
        &self,
        numbers: &mut [f32],
        received: &mut Vec<f32>,
    ) -> candle_core::Result<()> {
        let n = numbers.len();
        let segment = |rank: usize| n * rank / self.n_ranks..n * (rank + 1) / self.n_ranks;
        let own = segment(self.rank);
        let own_len = own.len();
        received.resize(own_len * self.n_ranks, 0.0);
        let of_rank = |rank: usize| rank * own_len..(rank + 1) * own_len;
        received[of_rank(self.rank)].copy_from_slice(&numbers[own.clone()]);
        for peer in self.peers() {
            let sent = bytemuck::cast_slice(&numbers[segment(peer)]);
            let received = bytemuck::cast_slice_mut(&mut received[of_rank(peer)]);
            self.send_receive(peer, Channel::Gradients, sent, received)?;
        }
        // As pairs, then pairs of pairs: a single process with `batch_parts` adds them up in the
        // same order.
        let mut reach = 1;
        while reach < self.n_ranks {
            for rank in (0..self.n_ranks - reach).step_by(2 * reach) {
                let (left, right) = received.split_at_mut((rank + reach) * own_len);
                for (sum, other) in left[rank * own_len..].iter_mut().zip(&right[..own_len]) {
                    *sum += other;
                }
            }
            reach *= 2;
        }
        let sum = &received[..own_len];
        numbers[own].copy_from_slice(sum);
        for peer in self.peers() {
            let received = bytemuck::cast_slice_mut(&mut numbers[segment(peer)]);
            self.send_receive(peer, Channel::Gradients, bytemuck::cast_slice(sum), received)?;
        }
        Ok(())
    }

    /// Sends bytes to every other rank and receives some from each: `bytes_for` makes those for a
    /// rank, `n_from` is how many come from it. Returns them with the rank that they are from.
    pub(crate) fn all_to_all(
        &self,
        bytes_for: impl Fn(usize) -> Vec<u8>,
        n_from: impl Fn(usize) -> usize,
    ) -> Result<Vec<(usize, Vec<u8>)>, TrainError> {
        let started = Instant::now();
        let mut received = Vec::new();
        for peer in self.peers() {
            let mut bytes = vec![0; n_from(peer)];
            self.send_receive(peer, Channel::Network, &bytes_for(peer), &mut bytes)?;
            received.push((peer, bytes));
        }
        self.add_wait_time(started.elapsed());
        Ok(received)
    }

    /// Whether `own` is true on any rank.
    pub(crate) fn any(&self, own: bool) -> Result<bool, TrainError> {
        let mut count = [f64::from(u8::from(own))];
        self.all_reduce_sum(&mut count)?;
        Ok(count[0] > 0.0)
    }

    /// Bytes of every rank, in the order of the ranks; they may differ in number.
    pub(crate) fn all_gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, TrainError> {
        let started = Instant::now();
        let lengths = self.gather(Channel::Network, &[own.len() as u64])?;
        let lengths: Vec<usize> = lengths.into_iter().map(|length| length as usize).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut padded = own.to_vec();
        padded.resize(longest, 0);
        let all = self.gather(Channel::Network, &padded)?;
        self.add_wait_time(started.elapsed());
        let of_rank = |(rank, length): (usize, usize)| all[rank * longest..][..length].to_vec();
        Ok(lengths.into_iter().enumerate().map(of_rank).collect())
    }

    /// Fails on all ranks where one has other bytes than rank 0.
    pub(crate) fn check_equal(&self, what: &'static str, own: &[u8]) -> Result<(), TrainError> {
        let all = self.all_gather(own)?;
        match all.iter().position(|of_rank| of_rank != &all[0]) {
            Some(rank) => Err(TrainError::RanksDiffer { rank, what }),
            None => Ok(()),
        }
    }

    /// Fails on all ranks where one failed: that one with its own error, the others
    /// with its number.
    pub(crate) fn all_succeed<T>(&self, own: Result<T, TrainError>) -> Result<T, TrainError> {
        let failed = self.all_gather(&[u8::from(own.is_err())])?.iter().position(|flag| flag == &[1]);
        match failed {
            Some(rank) if rank != self.rank => Err(TrainError::OtherRank { rank }),
            _ => own,
        }
    }

    /// The numbers of all ranks, equally many, concatenated in their order.
    fn gather<T: bytemuck::Pod>(&self, channel: Channel, own: &[T]) -> candle_core::Result<Vec<T>> {
        let length = own.len();
        let mut all = own.repeat(self.n_ranks);
        for peer in self.peers() {
            let received = bytemuck::cast_slice_mut(&mut all[peer * length..][..length]);
            self.send_receive(peer, channel, bytemuck::cast_slice(own), received)?;
        }
        Ok(all)
    }

    /// The other ranks, in an order in which both of a pair address each other in the same round.
    fn peers(&self) -> impl Iterator<Item = usize> {
        let (rank, n_ranks) = (self.rank, self.n_ranks);
        (0..n_ranks).map(move |round| (round + n_ranks - rank) % n_ranks).filter(move |&peer| peer != rank)
    }

    fn send_receive(
        &self,
        peer: usize,
        channel: Channel,
        sent: &[u8],
        received: &mut [u8],
    ) -> candle_core::Result<()> {
        let outcome = match &self.link {
            Link::Alone => Ok(()),
            Link::Tcp(mesh) => mesh.send_receive(peer, channel, sent, received),
            #[cfg(feature = "mpi")]
            Link::Mpi(world) => {
                world.send_receive(peer, channel, sent, received);
                Ok(())
            }
        };
        outcome.map_err(|source| {
            let text = format!("lost rank {peer}: {source}");
            record_failure(&self.failure, TrainError::LostRank { rank: peer, source });
            candle_core::Error::msg(text)
        })
    }
}

/// Keeps the first failure: later ones follow from it.
fn record_failure(failure: &Mutex<Option<TrainError>>, err: TrainError) {
    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(err);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Arc;

    /// Runs `work` on so many ranks, linked by TCP within this process.
    pub(crate) fn on_ranks<T: Send + 'static>(
        n_ranks: usize,
        work: impl Fn(&Ranks) -> T + Clone + Send + 'static,
    ) -> Vec<T> {
        let meshes = tcp::mesh_within_process(n_ranks);
        let start = |(rank, mesh)| {
            let ranks = Ranks::new(rank, n_ranks, Link::Tcp(mesh));
            let work = work.clone();
            std::thread::spawn(move || work(&ranks))
        };
        let ranks: Vec<_> = meshes.into_iter().enumerate().map(start).collect();
        ranks.into_iter().map(|thread| thread.join().unwrap()).collect()
    }

    #[test]
    fn every_rank_gets_the_sum_of_all() {
        for n_ranks in [1, 2, 3, 4] {
            let sums = on_ranks(n_ranks, |ranks| {
                let own = ranks.rank() as f64 + 1.0;
                let mut numbers = [own, 0.1 * own];
                ranks.all_reduce_sum(&mut numbers).unwrap();
                let mut gradients: Vec<f32> = (0..7).map(|i| i as f32 * own as f32).collect();
                ranks.all_reduce_gradients(&mut gradients, &mut Vec::new()).unwrap();
                (numbers, gradients)
            });
            let n: f64 = (1..=n_ranks).map(|n| n as f64).sum();
            for (numbers, gradients) in &sums {
                assert_eq!(numbers[0], n);
                assert_eq!(numbers[1].to_bits(), sums[0].0[1].to_bits());
                let want: Vec<f32> = (0..7).map(|i| i as f32 * n as f32).collect();
                assert_eq!(gradients, &want, "{n_ranks} ranks");
            }
        }
    }

    #[test]
    fn gradients_are_added_as_pairs_and_pairs_of_pairs() {
        // Thirds round in every sum, so that another order would show.
        let of = |rank: usize, i: usize| (1.0 + (rank * 13 + i * 7) as f32) / 3.0;
        for n_ranks in [2, 3, 4, 5, 7] {
            for n in [2, 23] {
                let sums = on_ranks(n_ranks, move |ranks| {
                    let mut numbers: Vec<f32> = (0..n).map(|i| of(ranks.rank(), i)).collect();
                    ranks.all_reduce_gradients(&mut numbers, &mut Vec::new()).unwrap();
                    numbers
                });
                let want: Vec<f32> = (0..n)
                    .map(|i| {
                        let mut sums: Vec<f32> = (0..n_ranks).map(|rank| of(rank, i)).collect();
                        while sums.len() > 1 {
                            sums = sums
                                .chunks(2)
                                .map(|pair| pair.iter().copied().reduce(|a, b| a + b).unwrap())
                                .collect();
                        }
                        sums[0]
                    })
                    .collect();
                assert!(sums.iter().all(|sums| *sums == want), "{n_ranks} ranks, {n} numbers");
            }
        }
    }

    #[test]
    fn ranks_exchange_bytes_of_any_number() {
        for n_ranks in [1, 2, 3, 4] {
            let received = on_ranks(n_ranks, |ranks| {
                let own = ranks.rank();
                // Large enough to fill the buffers of a connection on both sides.
                let message = |from: usize, to: usize| vec![(4 * from + to) as u8; (from + 2 * to) << 20];
                let received =
                    ranks.all_to_all(|to| message(own, to), |from| message(from, own).len()).unwrap();
                assert!(received.iter().all(|(from, bytes)| bytes == &message(*from, own)));
                received.len()
            });
            assert_eq!(received, vec![n_ranks - 1; n_ranks]);
        }
    }

    #[test]
    fn what_the_ranks_say_arrives_in_their_order() {
        let said = on_ranks(3, |ranks| ranks.all_gather(&vec![ranks.rank() as u8; ranks.rank()]).unwrap());
        assert!(said.iter().all(|said| said == &[vec![], vec![1], vec![2, 2]]));
    }

    #[test]
    fn the_rank_that_differs_or_failed_is_named() {
        let differs = on_ranks(3, |ranks| ranks.check_equal("the recipe", &[u8::from(ranks.rank() == 2)]));
        assert!(differs.iter().all(|said| matches!(said, Err(TrainError::RanksDiffer { rank: 2, .. }))));
        let failed = on_ranks(3, |ranks| {
            let own = if ranks.rank() == 1 { Err(TrainError::Stopped) } else { Ok(()) };
            ranks.all_succeed(own)
        });
        assert!(matches!(failed[1], Err(TrainError::Stopped)));
        assert!(matches!(failed[0], Err(TrainError::OtherRank { rank: 1 })));
    }

    #[test]
    fn a_rank_that_is_gone_is_named() {
        let meshes = tcp::mesh_within_process(2);
        let mut meshes = meshes.into_iter();
        let ranks = Arc::new(Ranks::new(0, 2, Link::Tcp(meshes.next().unwrap())));
        drop(meshes);
        assert!(ranks.all_reduce_sum(&mut [1.0]).is_err());
        assert!(matches!(ranks.take_failure(), Some(TrainError::LostRank { rank: 1, .. })));
    }
}
