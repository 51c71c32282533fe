//! The processes that train one network together: which of them this one is, and what
//! passes between them.
//!
//! Everything is built of one operation, a swap of bytes with one other rank, which
//! MPI and plain TCP both have. Sums are taken in the order of the ranks and every
//! rank gets the same bits, so that their networks stay equal and a run can be
//! repeated bit for bit. Numbers travel as they lie in memory: the ranks of a run are of one
//! kind of processor, or they would not have equal networks either.

mod launch;
#[cfg(feature = "mpi")]
mod mpi;
mod tcp;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::TrainError;
use crate::loader::Part;
use launch::Launch;

/// All ranks, as seen from one of them. Rank 0 alone writes the run folder.
///
/// Two threads may talk at once, each on a [`Channel`] of its own. Every rank must make
/// the same calls on a channel in the same order.
pub struct Ranks {
    rank: usize,
    n_ranks: usize,
    local_rank: usize,
    link: Link,
    waited_nanos: AtomicU64,
    failure: Arc<Mutex<Option<TrainError>>>,
}

/// How the ranks reach each other.
enum Link {
    Alone,
    Tcp(tcp::Mesh),
    #[cfg(feature = "mpi")]
    Mpi(mpi::World),
}

/// Who talks: the two never wait for each other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Channel {
    /// The thread that runs the network.
    Network,
    /// The thread that adds up gradients.
    Gradients,
}

impl Ranks {
    /// One process on its own.
    pub fn alone() -> Self {
        Self::new(0, 1, Link::Alone)
    }

