//! Rank and world size from the launcher's environment: known before MPI is opened, so that an
//! early mistake (a wrong flag) can be told once and not by every rank.

use std::env;

/// A process's place in its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// `0..world`.
    pub rank: usize,
    /// Number of processes.
    pub world: usize,
    /// `0..local_world` on this node.
    pub local_rank: usize,
    /// Processes on this node.
    pub local_world: usize,
}

/// Variables of rank, world, local rank, local world: Open MPI, MPICH's Hydra, srun.
const LAUNCHERS: [[&str; 4]; 3] = [
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"],
    ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"],
    ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"],
];

impl Topology {
    /// What the launcher says; one process where there is none.
    pub fn from_env() -> Self {
        Self::from_vars(|name| env::var(name).ok()?.parse().ok())
    }

    fn from_vars(var: impl Fn(&str) -> Option<usize>) -> Self {
        for [rank, world, local_rank, local_world] in LAUNCHERS {
            if let (Some(rank), Some(world)) = (var(rank), var(world)) {
                let local_rank = var(local_rank).unwrap_or(rank);
                return Self { rank, world, local_rank, local_world: var(local_world).unwrap_or(world) };
            }
        }
        Self { rank: 0, world: 1, local_rank: 0, local_world: 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_each_launcher() {
        let open_mpi = |n: &str| match n {
            "OMPI_COMM_WORLD_RANK" => Some(3),
            "OMPI_COMM_WORLD_SIZE" => Some(8),
            "OMPI_COMM_WORLD_LOCAL_RANK" => Some(1),
            "OMPI_COMM_WORLD_LOCAL_SIZE" => Some(2),
            _ => None,
        };
        assert_eq!(Topology::from_vars(open_mpi), Topology { rank: 3, world: 8, local_rank: 1, local_world: 2 });
        let srun = |n: &str| match n {
            "SLURM_PROCID" => Some(1),
            "SLURM_STEP_NUM_TASKS" => Some(4),
            _ => None,
        };
        assert_eq!(Topology::from_vars(srun), Topology { rank: 1, world: 4, local_rank: 1, local_world: 4 });
        assert_eq!(Topology::from_vars(|_| None).world, 1);
    }
}
