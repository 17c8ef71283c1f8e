//! The command line of `dw-weights`.
#![expect(clippy::print_stdout, reason = "the command line's results")]

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use dw_base::text::{self, shown};
use serde_json::{Map, json};

use crate::convert::convert;
use crate::error::{Error, Result};
use crate::fetch::{PINNED, Pinned, cache};
use crate::file::Weights;

const EXAMPLES: &str = "Examples:
  dw-weights list epoch_12.pth                         names, types and shapes
  dw-weights list work/dw_r50_fpn_1x/checkpoints/step-00087972 --json
  dw-weights convert epoch_12.pth epoch_12.safetensors
  dw-weights fetch resnet50                            ImageNet weights into the cache that `model.init = \"imagenet\"` reads

Exit codes: 0 done, 2 a mistake in the command or no network, 3 a damaged file";

/// Look into, convert and fetch weight files: .safetensors, PyTorch's .pth (nothing in it is executed), checkpoints.
#[derive(Debug, Parser)]
#[command(name = "dw-weights", version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("DW_GIT"), ")"), after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Names, types and shapes of a file's tensors
    List {
        /// Weight file or checkpoint folder
        file: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Write .safetensors with the same names and numbers
    Convert {
        /// Weight file or checkpoint folder
        input: PathBuf,
        /// File to write, ending in .safetensors
        output: PathBuf,
    },
    /// Download a pinned file and check it
    Fetch {
        /// Backbone, as resnet50
        name: String,
        /// Folder to put it in [default: the cache]
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
    },
}

/// Runs a command.
///
/// # Errors
/// A mistake, a damaged file, no network.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::List { file, json } => list(&file, json),
        Command::Convert { input, output } => {
            let weights = Weights::open(&input)?;
            convert(&weights, &output)?;
            let from = weights.wrapper.map_or_else(String::new, |w| {
                format!(" of `{w}`; what else the file holds is left out")
            });
            println!("{}: {} tensors{from}", output.display(), weights.tensors.len());
            Ok(())
        }
        Command::Fetch { name, to } => {
            let names: Vec<&str> = PINNED.iter().map(|p| p.name).collect();
            let pinned = Pinned::find(&name).ok_or_else(|| {
                Error::Usage(format!(
                    "no pinned weights `{name}`\nhint: there are {}",
                    names.join(", ")
                ))
            })?;
            println!("{}", pinned.fetch(&to.unwrap_or_else(cache))?.display());
            Ok(())
        }
    }
}

fn list(file: &Path, as_json: bool) -> Result<()> {
    let weights = Weights::open(file)?;
    let numbers: usize = weights.tensors.values().map(|t| t.shape.iter().product::<usize>()).sum();
    if as_json {
        let tensors: Map<_, _> = weights
            .tensors
            .iter()
            .map(|(n, t)| (n.clone(), json!({"dtype": format!("{:?}", t.dtype), "shape": t.shape})))
            .collect();
        let found = json!({
            "container": weights.container,
            "wrapper": weights.wrapper,
            "numbers": numbers,
            "classes": weights.classes,
            "tensors": tensors,
        });
        println!("{}", text::json(&found.to_string()));
        return Ok(());
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    for (name, t) in &weights.tensors {
        let shape: Vec<String> = t.shape.iter().map(ToString::to_string).collect();
        table.add_row([shown(name).to_string(), format!("{:?}", t.dtype), shape.join(" x ")]);
    }
    println!("{table}");
    if let Some(names) = &weights.classes {
        println!("classes: {}", shown(names.join(", ")));
    }
    let wrapper = weights.wrapper.map_or_else(String::new, |w| format!(", below `{w}`"));
    println!(
        "{}{wrapper}: {} tensors, {numbers} numbers",
        weights.container,
        weights.tensors.len()
    );
    Ok(())
}