    /// The ranks that a launcher started: `mpirun` or `srun --mpi` (feature `mpi`), or
    /// whatever sets `RANK` and `WORLD_SIZE`, or Slurm's variables, with `MASTER_ADDR`
    /// and `MASTER_PORT`. Without a launcher: one process on its own.
    ///
    /// # Errors
    /// A launcher that this build cannot answer, variables that contradict each other, a
    /// rank that does not appear.
    pub fn join() -> Result<Self, TrainError> {
        let variable = |name: &str| std::env::var(name).ok();
        let ranks = match Launch::from_environment(&variable)? {
            Launch::Alone => return Ok(Self::alone()),
            Launch::Tcp(place) => {
                let (rank, n_ranks) = (place.rank, place.n_ranks);
                Self::new(rank, n_ranks, Link::Tcp(tcp::Mesh::connect(&place)?))
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
        let waited_nanos = AtomicU64::new(0);
        Self { rank, n_ranks, local_rank: 0, link, waited_nanos, failure: Arc::default() }
    }

    /// This process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many there are.
    pub fn n_ranks(&self) -> usize {
        self.n_ranks
    }

    /// Which process of its machine this is, from 0, as far as the launcher says.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// Whether this rank writes the run folder and tells how it goes.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// Ends all ranks at once, because this one cannot go on. Returns where the link has
    /// no such means; the others then see its connections close.
    pub fn abort(&self) {
        #[cfg(feature = "mpi")]
        if let Link::Mpi(world) = &self.link {
            world.abort();
        }
    }

    /// Does something, on a thread of its own, when a rank is gone whose connections are TCP. Under MPI
    /// the launcher ends all ranks then.
    #[cfg(feature = "nccl")]
    pub(crate) fn when_one_is_gone(&self, act: impl Fn() + Send + Sync + 'static) {
        let failure = Arc::clone(&self.failure);
        let act = move |rank, source| {
            note(&failure, TrainError::LostRank { rank, source });
            act();
        };
        if let Link::Tcp(mesh) = &self.link {
            mesh.when_one_is_gone(&(Arc::new(act) as _));
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

    /// The part of everything that falls to this rank.
    pub(crate) fn part(&self) -> Part {
        Part { rank: self.rank, n_ranks: self.n_ranks }
    }

    /// Time that the network's thread has waited for other ranks since the last call.
    pub(crate) fn take_waited(&self) -> Duration {
        Duration::from_nanos(self.waited_nanos.swap(0, Ordering::Relaxed))
    }

    /// Counts time that the network's thread waited.
    pub(crate) fn add_waited(&self, waited: Duration) {
        let nanos = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.waited_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Why the link broke, if it did: an error that passed through candle is text only.
    pub(crate) fn take_failure(&self) -> Option<TrainError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Replaces every number by its sum over the ranks, on the network's channel.
    pub(crate) fn add_up(&self, numbers: &mut [f64]) -> candle_core::Result<()> {
        if self.n_ranks == 1 {
            return Ok(());
        }
        let started = Instant::now();
        let all = self.gather(Channel::Network, numbers)?;
        numbers.fill(0.0);
        for part in all.chunks_exact(numbers.len().max(1)) {
            for (sum, number) in numbers.iter_mut().zip(part) {
                *sum += number;
            }
        }
        self.add_waited(started.elapsed());
        Ok(())
    }

    /// Replaces every number by its sum over the ranks, on the gradients' channel: each
    /// rank adds up one part and hands it to the others, so that every number crosses
    /// the wire twice, whatever the number of ranks. `received` is room for what comes in.
    pub(crate) fn add_up_gradients(
        &self,
        numbers: &mut [f32],
        received: &mut Vec<f32>,
    ) -> candle_core::Result<()> {
        let n = numbers.len();
        let part = |rank: usize| n * rank / self.n_ranks..n * (rank + 1) / self.n_ranks;
        let own = part(self.rank);
        let own_len = own.len();
        received.resize(own_len * self.n_ranks, 0.0);
        let of_rank = |rank: usize| rank * own_len..(rank + 1) * own_len;
        received[of_rank(self.rank)].copy_from_slice(&numbers[own.clone()]);
        for peer in self.peers() {
            let sent = bytemuck::cast_slice(&numbers[part(peer)]);
            let received = bytemuck::cast_slice_mut(&mut received[of_rank(peer)]);
            self.swap(peer, Channel::Gradients, sent, received)?;
        }
        // As pairs, then pairs of pairs: one process that takes its batch in as many parts
        // adds them up in the same way.
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
            let received = bytemuck::cast_slice_mut(&mut numbers[part(peer)]);
            self.swap(peer, Channel::Gradients, bytemuck::cast_slice(sum), received)?;
        }
        Ok(())
    }

    /// Gives every other rank bytes and gets some of it: `give` makes those for a rank,
    /// `expect` is how many come from it. Returns them with the rank that they are from.
    pub(crate) fn exchange(
        &self,
        give: impl Fn(usize) -> Vec<u8>,
        expect: impl Fn(usize) -> usize,
    ) -> Result<Vec<(usize, Vec<u8>)>, TrainError> {
        let started = Instant::now();
        let mut received = Vec::new();
        for peer in self.peers() {
            let mut bytes = vec![0; expect(peer)];
            self.swap(peer, Channel::Network, &give(peer), &mut bytes)?;
            received.push((peer, bytes));
        }
        self.add_waited(started.elapsed());
        Ok(received)
    }

    /// Whether any rank says so.
    pub(crate) fn any(&self, own: bool) -> Result<bool, TrainError> {
        let mut count = [f64::from(u8::from(own))];
        self.add_up(&mut count)?;
        Ok(count[0] > 0.0)
    }

    /// Bytes of every rank, in the order of the ranks; they may differ in number.
    pub(crate) fn collect(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, TrainError> {
        let started = Instant::now();
        let lengths = self.gather(Channel::Network, &[own.len() as u64])?;
        let lengths: Vec<usize> = lengths.into_iter().map(|length| length as usize).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut padded = own.to_vec();
        padded.resize(longest, 0);
        let all = self.gather(Channel::Network, &padded)?;
        self.add_waited(started.elapsed());
        let part = |(rank, length): (usize, usize)| all[rank * longest..][..length].to_vec();
        Ok(lengths.into_iter().enumerate().map(part).collect())
    }

    /// Refuses to go on where a rank sees something else than the first one.
    pub(crate) fn agree(&self, what: &'static str, own: &[u8]) -> Result<(), TrainError> {
        let all = self.collect(own)?;
        match all.iter().position(|of_rank| of_rank != &all[0]) {
            Some(rank) => Err(TrainError::RanksDiffer { rank, what }),
            None => Ok(()),
        }
    }

    /// Ends every rank where one of them failed: that one with its own error, the others
    /// with its number.
    pub(crate) fn all_succeed<T>(&self, own: Result<T, TrainError>) -> Result<T, TrainError> {
        let failed = self.collect(&[u8::from(own.is_err())])?.iter().position(|flag| flag == &[1]);
        match failed {
            Some(rank) if rank != self.rank => Err(TrainError::OtherRank { rank }),
            _ => own,
        }
    }

    /// The equally long parts of all ranks, joined in their order.
    fn gather<T: bytemuck::Pod>(&self, channel: Channel, own: &[T]) -> candle_core::Result<Vec<T>> {
        let length = own.len();
        let mut all = own.repeat(self.n_ranks);
        for peer in self.peers() {
            let received = bytemuck::cast_slice_mut(&mut all[peer * length..][..length]);
            self.swap(peer, channel, bytemuck::cast_slice(own), received)?;
        }
        Ok(all)
    }

    /// The other ranks, so ordered that in every round both of a pair mean each other.
    fn peers(&self) -> impl Iterator<Item = usize> {
        let (rank, n_ranks) = (self.rank, self.n_ranks);
        (0..n_ranks).map(move |round| (round + n_ranks - rank) % n_ranks).filter(move |&peer| peer != rank)
    }

    fn swap(
        &self,
        peer: usize,
        channel: Channel,
        sent: &[u8],
        received: &mut [u8],
    ) -> candle_core::Result<()> {
        let swapped = match &self.link {
            Link::Alone => Ok(()),
            Link::Tcp(mesh) => mesh.swap(peer, channel, sent, received),
            #[cfg(feature = "mpi")]
            Link::Mpi(world) => {
                world.swap(peer, channel, sent, received);
                Ok(())
            }
        };
        swapped.map_err(|source| {
            let text = format!("lost rank {peer}: {source}");
            note(&self.failure, TrainError::LostRank { rank: peer, source });
            candle_core::Error::msg(text)
        })
    }
}

/// Keeps the first failure: others follow from it.
fn note(failure: &Mutex<Option<TrainError>>, err: TrainError) {
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
                ranks.add_up(&mut numbers).unwrap();
                let mut gradients: Vec<f32> = (0..7).map(|i| i as f32 * own as f32).collect();
                ranks.add_up_gradients(&mut gradients, &mut Vec::new()).unwrap();
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
                    ranks.add_up_gradients(&mut numbers, &mut Vec::new()).unwrap();
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
                    ranks.exchange(|to| message(own, to), |from| message(from, own).len()).unwrap();
                assert!(received.iter().all(|(from, bytes)| bytes == &message(*from, own)));
                received.len()
            });
            assert_eq!(received, vec![n_ranks - 1; n_ranks]);
        }
    }

    #[test]
    fn what_the_ranks_say_arrives_in_their_order() {
        let said = on_ranks(3, |ranks| ranks.collect(&vec![ranks.rank() as u8; ranks.rank()]).unwrap());
        assert!(said.iter().all(|said| said == &[vec![], vec![1], vec![2, 2]]));
    }

    #[test]
    fn the_rank_that_differs_or_failed_is_named() {
        let differs = on_ranks(3, |ranks| ranks.agree("the recipe", &[u8::from(ranks.rank() == 2)]));
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
        assert!(ranks.add_up(&mut [1.0]).is_err());
        assert!(matches!(ranks.take_failure(), Some(TrainError::LostRank { rank: 1, .. })));
    }
}
