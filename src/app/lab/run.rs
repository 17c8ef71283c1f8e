//! `dw-lab run`: the runs of a table, several at a time.

use std::sync::atomic::Ordering;
use std::time::Duration;

use dw_base::program::print_result;
use dw_base::text::shown;
use dw_launch::Topology;

use super::job::{Job, Launch};
use super::outcome::Setup;
use super::plan::{LabPlan, LabRun, Request, plan};
use crate::device::{Choice, cuda, threads};
use crate::{Error, Result};

/// How often the processes are polled.
const POLL: Duration = Duration::from_millis(200);
/// Number of last lines of the log in the message about a failed run.
const TAIL: usize = 6;

/// How `dw-lab run` runs.
#[derive(Debug, Clone, clap::Args)]
pub struct Execution {
    /// Number of runs at a time: each on a GPU of its own, or with its share of the CPU cores
    #[arg(long, value_name = "N", default_value = "1", value_parser = jobs)]
    pub jobs: usize,
    /// Command that starts the ranks of a run, as "mpirun -n 8"
    #[arg(long, value_name = "COMMAND")]
    pub launcher: Option<String>,
    /// Device
    #[arg(long, value_enum, default_value = "auto")]
    pub device: Choice,
    /// Print the unfinished runs and exit
    #[arg(long)]
    pub dry_run: bool,
}

/// Parses `--jobs`.
fn jobs(text: &str) -> std::result::Result<usize, String> {
    let jobs = text.parse().ok().filter(|n| (1..=1024).contains(n));
    jobs.ok_or_else(|| "expected 1 to 1024".into())
}

/// Executes the unfinished runs of a request.
///
/// # Errors
/// A mistake in the request; after all other runs, the first one that failed; preemption.
pub fn run(request: &Request, how: &Execution, topology: &Topology) -> Result<()> {
    if topology.world_size > 1 {
        return Err(Error::Usage(
            "dw-lab starts the ranks of its runs itself\nhint: start one dw-lab, as `dw-lab run \
             table5 --launcher \"mpirun -n 8\"`"
                .into(),
        ));
    }
    let plan = plan(request)?;
    tracing::info!(
        "{}: {} of {} runs are finished",
        plan.table,
        plan.finished.len(),
        plan.finished.len() + plan.open.len()
    );
    if let Some(other) = plan.finished.iter().find(|o| o.setup.launcher != how.launcher) {
        tracing::warn!(
            "{} seed {} was run with {}, which is not the --launcher of this request: rows are \
             comparable only with the same number of ranks",
            other.row,
            other.seed,
            other.setup.launcher.as_ref().map_or("no --launcher".into(), |l| format!("`{l}`"))
        );
    }
    if how.dry_run {
        for run in &plan.open {
            print_result(format_args!("{} ({})", shown(run.name()), run.config.assign.summary()))?;
        }
        return Ok(());
    }
    if plan.open.is_empty() {
        return Ok(());
    }
    let (launch, machine) = launch(how, topology)?;
    let setup = Setup {
        base: request.base.clone(),
        // The path of the data differs from machine to machine; `Outcome::data` identifies the
        // data.
        set: request.set.iter().filter(|s| !s.starts_with("data.shards")).cloned().collect(),
        launcher: how.launcher.clone(),
        jobs: how.jobs,
        version: format!("{} ({})", env!("CARGO_PKG_VERSION"), env!("DW_GIT")),
        machine,
    };
    Lab { launch, setup, jobs: vec![], failures: vec![], left_alone: 0 }.work_through(plan)
}

/// How runs are started on this machine, and its description.
fn launch(how: &Execution, topology: &Topology) -> Result<(Launch, String)> {
    let launcher = match &how.launcher {
        None => vec![],
        Some(text) => shlex::split(text).filter(|w| !w.is_empty()).ok_or_else(|| {
            Error::Usage(format!(
                "--launcher {text}: expected a shell command such as `mpirun -n 8`"
            ))
        })?,
    };
    let cores = threads::share(topology);
    let cpu = format!("{}, {cores} threads", cpu_name());
    let gpus = if how.device == Choice::Cpu { Ok(0) } else { cuda::devices() };
    let Some(count) = gpus.ok().filter(|n| *n > 0) else {
        if how.jobs > cores {
            return Err(Error::Usage(format!(
                "--jobs {}: expected at most one run for each of the {cores} cores",
                how.jobs
            )));
        }
        if how.jobs > 1 && !launcher.is_empty() {
            tracing::warn!(
                "--jobs {} with --launcher: unless the launcher binds its ranks to cores, the \
                 ranks of each run divide all {cores} cores among themselves",
                how.jobs
            );
        }
        // By default a run uses all cores. The ranks of a launcher divide them among themselves.
        let share = if how.jobs > 1 && launcher.is_empty() { cores / how.jobs } else { 0 };
        return Ok((Launch { launcher, device: how.device, gpus: vec![], threads: share }, cpu));
    };
    if how.jobs > 1 && !launcher.is_empty() {
        return Err(Error::Usage(format!(
            "--jobs {}: expected 1 with --launcher, whose ranks share the GPUs",
            how.jobs
        )));
    }
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    let visible = gpus_of_slots(how.jobs, count, visible.as_deref())?;
    let threads = if how.jobs > 1 { (cores / how.jobs).max(1) } else { 0 };
    let machine = format!("{count} GPUs; {cpu}");
    Ok((Launch { launcher, device: how.device, gpus: visible, threads }, machine))
}

