//! The words of the mpirun and srun command lines before the program.

use super::layout::Layout;
use super::machine::Machine;
use super::{JobSpec, THREADS};
use crate::rank::{restart, status};

/// Prefixes of environment variables that mpirun exports to the ranks on other nodes.
const EXPORTED: [&str; 13] = [
    "DW_",
    "NCCL_",
    "OMP_",
    "CUBLAS_",
    "CUDA_",
    "CUDNN_",
    "NVIDIA_",
    "PYTORCH_",
    "TORCH_",
    "LD_LIBRARY_PATH",
    "PATH",
    "RUST_",
    "XDG_CACHE_HOME",
];

pub(super) fn srun_words(layout: &Layout, spec: &JobSpec, machine: &Machine) -> Vec<String> {
    let mut words: Vec<String> =
        ["srun", "--mpi=pmix", "--kill-on-bad-exit=1", "--unbuffered"].map(String::from).into();
    // In a step (`srun --pty bash`) the new step would wait forever for the cores that the outer
    // one holds. Elsewhere without it: the processes of a lost step must be gone before a restarted
    // job writes to the same work directory.
    if machine.slurm.is_some_and(|s| s.in_step) {
        words.push("--overlap".to_owned());
    }
    // Not with `raw`: srun also labels the parts of a long line, and mpirun each part that it
    // reads.
    if !spec.raw {
        words.push("--label".to_owned());
    }
    words.push(format!("--ntasks={}", layout.ranks));
    words.push(format!("--nodes={}", layout.nodes));
    words.push("--export=ALL".to_owned());
    // Standard input goes to task 0; by default srun copies it to all tasks.
    words.push("--input=0".to_owned());
    words.extend(layout.cpu_bind.map(|how| format!("--cpu-bind={how}")));
    let fits = |tasks: Option<usize>| tasks.is_some_and(|tasks| layout.ranks <= tasks);
    let cores = machine.slurm.filter(|s| fits(s.tasks)).and_then(|s| s.cores_per_task);
    if layout.oversubscribed {
        // For tests with more ranks than cores.
        words.push("--overcommit".to_owned());
    } else if let Some(cores) = cores {
        // From SLURM 22.05 on srun does not inherit it from sbatch, and would bind each rank to
        // one core.
        words.push(format!("--cpus-per-task={cores}"));
    }
    words
}

pub(super) fn mpirun_words(layout: &Layout, spec: &JobSpec, machine: &Machine) -> Vec<String> {
    let mut words: Vec<String> =
        ["mpirun", "-n", &layout.ranks.to_string()].map(String::from).into();
    if !spec.raw {
        words.push("--tag-output".to_owned());
    }
    let mut push = |more: &[&str]| words.extend(more.iter().copied().map(String::from));
    if let Some(hosts) = &spec.hosts {
        push(&["--host", hosts]);
    }
    // mpirun's slots are the physical cores or the allocation's tasks, by default a limit.
    push(&["--oversubscribe"]);
    if let Some(ranks) = layout.even {
        push(&["--map-by", &format!("ppr:{ranks}:node")]);
    } else if layout.bind == "numa" {
        // The default for more than two ranks; two would be on the same NUMA node.
        push(&["--map-by", "numa"]);
    }
    if layout.polls {
        push(&["--mca", "mpi_yield_when_idle", "0"]);
    }
    push(&["--bind-to", layout.bind]);
    let is_exported = |name: &&String| EXPORTED.iter().any(|prefix| name.starts_with(prefix));
    let mut exported: Vec<&str> =
        machine.variables.iter().filter(is_exported).map(String::as_str).collect();
    exported.extend([status::VARIABLE, restart::VARIABLE]);
    exported.extend(spec.threads.map(|_| THREADS));
    exported.sort_unstable();
    exported.dedup();
    for name in exported {
        push(&["-x", name]);
    }
    words
}
