//! How this process was launched, from the environment variables that launchers set.

use crate::error::TrainError;

/// How this process was started.
#[derive(Debug, PartialEq)]
pub(crate) enum Launch {
    /// By hand.
    Alone,
    /// By an MPI launcher; MPI itself provides the rest.
    Mpi,
    /// By one that only sets rank and world size.
    Tcp(Rendezvous),
}

/// A rank, and the address at which all of them connect.
#[derive(Debug, PartialEq)]
pub(crate) struct Rendezvous {
    pub rank: usize,
    pub n_ranks: usize,
    /// Host of rank 0.
    pub host: String,
    /// Port that rank 0 listens on.
    pub port: u16,
}

/// Set in every process by Open MPI's `mpirun`, MPICH's Hydra and a PMI server of Slurm,
/// in this order.
const MPI_SIZES: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];

/// Pairs of rank and number of ranks, as torchrun and Slurm's `srun` name them.
const PAIRS: [(&str, &str); 2] = [("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")];

/// Number of the process on its machine: torchrun and its like, Open MPI's `mpirun`,
/// MPICH's Hydra, Slurm's `srun`.
const LOCAL_RANKS: [&str; 4] =
    ["LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"];

/// The number of this process on its machine, from 0; 0 where no launcher says it.
pub(crate) fn local_rank(variable: &dyn Fn(&str) -> Option<String>) -> usize {
    LOCAL_RANKS.iter().find_map(|name| variable(name)?.parse().ok()).unwrap_or(0)
}

impl Launch {
    /// Reads the variables.
    pub fn from_environment(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, TrainError> {
        if MPI_SIZES.iter().any(|name| variable(name).is_some()) {
            return Ok(Self::Mpi);
        }
        for (rank_name, size_name) in PAIRS {
            let (Some(rank), Some(n_ranks)) = (variable(rank_name), variable(size_name)) else {
                continue;
            };
            let bad = || TrainError::Launch {
                problem: format!("{rank_name}={rank} and {size_name}={n_ranks} name no rank"),
                remedy: "set ranks from 0 below the number of ranks, or neither variable",
            };
            let (number, n_ranks) = (rank.parse().map_err(|_| bad())?, n_ranks.parse().map_err(|_| bad())?);
            if number >= n_ranks {
                return Err(bad());
            }
            if n_ranks == 1 {
                return Ok(Self::Alone);
            }
            // `srun --mpi=pmix` or `--mpi=pmi2`: MPI can be asked, if this build has it.
            if cfg!(feature = "mpi") && variable("PMIX_RANK").is_some() {
                return Ok(Self::Mpi);
            }
            let (Some(host), Some(port)) = (variable("MASTER_ADDR"), variable("MASTER_PORT")) else {
                return Err(TrainError::Launch {
                    problem: format!(
                        "{rank_name} and {size_name} are set, but no address where the ranks connect"
                    ),
                    remedy: "set MASTER_ADDR to the host of rank 0 and MASTER_PORT to a free port there, or \
                             unset the rank to train in one process",
                });
            };
            let port: u16 = port.parse().map_err(|_| TrainError::Launch {
                problem: format!("MASTER_PORT={port} is no port"),
                remedy: "set MASTER_PORT to a free port below 65535",
            })?;
            // torchrun's own agent listens on that port; the next one is ours.
            let taken = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|text| text == "True");
            let port = port.saturating_add(u16::from(taken));
            return Ok(Self::Tcp(Rendezvous { rank: number, n_ranks, host, port }));
        }
        Ok(Self::Alone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(variables: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, v)| (*v).to_owned())
    }

    fn launch(variables: &[(&str, &str)]) -> Result<Launch, TrainError> {
        Launch::from_environment(&find(variables))
    }

    #[track_caller]
    fn check(variables: &[(&str, &str)], want: Launch) {
        assert_eq!(launch(variables).unwrap(), want, "{variables:?}");
    }

    fn rendezvous(rank: usize, n_ranks: usize, port: u16) -> Launch {
        Launch::Tcp(Rendezvous { rank, n_ranks, host: "head".to_owned(), port })
    }

    #[test]
    fn without_a_launcher_a_process_is_alone() {
        check(&[], Launch::Alone);
        check(&[("RANK", "0"), ("WORLD_SIZE", "1")], Launch::Alone);
        check(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1")], Launch::Alone);
    }

    #[test]
    fn mpirun_comes_first() {
        check(&[("OMPI_COMM_WORLD_SIZE", "2"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "1")], Launch::Mpi);
    }

    #[test]
    fn ranks_meet_where_the_launcher_says() {
        let meeting = [("MASTER_ADDR", "head"), ("MASTER_PORT", "29500")];
        let torchrun = [("RANK", "1"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")];
        check(&[&torchrun[..], &meeting].concat(), rendezvous(1, 4, 29500));
        let agent = [("TORCHELASTIC_USE_AGENT_STORE", "True")];
        check(&[&torchrun[..], &meeting, &agent].concat(), rendezvous(1, 4, 29501));
        let slurm = [("SLURM_PROCID", "3"), ("SLURM_NTASKS", "4")];
        check(&[&slurm[..], &meeting].concat(), rendezvous(3, 4, 29500));
    }

    #[test]
    fn every_launcher_numbers_the_processes_of_a_machine() {
        for (variables, want) in [
            (&[][..], 0),
            (&[("RANK", "5"), ("LOCAL_RANK", "1")], 1),
            (&[("OMPI_COMM_WORLD_LOCAL_RANK", "2"), ("SLURM_LOCALID", "0")], 2),
            (&[("MPI_LOCALRANKID", "3")], 3),
            (&[("SLURM_PROCID", "7"), ("SLURM_LOCALID", "3")], 3),
        ] {
            assert_eq!(local_rank(&find(variables)), want, "{variables:?}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for variables in [
            &[("RANK", "2"), ("WORLD_SIZE", "2")][..],
            &[("RANK", "one"), ("WORLD_SIZE", "2")],
            &[("RANK", "1"), ("WORLD_SIZE", "2")],
            &[("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "head"), ("MASTER_PORT", "x")],
        ] {
            assert!(matches!(launch(variables), Err(TrainError::Launch { .. })), "{variables:?}");
        }
    }
}
