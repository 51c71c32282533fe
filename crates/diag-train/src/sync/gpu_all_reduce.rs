//! All-reduce on the GPUs of the ranks by NCCL, where every rank can use it.

#[cfg(not(feature = "nccl"))]
use std::convert::Infallible;
#[cfg(feature = "nccl")]
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use candle_train_ops::BatchSum;
#[cfg(feature = "nccl")]
use candle_train_ops::cuda::{self, Nccl};

use super::ranks::Ranks;
use crate::error::TrainError;

/// All-reduce over the GPUs of all ranks. Cannot be built without the feature `nccl`.
#[derive(Clone)]
pub(crate) struct GpuAllReduce(#[cfg(feature = "nccl")] Arc<Nccl>, #[cfg(not(feature = "nccl"))] Infallible);

impl GpuAllReduce {
    /// Connects the GPUs of all ranks. The inner `Err` says why that is not possible, in the same
    /// words on all ranks; they then all-reduce through their own link.
    pub fn connect(ranks: &Ranks, device: &Device) -> std::result::Result<Available<Self>, TrainError> {
        #[cfg(feature = "nccl")]
        {
            let text = |err: candle_core::Error| err.to_string();
            let own = Nccl::version().and_then(|_| cuda::uuid(device)).map_err(text);
            let n_ranks = ranks.n_ranks();
            connect_all(
                ranks,
                own,
                || Nccl::new_id().map_err(text),
                |id| Nccl::meet(device, &id, ranks.rank(), n_ranks).map(Arc::new).map_err(text),
            )
            .map(|met| {
                met.map(|nccl| {
                    // A kernel that waits for a lost rank would never end, nor would the host.
                    let waits = Arc::downgrade(&nccl);
                    ranks.on_lost_rank(move || {
                        if let Some(nccl) = waits.upgrade() {
                            nccl.abort();
                        }
                    });
                    Self(nccl)
                })
            })
        }
        #[cfg(not(feature = "nccl"))]
        {
            debug_assert!(!device.is_cpu());
            let own = Err("this program was built without the feature `nccl`".to_owned());
            connect_all(ranks, own, || Ok([0; ID_LEN]), |_| Err(String::new()))
        }
    }

    /// Sums over the ranks: by `add_up` for numbers on the host, by NCCL for those on a GPU.
    pub fn batch_sum(&self, add_up: impl Fn(&mut [f64]) -> Result<()> + Send + Sync + 'static) -> BatchSum {
        #[cfg(feature = "nccl")]
        return BatchSum::with_nccl(add_up, Arc::clone(&self.0));
        #[cfg(not(feature = "nccl"))]
        {
            drop(add_up);
            match self.0 {}
        }
    }

    /// Queues the all-reduce of gradients, in place, behind the kernels queued before.
    pub fn start(&self, gradients: &[Tensor]) -> Result<()> {
        #[cfg(feature = "nccl")]
        return self.0.start(gradients);
        #[cfg(not(feature = "nccl"))]
        {
            let _ = gradients;
            match self.0 {}
        }
    }

    /// Kernels queued from now on run after these sums.
    pub fn finish(&self) -> Result<()> {
        #[cfg(feature = "nccl")]
        return self.0.finish();
        #[cfg(not(feature = "nccl"))]
        match self.0 {}
    }
}

/// A value, or why it is not available.
pub(crate) type Available<T> = std::result::Result<T, String>;

/// Bytes of the identifier by which NCCL connects ranks.
const ID_LEN: usize = 128;

/// Connects all ranks or none: the ranks exchange the identifiers of their GPUs, rank 0 creates
/// NCCL's identifier and broadcasts it, and then each connects. None starts before all can.
fn connect_all<T>(
    ranks: &Ranks,
    gpu: Available<[u8; 16]>,
    new_id: impl FnOnce() -> Available<[u8; ID_LEN]>,
    meet: impl FnOnce([u8; ID_LEN]) -> Available<T>,
) -> std::result::Result<Available<T>, TrainError> {
    let gpus = match gather_all(ranks, gpu.map(Vec::from))? {
        Ok(gpus) => gpus,
        Err(why) => return Ok(Err(why)),
    };
    if let Some(why) = shared(&gpus) {
        return Ok(Err(why));
    }
    let created = if ranks.is_first() { new_id().map(Vec::from) } else { Ok(Vec::new()) };
    let id = match gather_all(ranks, created)? {
        Ok(ids) => ids.first().and_then(|id| id.as_slice().try_into().ok()),
        Err(why) => return Ok(Err(why)),
    };
    let met = id.ok_or_else(|| "rank 0 sent no identifier".to_owned()).and_then(meet);
    let outcome = met.as_ref().map(|_| Vec::new()).map_err(Clone::clone);
    Ok(gather_all(ranks, outcome)?.and(met))
}

/// The bytes of every rank, or the reason of the first rank that has none.
fn gather_all(
    ranks: &Ranks,
    own: Available<Vec<u8>>,
) -> std::result::Result<Available<Vec<Vec<u8>>>, TrainError> {
    let (available, bytes) = match own {
        Ok(bytes) => (1, bytes),
        Err(why) => (0, why.into_bytes()),
    };
    let all = ranks.all_gather(&[&[available], &bytes[..]].concat())?;
    let of_rank = |(rank, bytes): (usize, Vec<u8>)| match bytes.split_first() {
        Some((1, bytes)) => Ok(bytes.to_vec()),
        Some((_, why)) => Err(format!("rank {rank}: {}", String::from_utf8_lossy(why))),
        None => Err(format!("rank {rank} sent nothing")),
    };
    Ok(all.into_iter().enumerate().map(of_rank).collect())
}

/// Names two ranks that use the same GPU, if there are any: NCCL refuses that.
fn shared(gpus: &[Vec<u8>]) -> Option<String> {
    gpus.iter().enumerate().find_map(|(rank, gpu)| {
        let other = gpus[..rank].iter().position(|before| before == gpu)?;
        Some(format!("ranks {other} and {rank} share a GPU"))
    })
}

#[cfg(test)]
mod tests {
    use super::super::ranks::tests::on_ranks;
    use super::*;

    /// The outcomes of three ranks: NCCL's identifier where they connect.
    fn outcomes(
        gpu: impl Fn(usize) -> Available<[u8; 16]> + Clone + Send + 'static,
        new_id: impl Fn() -> Available<[u8; ID_LEN]> + Clone + Send + 'static,
        meet: impl Fn(usize) -> Available<()> + Clone + Send + 'static,
    ) -> Vec<Available<[u8; ID_LEN]>> {
        on_ranks(3, move |ranks| {
            let rank = ranks.rank();
            let made = || {
                assert!(ranks.is_first(), "rank {rank} created an identifier of its own");
                new_id()
            };
            connect_all(ranks, gpu(rank), made, |id| meet(rank).map(|()| id)).unwrap()
        })
    }

    #[track_caller]
    fn check_refusal(outcomes: &[Available<[u8; ID_LEN]>], want: &str) {
        for outcome in outcomes {
            assert_eq!(outcome.as_ref().unwrap_err(), want);
        }
    }

    fn own_gpu(rank: usize) -> Available<[u8; 16]> {
        Ok([rank as u8; 16])
    }

    #[test]
    fn all_connect_by_the_identifier_of_rank_0() {
        let outcomes = outcomes(own_gpu, || Ok([7; ID_LEN]), |_| Ok(()));
        assert!(outcomes.iter().all(|outcome| outcome == &Ok([7; ID_LEN])));
    }

    #[test]
    fn none_connects_where_one_cannot() {
        let missing = |rank| if rank == 1 { Err("NCCL: no library".to_owned()) } else { own_gpu(rank) };
        let never = |_| -> Available<()> { panic!("a rank connected without the others") };
        check_refusal(&outcomes(missing, || Ok([7; ID_LEN]), never), "rank 1: NCCL: no library");
        let no_network = || Err("NCCL: no network".to_owned());
        check_refusal(&outcomes(own_gpu, no_network, never), "rank 0: NCCL: no network");
        let one_gpu = |rank| own_gpu(rank / 2);
        check_refusal(&outcomes(one_gpu, || Ok([7; ID_LEN]), never), "ranks 0 and 1 share a GPU");
    }

    #[test]
    fn a_failure_on_one_rank_is_reported_on_all() {
        let fails = |rank| if rank == 2 { Err("NCCL: out of memory".to_owned()) } else { Ok(()) };
        check_refusal(&outcomes(own_gpu, || Ok([7; ID_LEN]), fails), "rank 2: NCCL: out of memory");
    }

    /// Only a program with NVIDIA's library, or what stands in for it, links at all.
    #[test]
    #[cfg(feature = "nccl")]
    fn a_missing_library_is_an_error() {
        match Nccl::version() {
            Ok(version) => {
                assert!(version.starts_with("2."), "{version}");
                assert_ne!(Nccl::new_id().unwrap(), Nccl::new_id().unwrap());
            }
            Err(err) => assert!(err.to_string().contains("not on this machine"), "{err}"),
        }
    }
}
