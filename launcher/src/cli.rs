//! The command line of `dw-launch`.
#![expect(clippy::print_stdout, reason = "a command line's results")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use dw_base::text::{lines, print_error};

use crate::batch::{self, Batch};
use crate::collectives::{Error, Result};
use crate::command::{Bind, Launch, Machine, Request, Starter};
use crate::measure::{self, Fit};
use crate::plan;
use crate::supervisor::{self, Options};
use crate::world::World;

const EXAMPLES: &str = "Examples:
  dw-launch -n 8 -- dw-train dw_r50_fpn_1x           eight ranks on this node
  dw-launch --max-restarts 3 -- dw-train             one rank a GPU; go on from the newest checkpoint when a rank is lost
  dw-launch --hosts a:8,b:8 -- dw-train              two machines by mpirun and ssh
  dw-launch --slurm --nodes 2 -n 16 --time 12:00:00 -- dw-train
                                                     write and submit a batch script
  dw-launch --raw-stdout -n 2 -- dw-eval work/a --json >ap.json
  dw-launch plan --gpus 8..512 --step-ms 180         what more GPUs would give
  dw-launch --raw-stdout -n 2 -- dw-launch measure >link.jsonl
  dw-launch plan --measured link.jsonl --step-ms 180 the same with this machine's own numbers

Signals: USR1, TERM and INT ask all ranks for a checkpoint and exit code 75; a second TERM or INT ends them at once.
Exit codes: those of the first rank that failed; 4 when a rank was lost or timed out; 75 stopped after a checkpoint;
            2 a mistake in the command, 5 no thread or process could be started.
DW_FAULT=kill@1:20 rehearses a fault: rank 1 dies at step 20 (also panic, exit, stop, oom, nan; again after a restart with kill@1:20!).";

/// Start ranks with the flags this machine needs, stay with them, start again when one is lost.
#[derive(Debug, Parser)]
#[command(name = "dw-launch", version = crate::VERSION, after_help = EXAMPLES, args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Sub>,
    #[command(flatten)]
    job: Job,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// Predict step time, exposed communication and hours on more GPUs
    Plan {
        #[command(flatten)]
        numbers: plan::Numbers,
        /// Times of `dw-launch measure`: start-up time and bandwidth within a node are taken from them
        #[arg(long, value_name = "FILE", conflicts_with_all = ["node_us", "node_gbs"])]
        measured: Option<PathBuf>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Time all-reduces of host memory between the ranks of a job (started by dw-launch or mpirun)
    Measure,
}

#[derive(Debug, Args)]
struct Job {
    /// Ranks [default: the allocation's tasks, or one a GPU, or 1]
    #[arg(short = 'n', long, value_name = "N")]
    ranks: Option<usize>,
    /// Machines
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// Machines and their ranks for mpirun over ssh, as a:8,b:8
    #[arg(long, value_name = "HOST:N,...", conflicts_with = "slurm")]
    hosts: Option<String>,
    /// What starts the ranks
    #[arg(long, value_enum, default_value = "auto")]
    starter: Starter,
    /// Binding of ranks to cores
    #[arg(long, value_enum, default_value = "auto")]
    bind: Bind,
    /// Threads of a rank [default: the node's cores shared]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Times to start again from the newest checkpoint when a rank was lost
    #[arg(long, value_name = "K", default_value_t = 0)]
    max_restarts: usize,
    /// Seconds before that
    #[arg(long, value_name = "S", default_value_t = 2.0, value_parser = seconds)]
    restart_delay: f64,
    /// Seconds that a checkpoint may take after TERM or INT
    #[arg(long, value_name = "S", default_value_t = 60)]
    grace: u64,
    /// Seconds from the first failure until what is left of the job is ended by force
    #[arg(long, value_name = "S", default_value_t = 8)]
    tear_down: u64,
    /// Standard output as the ranks write it, without `[rank]`
    #[arg(long)]
    raw_stdout: bool,
    /// Print the command and end
    #[arg(long)]
    dry_run: bool,
    /// Write a batch script and submit it instead of starting ranks here
    #[arg(long)]
    slurm: bool,
    #[command(flatten)]
    batch: Batch,
    /// Program and its arguments
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    program: Vec<String>,
}

/// Seconds of a pause.
fn seconds(text: &str) -> std::result::Result<f64, String> {
    let value = text.parse().ok().filter(|s| (0.0..=3600.0).contains(s));
    value.ok_or_else(|| "expected a number of seconds from 0 to 3600".to_owned())
}

