//! `dw-detect`: detections on any pictures, as text, JSON lines and drawn pictures.
//!
//! * [`inputs`]: the pictures that the command line names
//! * [`outputs`]: the folder of `-o`
//! * [`report`]: what rank 0 prints and writes

pub mod inputs;
pub mod outputs;
pub mod report;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use dw_launch::{Op, Topology, World};
use dw_shards::coco::Category;
use dw_shards::input::{self, MAX_IMAGE_BYTES};
use dw_shards::pixels::{Rgb, decode_source};
use tch::Device;

use super::classes::ClassArgs;
use super::inference;
use super::saved::Saved;
use crate::data::DataConfig;
use crate::device::Choice;
use crate::device::join::join;
use crate::device::threads::for_this_machine;
use crate::eval::EvalConfig;
use crate::eval::infer::{Decoded, Timings, detect_images, run_batches};
use crate::model::Detector;
use crate::show::picture;
use crate::train::init::check_agreement;
use crate::{Error, Result};
use report::{Decoding, Found, Outcome, Report};

/// Arguments of `dw-detect`.
#[derive(Debug, clap::Args)]
pub struct DetectArgs {
    /// Checkpoint folder, work directory (its newest checkpoint), or weight file
    pub weights: PathBuf,
    /// Image files; folders (not recursive, sorted by name); or - to read paths from standard
    /// input, one per line
    #[arg(required = true, value_name = "PICTURE|DIR|-")]
    pub pictures: Vec<PathBuf>,
    /// Write each picture with its boxes as PNG, and detections.jsonl, into this folder
    #[arg(short, long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Print one line of JSON for each picture
    #[arg(long)]
    pub json: bool,
    /// Smallest score to print, write and draw; 0 for all detections [default: 0.3]
    #[arg(long, value_name = "S", value_parser = inference::score)]
    pub score: Option<f64>,
    /// Pictures per forward pass [default: eval.batch]
    #[arg(long, value_name = "N", value_parser = inference::batch)]
    pub batch: Option<usize>,
    /// Short and long side of the network input, as 800x1333 [default: data.short_side,
    /// data.long_side]
    #[arg(long, value_name = "SHORTxLONG", value_parser = inference::scale)]
    pub scale: Option<(u32, u32)>,
    /// Detect on the mirrored picture as well
    #[arg(long)]
    pub flip: bool,
    /// Configuration that a weight file belongs to
    #[arg(long)]
    pub config: Option<String>,
    /// Classes of a weight file
    #[command(flatten)]
    pub classes: ClassArgs,
    /// Set a configuration key, for example eval.nms_iou=0.5 (repeatable)
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    pub set: Vec<String>,
    /// Device
    #[arg(long, value_enum, default_value = "auto")]
    pub device: Choice,
}

impl DetectArgs {
    /// The weights, with the options applied to their configuration.
    fn saved(&self) -> Result<Saved> {
        let mut saved = Saved::find(&self.weights, self.config.as_deref(), &self.set)?;
        inference::apply(&mut saved.config, self.batch, self.scale, self.flip);
        self.classes.apply(&mut saved)?;
        Ok(saved)
    }
}

/// Number of pictures that each rank processes before rank 0 gathers and prints the detections.
const ROUND: usize = 256;

/// Detects on all ranks; rank 0 prints and writes the detections in the order of the pictures.
///
/// # Errors
/// Weights that cannot be used, outputs that cannot be written, a lost peer. Pictures that cannot
/// be read are reported as an error at the end, after all others are done.
pub fn run(args: &DetectArgs, topology: &Topology, place: &mut Option<Arc<World>>) -> Result<()> {
    let saved = args.saved()?;
    // Only rank 0 lists the pictures: standard input is connected to it alone.
    let pictures = if topology.rank == 0 { inputs::list(&args.pictures)? } else { vec![] };
    if let (Some(folder), 0) = (&args.out, topology.rank) {
        outputs::check(folder, &pictures)?;
    }
    let num_threads = for_this_machine(saved.config.train.threads, topology);
    let device = super::device(args.device, num_threads, topology)?;
    let predictor = saved.predictor(device)?;
    if topology.rank == 0 {
        let rank = predictor.detector.inference.rank;
        inference::check_score(args.score, &saved.config, rank);
    }
    let world = join(device, place)?;
    world.set_deadline(Duration::from_secs_f64(saved.config.train.start_deadline_s));
    check_agreement(&predictor.detector.params, &world)?;
    let list = world.broadcast_bytes(inputs::to_bytes(&pictures), "list of pictures")?;
    let pictures = inputs::from_bytes(&list);
    let names = outputs::names(&pictures);
    let job = Job {
        pictures: &pictures,
        names: &names,
        folder: args.out.as_deref(),
        score: args.score.unwrap_or(inference::SCORE),
        input: &predictor.input,
        eval: &predictor.eval,
        categories: &predictor.categories,
        device,
    };
    let mut report = Report::new(args.json, &pictures, &predictor.categories);
    if let (Some(folder), 0) = (&args.out, world.rank()) {
        report.write_to(folder)?;
    }
    let began = Instant::now();
    let timings = detect_all(&predictor.detector, &world, &job, &mut report)?;
    if world.rank() > 0 {
        return Ok(());
    }
    report.finish(&timings, began.elapsed().as_secs_f64())
}

