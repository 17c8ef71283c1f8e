//! The command that starts the ranks: mpirun or srun, with the flags that this machine needs.

mod threads;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;

use crate::collectives::{Error, Result};

/// What starts the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Starter {
    /// srun inside a SLURM allocation whose srun speaks PMIx, else mpirun.
    Auto,
    /// Open MPI's mpirun.
    Mpirun,
    /// SLURM's srun.
    Srun,
}

/// Binding of ranks to cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bind {
    /// None in containers and with more ranks than cores, else numa.
    Auto,
    /// Not at all.
    None,
    /// To a memory domain each.
    Numa,
    /// To their share of the cores.
    Core,
}

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Ranks; by default one for each task or GPU.
    pub ranks: Option<usize>,
    /// Machines.
    pub nodes: Option<usize>,
    /// Hosts for mpirun, as `a:4,b:4`.
    pub hosts: Option<String>,
    /// What starts them.
    pub starter: Starter,
    /// Binding.
    pub bind: Bind,
    /// Threads of a rank; by default the node's cores shared.
    pub threads: Option<usize>,
    /// Program and arguments.
    pub program: Vec<String>,
}

/// What decides the flags.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Cores this process may use.
    pub cores: usize,
    /// Cores of a node that runs ranks: the allocation's where there is one, else [`Machine::cores`].
    pub node_cores: usize,
    /// GPUs of this node.
    pub gpus: usize,
    /// Running as root.
    pub root: bool,
    /// In a container.
    pub container: bool,
    /// Inside a SLURM allocation: its tasks, where it was asked for some, and nodes.
    pub slurm: Option<(Option<usize>, usize)>,
    /// Memory domains of this node.
    pub domains: usize,
    /// Cores of a task that the allocation was asked for.
    pub slurm_cores: Option<usize>,
    /// srun speaks PMIx.
    pub srun_pmix: bool,
    /// Names of variables that the ranks should see.
    pub variables: Vec<String>,
}

/// Prefixes of variables that the ranks of other nodes need, too.
const EXPORTED: [&str; 8] = [
    "DW_",
    "NCCL_",
    "OMP_",
    "CUDA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
    "PATH",
    "RUST_",
    "XDG_CACHE_HOME",
];

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        let number = |name: &str| std::env::var(name).ok()?.parse::<usize>().ok();
        let slurm = std::env::var_os("SLURM_JOB_ID")
            .map(|_| (number("SLURM_NTASKS"), number("SLURM_JOB_NUM_NODES").unwrap_or(1)));
        let nodes = std::fs::read_dir("/sys/devices/system/node").into_iter().flatten().flatten();
        let domains = nodes.filter(|e| {
            e.file_name()
                .to_string_lossy()
                .strip_prefix("node")
                .is_some_and(|n| n.parse::<u32>().is_ok())
        });
        let gpus = output("nvidia-smi", &["-L"])
            .map_or(0, |text| text.lines().filter(|l| l.starts_with("GPU ")).count());
        let in_cgroup = std::fs::read_to_string("/proc/1/cgroup")
            .is_ok_and(|t| t.contains("docker") || t.contains("kubepods"));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // As `72(x2),36`. With salloc this process may run on a login node.
        let allocated = std::env::var("SLURM_JOB_CPUS_PER_NODE").ok();
        let allocated = allocated.and_then(|v| v.split(['(', ',']).next()?.parse().ok());
        Self {
            cores,
            node_cores: allocated.unwrap_or(0).max(cores),
            gpus,
            // SAFETY: asks for a number.
            root: unsafe { libc::geteuid() } == 0,
            container: in_cgroup
                || ["/.dockerenv", "/run/.containerenv"].iter().any(|p| Path::new(p).exists()),
            srun_pmix: slurm.is_some()
                && output("srun", &["--mpi=list"]).is_some_and(|t| t.contains("pmix")),
            slurm,
            domains: domains.count().max(1),
            slurm_cores: number("SLURM_CPUS_PER_TASK"),
            variables: std::env::vars_os()
                .filter_map(|(name, _)| name.into_string().ok())
                .collect(),
        }
    }
}

/// What a program prints, on both streams; `None` where it is missing or fails.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let out = Command::new(program).args(args).output().ok()?;
    out.status
        .success()
        .then(|| String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

/// A command to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Ranks it starts.
    pub ranks: usize,
    /// Is it srun?
    pub srun: bool,
    /// Ranks on other machines than this one are possible.
    pub remote: bool,
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// Variables to set.
    pub env: Vec<(String, String)>,
    /// Variables to take away.
    pub without: Vec<String>,
    /// What is odd about the request, to be logged before the start.
    pub warnings: Vec<String>,
}

