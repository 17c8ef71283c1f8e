//! `dw-export`: a checkpoint as an ONNX model.

use std::io::Write;
use std::path::PathBuf;

use dw_base::file::write_atomically;
use dw_base::text::shown;

use super::classes::ClassArgs;
use super::saved::Saved;
use crate::export::{Form, Network, export};
use crate::{Error, Result};

/// Arguments of `dw-export`.
#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    /// Checkpoint folder, work directory (its newest checkpoint), or weight file
    checkpoint: PathBuf,
    /// File to write
    #[arg(value_name = "OUT.onnx")]
    out: PathBuf,
    /// Configuration that a weight file belongs to
    #[arg(long)]
    config: Option<String>,
    #[command(flatten)]
    classes: ClassArgs,
    /// Set a configuration key, for example eval.nms_iou=0.5 (repeatable)
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
    /// Fixed height and width of the network input, multiples of 32, pixels
    #[arg(long, num_args = 2, value_names = ["H", "W"], conflicts_with = "dynamic")]
    size: Option<Vec<u32>>,
    /// Any height and width that are multiples of 32 [default]
    #[arg(long)]
    dynamic: bool,
    /// Include score threshold, detection limits and NMS in the model
    #[arg(long)]
    nms: bool,
}

/// Writes the ONNX model.
///
/// # Errors
/// A damaged checkpoint, a network or size that cannot be exported, a file that cannot be written.
pub fn run(args: &ExportArgs) -> Result<()> {
    if args.out.extension().is_none_or(|e| !e.eq_ignore_ascii_case("onnx")) {
        return Err(Error::Usage(format!(
            "{}: expected the name of a file to write that ends in .onnx",
            args.out.display()
        )));
    }
    let mut saved = Saved::find(&args.checkpoint, args.config.as_deref(), &args.set)?;
    args.classes.apply(&mut saved)?;
    let (detector, classes) = saved.detector_alone()?;
    let config = &saved.config;
    let network = Network {
        detector: &detector,
        model: &config.model,
        classes: &classes,
        input: &config.data,
        eval: &config.eval,
    };
    let size = args.size.as_ref().map(|s| (i64::from(s[0]), i64::from(s[1])));
    let bytes = export(&network, Form { size, nms: args.nms })?;
    if config.eval.flip {
        tracing::warn!("eval.flip = true: the model does not detect on mirrored images");
    }
    write_atomically(&args.out, |file| file.write_all(&bytes))?;
    tracing::info!(
        "{}: {} classes, f32, {} bytes",
        shown(args.out.display()),
        classes.len(),
        bytes.len()
    );
    Ok(())
}