impl Cli {
    /// Does what was asked; errors go to standard error.
    pub fn run(self) -> ExitCode {
        let done = match self.command {
            Some(Sub::Plan { numbers, measured, json }) => plan(numbers, measured.as_deref(), json),
            Some(Sub::Measure) => measure(),
            None => self.job.run(),
        };
        done.unwrap_or_else(|e| {
            print_error(&e);
            ExitCode::from(if e.out_of_resources() { 5 } else { 2 })
        })
    }
}

fn plan(mut numbers: plan::Numbers, measured: Option<&Path>, json: bool) -> Result<ExitCode> {
    if let Some(path) = measured {
        let rows = measure::read(path)?;
        let fit = Fit::new(&rows)?;
        (numbers.node_us, numbers.node_gbs) = (fit.us, fit.gbs);
        if !json {
            println!("{}\n", measure::table(&rows, fit));
        }
    }
    numbers.check()?;
    if !json {
        println!("{}", plan::table(&numbers));
        return Ok(ExitCode::SUCCESS);
    }
    for gpus in &numbers.gpus.0 {
        println!("{}", json_line(&plan::row(&numbers, *gpus))?);
    }
    Ok(ExitCode::SUCCESS)
}

fn json_line(row: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(row).map_err(|e| Error::Failed(e.to_string()))
}

fn measure() -> Result<ExitCode> {
    crate::prepare();
    let world = World::new(crate::join()?)?;
    let rows = measure::all_reduces(&world)?;
    if world.rank() == 0 {
        for row in &rows {
            println!("{}", json_line(row)?);
        }
    }
    world.leave(0);
    Ok(ExitCode::SUCCESS)
}

impl Job {
    fn run(self) -> Result<ExitCode> {
        if self.slurm {
            return self.submit();
        }
        let request = Request {
            ranks: self.ranks,
            nodes: self.nodes,
            hosts: self.hosts,
            starter: self.starter,
            bind: self.bind,
            threads: self.threads,
            program: self.program,
        };
        let launch = Launch::new(&request, &Machine::here())?;
        for text in &launch.warnings {
            tracing::warn!("{}", lines(text));
        }
        if self.dry_run {
            println!("{}", launch.line());
            return Ok(ExitCode::SUCCESS);
        }
        let options = Options {
            max_restarts: self.max_restarts,
            restart_delay: Duration::from_secs_f64(self.restart_delay),
            grace: Duration::from_secs(self.grace),
            tear_down: Duration::from_secs(self.tear_down),
            raw_stdout: self.raw_stdout,
        };
        Ok(ExitCode::from(supervisor::run(&launch, &options)? as u8))
    }

    fn submit(&self) -> Result<ExitCode> {
        let nodes = self.nodes.unwrap_or(1).max(1);
        let ranks = self
            .ranks
            .or(self.batch.gpus_per_node.map(|g| g.max(1) * nodes))
            .ok_or_else(|| Error::Failed("--slurm: how many ranks?\nhint: -n 16 --nodes 2, or --gpus-per-node 8 --nodes 2".into()))?;
        let mut inner = vec![];
        let numbers = [
            ("--max-restarts", self.max_restarts.to_string()),
            ("--restart-delay", self.restart_delay.to_string()),
            ("--grace", self.grace.to_string()),
            ("--tear-down", self.tear_down.to_string()),
        ];
        inner.extend(numbers.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
        if self.raw_stdout {
            inner.push("--raw-stdout".to_owned());
        }
        if let Some(t) = self.threads {
            inner.extend(["--threads".to_owned(), t.to_string()]);
        }
        let name = |v: Option<clap::builder::PossibleValue>| v.map(|v| v.get_name().to_owned());
        if self.starter != Starter::Auto {
            inner.extend(
                name(self.starter.to_possible_value())
                    .into_iter()
                    .flat_map(|v| ["--starter".to_owned(), v]),
            );
        }
        if self.bind != Bind::Auto {
            inner.extend(
                name(self.bind.to_possible_value())
                    .into_iter()
                    .flat_map(|v| ["--bind".to_owned(), v]),
            );
        }
        let text = batch::script(&self.batch, ranks, nodes, &inner, &self.program)?;
        if self.dry_run {
            print!("{text}");
            return Ok(ExitCode::SUCCESS);
        }
        let path = self
            .batch
            .script
            .clone()
            .unwrap_or_else(|| PathBuf::from(format!("dw-{}.sbatch", self.batch.job_name)));
        batch::write(&path, &text, self.batch.overwrite)?;
        if self.batch.no_submit {
            println!("{}", path.display());
        } else {
            println!("{}", lines(batch::submit(&path)?));
        }
        Ok(ExitCode::SUCCESS)
    }
}
