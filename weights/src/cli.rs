//! Command line of `dw-weights`.

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};
use dw_base::program::print_result;
use dw_base::text::{self, shown};
use dw_base::{Error, Result};
use serde_json::{Map, json};

use crate::convert::convert;
use crate::fetch::{PINNED, Pinned, cache};
use crate::file::Weights;

const EXAMPLES: &str = "Examples:
  dw-weights list epoch_12.pth                     names, types and shapes of the tensors
  dw-weights list work/dw_r50_fpn_1x/checkpoints/step-00087972 --json
  dw-weights convert epoch_12.pth epoch_12.safetensors
  dw-weights fetch resnet50                        ImageNet weights for `model.init = \"imagenet\"`

Exit codes: 0 success, 2 usage error or no network, 3 damaged file or failed write";

/// Git revision and version, for `--version`.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("DW_GIT"), ")");

/// List, convert and download weight files: .safetensors, PyTorch .pth (never executed) and
/// checkpoints
#[derive(Debug, Parser)]
#[command(name = "dw-weights", version = VERSION, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the names, types and shapes of the tensors in a file
    List {
        /// Weight file or checkpoint folder
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Convert a file to .safetensors, with unchanged values; a prefix `module.` common to all
    /// names is removed
    Convert {
        /// Weight file or checkpoint folder
        input: PathBuf,
        /// Output file; the name must end in .safetensors
        output: PathBuf,
    },
    /// Download pretrained ImageNet weights and verify their checksum
    Fetch {
        /// Name of the backbone, such as resnet50
        name: String,
        /// Folder to download into [default: ~/.cache/dw/weights]
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
    },
}

/// Runs the command line.
///
/// # Errors
/// A usage error, a damaged file, no network, a failed write.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::List { file, json } => list(&file, json),
        Command::Convert { input, output } => {
            let weights = Weights::open(&input)?;
            convert(&weights, &output)?;
            let others = weights.wrapper.map_or("", |_| "; other data was not converted");
            print_result(format_args!(
                "{}: {} tensors{}{others}",
                shown(output.display()),
                weights.tensors.len(),
                weights.origin()
            ))?;
            Ok(())
        }
        Command::Fetch { name, to } => {
            let names: Vec<&str> = PINNED.iter().map(|p| p.name).collect();
            let pinned = Pinned::find(&name).ok_or_else(|| {
                Error::Usage(format!(
                    "no pretrained weights for `{name}`\nhint: expected one of {}",
                    names.join(", ")
                ))
            })?;
            let folder = to.map_or_else(cache, Ok)?;
            print_result(pinned.fetch(&folder)?.display())?;
            Ok(())
        }
    }
}

fn list(file: &Path, as_json: bool) -> Result<()> {
    let weights = Weights::open(file)?;
    let num_elements: usize =
        weights.tensors.values().map(|t| t.shape.iter().product::<usize>()).sum();
    if as_json {
        let tensors: Map<_, _> = weights
            .tensors
            .iter()
            .map(|(n, t)| (n.clone(), json!({"dtype": format!("{:?}", t.dtype), "shape": t.shape})))
            .collect();
        let listing = json!({
            "container": weights.container,
            "wrapper": weights.wrapper,
            "numbers": num_elements,
            "classes": weights.classes,
            "tensors": tensors,
        });
        return print_result(text::json(&listing.to_string()));
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    for (name, t) in &weights.tensors {
        let shape: Vec<String> = t.shape.iter().map(ToString::to_string).collect();
        table.add_row([shown(name).to_string(), format!("{:?}", t.dtype), shape.join(" x ")]);
    }
    print_result(&table)?;
    if let Some(names) = &weights.classes {
        print_result(format_args!("classes: {}", shown(names.join(", "))))?;
    }
    print_result(format_args!(
        "{}{}: {} tensors, {num_elements} elements",
        weights.container,
        weights.origin(),
        weights.tensors.len()
    ))
}
