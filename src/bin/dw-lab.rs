//! `dw-lab`: tables of label-assignment strategies, with error bars.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use dw::app::lab::plan::Request;
use dw::app::lab::run::{Execution, run};
use dw::app::lab::show::show;
use dw::app::{self, Start};
use dw::device::Choice;

const EXAMPLES: &str = "Examples:
  dw-lab run table6 --data coco/shards --jobs 8      each row on a GPU of its own
  dw-lab run table6 --data coco/shards --launcher \"mpirun -n 8\"
                                                     each row on all GPUs of a node
  dw-lab run table5 --base neu_det --data neu/shards --seeds 3 --jobs 2
                                                     with a small network on small data
  dw-lab run my-table/                               a folder of configurations NN_NAME.toml
  dw-lab show table5                                 Markdown on standard output
  dw-lab show table5 -o table5.html                  a page with a plot

Tables: table1 (weighting functions, normalisation of DW), table1_native (their own), table2 (beta,
mu), table3 (gamma), table4 (candidate bag), table5 (negative weight), table6 (systems, R-50), table7
(DW, larger backbones).

A finished run is the file lab/TABLE/ROW-seedN.json and is not run again; a run that was interrupted
goes on with its last checkpoint. Several dw-lab can share a folder.

Exit codes: 0 success, 2 usage error, 3 bad data, 75 stopped by a signal, otherwise that of the first
run that failed";

/// Train and compare the rows of a table of the DW paper, or of your own.
#[derive(Debug, Parser)]
#[command(name = "dw-lab", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train and evaluate the rows that are not finished
    Run(RunArgs),
    /// Write the table of finished runs
    Show {
        /// Name of a table, or a folder of configurations
        table: String,
        /// Folder of results
        #[arg(long, value_name = "DIR", default_value = "lab")]
        out: PathBuf,
        /// Output file: .md, with a plot in .svg beside it, or .html [default: Markdown on standard
        /// output]
        #[arg(short = 'o', long = "output", value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    /// Name of a table, or a folder of configurations
    table: String,
    /// Rows [default: all]
    #[arg(long, value_delimiter = ',', value_name = "ROW,...")]
    rows: Vec<String>,
    /// Configuration that the rows are based on, instead of the one for COCO
    #[arg(long, value_name = "CONFIG")]
    base: Option<String>,
    /// Set one key in every row, as train.epochs=6 (repeatable)
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
    /// Folder of shards (`data.shards`)
    #[arg(long, value_name = "OUT")]
    data: Option<PathBuf>,
    /// Folder of results
    #[arg(long, value_name = "DIR", default_value = "lab")]
    out: PathBuf,
    /// Number of seeds
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Number of runs at a time: each on a GPU of its own, or with its share of the CPU cores
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: u16,
    /// Command that starts the ranks of a run, as "mpirun -n 8"
    #[arg(long, value_name = "COMMAND")]
    launcher: Option<String>,
    /// Device
    #[arg(long, value_enum, default_value = "auto")]
    device: Choice,
    /// Print the runs that are not finished and end
    #[arg(long)]
    dry_run: bool,
}

fn main() {
    let cli: Cli = app::parse();
    match cli.command {
        Command::Run(args) => {
            let RunArgs { table, rows, base, set: mut sets, data, out, seeds, .. } = args;
            // A path is passed as a TOML literal string, in which no character is special.
            let data = data.map(|d| format!("data.shards='''{}'''", d.display()));
            sets.extend(data);
            let request = Request { table, rows, base, sets, out, seeds };
            let how = Execution {
                jobs: args.jobs.into(),
                launcher: args.launcher,
                device: args.device,
                dry_run: args.dry_run,
            };
            let start = Start { device: args.device, catch_signals: true };
            app::run(start, |topology, _| run(&request, &how, topology))
        }
        Command::Show { table, out, file } => {
            let start = Start { device: Choice::Cpu, catch_signals: false };
            app::run(start, |_, _| show(&table, &out, file.as_deref()))
        }
    }
}
