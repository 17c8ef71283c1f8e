//! The command line of `dw-eval coco`.

use std::path::PathBuf;

use crate::error::Result;

/// A results file against a ground-truth file.
#[derive(Debug, clap::Args)]
pub struct Request {
    /// Ground truth (instances_*.json)
    #[arg(long)]
    pub gt: PathBuf,
    /// Results
    #[arg(long)]
    pub dt: PathBuf,
}

/// Evaluates and prints.
///
/// # Errors
/// Bad options, bad files.
pub fn run(r: &Request) -> Result<()> {
    let _ = r;
    todo!()
}
