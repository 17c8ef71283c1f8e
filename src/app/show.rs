//! `dw-show pred` and `dw-show weighting`: predictions of a checkpoint, and the weights that label
//! assignment gives to them.

use std::path::{Path, PathBuf};

use dw_base::text::shown;
use tch::Device;

use super::inference;
use super::saved::Saved;
use crate::assign::ImageBoxes;
use crate::assign::figures::maps;
use crate::config::Config;
use crate::data::Dataset;
use crate::data::dataset::choose_split;
use crate::eval::infer::outputs_of;
use crate::model::Detector;
use crate::show::weighting::{draw, functions};
use crate::show::{check_png, pred};
use crate::{Error, Result};

/// Which images a network is applied to.
#[derive(Debug, clap::Args)]
pub struct From {
    /// Configuration of a weight file
    #[arg(long, requires = "checkpoint")]
    config: Option<String>,
    /// Folder of shards [default: the run's]
    #[arg(long, value_name = "OUT", requires = "checkpoint")]
    data: Option<PathBuf>,
    /// Split [default: the run's data.val_split]
    #[arg(long, requires = "checkpoint")]
    split: Option<String>,
}

/// Arguments of `dw-show pred`.
#[derive(Debug, clap::Args)]
pub struct PredArgs {
    /// Checkpoint folder, work directory, or weight file
    checkpoint: PathBuf,
    #[command(flatten)]
    from: From,
    /// Number of images
    #[arg(short = 'n', long, default_value_t = 9,
          value_parser = clap::value_parser!(u16).range(1..=100))]
    count: u16,
    /// Smallest score to draw; 0 for all detections [default: 0.3]
    #[arg(long, value_name = "S", value_parser = inference::score)]
    score: Option<f64>,
    /// Output file
    #[arg(short, long, value_name = "FILE.png")]
    out: PathBuf,
}

/// Arguments of `dw-show weighting`.
#[derive(Debug, clap::Args)]
pub struct WeightingArgs {
    /// Checkpoint folder, work directory, or weight file
    checkpoint: Option<PathBuf>,
    #[command(flatten)]
    from: From,
    /// Image of the split, from 0
    #[arg(long, default_value_t = 0, requires = "checkpoint")]
    image: usize,
    /// Box of the image, from 0, without crowds and boxes below 1 pixel
    #[arg(long = "box", value_name = "BOX", default_value_t = 0, requires = "checkpoint")]
    which: usize,
    /// Output file
    #[arg(short, long, value_name = "FILE.png")]
    out: PathBuf,
}

/// A network with its data and configuration.
struct Opened {
    detector: Detector,
    data: Dataset,
    config: Config,
}

impl From {
    /// Opens network and data; `limit`: number of images, 0 for all.
    fn open(&self, checkpoint: &Path, limit: usize) -> Result<Opened> {
        let saved = Saved::find(checkpoint, self.config.as_deref(), &[])?;
        let mut config = saved.config.clone();
        let d = &mut config.data;
        if let Some(shards) = &self.data {
            d.shards.clone_from(shards);
        }
        if let Some(split) = &self.split {
            d.val_split.clone_from(split);
        }
        let split = choose_split(&d.shards, &d.val_split, "val2017", "val", "data.val_split")?;
        let data = Dataset::open(&d.shards, &split, limit, false)?;
        let detector = saved.detector(&data, Device::Cpu)?;
        Ok(Opened { detector, data, config })
    }
}

/// Draws the first images of a split with true and predicted boxes.
///
/// # Errors
/// A damaged checkpoint or record, a file that cannot be written.
pub fn predictions(args: &PredArgs) -> Result<()> {
    check_png(&args.out)?;
    let Opened { detector, data, config } = args.from.open(&args.checkpoint, args.count.into())?;
    inference::check_score(args.score, &config, detector.inference.rank);
    let view = pred::View {
        detector: &detector,
        data: &data,
        input: &config.data,
        eval: &config.eval,
        score: args.score.unwrap_or(inference::SCORE) as f32,
    };
    pred::draw(&view, &args.out)
}

/// Draws weighting functions, or the weights of an object's points under DW, GFL and VFL, and under
/// the latter two at ATSS's positive points.
///
/// # Errors
/// An image or box that does not exist, and as [`predictions`].
pub fn weights(args: &WeightingArgs) -> Result<()> {
    let WeightingArgs { image: index, which, out, .. } = args;
    check_png(out)?;
    let Some(checkpoint) = &args.checkpoint else { return functions::draw(out) };
    let Opened { detector, data, config } = args.from.open(checkpoint, 0)?;
    let Some(&number) = data.records.get(*index) else {
        return Err(Error::Usage(format!(
            "--image {index}: the split has {} images, numbered from 0",
            data.len()
        )));
    };
    let record = data.split.record(number)?;
    let (outputs, view) = outputs_of(&detector, &record, &config.data, Device::Cpu)?;
    let (boxes, labels) = view.boxes(&record.annotations.boxes, record.entry.original());
    let truth = ImageBoxes { boxes, labels, padded: None };
    let maps = maps::compute(&outputs.flatten(), &truth, *which, &config.assign)?;
    let scene = draw::Scene {
        image: &record.decode()?,
        input: (f64::from(view.width), f64::from(view.height)),
        heading: format!(
            "{}, box {which} ({}), stride {}; network of {}",
            shown(&record.annotations.file_name),
            shown(&data.categories()[maps.label as usize].name),
            maps.stride,
            shown(&checkpoint.display().to_string())
        ),
    };
    draw::draw(&maps, &scene, out)
}
