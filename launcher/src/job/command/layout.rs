//! Number and placement of the ranks.

use dw_base::threads::MAX_PER_CORE;
use dw_base::{Error, Result};

use super::machine::Machine;
use super::{Bind, JobSpec, Starter};

/// Number and placement of a job's ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    /// Whether srun rather than mpirun starts the ranks.
    pub(super) srun: bool,
    /// Number of ranks.
    pub(super) ranks: usize,
    /// Where the number of ranks was found, if it was not requested.
    pub(super) ranks_from: Option<String>,
    /// Number of nodes.
    pub(super) nodes: usize,
    /// Whether a node has more ranks than cores.
    pub(super) oversubscribed: bool,
    /// Number of ranks that mpirun starts on each node; by default it fills one node after another.
    pub(super) even: Option<usize>,
    /// Whether ranks must be told to poll although they exceed mpirun's slots: each has a core.
    pub(super) polls: bool,
    /// Argument of mpirun's `--bind-to`.
    pub(super) bind: &'static str,
    /// Argument of srun's `--cpu-bind`; by default srun decides.
    pub(super) cpu_bind: Option<&'static str>,
    /// Warning about `--threads`.
    pub(super) warning: Option<String>,
}

impl Layout {
    pub(super) fn new(spec: &JobSpec, machine: &Machine) -> Result<Self> {
        if spec.ranks == Some(0) {
            return Err(Error::Usage("-n 0: expected at least one rank".into()));
        }
        let srun = use_srun(spec, machine)?;
        let slots = spec.hosts.as_deref().map(|hosts| slots(hosts, spec.nodes)).transpose()?;
        let nodes = match &slots {
            Some(slots) => slots.len(),
            None => num_nodes(spec, machine, srun)?,
        };
        let (ranks, ranks_from) = num_ranks(spec, machine, nodes, slots.as_deref());
        let even = if srun { None } else { even(spec, machine, (ranks, nodes), slots.as_deref())? };
        let per_node = ranks.div_ceil(nodes);
        let warning = check_threads(spec, machine, per_node)?;
        let has_cores = per_node <= machine.physical_cores;
        // In an allocation mpirun's slots are its tasks, of which each may have several cores.
        let managed = machine.slurm.filter(|_| spec.hosts.is_none());
        let polls = has_cores && managed.is_some_and(|s| s.tasks.is_none_or(|t| ranks > t));
        let bind = match spec.bind {
            Bind::Auto if is_bound(machine, per_node) => "numa",
            Bind::Auto | Bind::None => "none",
            Bind::Numa => "numa",
            Bind::Core => "core",
        };
        let cpu_bind = match spec.bind {
            Bind::Auto => None,
            Bind::None => Some("none"),
            Bind::Numa => Some("ldoms"),
            Bind::Core => Some("cores"),
        };
        let oversubscribed = per_node > machine.node_cores;
        Ok(Self {
            srun,
            ranks,
            ranks_from,
            nodes,
            oversubscribed,
            even,
            polls,
            bind,
            cpu_bind,
            warning,
        })
    }
}

/// Whether mpirun binds each rank to a NUMA node by default.
fn is_bound(machine: &Machine, per_node: usize) -> bool {
    // mpirun deals the ranks out to the NUMA nodes in turn, but rank i uses GPU i, and GPUs of
    // consecutive numbers are usually on the same NUMA node: half of the ranks would be on another
    // one than their GPU.
    machine.gpus == 0
        && !machine.container
        && per_node <= machine.physical_cores
        // Otherwise the cores of the other NUMA nodes would be idle.
        && per_node >= machine.numa_nodes
}

fn use_srun(spec: &JobSpec, machine: &Machine) -> Result<bool> {
    match (spec.starter, machine.slurm) {
        (Starter::Srun, None) => Err(Error::Usage(
            "--starter srun: expected a SLURM allocation\nhint: submit with `dw-launch --slurm \
             ...`, or run in salloc"
                .into(),
        )),
        (Starter::Srun, Some(_)) if spec.hosts.is_some() => Err(Error::Usage(
            "--hosts is for mpirun: srun starts the ranks on the nodes of the allocation".into(),
        )),
        (Starter::Srun, Some(_)) => Ok(true),
        (Starter::Mpirun, _) => Ok(false),
        (Starter::Auto, slurm) => Ok(slurm.is_some_and(|s| s.pmix) && spec.hosts.is_none()),
    }
}

fn num_nodes(spec: &JobSpec, machine: &Machine, srun: bool) -> Result<usize> {
    if spec.nodes == Some(0) {
        return Err(Error::Usage("--nodes 0: expected at least one node".into()));
    }
    let nodes = spec.nodes.or(machine.slurm.map(|s| s.nodes)).unwrap_or(1).max(1);
    if let (Some(allocated), false) = (machine.slurm, srun)
        && nodes != allocated.nodes
    {
        let srun = if allocated.pmix { "--starter srun, or " } else { "" };
        return Err(Error::Usage(format!(
            "--nodes {nodes}: mpirun uses all nodes of the allocation ({})\n\
             hint: {srun}--hosts with the names of the nodes",
            allocated.nodes
        )));
    }
    if nodes > 1 && machine.slurm.is_none() {
        return Err(Error::Usage(format!(
            "--nodes {nodes}: expected the hosts' names outside of SLURM\nhint: --hosts a:8,b:8, \
             or submit with --slurm"
        )));
    }
    Ok(nodes)
}

