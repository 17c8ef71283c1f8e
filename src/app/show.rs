//! `dw-show pred`: predictions of a checkpoint on a split.

use std::path::{Path, PathBuf};

use tch::Device;

use super::saved::Saved;
use crate::Result;
use crate::data::Dataset;
use crate::data::dataset::choose_split;
use crate::show::pred;

/// Arguments of `dw-show pred`.
#[derive(Debug)]
pub struct PredArgs {
    /// Checkpoint folder, work directory or weight file.
    pub checkpoint: PathBuf,
    /// Configuration of a weight file.
    pub config: Option<String>,
    /// Folder of shards, if not the run's.
    pub data: Option<PathBuf>,
    /// Split, if not the run's validation split.
    pub split: Option<String>,
    /// Number of images.
    pub count: usize,
    /// Smallest score to draw.
    pub score: f32,
}

/// Draws the first images of a split with true and predicted boxes into the PNG file `out`.
///
/// # Errors
/// A damaged checkpoint or record, a file that cannot be written.
pub fn predictions(args: &PredArgs, out: &Path) -> Result<()> {
    let saved = Saved::find(&args.checkpoint, args.config.as_deref(), &[])?;
    let mut d = saved.config.data.clone();
    if let Some(shards) = &args.data {
        d.shards.clone_from(shards);
    }
    if let Some(split) = &args.split {
        d.val_split.clone_from(split);
    }
    let split = choose_split(&d.shards, &d.val_split, "val2017", "val", "data.val_split")?;
    let data = Dataset::open(&d.shards, &split, args.count, false)?;
    let detector = saved.detector(&data, Device::Cpu)?;
    let view = pred::View {
        detector: &detector,
        data: &data,
        input: &d,
        eval: &saved.config.eval,
        score: args.score,
    };
    pred::draw(&view, out)
}
