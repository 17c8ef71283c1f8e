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

/// Variables of rank, world, local rank, local world: Open MPI's mpirun, MPICH's Hydra, srun.
const LAUNCHERS: [[&str; 4]; 3] = [
    [
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ],
    ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ""],
    ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"],
];

impl Topology {
    /// What the launcher says; one process where there is none.
    pub fn from_env() -> Self {
        Self::from_vars(|name| env::var(name).ok())
    }

    fn from_vars(var: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| var(name)?.parse::<usize>().ok();
        for [rank, world, local_rank, local_world] in LAUNCHERS {
            if let (Some(rank), Some(world)) = (number(rank), number(world)) {
                let local_rank = number(local_rank).unwrap_or(rank);
                let srun =
                    || tasks_of_node(&var("SLURM_STEP_TASKS_PER_NODE")?, number("SLURM_NODEID")?);
                let local_world = number(local_world).or_else(srun).unwrap_or(world);
                return Self { rank, world, local_rank, local_world };
            }
        }
        Self { rank: 0, world: 1, local_rank: 0, local_world: 1 }
    }
}

/// Tasks of node `node` in SLURM's compressed list, as `8(x3),4`.
fn tasks_of_node(list: &str, node: usize) -> Option<usize> {
    let mut first = 0;
    for part in list.split(',') {
        let (tasks, nodes) = match part.split_once("(x") {
            Some((tasks, nodes)) => (tasks, nodes.strip_suffix(')')?.parse().ok()?),
            None => (part, 1),
        };
        first += nodes;
        if node < first {
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
    fn reads_each_launcher() {
        let open_mpi = [
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_SIZE", "8"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            // mpirun within a batch script: the script's own place must not count.
            ("SLURM_PROCID", "0"),
        ];
        assert_eq!(
            topology(&open_mpi),
            Topology { rank: 3, world: 8, local_rank: 1, local_world: 2 }
        );
        let srun = [
            ("SLURM_PROCID", "9"),
            ("SLURM_STEP_NUM_TASKS", "12"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_NODEID", "2"),
            ("SLURM_STEP_TASKS_PER_NODE", "4(x2),3,1"),
        ];
        assert_eq!(topology(&srun), Topology { rank: 9, world: 12, local_rank: 1, local_world: 3 });
        assert_eq!(topology(&srun[..2]).local_world, 12);
        assert_eq!(topology(&[("SLURM_PROCID", "0")]).world, 1, "a batch script itself");
        assert_eq!(tasks_of_node("4(x2),3,1", 4), None);
    }
}
