//! How ranks on GPUs add up: there, by NCCL, or else through the ranks' own link.

#[cfg(not(feature = "nccl"))]
use std::convert::Infallible;
#[cfg(feature = "nccl")]
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};
use candle_train_ops::BatchSum;
#[cfg(feature = "nccl")]
use candle_train_ops::cuda::{self, Nccl};

use crate::TrainError;
use crate::ranks::Ranks;

/// Sums over the GPUs of all ranks. There is none in a build without the feature `nccl`.
#[derive(Clone)]
pub(crate) struct GpuSum(#[cfg(feature = "nccl")] Arc<Nccl>, #[cfg(not(feature = "nccl"))] Infallible);

impl GpuSum {
    /// Brings the GPUs of all ranks together. `Err` inside: why they are not, the same in all
    /// ranks, which then add up through their link.
    pub fn meet(ranks: &Ranks, device: &Device) -> std::result::Result<Meeting<Self>, TrainError> {
        #[cfg(feature = "nccl")]
        {
            let text = |err: candle_core::Error| err.to_string();
            let own = Nccl::version().and_then(|_| cuda::uuid(device)).map_err(text);
            let n_ranks = ranks.n_ranks();
            agree(
                ranks,
                own,
                || Nccl::new_id().map_err(text),
                |id| Nccl::meet(device, &id, ranks.rank(), n_ranks).map(Arc::new).map_err(text),
            )
            .map(|met| {
                met.map(|nccl| {
                    // A GPU that waits for a rank that is gone would wait for ever, and the host for it.
                    let waits = Arc::downgrade(&nccl);
                    ranks.when_one_is_gone(move || {
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
            agree(ranks, own, || Ok([0; ID_LEN]), |_| Err(String::new()))
        }
    }

    /// Adds up as `add_up` does; what lies on a GPU is added up there.
    pub fn batch_sum(&self, add_up: impl Fn(&mut [f64]) -> Result<()> + Send + Sync + 'static) -> BatchSum {
        #[cfg(feature = "nccl")]
        return BatchSum::with_nccl(add_up, Arc::clone(&self.0));
        #[cfg(not(feature = "nccl"))]
        {
            drop(add_up);
            match self.0 {}
        }
    }

    /// Starts to replace gradients by their sums over the ranks, behind what is queued.
    pub fn start(&self, gradients: &[Tensor]) -> Result<()> {
        #[cfg(feature = "nccl")]
        return self.0.start(gradients);
        #[cfg(not(feature = "nccl"))]
        {
            let _ = gradients;
            match self.0 {}
        }
    }

    /// What is queued from now on comes after these sums.
    pub fn finish(&self) -> Result<()> {
        #[cfg(feature = "nccl")]
        return self.0.finish();
        #[cfg(not(feature = "nccl"))]
        match self.0 {}
    }
}

/// What came of a meeting, or why nothing did.
pub(crate) type Meeting<T> = std::result::Result<T, String>;

/// Bytes of what ranks have to know to meet.
const ID_LEN: usize = 128;

/// Lets all ranks meet, or none: each says which GPU it would bring, the first one makes the
/// meeting's number and tells it, and each goes there. Nobody goes before all can.
fn agree<T>(
    ranks: &Ranks,
    gpu: Meeting<[u8; 16]>,
    new_id: impl FnOnce() -> Meeting<[u8; ID_LEN]>,
    meet: impl FnOnce([u8; ID_LEN]) -> Meeting<T>,
) -> std::result::Result<Meeting<T>, TrainError> {
    let gpus = match hear_all(ranks, gpu.map(Vec::from))? {
        Ok(gpus) => gpus,
        Err(why) => return Ok(Err(why)),
    };
    if let Some(why) = shared(&gpus) {
        return Ok(Err(why));
    }
    let told = if ranks.is_first() { new_id().map(Vec::from) } else { Ok(Vec::new()) };
    let id = match hear_all(ranks, told)? {
        Ok(ids) => ids.first().and_then(|id| id.as_slice().try_into().ok()),
        Err(why) => return Ok(Err(why)),
    };
    let met = id.ok_or_else(|| "it was told no meeting".to_owned()).and_then(meet);
    let outcome = met.as_ref().map(|_| Vec::new()).map_err(Clone::clone);
    Ok(hear_all(ranks, outcome)?.and(met))
}

/// What every rank says, or why the first one that cannot does not.
fn hear_all(ranks: &Ranks, own: Meeting<Vec<u8>>) -> std::result::Result<Meeting<Vec<Vec<u8>>>, TrainError> {
    let (can, said) = match own {
        Ok(said) => (1, said),
        Err(why) => (0, why.into_bytes()),
    };
    let all = ranks.collect(&[&[can], &said[..]].concat())?;
    let of_rank = |(rank, said): (usize, Vec<u8>)| match said.split_first() {
        Some((1, said)) => Ok(said.to_vec()),
        Some((_, why)) => Err(format!("rank {rank}: {}", String::from_utf8_lossy(why))),
        None => Err(format!("rank {rank} said nothing")),
    };
    Ok(all.into_iter().enumerate().map(of_rank).collect())
}

/// Which two ranks were given one GPU, if any were: NCCL refuses that.
fn shared(gpus: &[Vec<u8>]) -> Option<String> {
    gpus.iter().enumerate().find_map(|(rank, gpu)| {
        let other = gpus[..rank].iter().position(|before| before == gpu)?;
        Some(format!("ranks {other} and {rank} share a GPU"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::tests::on_ranks;

    /// What three ranks come to: the meeting's number where they meet.
    fn outcomes(
        gpu: impl Fn(usize) -> Meeting<[u8; 16]> + Clone + Send + 'static,
        new_id: impl Fn() -> Meeting<[u8; ID_LEN]> + Clone + Send + 'static,
        meet: impl Fn(usize) -> Meeting<()> + Clone + Send + 'static,
    ) -> Vec<Meeting<[u8; ID_LEN]>> {
        on_ranks(3, move |ranks| {
            let rank = ranks.rank();
            let made = || {
                assert!(ranks.is_first(), "rank {rank} made a number of its own");
                new_id()
            };
            agree(ranks, gpu(rank), made, |id| meet(rank).map(|()| id)).unwrap()
        })
    }

    #[track_caller]
    fn check_refusal(outcomes: &[Meeting<[u8; ID_LEN]>], want: &str) {
        for outcome in outcomes {
            assert_eq!(outcome.as_ref().unwrap_err(), want);
        }
    }

    fn own_gpu(rank: usize) -> Meeting<[u8; 16]> {
        Ok([rank as u8; 16])
    }

    #[test]
    fn all_go_to_the_meeting_of_the_first() {
        let outcomes = outcomes(own_gpu, || Ok([7; ID_LEN]), |_| Ok(()));
        assert!(outcomes.iter().all(|outcome| outcome == &Ok([7; ID_LEN])));
    }

    #[test]
    fn none_goes_where_one_cannot() {
        let missing = |rank| if rank == 1 { Err("NCCL: no library".to_owned()) } else { own_gpu(rank) };
        let nobody = |_| -> Meeting<()> { panic!("a rank went without the others") };
        check_refusal(&outcomes(missing, || Ok([7; ID_LEN]), nobody), "rank 1: NCCL: no library");
        let no_network = || Err("NCCL: no network".to_owned());
        check_refusal(&outcomes(own_gpu, no_network, nobody), "rank 0: NCCL: no network");
        let one_gpu = |rank| own_gpu(rank / 2);
        check_refusal(&outcomes(one_gpu, || Ok([7; ID_LEN]), nobody), "ranks 0 and 1 share a GPU");
    }

    #[test]
    fn what_fails_for_one_is_given_up_by_all() {
        let fails = |rank| if rank == 2 { Err("NCCL: out of memory".to_owned()) } else { Ok(()) };
        check_refusal(&outcomes(own_gpu, || Ok([7; ID_LEN]), fails), "rank 2: NCCL: out of memory");
    }

    /// Only a program with NVIDIA's library, or what stands in for it, links at all.
    #[test]
    #[cfg(feature = "nccl")]
    fn a_missing_library_is_an_error_and_not_the_end() {
        match Nccl::version() {
            Ok(version) => {
                assert!(version.starts_with("2."), "{version}");
                assert_ne!(Nccl::new_id().unwrap(), Nccl::new_id().unwrap());
            }
            Err(err) => assert!(err.to_string().contains("not on this machine"), "{err}"),
        }
    }
}
