//! The command line of `dw-launch`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use dw_base::program::{end_on_closed_pipe, print_message, print_result};
use dw_base::text::lines;
use dw_base::{Error, Result};

use crate::job::batch::{self, Batch, BatchJob};
use crate::job::command::{Bind, JobSpec, LaunchCommand, Machine, Starter, check_ranks, own_word};
use crate::job::supervisor::{self, Options};
use crate::plan::measure::{self, Fit};
use crate::plan::{self, Inputs};
use crate::rank::World;

const EXAMPLES: &str = "\
Examples:
  dw-launch -n 8 -- dw-train dw_r50_fpn_1x
                                 eight ranks on this node
  dw-launch --max-restarts 3 -- dw-train
                                 one rank per GPU; restart when a rank is lost
  dw-launch --hosts a:8,b:8 -- dw-train
                                 two hosts, by mpirun over ssh
  dw-launch --slurm --nodes 2 -n 16 --time 12:00:00 -- dw-train
                                 write and submit a batch script
  dw-launch --raw-stdout -n 2 -- dw-eval work/a --json >ap.json
  dw-launch plan --gpus 8..512 --step-ms 180
                                 predict the step time on more GPUs
  dw-launch --raw-stdout -n 2 -- dw-launch measure >link.jsonl
  dw-launch plan --measured link.jsonl --step-ms 180
                                 predict with the measured link of this machine

Signals:
  USR1 requests a checkpoint; the job exits with code 75 after it. So do TERM, INT and QUIT, within
  --grace seconds; a second of these ends the ranks immediately.

Exit codes:
  that of the rank that failed first; 4 if a rank was lost or timed out, 75 after a requested
  checkpoint, 2 for a usage error, 5 if a thread or process cannot be started

Fault injection:
  DW_FAULT=kill@1:20 kills rank 1 at step 20 (kinds: kill, panic, exit, stop, oom, nan). The fault
  is not repeated after a restart, except with a trailing `!`, as in kill@1:20!";

/// Start the ranks of a job, supervise them, and restart the job when a rank is lost
#[derive(Debug, Parser)]
#[command(
    name = "dw-launch",
    version = crate::VERSION,
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Sub>,
    #[command(flatten)]
    job: Job,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// Predict step time, exposed communication and training hours on more GPUs
    Plan {
        #[command(flatten)]
        inputs: Inputs,
        /// Output of `dw-launch measure`, from which --node-us and --node-gbs are computed
        #[arg(long, value_name = "FILE", conflicts_with_all = ["node_us", "node_gbs"])]
        measured: Option<PathBuf>,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Measure all-reduces of host memory between the ranks of a job (run it with dw-launch)
    Measure,
}

#[derive(Debug, Args)]
struct Job {
    /// Number of ranks [default: the allocation's tasks, else one per GPU or node]
    #[arg(short = 'n', long, value_name = "N")]
    ranks: Option<usize>,
    /// Number of nodes
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// Hosts and their number of ranks for mpirun over ssh, such as a:8,b:8
    #[arg(long, value_name = "HOST:N,...", conflicts_with = "slurm")]
    hosts: Option<String>,
    /// Program that starts the ranks
    #[arg(long, value_enum, default_value = "auto")]
    starter: Starter,
    /// Binding of ranks to cores
    #[arg(long, value_enum, default_value = "auto")]
    bind: Bind,
    /// Threads per rank, unless train.threads is set [default: an equal share of the node's cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Largest number of restarts from the newest checkpoint after a lost rank
    #[arg(long, value_name = "K", default_value_t = 0)]
    max_restarts: usize,
    /// Seconds to wait before a restart
    #[arg(long, value_name = "S", default_value_t = 2.0, value_parser = seconds)]
    restart_delay: f64,
    /// Seconds that the ranks have for a checkpoint after TERM or INT
    #[arg(long, value_name = "S", default_value_t = 60)]
    grace: u64,
    /// Seconds from the first failure until the rest of the job is killed
    #[arg(long, value_name = "S", default_value_t = 8)]
    tear_down: u64,
    /// Pass output on unchanged, without `[rank]` before each line
    #[arg(long)]
    raw_stdout: bool,
    /// Print the command or the batch script and exit
    #[arg(long)]
    dry_run: bool,
    /// Write and submit a batch script instead of starting ranks
    #[arg(long)]
    slurm: bool,
    #[command(flatten)]
    batch: Batch,
    /// Program of the ranks and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    program: Vec<String>,
}

/// Parses a pause in seconds.
fn seconds(text: &str) -> std::result::Result<f64, String> {
    let value = text.parse().ok().filter(|s| (0.0..=3600.0).contains(s));
    value.ok_or_else(|| "expected a number of seconds from 0 to 3600".to_owned())
}