impl Launch {
    /// Decides.
    ///
    /// # Errors
    /// Requests that contradict each other or the machine.
    pub fn new(r: &Request, m: &Machine) -> Result<Self> {
        let srun = match r.starter {
            Starter::Srun if m.slurm.is_none() => {
                return Err(Error::Failed("srun needs a SLURM allocation\nhint: submit with `dw-launch --slurm ...`, or inside salloc".into()));
            }
            Starter::Srun => true,
            Starter::Mpirun => false,
            Starter::Auto => m.slurm.is_some() && m.srun_pmix && r.hosts.is_none(),
        };
        if r.ranks == Some(0) {
            return Err(Error::Failed("-n 0: expected at least one rank".into()));
        }
        let nodes = r.nodes.or(m.slurm.map(|s| s.1)).unwrap_or(1).max(1);
        if nodes > 1 && m.slurm.is_none() && r.hosts.is_none() {
            return Err(Error::Failed(format!(
                "--nodes {nodes}: outside of SLURM the machines must be named\nhint: --hosts a:8,b:8, or submit with --slurm"
            )));
        }
        let named = r.hosts.as_deref().map(|h| {
            h.split(',')
                .map(|h| h.split_once(':').and_then(|s| s.1.parse().ok()).unwrap_or(1))
                .sum()
        });
        let ranks =
            r.ranks.or(named).or(m.slurm.and_then(|s| s.0)).unwrap_or((m.gpus * nodes).max(1));
        let per_node =
            ranks.div_ceil(nodes.max(r.hosts.as_ref().map_or(1, |h| h.split(',').count())));
        let threads = r.threads.unwrap_or((m.cores / per_node).max(1));
        let warnings = threads::check(r, m, per_node)?.into_iter().collect();
        let crowded = per_node > m.cores;
        let bind = match r.bind {
            // With fewer ranks than domains the cores of the others would idle.
            Bind::Auto if m.container || crowded || per_node < m.domains => "none",
            Bind::None => "none",
            Bind::Auto | Bind::Numa => "numa",
            Bind::Core => "core",
        };
        let mut env = vec![("OMP_NUM_THREADS".to_owned(), threads.to_string())];
        let mut argv: Vec<OsString> = vec![];
        let mut push = |words: &[&str]| argv.extend(words.iter().map(OsString::from));
        if srun {
            // No --overlap: what is left of a lost step must be gone before a restart writes to the same work directory.
            push(&["srun", "--mpi=pmix", "--kill-on-bad-exit=1", "--label", "--unbuffered"]);
            push(&[&format!("--ntasks={ranks}"), &format!("--nodes={nodes}"), "--export=ALL"]);
            // Binding follows the allocation; overcommit lets small tests run more tasks than cores.
            if crowded {
                push(&["--overcommit"]);
            } else if let Some(cores) = m
                .slurm_cores
                .filter(|_| m.slurm.and_then(|s| s.0).is_some_and(|tasks| ranks <= tasks))
            {
                // From SLURM 22.05 on srun does not take this over from sbatch: a rank would be bound to one core.
                push(&[&format!("--cpus-per-task={cores}")]);
            }
        } else {
            push(&["mpirun", "-n", &ranks.to_string(), "--tag-output"]);
            if let Some(hosts) = &r.hosts {
                push(&["--host", hosts]);
            }
            if crowded {
                push(&["--oversubscribe"]);
            }
            push(&["--bind-to", bind]);
            if m.root {
                for name in ["OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] {
                    env.push((name.to_owned(), "1".to_owned()));
                }
            }
            let board = [crate::board::VARIABLE.to_owned(), "OMP_NUM_THREADS".to_owned()];
            let own =
                m.variables.iter().filter(|v| EXPORTED.iter().any(|p| v.starts_with(p))).cloned();
            let mut exported: Vec<String> = own.chain(board).collect();
            exported.sort();
            exported.dedup();
            for name in exported {
                push(&["-x", &name]);
            }
        }
        let remote = srun || r.hosts.is_some() || m.slurm.is_some_and(|s| s.1 > 1);
        for (i, word) in r.program.iter().enumerate() {
            argv.push(if i == 0 { locate(word, remote)? } else { word.into() });
        }
        Ok(Self { ranks, srun, remote, argv, env, without: vec![], warnings })
    }