/// Number of ranks on each host of `--hosts`; 1 for a host without a number.
///
/// # Errors
/// A number of ranks that is not valid, or a number of hosts that differs from `--nodes`.
fn slots(hosts: &str, nodes: Option<usize>) -> Result<Vec<usize>> {
    let of = |host: &str| match host.split_once(':') {
        None if !host.is_empty() => Some(1),
        Some((name, ranks)) if !name.is_empty() => ranks.parse().ok().filter(|n| *n > 0),
        _ => None,
    };
    let each = |host| {
        of(host).ok_or_else(|| {
            Error::Usage(format!(
                "--hosts {hosts}: `{host}`: expected NAME or NAME:RANKS, for example node1:8"
            ))
        })
    };
    let slots: Vec<usize> = hosts.split(',').map(each).collect::<Result<_>>()?;
    match nodes {
        Some(nodes) if nodes != slots.len() => Err(Error::Usage(format!(
            "--nodes {nodes} contradicts --hosts {hosts}, which names {} hosts",
            slots.len()
        ))),
        _ => Ok(slots),
    }
}

/// The requested number of ranks, else that of `--hosts`, else the allocation's tasks, else one for
/// each GPU or node; and where it was found, if it was not requested.
fn num_ranks(
    spec: &JobSpec,
    machine: &Machine,
    nodes: usize,
    slots: Option<&[usize]>,
) -> (usize, Option<String>) {
    let tasks = machine.slurm.and_then(|s| s.tasks);
    let (ranks, from) = match (spec.ranks, slots, tasks) {
        (Some(ranks), ..) => return (ranks, None),
        (_, Some(slots), _) => (slots.iter().sum(), "--hosts".to_owned()),
        (_, _, Some(tasks)) => (tasks, "SLURM_NTASKS".to_owned()),
        _ if machine.gpus == 0 => (nodes, "the nodes, as no GPU was found; -n sets it".to_owned()),
        _ => {
            let Machine { gpus, gpus_from, .. } = machine;
            (gpus * nodes, format!("{gpus_from}: {gpus} per node"))
        }
    };
    (ranks, Some(from))
}

/// Ranks per node for mpirun, unless every slot has a rank: with fewer ranks it would leave the
/// last nodes idle.
///
/// # Errors
/// More ranks than `--hosts` has, or a number that the nodes cannot share equally.
fn even(
    spec: &JobSpec,
    machine: &Machine,
    (ranks, nodes): (usize, usize),
    slots: Option<&[usize]>,
) -> Result<Option<usize>> {
    let all = slots.map(|s| s.iter().sum());
    let full = all.or(machine.slurm.and_then(|s| s.tasks)) == Some(ranks);
    let most = slots.and_then(|s| s.iter().copied().min());
    let of = spec.hosts.as_ref().map_or_else(String::new, |hosts| format!(" --hosts {hosts}"));
    if let Some(all) = all.filter(|all| ranks > *all) {
        return Err(Error::Usage(format!(
            "-n {ranks}{of}: expected at most the {all} ranks of the hosts\n\
             hint: NAME:RANKS sets the ranks of a host, for example a:8,b:8"
        )));
    }
    if nodes == 1 || full {
        return Ok(None);
    }
    if ranks.is_multiple_of(nodes) && most.is_none_or(|most| ranks / nodes <= most) {
        return Ok(Some(ranks / nodes));
    }
    let each = most.map_or_else(String::new, |most| format!(", at most {most} each"));
    Err(Error::Usage(format!(
        "-n {ranks}{of}: expected ranks that the {nodes} nodes can share equally{each}\n\
         hint: --hosts without -n starts its ranks on each node, for example a:2,b:1"
    )))
}

/// Checks `--threads`; returns a warning if all ranks of a node together have more threads than
/// cores.
///
/// # Errors
/// No thread, or more than [`MAX_PER_CORE`] times the cores, which would reach the limits of the
/// machine. With `--hosts` the cores are not known, and there is only the warning.
fn check_threads(spec: &JobSpec, machine: &Machine, per_node: usize) -> Result<Option<String>> {
    let Some(threads) = spec.threads else { return Ok(None) };
    let cores = machine.node_cores;
    if threads == 0 {
        return Err(Error::Usage("--threads 0: expected at least one thread".into()));
    }
    if threads > MAX_PER_CORE.saturating_mul(cores) && spec.hosts.is_none() {
        return Err(Error::Usage(format!(
            "--threads {threads}: expected at most {MAX_PER_CORE} times the {cores} cores of the \
             node\nhint: without --threads each rank gets an equal share of the cores"
        )));
    }
    let total = threads.saturating_mul(per_node);
    Ok((total > cores).then(|| {
        format!(
            "--threads {threads}: oversubscribed node: {total} threads of {per_node} ranks share \
             {cores} cores"
        )
    }))
}

