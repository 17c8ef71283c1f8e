//! Properties of this machine, and of the SLURM allocation, that the launch command depends on.

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;

/// A SLURM allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocation {
    /// Number of tasks, if it was requested.
    pub tasks: Option<usize>,
    /// Number of nodes.
    pub nodes: usize,
    /// Cores per task, if they were requested.
    pub cores_per_task: Option<usize>,
    /// Whether srun supports PMIx.
    pub pmix: bool,
    /// Whether this process runs in a step that srun has started, which may hold all cores.
    pub in_step: bool,
}

/// This machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Cores that this process may use. Each hardware thread counts, as everywhere in `dw`.
    pub cores: usize,
    /// Cores of a node that runs ranks: the allocation's if there is one, else [`Machine::cores`].
    pub node_cores: usize,
    /// [`Machine::node_cores`] without counting several hardware threads of a core, like Open MPI.
    pub physical_cores: usize,
    /// GPUs of a node.
    pub gpus: usize,
    /// Where their number was found.
    pub gpus_from: &'static str,
    /// NUMA nodes of this node.
    pub numa_nodes: usize,
    /// Whether the user is root.
    pub root: bool,
    /// Whether this process runs in a container.
    pub container: bool,
    /// The SLURM allocation, if there is one.
    pub slurm: Option<Allocation>,
    /// Names of the environment variables.
    pub variables: Vec<String>,
}

impl Machine {
    /// Detects the properties of this machine.
    pub fn detect() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (gpus, gpus_from) = count_gpus();
        let node_cores = allocated_cores().unwrap_or(cores);
        Self {
            cores,
            node_cores,
            physical_cores: physical_cores(node_cores, Path::new("/sys/devices/system/cpu")),
            gpus,
            gpus_from,
            numa_nodes: numbered(Path::new("/sys/devices/system/node"), "node").max(1),
            // SAFETY: has no preconditions.
            root: unsafe { libc::geteuid() } == 0,
            container: in_container(),
            slurm: std::env::var_os("SLURM_JOB_ID").map(|_| Allocation {
                tasks: number("SLURM_NTASKS"),
                nodes: number("SLURM_JOB_NUM_NODES").unwrap_or(1),
                cores_per_task: number("SLURM_CPUS_PER_TASK"),
                pmix: output_of("srun", &["--mpi=list"]).is_some_and(|t| t.contains("pmix")),
                in_step: number("SLURM_STEP_ID").is_some_and(is_step_of_srun),
            }),
            variables: std::env::vars_os()
                .filter_map(|(name, _)| name.into_string().ok())
                .collect(),
        }
    }
}

/// Whether an id is that of a step that the user has started with srun: the batch script, the shell
/// of salloc and other steps of SLURM itself have the highest ids.
fn is_step_of_srun(id: usize) -> bool {
    id < 0xFFFF_FFF0
}

/// A numeric environment variable.
fn number(name: &str) -> Option<usize> {
    std::env::var(name).ok()?.parse().ok()
}

/// Cores of the allocation's first node, from a list such as `72(x2),36`. With salloc this process
/// may run on a login node, which has other cores.
fn allocated_cores() -> Option<usize> {
    std::env::var("SLURM_JOB_CPUS_PER_NODE").ok()?.split(['(', ',']).next()?.parse().ok()
}

/// The physical cores among `cores` hardware threads, in the proportion of the whole machine, which
/// the folder `cpus` describes.
fn physical_cores(cores: usize, cpus: &Path) -> usize {
    let siblings = |e: std::fs::DirEntry| {
        std::fs::read_to_string(e.path().join("topology/thread_siblings_list")).ok()
    };
    let entries = std::fs::read_dir(cpus).into_iter().flatten().flatten();
    let threads: Vec<String> = entries.filter_map(siblings).collect();
    let physical = threads.iter().collect::<HashSet<_>>().len();
    if threads.is_empty() { cores } else { (cores * physical).div_ceil(threads.len()) }
}