    /// The command as one would type it.
    pub fn line(&self) -> String {
        let env = self.env.iter().map(|(k, v)| format!("{k}={v}"));
        env.chain(self.argv.iter().map(|w| quote(&w.to_string_lossy())))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// A word as a shell reads it.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A program of ours lies beside this one; others are found as the shell finds them, on the machine where they run.
fn locate(program: &str, remote: bool) -> Result<OsString> {
    let beside: Option<PathBuf> =
        std::env::current_exe().ok().and_then(|p| Some(p.parent()?.join(program)));
    if let Some(beside) = beside.filter(|p| !program.contains('/') && p.is_file()) {
        return Ok(beside.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = if program.contains('/') {
        Path::new(program).is_file()
    } else {
        std::env::split_paths(&path).any(|d| d.join(program).is_file())
    };
    if found || remote {
        return Ok(program.into());
    }
    Err(Error::Failed(format!(
        "no program `{program}`\nhint: after `--` come a program on PATH, or its path, and its arguments: dw-launch -n 2 -- dw-train"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn machine() -> Machine {
        Machine {
            cores: 64,
            node_cores: 64,
            gpus: 8,
            root: false,
            container: false,
            slurm: None,
            domains: 8,
            slurm_cores: None,
            srun_pmix: false,
            variables: vec![],
        }
    }

    pub(super) fn request() -> Request {
        let program = vec!["true".to_owned(), "a b".to_owned()];
        Request {
            ranks: None,
            nodes: None,
            hosts: None,
            starter: Starter::Auto,
            bind: Bind::Auto,
            threads: None,
            program,
        }
    }

    #[test]
    fn one_node_gives_each_gpu_a_rank() {
        let l = Launch::new(&request(), &machine()).unwrap();
        assert_eq!((l.ranks, l.srun, l.remote), (8, false, false));
        let line = l.line();
        assert!(
            line.starts_with("OMP_NUM_THREADS=8 mpirun -n 8 --tag-output --bind-to numa"),
            "{line}"
        );
        assert!(line.ends_with("'a b'") && line.contains("-x DW_BOARD"), "{line}");
    }

    #[test]
    fn root_containers_and_too_many_ranks() {
        let m = Machine {
            cores: 2,
            node_cores: 2,
            gpus: 0,
            root: true,
            container: true,
            variables: vec!["NCCL_DEBUG".into(), "HOME".into()],
            ..machine()
        };
        let line = Launch::new(&Request { ranks: Some(3), ..request() }, &m).unwrap().line();
        for word in [
            "OMPI_ALLOW_RUN_AS_ROOT=1",
            "--oversubscribe",
            "--bind-to none",
            "-x NCCL_DEBUG",
            "OMP_NUM_THREADS=1 ",
        ] {
            assert!(line.contains(word), "{word}: {line}");
        }
        assert!(!line.contains("HOME"), "{line}");
    }

    #[test]
    fn an_allocation_is_used_whole_by_srun_or_mpirun() {
        let m = Machine { slurm: Some((Some(16), 2)), srun_pmix: true, ..machine() };
        let l = Launch::new(&request(), &m).unwrap();
        assert!(l.srun && l.remote && l.ranks == 16);
        assert!(
            l.line().contains(
                "srun --mpi=pmix --kill-on-bad-exit=1 --label --unbuffered --ntasks=16 --nodes=2"
            ),
            "{}",
            l.line()
        );
        assert!(!l.line().contains("--cpus-per-task"), "{}", l.line());
        let m = Machine { slurm_cores: Some(8), ..m };
        assert!(Launch::new(&request(), &m).unwrap().line().contains("--cpus-per-task=8 "));
        let more = Request { ranks: Some(32), ..request() };
        assert!(
            !Launch::new(&more, &m).unwrap().line().contains("--cpus-per-task"),
            "more than the allocation has"
        );
        let l = Launch::new(&request(), &Machine { srun_pmix: false, ..m }).unwrap();
        assert!(!l.srun && l.line().contains("mpirun -n 16 "), "{}", l.line());
    }

    #[test]
    fn contradictions_are_told() {
        let bad = |r: Request| Launch::new(&r, &machine()).unwrap_err().to_string();
        assert!(bad(Request { nodes: Some(2), ..request() }).contains("--hosts"));
        assert!(bad(Request { starter: Starter::Srun, ..request() }).contains("allocation"));
        assert!(bad(Request { ranks: Some(0), ..request() }).contains("at least one"));
        let two = Launch::new(&Request { hosts: Some("a:4,b:4".into()), ..request() }, &machine())
            .unwrap();
        assert!(two.remote && two.ranks == 8 && two.line().contains("--host a:4,b:4"));
    }
}
