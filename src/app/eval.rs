//! `dw-eval` with a network: evaluates a checkpoint on a split, or compares two checkpoints.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use dw_base::file::write_atomically;
use dw_launch::{Topology, World};
use dw_metric::cli::{Limits, labels, print, today};
use dw_metric::{Detection, MetricConfig, report};
use tch::Device;

use super::inference;
use super::saved::Saved;
use crate::config::Config;
use crate::data::Dataset;
use crate::data::dataset::choose_split;
use crate::device::Choice;
use crate::device::join::join;
use crate::device::threads::for_this_machine;
use crate::eval::bags;
use crate::eval::infer::{Timings, detect_all};
use crate::eval::{Job, Report, evaluate, write_results};
use crate::model::Detector;
use crate::train::init::check_agreement;
use crate::{Error, Result};

/// Arguments of `dw-eval` with a network.
#[derive(Debug, clap::Args)]
pub struct EvalArgs {
    /// Checkpoint folder, work directory (its newest checkpoint), or weight file
    #[arg(required_unless_present = "compare")]
    pub checkpoint: Option<PathBuf>,
    /// Compare two checkpoints, work directories or weight files
    #[arg(long, num_args = 2, value_names = ["A", "B"],
          conflicts_with_all = ["checkpoint", "dt_out"])]
    pub compare: Vec<PathBuf>,
    /// Configuration that a weight file belongs to
    #[arg(long)]
    pub config: Option<String>,
    /// Set a configuration key, for example eval.nms_iou=0.5 (repeatable)
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    pub set: Vec<String>,
    /// Folder of shards [default: the run's]
    #[arg(long, value_name = "OUT")]
    pub data: Option<PathBuf>,
    /// Split [default: the run's data.val_split]
    #[arg(long)]
    pub split: Option<String>,
    /// Write the detections in COCO's results format (for the test-dev server)
    #[arg(long, value_name = "FILE")]
    pub dt_out: Option<PathBuf>,
    /// Write an HTML report: index.html in this folder
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Images per forward pass [default: eval.batch]
    #[arg(long, value_name = "N", value_parser = inference::batch)]
    pub batch: Option<usize>,
    /// Short and long side of the network input, as 800x1333 [default: data.short_side,
    /// data.long_side]
    #[arg(long, value_name = "SHORTxLONG", value_parser = inference::scale)]
    pub scale: Option<(u32, u32)>,
    /// Detect on the mirrored image as well
    #[arg(long)]
    pub flip: bool,
    /// What to evaluate
    #[command(flatten)]
    pub limits: Limits,
    /// Print the numbers as JSON
    #[arg(long)]
    pub json: bool,
    /// Print AP of each class
    #[arg(long)]
    pub per_class: bool,
    /// Device
    #[arg(long, value_enum, default_value = "auto")]
    pub device: Choice,
}

impl EvalArgs {
    /// The weights at a path, and their configuration with the options applied.
    fn saved(&self, path: &Path) -> Result<(Saved, Config)> {
        // Of two that are compared, one can be a checkpoint, which contains its configuration.
        let applies = path.is_file() || !self.compare.iter().any(|p| p.is_file());
        let config = self.config.as_deref().filter(|_| applies);
        let saved = Saved::find(path, config, &self.set)?;
        let mut config = saved.config.clone();
        if let Some(d) = &self.data {
            config.data.shards.clone_from(d);
        }
        if let Some(s) = &self.split {
            config.data.val_split.clone_from(s);
        }
        inference::apply(&mut config, self.batch, self.scale, self.flip);
        Ok((saved, config))
    }
}

/// Evaluates on all ranks and prints the numbers on rank 0.
///
/// # Errors
/// A damaged checkpoint, categories that differ, bad data, a lost peer.
pub fn run(args: &EvalArgs, topology: &Topology, place: &mut Option<Arc<World>>) -> Result<()> {
    let metric = args.limits.config()?;
    let paths: Vec<&PathBuf> = if args.compare.is_empty() {
        args.checkpoint.iter().collect()
    } else {
        args.compare.iter().collect()
    };
    let runs = paths.iter().map(|p| args.saved(p)).collect::<Result<Vec<_>>>()?;
    check_outputs(args, topology)?;
    let data = open_split(&runs, topology.rank == 0)?;
    let device = select_device(args, &runs, topology)?;
    let mut reports = vec![];
    for (saved, config) in &runs {
        let detector = saved.detector(&data, device)?;
        let world = match place {
            Some(world) => world.clone(),
            None => join(device, place)?,
        };
        world.set_deadline(Duration::from_secs_f64(config.train.start_deadline_s));
        check_agreement(&detector.params, &world)?;
        super::check_same_on_all_ranks(&data.identity(), "validation data", &world)?;
        // Signals keep their default action: there is nothing to save.
        let stop = AtomicBool::new(false);
        let job = Job {
            data: &data,
            input: &config.data,
            config: &config.eval,
            device,
            world: &world,
            stop: &stop,
        };
        if !data.has_boxes() {
            return without_truth(args, &detector, &job);
        }
        reports.extend(evaluate_one(&detector, &job, &metric)?);
        if config.eval.bag_images > 0 {
            log_weights(saved, &detector, &job)?;
        }
    }
    if reports.is_empty() {
        return Ok(());
    }
    print_and_write(args, &paths, &runs, &data, &reports, &metric)
}