/// Everything that detection needs, except the network.
struct Job<'a> {
    pictures: &'a [PathBuf],
    /// Names of the drawn pictures.
    names: &'a [String],
    /// Folder of the drawn pictures; `None` if none are drawn.
    folder: Option<&'a Path>,
    /// Smallest score.
    score: f64,
    input: &'a DataConfig,
    eval: &'a EvalConfig,
    categories: &'a [Category],
    device: Device,
}

/// Detects on all pictures, on all ranks, in rounds; rank 0 adds the outcomes to the report in the
/// order of the pictures. Returns the time spent by all ranks.
fn detect_all(
    detector: &Detector,
    world: &World,
    job: &Job,
    report: &mut Report,
) -> Result<Timings> {
    let (rank, world_size, size) = (world.rank(), world.size(), job.eval.batch);
    let num_batches = job.pictures.len().div_ceil(size);
    // Signals keep their default action: there is nothing to save.
    let (stop, mut timings) = (AtomicBool::new(false), Timings::default());
    let per_round = ROUND.div_ceil(size) * world_size;
    for start in (0..num_batches).step_by(per_round) {
        let count = per_round.min(num_batches - start);
        let own = start + count * rank / world_size..start + count * (rank + 1) / world_size;
        let work = |detector: &Detector, batch: usize, timings: &mut Timings| {
            let range = batch * size..((batch + 1) * size).min(job.pictures.len());
            detect_batch(detector, job, range, timings)
        };
        let (parts, t) = run_batches(detector, job.device, own, &stop, work)?;
        timings.add(&t);
        let outcomes: Vec<Outcome> = parts.into_iter().flatten().collect();
        for part in world.gather_bytes(&report::to_bytes(&outcomes)?, "detections")? {
            report.add(&report::from_bytes(&part)?)?;
        }
    }
    let mut sums = [timings.decode_s, timings.network_s, timings.nms_s];
    world.all_reduce(&mut sums, Op::Sum, "timings")?;
    let [decode_s, network_s, nms_s] = sums;
    Ok(Timings { decode_s, network_s, nms_s })
}

/// Detects on the pictures of a batch, and draws them.
fn detect_batch(
    detector: &Detector,
    job: &Job,
    range: Range<usize>,
    timings: &mut Timings,
) -> Result<Vec<Outcome>> {
    let read = read_all(&job.pictures[range.clone()], timings);
    let images: Vec<Decoded> = read.iter().flatten().map(Picture::decoded).collect();
    let found = detect_images(detector, &images, (job.input, job.eval), job.device, timings)?;
    let mut found = found.into_iter();
    let mut outcomes = vec![];
    for (index, read) in range.zip(read) {
        let result = match read {
            Ok(picture) => {
                let mut detections = found.next().unwrap_or_default();
                detections.retain(|d| f64::from(d.score) >= job.score);
                let mut outcome = Found::new(&picture.pixels, &detections);
                outcome.decoding = picture.decoding;
                if let Some(folder) = job.folder {
                    let (began, path) = (Instant::now(), folder.join(&job.names[index]));
                    picture::draw(picture.pixels, &detections, job.categories, &path)?;
                    outcome.drawing_s = began.elapsed().as_secs_f64();
                }
                Ok(outcome)
            }
            Err(e) if is_of_machine(&e) => return Err(e),
            Err(e) => Err(e.to_string()),
        };
        outcomes.push(Outcome { index, result });
    }
    Ok(outcomes)
}

/// Whether an error may be temporary, so that a picture must not be left out for it.
fn is_of_machine(e: &Error) -> bool {
    matches!(e, Error::Io { source, .. } if input::is_of_machine(source))
}

/// A picture that was read.
struct Picture {
    pixels: Rgb,
    decoding: Decoding,
}

impl Picture {
    fn decoded(&self) -> Decoded<'_> {
        let Rgb { width, height, .. } = self.pixels;
        Decoded { pixels: &self.pixels, original: (width as u32, height as u32) }
    }
}

/// Reads and decodes pictures; adds the time to `timings`.
fn read_all(paths: &[PathBuf], timings: &mut Timings) -> Vec<Result<Picture>> {
    let began = Instant::now();
    let read = |path: &PathBuf| {
        let bytes = input::read(path, MAX_IMAGE_BYTES).map_err(Error::io("cannot read", path))?;
        let decoded = decode_source(&bytes).map_err(|e| Error::data(path, "", e))?;
        Ok(Picture { decoding: Decoding::new(&bytes, &decoded), pixels: decoded.rgb })
    };
    let all = paths.iter().map(read).collect();
    timings.decode_s += began.elapsed().as_secs_f64();
    all
}