/// The GPU of each slot, as in CUDA_VISIBLE_DEVICES; empty if there is one slot, which sees all
/// GPUs. `visible`: this process's own CUDA_VISIBLE_DEVICES.
fn gpus_of_slots(jobs: usize, count: usize, visible: Option<&str>) -> Result<Vec<String>> {
    if jobs == 1 {
        return Ok(vec![]);
    }
    if jobs > count {
        return Err(Error::Usage(format!(
            "--jobs {jobs}: expected at most one run for each of the {count} GPUs"
        )));
    }
    Ok(match visible {
        Some(list) => list.split(',').take(jobs).map(|gpu| gpu.trim().to_owned()).collect(),
        None => (0..jobs).map(|gpu| gpu.to_string()).collect(),
    })
}

/// The processor's name.
fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|l| l.starts_with("model name"));
    line.and_then(|l| l.split_once(':')).map_or_else(|| "CPU".into(), |(_, n)| n.trim().into())
}

/// State of `dw-lab run`: the running jobs and the failures.
struct Lab {
    launch: Launch,
    setup: Setup,
    jobs: Vec<Job>,
    /// Runs that failed: name and exit code.
    failures: Vec<(String, i32)>,
    /// Runs that another `dw-lab` has taken.
    left_alone: usize,
}

impl Lab {
    fn work_through(mut self, plan: LabPlan) -> Result<()> {
        let stop = dw_launch::signals::catch_interrupt()
            .and_then(|()| dw_launch::signals::listen())
            .map_err(Error::io("cannot handle", std::path::Path::new("signals")))?;
        let mut finished = plan.finished.len();
        let total = finished + plan.open.len();
        let mut waiting = plan.open.into_iter();
        let mut stopping = false;
        loop {
            if !stopping && stop.load(Ordering::Relaxed) {
                tracing::warn!("stopping: each run writes a checkpoint first");
                self.jobs.iter().for_each(Job::stop);
                stopping = true;
            }
            while !stopping && self.jobs.len() < self.setup.jobs {
                let Some(run) = waiting.next() else { break };
                let name = run.name();
                if let Err(e) = self.start(run) {
                    tracing::error!("{name}: not started: {e}");
                    self.failures.push((name, e.exit_code()));
                }
            }
            if self.jobs.is_empty() {
                break;
            }
            std::thread::sleep(POLL);
            finished += self.reap(stopping, finished, total)?;
        }
        if stopping {
            return Err(Error::Preempted(format!(
                "stopped with {finished} of {total} runs finished\n\
                 hint: run the same command again to resume"
            )));
        }
        self.verdict(total)
    }

    /// Starts a run in a free slot.
    fn start(&mut self, run: LabRun) -> Result<()> {
        let taken = |slot: &usize| self.jobs.iter().any(|j| j.slot == *slot);
        let slot = (0..self.setup.jobs).find(|s| !taken(s)).unwrap_or(0);
        let name = run.name();
        if let Some(job) = Job::start(run, slot, &self.launch)? {
            tracing::info!("{name}: started, log {}", shown(&job.log().display().to_string()));
            self.jobs.push(job);
        } else {
            self.left_alone += 1;
        }
        Ok(())
    }

    /// Collects the runs that have ended; returns how many finished.
    fn reap(&mut self, stopping: bool, finished: usize, total: usize) -> Result<usize> {
        let mut done = 0;
        let mut running = vec![];
        for mut job in std::mem::take(&mut self.jobs) {
            let Some(status) = job.poll()? else {
                running.push(job);
                continue;
            };
            let name = job.run.name();
            if status.success() {
                match job.finish(&self.setup) {
                    Ok(outcome) => {
                        done += 1;
                        tracing::info!(
                            "{name}: AP {:.4} in {:.1} min ({} of {total})",
                            outcome.metrics.get("AP").copied().unwrap_or(f64::NAN),
                            (outcome.cost.train_s + outcome.cost.eval_s) / 60.0,
                            finished + done
                        );
                    }
                    Err(e) => {
                        tracing::error!("{name}: no result: {e}");
                        self.failures.push((name, e.exit_code()));
                    }
                }
            } else if !stopping {
                // Without an exit code, the process was ended by a signal, such as that of the OOM
                // killer.
                let code = status.code().unwrap_or(dw_base::exit::PEER);
                tracing::error!("{name}: failed, {status}; the last lines of {}", tail(&job));
                self.failures.push((name, code));
            }
        }
        self.jobs = running;
        Ok(done)
    }

    /// The result of a request whose runs have all ended.
    fn verdict(self, total: usize) -> Result<()> {
        if self.left_alone > 0 {
            tracing::warn!("{} of {total} runs were taken by another dw-lab", self.left_alone);
        }
        let Some((_, code)) = self.failures.first() else { return Ok(()) };
        let names: Vec<&str> = self.failures.iter().map(|f| f.0.as_str()).collect();
        let text = format!(
            "{} of {total} runs failed: {}\nhint: the same command starts them again",
            names.len(),
            names.join(", ")
        );
        Err(Error::Child { code: *code, text })
    }
}

/// The path of a job's log and its last lines, for a message.
fn tail(job: &Job) -> String {
    let path = job.log();
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(TAIL).collect();
    let lines: Vec<String> = lines.iter().rev().map(|l| format!("\n  {}", shown(l))).collect();
    format!("{}:{}", shown(&path.display().to_string()), lines.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_has_a_gpu_of_its_own() {
        assert_eq!(gpus_of_slots(1, 8, None).unwrap(), Vec::<String>::new());
        assert_eq!(gpus_of_slots(3, 8, None).unwrap(), ["0", "1", "2"]);
        assert_eq!(gpus_of_slots(2, 2, Some("4, GPU-ab")).unwrap(), ["4", "GPU-ab"]);
        assert!(gpus_of_slots(3, 2, None).unwrap_err().to_string().contains("2 GPUs"));
    }
}