impl Cli {
    /// Runs the command; returns the exit code of a job.
    ///
    /// # Errors
    /// Usage errors, and resources that the system refuses.
    pub fn run(self) -> Result<ExitCode> {
        let starts_ranks = !self.job.slurm && !self.job.dry_run;
        let is_rank = matches!(self.command, Some(Sub::Measure));
        if !is_rank && (self.command.is_some() || !starts_ranks) {
            end_on_closed_pipe();
        }
        match self.command {
            Some(Sub::Plan { inputs, measured, json }) => {
                print_plan(inputs, measured.as_deref(), json)?;
                Ok(ExitCode::SUCCESS)
            }
            Some(Sub::Measure) => print_measurements().map(|()| ExitCode::SUCCESS),
            None if self.job.slurm => self.job.submit().map(|()| ExitCode::SUCCESS),
            None => self.job.run(),
        }
    }
}

fn print_plan(mut inputs: Inputs, measured: Option<&Path>, json: bool) -> Result<()> {
    if let Some(path) = measured {
        let rows = measure::read(path)?;
        let fit = Fit::new(&rows)?;
        (inputs.node_us, inputs.node_gbs) = (fit.us, fit.gbs);
        if !json {
            print_result(format_args!("{}\n", measure::table(&rows, fit)))?;
        }
    }
    inputs.check()?;
    if !json {
        print_result(plan::table(&inputs))?;
        return Ok(());
    }
    for gpus in &inputs.gpus.0 {
        print_result(json_line(&inputs.predict(*gpus))?)?;
    }
    Ok(())
}

fn json_line(row: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(row).map_err(|e| Error::Bug(e.to_string()))
}

fn print_measurements() -> Result<()> {
    crate::prepare();
    let world = World::new(crate::join()?)?;
    let rows = measure::all_reduces(&world)?;
    if world.rank() == 0 {
        for row in &rows {
            print_result(json_line(row)?)?;
        }
    }
    world.leave(0);
    Ok(())
}

impl Job {
    fn run(self) -> Result<ExitCode> {
        let options = Options {
            max_restarts: self.max_restarts,
            restart_delay: Duration::from_secs_f64(self.restart_delay),
            grace: Duration::from_secs(self.grace),
            tear_down: Duration::from_secs(self.tear_down),
            raw_stdout: self.raw_stdout,
        };
        let spec = JobSpec {
            ranks: self.ranks,
            nodes: self.nodes,
            hosts: self.hosts,
            starter: self.starter,
            bind: self.bind,
            threads: self.threads,
            raw: self.raw_stdout,
            program: self.program,
        };
        let machine = Machine::detect();
        let command = LaunchCommand::new(&spec, &machine)?;
        if let Some(from) = &command.ranks_from {
            let ranks = if command.ranks == 1 { "rank" } else { "ranks" };
            print_message(&format!("dw-launch: {} {ranks} (from {from})", command.ranks));
        }
        for text in &command.warnings {
            tracing::warn!("{}", lines(text));
        }
        if self.dry_run {
            print_result(command.shell_line()?)?;
            return Ok(ExitCode::SUCCESS);
        }
        if !command.remote {
            check_ranks(command.ranks, &machine)?;
        }
        Ok(ExitCode::from(supervisor::run(&command, &options)? as u8))
    }

    fn submit(&self) -> Result<()> {
        for (option, value) in
            [("-n", self.ranks), ("--nodes", self.nodes), ("--threads", self.threads)]
        {
            if value == Some(0) {
                return Err(Error::Usage(format!("{option} 0: expected at least 1")));
            }
        }
        let nodes = self.nodes.unwrap_or(1);
        let by_gpus = || Some(self.batch.gpus_per_node?.max(1) * nodes);
        let ranks = self.ranks.or_else(by_gpus).ok_or_else(|| {
            Error::Usage(
                "--slurm: expected the number of ranks\nhint: -n 16 --nodes 2, or \
                 --gpus-per-node 8 --nodes 2"
                    .into(),
            )
        })?;
        let options = &self.inner_options();
        let (batch, launcher) = (&self.batch, &own_word("dw-launch"));
        let job = BatchJob { batch, ranks, nodes, launcher, options, program: &self.program };
        let text = job.script()?;
        if self.dry_run {
            return print_result(text.trim_end());
        }
        let path = self.batch.path();
        batch::write(&path, &text, self.batch.overwrite)?;
        if self.batch.no_submit {
            print_result(path.display())?;
        } else {
            print_result(lines(batch::submit(&path)?))?;
        }
        Ok(())
    }

    /// Options of the `dw-launch` that the batch script runs.
    fn inner_options(&self) -> Vec<String> {
        let mut options = vec![];
        let mut push = |name: &str, value: String| options.extend([name.to_owned(), value]);
        push("--max-restarts", self.max_restarts.to_string());
        push("--restart-delay", self.restart_delay.to_string());
        push("--grace", self.grace.to_string());
        push("--tear-down", self.tear_down.to_string());
        if let Some(threads) = self.threads {
            push("--threads", threads.to_string());
        }
        if self.starter != Starter::Auto {
            push("--starter", name_of(&self.starter));
        }
        if self.bind != Bind::Auto {
            push("--bind", name_of(&self.bind));
        }
        if self.raw_stdout {
            options.push("--raw-stdout".to_owned());
        }
        options
    }
}

/// Name of an option's value on the command line.
fn name_of(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default()
}