/// Number of GPUs that the ranks will see, and where it was found.
fn count_gpus() -> (usize, &'static str) {
    let (all, from) = listed_gpus()
        // With salloc this process may run on a machine without GPUs.
        .or_else(|| Some((number("SLURM_GPUS_ON_NODE")?, "SLURM_GPUS_ON_NODE")))
        .or_else(|| Some((requested_gpus()?, "SLURM_GPUS_PER_NODE")))
        .unwrap_or_else(|| (numbered(Path::new("/dev"), "nvidia"), "GPUs in /dev/nvidia*"));
    match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(list) if visible_gpus(&list) < all => (visible_gpus(&list), "CUDA_VISIBLE_DEVICES"),
        _ => (all, from),
    }
}

/// The GPUs per node that the allocation was requested with, as `8` or `TYPE:8`.
fn requested_gpus() -> Option<usize> {
    let text = std::env::var("SLURM_GPUS_PER_NODE").ok()?;
    text.split_once(':').map_or(text.as_str(), |(_, gpus)| gpus).parse().ok()
}

/// The GPUs that nvidia-smi lists. If one GPU is lost, it lists the others and then fails.
fn listed_gpus() -> Option<(usize, &'static str)> {
    let out = Command::new("nvidia-smi").arg("-L").output().ok()?;
    let text = String::from_utf8_lossy(&out.stdout);
    let gpus = text.lines().filter(|l| l.starts_with("GPU ")).count();
    let from = if out.status.success() {
        "GPUs in nvidia-smi"
    } else {
        "GPUs in nvidia-smi, which failed"
    };
    (gpus > 0).then_some((gpus, from))
}

/// Number of GPUs in a list of CUDA_VISIBLE_DEVICES, which ends at the first invalid entry.
fn visible_gpus(list: &str) -> usize {
    let valid = |entry: &&str| {
        let entry = entry.trim();
        entry.parse::<u32>().is_ok() || entry.starts_with("GPU-") || entry.starts_with("MIG-")
    };
    list.split(',').take_while(valid).count()
}

/// Number of entries of a folder whose names are `prefix` and a number.
fn numbered(dir: &Path, prefix: &str) -> usize {
    let is_one = |name: &str| name.strip_prefix(prefix).is_some_and(|n| n.parse::<u32>().is_ok());
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| is_one(&e.file_name().to_string_lossy())).count()
}

fn in_container() -> bool {
    let cgroup = std::fs::read_to_string("/proc/1/cgroup").unwrap_or_default();
    ["docker", "kubepods"].iter().any(|name| cgroup.contains(name))
        || ["/.dockerenv", "/run/.containerenv"].iter().any(|p| Path::new(p).exists())
}

/// Standard output and standard error of a program; `None` if it is missing or fails.
fn output_of(program: &str, args: &[&str]) -> Option<String> {
    let out = Command::new(program).args(args).output().ok()?;
    out.status
        .success()
        .then(|| String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_slurm_itself_are_told_from_those_of_srun() {
        assert!(is_step_of_srun(0) && is_step_of_srun(17));
        // The batch script and salloc's shell (SLURM_BATCH_SCRIPT, SLURM_INTERACTIVE_STEP).
        assert!(!is_step_of_srun(0xFFFF_FFFB) && !is_step_of_srun(0xFFFF_FFFA));
    }
    #[test]
    fn hardware_threads_of_a_core_are_one_physical_core() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(physical_cores(8, dir.path()), 8, "an unknown machine");
        for (cpu, siblings) in ["0,2", "1,3", "0,2", "1,3"].into_iter().enumerate() {
            let topology = dir.path().join(format!("cpu{cpu}/topology"));
            std::fs::create_dir_all(&topology).unwrap();
            std::fs::write(topology.join("thread_siblings_list"), siblings).unwrap();
        }
        assert_eq!([8, 4, 1].map(|cores| physical_cores(cores, dir.path())), [4, 2, 1]);
    }
    #[test]
    fn device_files_of_gpus_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["nvidia0", "nvidia11", "nvidiactl", "nvidia-uvm", "null"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(numbered(dir.path(), "nvidia"), 2);
    }
}