/// Opens the split that all runs are evaluated on; with `log` it warns if only a part is used.
///
/// # Errors
/// Runs whose splits differ.
fn open_split(runs: &[(Saved, Config)], log: bool) -> Result<Dataset> {
    let open = |config: &Config| {
        let d = &config.data;
        let split = choose_split(&d.shards, &d.val_split, "val2017", "val", "data.val_split")?;
        Dataset::open(&d.shards, &split, d.limit, false)
    };
    let first = open(&runs[0].1)?;
    let (used, all) = (first.len(), first.split.len());
    if log && used < all {
        tracing::warn!(
            "evaluating {used} of the {all} images of {} (data.limit)\n\
             hint: --set data.limit=0 evaluates all",
            first.split.meta.split
        );
    }
    for (_, config) in &runs[1..] {
        let other = open(config)?;
        if other.split.fingerprint() != first.split.fingerprint() {
            let name = |config: &Config, data: &Dataset| {
                format!("{} of {}", data.split.meta.split, config.data.shards.display())
            };
            return Err(Error::Usage(format!(
                "the runs have different validation data: {}; and {}\n\
                 hint: select one split for both with --data and --split",
                name(&runs[0].1, &first),
                name(config, &other)
            )));
        }
    }
    Ok(first)
}

/// This rank's device, with the number of threads that the first run was configured with.
fn select_device(args: &EvalArgs, runs: &[(Saved, Config)], topology: &Topology) -> Result<Device> {
    let num_threads = for_this_machine(runs[0].1.train.threads, topology);
    super::device(args.device, num_threads, topology)
}

/// Evaluates one network; rank 0 gets the report.
fn evaluate_one(detector: &Detector, job: &Job, metric: &MetricConfig) -> Result<Option<Report>> {
    let began = Instant::now();
    let report = evaluate(detector, job, &mut None, metric)?;
    job.world.barrier("end of evaluation")?;
    if let Some(report) = &report {
        let seconds = began.elapsed().as_secs_f64();
        log_speed(job.data, &report.timings, Some(report.matching_s), seconds);
    }
    Ok(report)
}

/// Logs the statistics of weights on rank 0.
fn log_weights(saved: &Saved, detector: &Detector, job: &Job) -> Result<()> {
    let strategy = saved.strategy(detector, job.data.categories().len());
    let found = bags::statistics(detector, &strategy, job)?;
    if job.world.rank() == 0 {
        tracing::info!("weights, {} images: {found}", job.config.bag_images.min(job.data.len()));
    }
    Ok(())
}

/// Prints the numbers and writes the requested files. The numbers are printed first, and a failure
/// to write one file does not prevent writing the other.
fn print_and_write(
    args: &EvalArgs,
    paths: &[&PathBuf],
    runs: &[(Saved, Config)],
    data: &Dataset,
    reports: &[Report],
    metric: &MetricConfig,
) -> Result<()> {
    let names = labels(&reports[0].truth.names, &reports[0].truth.categories);
    let evaluations: Vec<_> = reports.iter().map(|r| &r.evaluation).collect();
    let problems: Vec<_> = reports.iter().map(|r| r.truth.problem(&r.detections)).collect();
    reports[0].warn_of_id_zero();
    let kept = runs.iter().map(|(_, config)| config.eval.per_image).min().unwrap_or(0);
    if let Some(most) = metric.max_dets.iter().max().filter(|most| **most > kept) {
        tracing::warn!(
            "--max-dets {most}: the network keeps {kept} detections of an image\nhint: --set \
             eval.per_image={most}"
        );
    }
    let samples = args.limits.samples(&problems)?;
    // Files first: a closed pipe on standard output ends the process.
    let written = match &args.dt_out {
        Some(path) => write_results_file(path, &reports[0].detections),
        None => Ok(()),
    };
    let page = match &args.report {
        Some(dir) => page(dir, paths, runs, data, reports, &names),
        None => Ok(()),
    };
    if let (Err(first), Err(_)) = (&written, &page) {
        tracing::error!("{first}");
    }
    print(&evaluations, &samples, &names, args.json, args.per_class || args.json)
        .and(page)
        .and(written)
}