/// Checks that this machine alone can run a number of ranks: one for each GPU, else at most
/// [`MAX_PER_CORE`] per core.
///
/// # Errors
/// More ranks, which would make the machine unusable.
pub(crate) fn check_ranks(ranks: usize, machine: &Machine) -> Result<()> {
    let most = MAX_PER_CORE.saturating_mul(machine.cores);
    if ranks <= most.max(machine.gpus) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "{ranks} ranks: expected at most {most} on this machine, {MAX_PER_CORE} per core\n\
         hint: {} cores can be used here (affinity, control group); --hosts or SLURM start ranks \
         on several machines",
        machine.cores
    )))
}

#[cfg(test)]
mod tests {
    use super::super::Allocation;
    use super::super::tests::{machine, spec};
    use super::*;

    #[test]
    fn hosts_are_checked() {
        let with = |hosts: &str, nodes| JobSpec { hosts: Some(hosts.into()), nodes, ..spec() };
        let ranks = |spec| Layout::new(&spec, &machine()).map(|l| l.ranks);
        assert_eq!(ranks(with("a,b:3", Some(2))).unwrap(), 4);
        for bad in ["a:x", "a:0", "", "a,,b", ":2"] {
            let e = ranks(with(bad, None)).unwrap_err();
            assert!(e.exit_code() == 2 && e.to_string().contains("NAME:RANKS"), "{bad}: {e}");
        }
        let e = ranks(with("a:8,b:8", Some(3))).unwrap_err().to_string();
        assert!(e.contains("--nodes 3 contradicts"), "{e}");
    }

    #[test]
    fn fewer_ranks_than_slots_are_spread_over_the_nodes() {
        let with = |hosts: &str, ranks| JobSpec {
            hosts: Some(hosts.into()),
            ranks: Some(ranks),
            ..spec()
        };
        let even = |spec| Layout::new(&spec, &machine()).map(|l| l.even);
        assert_eq!(even(with("a:8,b:8", 4)).unwrap(), Some(2));
        assert_eq!(even(with("a:8,b:4", 12)).unwrap(), None, "all slots");
        assert_eq!(even(with("a:8", 4)).unwrap(), None, "one node");
        for (hosts, ranks) in [("a:8,b:8", 3), ("a:8,b:2", 6), ("a,b", 4), ("a:2", 3)] {
            let e = even(with(hosts, ranks)).unwrap_err();
            assert_eq!(e.exit_code(), 2);
            let text = e.to_string();
            assert!(text.starts_with(&format!("-n {ranks} --hosts {hosts}: expected")), "{text}");
            assert!(text.contains("hint:"), "{text}");
        }
        let slurm = Allocation {
            tasks: Some(16),
            nodes: 2,
            cores_per_task: None,
            pmix: false,
            in_step: false,
        };
        let machine = Machine { slurm: Some(slurm), ..machine() };
        let even = |ranks| Layout::new(&JobSpec { ranks, ..spec() }, &machine).map(|l| l.even);
        assert_eq!(even(None).unwrap(), None);
        assert_eq!(even(Some(4)).unwrap(), Some(2));
        assert!(even(Some(5)).is_err());
    }

    #[test]
    fn threads_beyond_the_cores_are_a_warning_or_an_error() {
        let machine = Machine { cores: 4, node_cores: 4, ..machine() };
        let with =
            |threads, ranks| JobSpec { threads: Some(threads), ranks: Some(ranks), ..spec() };
        let warning = |spec: JobSpec| Layout::new(&spec, &machine).map(|l| l.warning);
        assert_eq!(warning(with(4, 1)).unwrap(), None);
        assert!(warning(with(16, 1)).unwrap().unwrap().contains("16 threads of 1 ranks"));
        assert!(warning(with(2, 3)).unwrap().unwrap().contains("6 threads of 3 ranks"));
        for bad in [0, 17, usize::MAX] {
            let e = warning(with(bad, 1)).unwrap_err();
            assert_eq!(e.exit_code(), 2);
            assert!(e.to_string().contains(&format!("--threads {bad}")), "{e}");
        }
        let many = check_ranks(17, &machine).unwrap_err();
        assert_eq!(many.exit_code(), 2);
        assert!(many.to_string().contains("17 ranks"), "{many}");
        assert!(check_ranks(16, &machine).is_ok());
        assert!(check_ranks(8, &Machine { cores: 1, gpus: 8, ..machine.clone() }).is_ok());
        let remote = JobSpec { hosts: Some("a:1".into()), ..with(64, 1) };
        assert!(warning(remote).unwrap().is_some(), "another host may have more cores");
    }
}
