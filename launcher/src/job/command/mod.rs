//! The mpirun or srun command line of a job, with the flags that this machine needs.

mod layout;
mod machine;
mod path;
mod words;

use std::ffi::OsString;
use std::io::IsTerminal;

use clap::ValueEnum;
use dw_base::{Error, Result};

use self::layout::Layout;
pub(crate) use self::layout::check_ranks;
pub use self::machine::{Allocation, Machine};
use self::path::locate;
pub(crate) use self::path::own_word;
use self::words::{mpirun_words, srun_words};

/// Program that starts the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Starter {
    /// srun in a SLURM allocation whose srun supports PMIx, else mpirun.
    Auto,
    /// Open MPI's mpirun.
    Mpirun,
    /// SLURM's srun.
    Srun,
}

/// Binding of ranks to cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bind {
    /// numa, but none with GPUs, in containers, and with more ranks than physical cores or fewer
    /// than NUMA nodes.
    Auto,
    /// No binding.
    None,
    /// One NUMA node for each rank.
    Numa,
    /// A separate set of cores for each rank.
    Core,
}

/// The job that the user requested.
#[derive(Debug, Clone)]
pub struct JobSpec {
    /// Number of ranks; by default one for each task, GPU or node.
    pub ranks: Option<usize>,
    /// Number of nodes.
    pub nodes: Option<usize>,
    /// Hosts for mpirun with their ranks, such as `a:4,b:4`.
    pub hosts: Option<String>,
    /// Program that starts the ranks.
    pub starter: Starter,
    /// Binding of ranks to cores.
    pub bind: Bind,
    /// Threads of a rank; by default an equal share of the node's cores.
    pub threads: Option<usize>,
    /// Whether the output is passed on unchanged, without the rank before each line.
    pub raw: bool,
    /// Program of the ranks and its arguments.
    pub program: Vec<String>,
}

/// The number of threads of a rank.
const THREADS: &str = "OMP_NUM_THREADS";

/// A command that starts the ranks of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchCommand {
    /// Number of ranks.
    pub ranks: usize,
    /// Where the number of ranks was found, if it was not requested.
    pub ranks_from: Option<String>,
    /// Whether ranks may run on other machines.
    pub remote: bool,
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// Environment variables to set.
    pub env: Vec<(String, String)>,
    /// Environment variables to remove.
    pub removed_env: Vec<String>,
    /// Warnings to log before the start.
    pub warnings: Vec<String>,
}

impl LaunchCommand {
    /// Builds the mpirun or srun command line.
    ///
    /// # Errors
    /// Options that contradict each other or the machine, or a program that does not exist.
    pub fn new(spec: &JobSpec, machine: &Machine) -> Result<Self> {
        let layout = Layout::new(spec, machine)?;
        // Without `--threads` the ranks divide the cores of their own node, which may be another
        // machine.
        let threads = spec.threads.map(|n| (THREADS.to_owned(), n.to_string()));
        let mut env: Vec<_> = threads.into_iter().collect();
        let words = if layout.srun {
            srun_words(&layout, spec, machine)
        } else {
            if machine.root {
                for name in ["OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] {
                    env.push((name.to_owned(), "1".to_owned()));
                }
            }
            // mpirun starts its daemons on other nodes by srun, in a step as below in `srun_words`.
            if machine.slurm.is_some_and(|s| s.in_step) {
                env.push(("SLURM_OVERLAP".to_owned(), "1".to_owned()));
            }
            mpirun_words(&layout, spec, machine)
        };
        // With salloc this process may run on a login node, even for an allocation of one node.
        let remote = layout.srun || spec.hosts.is_some() || machine.slurm.is_some();
        let mut argv: Vec<OsString> = words.into_iter().map(OsString::from).collect();
        if let Some((program, args)) = spec.program.split_first() {
            argv.push(locate(program, remote)?);
            argv.extend(args.iter().map(OsString::from));
        }
        Ok(Self {
            ranks: layout.ranks,
            ranks_from: layout.ranks_from,
            remote,
            argv,
            env,
            removed_env: vec![],
            warnings: layout.warning.into_iter().collect(),
        })
    }

    /// Whether the program reads a list from standard input, which is connected to rank 0: one of
    /// its arguments is `-`. Any other job must not consume the input of the script that starts it.
    pub(crate) fn reads_stdin(&self) -> bool {
        self.argv.iter().any(|word| word == "-") && !std::io::stdin().is_terminal()
    }