/// Checks before the evaluation that its files can be written, on rank 0.
fn check_outputs(args: &EvalArgs, topology: &Topology) -> Result<()> {
    if topology.rank > 0 {
        return Ok(());
    }
    if let Some(path) = &args.dt_out {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if path.exists() && !path.is_file() {
            return Err(Error::Usage(format!(
                "--dt-out {}: expected a file, found a folder or device",
                path.display()
            )));
        }
        // An unnamed file: nothing is left behind, and a missing folder is not created.
        let problem = |e: std::io::Error| {
            let missing = e.kind() == std::io::ErrorKind::NotFound;
            let hint = if missing { "\nhint: create the folder first" } else { "" };
            Error::Usage(format!("--dt-out {}: cannot write there: {e}{hint}", path.display()))
        };
        tempfile::tempfile_in(folder).map(drop).map_err(problem)?;
    }
    if let Some(dir) = &args.report {
        report::check(dir)?;
    }
    Ok(())
}

/// Handles a split without boxes, such as test-dev: only the results file can be written.
fn without_truth(args: &EvalArgs, detector: &Detector, job: &Job) -> Result<()> {
    let data = job.data;
    let split = &data.split.meta.split;
    if args.report.is_some() || args.json || args.per_class || args.limits.any() {
        return Err(Error::Usage(format!(
            "no image of split `{split}` has a box: only --dt-out is possible, without --report, \
             --json, --per-class, --bootstrap and limits of the metric"
        )));
    }
    let Some(path) = &args.dt_out else {
        return Err(Error::Usage(format!(
            "none of the {} images of split `{split}` has a box to evaluate against\n\
             hint: --dt-out detections_{split}_NAME_results.json writes the file for the server",
            data.len()
        )));
    };
    let began = Instant::now();
    let found = detect_all(detector, job)?;
    job.world.barrier("end of evaluation")?;
    if let Some((detections, timings)) = found {
        log_speed(data, &timings, None, began.elapsed().as_secs_f64());
        write_results_file(path, &detections)?;
        tracing::info!(
            "no ground truth in `{split}`: wrote {} detections to {}",
            detections.len(),
            path.display()
        );
    }
    Ok(())
}

/// Logs the speed and the share of each part of the work.
fn log_speed(data: &Dataset, timings: &Timings, matching_s: Option<f64>, seconds: f64) {
    let matching = matching_s.map_or_else(String::new, |s| format!("; matching {s:.2} s"));
    let what = format!("{} images of {}", data.len(), data.split.meta.split);
    inference::log_speed(&what, data.len(), timings, &matching, seconds);
}

/// Writes the HTML report.
fn page(
    dir: &Path,
    paths: &[&PathBuf],
    saved: &[(Saved, Config)],
    data: &Dataset,
    reports: &[Report],
    names: &[String],
) -> Result<()> {
    let place =
        |id: i64| data.records.iter().copied().find(|&i| data.split.entry(i).image_id == id);
    let name = |id: i64| Some(data.split.record(place(id)?).ok()?.annotations.file_name.clone());
    let picture = |id: i64| {
        let record = data.split.record(place(id)?).ok()?;
        let pixels = record.decode().ok()?;
        let stored =
            image::RgbImage::from_raw(pixels.width as u32, pixels.height as u32, pixels.data)?;
        let (width, height) = record.entry.original();
        // Boxes are in pixels of the original image.
        Some(if record.entry.is_shrunken() {
            image::imageops::resize(&stored, width, height, image::imageops::FilterType::Triangle)
        } else {
            stored
        })
    };
    let titles: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    let facts: Vec<Vec<(String, String)>> = saved.iter().map(|(s, c)| facts(s, c)).collect();
    let problems: Vec<_> = reports.iter().map(|r| r.truth.problem(&r.detections)).collect();
    let date = today();
    let input = |i: usize| report::Input {
        title: &titles[i],
        data: &data.split.meta.split,
        date: &date,
        facts: &facts[i],
        problem: &problems[i],
        evaluation: &reports[i].evaluation,
        names,
        image_names: Some(&name),
        pictures: Some(&picture),
    };
    let page = report::write(dir, &(0..reports.len()).map(input).collect::<Vec<_>>())?;
    tracing::info!("report {}", page.display());
    Ok(())
}

/// Weights, network, input and post-processing, as (name, value) for the report.
fn facts(saved: &Saved, c: &Config) -> Vec<(String, String)> {
    let e = &c.eval;
    let weights = saved.path().display().to_string();
    let network = format!(
        "{} x {}, {} channels, refinement {}",
        c.model.backbone.name(),
        c.model.width,
        c.model.channels,
        c.model.refine
    );
    let input = format!(
        "short side {}, long side at most {}{}",
        c.data.short_side,
        c.data.long_side,
        if e.flip { ", and mirrored" } else { "" }
    );
    let rule = format!(
        "score or class probability above {}, NMS at {}, {} an image",
        e.score_threshold, e.nms_iou, e.per_image
    );
    [("weights", weights), ("network", network), ("input", input), ("detections", rule)]
        .map(|(n, v)| (n.to_owned(), v))
        .to_vec()
}

/// Writes detections in COCO's results format.
fn write_results_file(path: &Path, detections: &[Detection]) -> Result<()> {
    write_atomically(path, |file| write_results(file, detections))
}
