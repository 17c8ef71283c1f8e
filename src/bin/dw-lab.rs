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
mu), table3 (gamma), table4 (candidate bag), table5 (negative weight), table6 (systems, R-50),
table7 (DW, larger backbones).

A finished run is the file lab/TABLE/ROW-seedN.json and is not run again; an interrupted run
resumes from its last checkpoint. Several dw-lab can share a folder.

Exit codes: 0 success, 2 usage error, 3 bad data, 75 stopped by a signal, otherwise that of the
first run that failed";

/// Train and compare a set of configurations: a table of the DW paper, or your own.
#[derive(Debug, Parser)]
#[command(name = "dw-lab", version, after_help = EXAMPLES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train and evaluate the rows that are not finished
    Run {
        #[command(flatten)]
        request: Request,
        #[command(flatten)]
        how: Execution,
    },
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

fn main() {
    let command = app::parse::<Cli>().command;
    let (device, catch_signals) = match &command {
        Command::Run { how, .. } => (how.device, true),
        Command::Show { .. } => (Choice::Cpu, false),
    };
    app::run(Start { device, catch_signals }, |topology, _| match &command {
        Command::Run { request, how } => run(request, how, topology),
        Command::Show { table, out, file } => show(table, out, file.as_deref()),
    })
}
