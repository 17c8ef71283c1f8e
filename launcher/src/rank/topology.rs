//! Rank and world size from the launcher's environment. They are known before MPI is initialised,
//! so that an early error (an invalid option) is reported once and not by every rank.

use std::env;

/// Position of a process in its job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Rank in the job, `0..world_size`.
    pub rank: usize,
    /// Number of processes of the job.
    pub world_size: usize,
    /// Rank on this node, `0..local_size`.
    pub local_rank: usize,
    /// Number of processes on this node.
    pub local_size: usize,
}

/// Environment variables with rank, world size, local rank and local size (empty where there is
/// none), as set by Open MPI's mpirun, Hydra (MPICH, Intel MPI) and srun. srun comes last: both
/// mpiruns start their daemons with it, and its variables then describe those.
const LAUNCHERS: [[&str; 4]; 3] = [
    [
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ],
    ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"],
    ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""],
];

impl Topology {
    /// The topology that the launcher has set; a single process if there is no launcher.
    pub fn from_env() -> Self {
        Self::from_vars(|name| env::var(name).ok())
    }

    fn from_vars(var: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| var(name)?.parse::<usize>().ok();
        for [rank, world_size, local_rank, local_size] in LAUNCHERS {
            if let (Some(rank), Some(world_size)) = (number(rank), number(world_size)) {
                // Under srun, its PMI plugins set the first two variables of Hydra only.
                let local_rank =
                    number(local_rank).or_else(|| number("SLURM_LOCALID")).unwrap_or(rank);
                let from_slurm =
                    || tasks_of_node(&var("SLURM_STEP_TASKS_PER_NODE")?, number("SLURM_NODEID")?);
                let local_size = number(local_size).or_else(from_slurm).unwrap_or(world_size);
                return Self { rank, world_size, local_rank, local_size };
            }
        }
        Self { rank: 0, world_size: 1, local_rank: 0, local_size: 1 }
    }
}

/// Number of tasks of node `node` from SLURM's compressed list, such as `8(x3),4`.
fn tasks_of_node(list: &str, node: usize) -> Option<usize> {
    let mut end = 0;
    for part in list.split(',') {
        let (tasks, nodes) = match part.split_once("(x") {
            Some((tasks, nodes)) => (tasks, nodes.strip_suffix(')')?.parse().ok()?),
            None => (part, 1),
        };
        end += nodes;
        if node < end {
            return tasks.parse().ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topology(vars: &[(&str, &str)]) -> Topology {
        Topology::from_vars(|name| vars.iter().find(|v| v.0 == name).map(|v| v.1.to_owned()))
    }

    #[test]
    fn reads_the_environment_of_each_launcher() {
        let open_mpi = [
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_SIZE", "8"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            // Set by SLURM for the batch script that runs mpirun: must not take precedence.
            ("SLURM_PROCID", "0"),
        ];
        assert_eq!(
            topology(&open_mpi),
            Topology { rank: 3, world_size: 8, local_rank: 1, local_size: 2 }
        );
        let srun = [
            ("SLURM_PROCID", "9"),
            ("SLURM_STEP_NUM_TASKS", "12"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_NODEID", "2"),
            ("SLURM_STEP_TASKS_PER_NODE", "4(x2),3,1"),
        ];
        assert_eq!(
            topology(&srun),
            Topology { rank: 9, world_size: 12, local_rank: 1, local_size: 3 }
        );
        let with_pmi = [&[("PMI_RANK", "9"), ("PMI_SIZE", "12")], &srun[..]].concat();
        assert_eq!(topology(&with_pmi), topology(&srun));
        let hydra = [
            ("PMI_RANK", "5"),
            ("PMI_SIZE", "8"),
            ("MPI_LOCALRANKID", "1"),
            ("MPI_LOCALNRANKS", "4"),
            // Of Hydra's daemon, one per node, which srun has started.
            ("SLURM_PROCID", "1"),
            ("SLURM_STEP_NUM_TASKS", "2"),
            ("SLURM_LOCALID", "0"),
            ("SLURM_NODEID", "1"),
            ("SLURM_STEP_TASKS_PER_NODE", "1(x2)"),
        ];
        assert_eq!(
            topology(&hydra),
            Topology { rank: 5, world_size: 8, local_rank: 1, local_size: 4 }
        );
        assert_eq!(topology(&srun[..2]).local_size, 12);
        assert_eq!(topology(&[("SLURM_PROCID", "0")]).world_size, 1, "the batch script itself");
        assert_eq!(tasks_of_node("4(x2),3,1", 4), None);
    }
}