    /// The command as a line for a shell.
    ///
    /// # Errors
    /// A word that contains a NUL character.
    pub fn shell_line(&self) -> Result<String> {
        let mut words = vec![];
        for (name, value) in &self.env {
            words.push(format!("{name}={}", quote(value)?));
        }
        for word in &self.argv {
            words.push(quote(&word.to_string_lossy())?);
        }
        Ok(words.join(" "))
    }
}

/// Quotes a word for a POSIX shell.
///
/// # Errors
/// A NUL character, which no argument of a program can contain.
pub(crate) fn quote(word: &str) -> Result<String> {
    match shlex::try_quote(word) {
        Ok(quoted) => Ok(quoted.into_owned()),
        Err(e) => Err(Error::Usage(format!("cannot quote `{word}` for a shell: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn machine() -> Machine {
        Machine {
            cores: 64,
            node_cores: 64,
            physical_cores: 64,
            gpus: 8,
            gpus_from: "GPUs in nvidia-smi",
            numa_nodes: 8,
            root: false,
            container: false,
            slurm: None,
            variables: vec![],
        }
    }

    pub(super) fn spec() -> JobSpec {
        let program = vec!["true".to_owned(), "a b".to_owned()];
        JobSpec {
            ranks: None,
            nodes: None,
            hosts: None,
            starter: Starter::Auto,
            bind: Bind::Auto,
            threads: None,
            raw: false,
            program,
        }
    }

    fn words(command: &LaunchCommand) -> Vec<String> {
        command.argv.iter().map(|w| w.to_string_lossy().into_owned()).collect()
    }

    fn contains(command: &LaunchCommand, expected: &[&str]) -> bool {
        words(command).windows(expected.len()).any(|w| w == expected)
    }

    #[test]
    fn one_node_has_one_rank_per_gpu() {
        let c = LaunchCommand::new(&spec(), &machine()).unwrap();
        assert_eq!((c.ranks, c.remote), (8, false));
        let line = c.shell_line().unwrap();
        assert!(
            line.starts_with("mpirun -n 8 --tag-output --oversubscribe --bind-to none"),
            "{line}"
        );
        assert!(line.ends_with("'a b'") && line.contains("-x DW_BOARD"), "{line}");
        let c = LaunchCommand::new(&JobSpec { threads: Some(4), ..spec() }, &machine()).unwrap();
        assert!(c.shell_line().unwrap().starts_with("OMP_NUM_THREADS=4 mpirun -n 8"), "{c:?}");
        assert!(contains(&c, &["-x", "OMP_NUM_THREADS"]), "{c:?}");
        let numa = JobSpec { bind: Bind::Numa, ..spec() };
        let c = LaunchCommand::new(&numa, &machine()).unwrap();
        assert!(contains(&c, &["--bind-to", "numa"]), "{c:?}");
    }

    #[test]
    fn flags_for_root_containers_and_oversubscription() {
        let m = Machine {
            cores: 2,
            node_cores: 2,
            physical_cores: 2,
            gpus: 0,
            root: true,
            container: true,
            variables: vec!["NCCL_DEBUG".into(), "HOME".into()],
            ..machine()
        };
        let c = LaunchCommand::new(&JobSpec { ranks: Some(3), ..spec() }, &m).unwrap();
        assert!(c.env.contains(&("OMPI_ALLOW_RUN_AS_ROOT".into(), "1".into())), "{c:?}");
        for expected in [&["--oversubscribe"][..], &["--bind-to", "none"], &["-x", "NCCL_DEBUG"]] {
            assert!(contains(&c, expected), "{expected:?}: {c:?}");
        }
        assert!(!contains(&c, &["HOME"]), "{c:?}");
    }

    #[test]
    fn whole_allocation_is_used_by_srun_or_mpirun() {
        let slurm = Allocation {
            tasks: Some(16),
            nodes: 2,
            cores_per_task: None,
            pmix: true,
            in_step: false,
        };
        let with = |slurm| Machine { slurm: Some(slurm), ..machine() };
        let c = LaunchCommand::new(&spec(), &with(slurm)).unwrap();
        assert!(c.remote && c.ranks == 16);
        assert_eq!(words(&c)[..2], ["srun", "--mpi=pmix"]);
        assert!(contains(&c, &["--ntasks=16", "--nodes=2"]), "{c:?}");
        assert!(!contains(&c, &["--overlap"]), "{c:?}");
        let c = LaunchCommand::new(&spec(), &with(Allocation { in_step: true, ..slurm })).unwrap();
        assert!(contains(&c, &["--overlap"]), "{c:?}");
        assert!(!words(&c).iter().any(|w| w.starts_with("--cpu-bind")), "{c:?}");
        let c = JobSpec { bind: Bind::None, ..spec() };
        let c = LaunchCommand::new(&c, &with(slurm)).unwrap();
        assert!(contains(&c, &["--cpu-bind=none"]), "{c:?}");
        let cores = Allocation { cores_per_task: Some(8), ..slurm };
        let has_cores = |spec: JobSpec, slurm| {
            contains(&LaunchCommand::new(&spec, &with(slurm)).unwrap(), &["--cpus-per-task=8"])
        };
        assert!(!has_cores(spec(), slurm) && has_cores(spec(), cores));
        let more = JobSpec { ranks: Some(32), ..spec() };
        assert!(!has_cores(more, cores), "more ranks than the allocation has tasks");
        let no_pmix = Allocation { pmix: false, ..slurm };
        let overlap = ("SLURM_OVERLAP".to_owned(), "1".to_owned());
        for in_step in [false, true] {
            let machine = with(Allocation { in_step, ..no_pmix });
            let c = LaunchCommand::new(&spec(), &machine).unwrap();
            assert!(contains(&c, &["mpirun", "-n", "16"]), "{c:?}");
            assert_eq!(c.env.contains(&overlap), in_step, "{c:?}");
        }
    }

    #[test]
    fn mpirun_starts_more_ranks_than_its_slots() {
        let poll = ["--mca", "mpi_yield_when_idle", "0"];
        let with = |ranks, m: &Machine| {
            let spec = JobSpec { ranks: Some(ranks), starter: Starter::Mpirun, ..spec() };
            LaunchCommand::new(&spec, m).unwrap()
        };
        let no_gpu = Machine { gpus: 0, ..machine() };
        let m = Machine { node_cores: 8, physical_cores: 4, numa_nodes: 1, ..no_gpu };
        let c = with(8, &m);
        assert!(contains(&c, &["--oversubscribe", "--bind-to", "none"]), "{c:?}");
        let c = with(4, &m);
        assert!(
            contains(&c, &["--oversubscribe", "--map-by", "numa", "--bind-to", "numa"]),
            "{c:?}"
        );
        let (tasks, nodes, cores_per_task) = (Some(1), 1, Some(4));
        let slurm = Allocation { tasks, nodes, cores_per_task, pmix: true, in_step: false };
        let m = Machine { slurm: Some(slurm), ..m };
        let c = with(2, &m);
        assert!(contains(&c, &["--oversubscribe"]) && contains(&c, &poll), "{c:?}");
        assert!(!contains(&with(1, &m), &poll) && !contains(&with(5, &m), &poll));
    }

    #[test]
    fn contradicting_options_are_usage_errors() {
        for (bad, key) in [
            (JobSpec { nodes: Some(2), ..spec() }, "--hosts"),
            (JobSpec { nodes: Some(0), ..spec() }, "--nodes 0"),
            (JobSpec { starter: Starter::Srun, ..spec() }, "allocation"),
            (JobSpec { ranks: Some(0), ..spec() }, "-n 0"),
            (JobSpec { program: vec!["no-such-program".into()], ..spec() }, "no-such-program"),
        ] {
            let e = LaunchCommand::new(&bad, &machine()).unwrap_err();
            assert_eq!(e.exit_code(), 2);
            assert!(e.to_string().contains(key), "{e}");
        }
        let two = JobSpec { hosts: Some("a:4,b:4".into()), ..spec() };
        let c = LaunchCommand::new(&two, &machine()).unwrap();
        assert!(c.remote && c.ranks == 8 && contains(&c, &["--host", "a:4,b:4"]));
        let c = LaunchCommand::new(&JobSpec { ranks: Some(4), ..two }, &machine()).unwrap();
        assert!(contains(&c, &["--map-by", "ppr:2:node"]), "{c:?}");
    }

    #[test]
    fn shell_line_is_split_into_the_same_words() {
        let odd = ["a'b", "$HOME `x`", "new\nline", "*", "", "ü", "-x=\"y\"", "a!b", "\\"];
        let program = std::iter::once("true").chain(odd).map(String::from).collect();
        let hosts = Some("a b:1,c;d:1".to_owned());
        let spec = JobSpec { hosts, program, threads: Some(1), ..spec() };
        let c = LaunchCommand::new(&spec, &machine()).unwrap();
        let script = format!("printf '%s\\0' {}", c.shell_line().unwrap());
        let out = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let printed: Vec<&str> = text.split_terminator('\0').skip(1).collect();
        assert_eq!(printed, words(&c), "the first word is OMP_NUM_THREADS=...");
        assert_eq!(quote("a\0b").unwrap_err().exit_code(), 2);
    }
}
