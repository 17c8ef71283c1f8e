//! What `dw-eval` does with a network: a checkpoint on a split, or two of them side by side.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::infer::{Spent, detect_all};
use super::{Job, Report, evaluate, results_json};
use crate::app::{self, Saved};
use crate::config::Config;
use crate::data::Dataset;
use crate::data::dataset::choose_split;
use crate::device::Choice;
use crate::error::{Error, Result};
use crate::join::join;
use crate::model::Detector;
use crate::threads::for_this_machine;
use dw_base::file::write_atomically;
use dw_launch::{Topology, World};
use dw_metric::cli::{Limits, labels, print, today};
use dw_metric::{Detection, report};

/// Evaluation of a checkpoint.
#[derive(Debug, clap::Args)]
pub struct Request {
    /// Checkpoint folder, work directory (its newest checkpoint), or weight file
    #[arg(required_unless_present = "compare")]
    pub checkpoint: Option<PathBuf>,
    /// Two of these, side by side
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["checkpoint", "dt_out"])]
    pub compare: Vec<PathBuf>,
    /// Configuration that a weight file belongs to
    #[arg(long)]
    pub config: Option<String>,
    /// Set one key, as eval.nms_iou=0.5 (may be repeated)
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    pub set: Vec<String>,
    /// Folder of shards [default: the run's]
    #[arg(long, value_name = "OUT")]
    pub data: Option<PathBuf>,
    /// Split [default: the run's data.val_split]
    #[arg(long)]
    pub split: Option<String>,
    /// Write the detections in COCO's results format (what the test-dev server takes)
    #[arg(long, value_name = "FILE")]
    pub dt_out: Option<PathBuf>,
    /// Write a page for people: index.html in this folder
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Images that go through the network together [default: eval.batch]
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
    /// Short and long side of the network's input, as 800x1333 [default: data.short_side, data.long_side]
    #[arg(long, value_name = "SHORTxLONG", value_parser = scale)]
    pub scale: Option<(u32, u32)>,
    /// Detect on the mirrored image, too
    #[arg(long)]
    pub flip: bool,
    /// What to evaluate
    #[command(flatten)]
    pub limits: Limits,
    /// Numbers as JSON
    #[arg(long)]
    pub json: bool,
    /// AP of each class, too
    #[arg(long)]
    pub per_class: bool,
    /// Device
    #[arg(long, value_enum, default_value = "auto")]
    pub device: Choice,
}

fn scale(text: &str) -> std::result::Result<(u32, u32), String> {
    let sides = text
        .split_once('x')
        .and_then(|(short, long)| Some((short.parse().ok()?, long.parse().ok()?)));
    sides
        .filter(|(short, long)| (32..=*long).contains(short))
        .ok_or_else(|| "expected SHORTxLONG, as 800x1333, at least 32".into())
}

impl Request {
    /// Weights with the configuration that the options make of theirs.
    fn saved(&self, path: &Path) -> Result<(Saved, Config)> {
        let saved = Saved::find(path, self.config.as_deref(), &self.set)?;
        let mut config = saved.config.clone();
        if let Some(d) = &self.data {
            config.data.shards.clone_from(d);
        }
        if let Some(s) = &self.split {
            config.data.val_split.clone_from(s);
        }
        if let Some((short, long)) = self.scale {
            (config.data.short_side, config.data.long_side) = (short, long);
        }
        config.eval.batch = self.batch.unwrap_or(config.eval.batch).max(1);
        config.eval.flip |= self.flip;
        Ok((saved, config))
    }
}

/// Evaluates on all ranks.
///
/// # Errors
/// A damaged checkpoint, other categories, bad data.
pub fn run(r: &Request, topology: &Topology, world: &mut Option<Arc<World>>) -> Result<()> {
    let params = r.limits.params()?;
    let paths: Vec<&PathBuf> = if r.compare.is_empty() {
        r.checkpoint.iter().collect()
    } else {
        r.compare.iter().collect()
    };
    let all = paths.iter().map(|p| r.saved(p)).collect::<Result<Vec<_>>>()?;
    check_outputs(r, topology)?;
    let mut device = None;
    let mut reports = vec![];
    let mut data = None;
    for (saved, config) in &all {
        let d = &config.data;
        let split = choose_split(&d.shards, &d.val_split, "val2017", "val", "data.val_split")?;
        let d = Dataset::open(&d.shards, &split, d.limit, false)?;
        if let Some(first) = data
            .as_ref()
            .filter(|first: &&Dataset| first.split.fingerprint() != d.split.fingerprint())
        {
            let (a, b) = (&first.split.meta.split, &d.split.meta.split);
            return Err(Error::Usage(format!(
                "the runs are of different data ({a} and {b})\nhint: --data and --split name one split for both"
            )));
        }
        let device = match device {
            Some(known) => known,
            None => *device.insert(app::device(
                r.device,
                for_this_machine(config.train.threads, topology),
                topology,
            )?),
        };
        let detector = saved.detector(&d, device)?;
        let world = match world {
            Some(world) => world.clone(),
            None => join(device, world)?,
        };
        world.set_deadline(Duration::from_secs_f64(config.train.start_deadline_s));
        // Signals end this program as any other: it has nothing to save.
        let job = Job { data: &d, config, device, world: &world, stop: &AtomicBool::new(false) };
        let bare = |i: &usize| d.split.entry(*i).boxes + d.split.entry(*i).crowd == 0;
        if d.records.iter().all(bare) {
            return without_truth(r, &detector, &job);
        }
        let began = Instant::now();
        let report = evaluate(&detector, &job, &mut None, &params)?;
        world.barrier("evaluation's end")?;
        if let Some(report) = report {
            tell(&d, &report.spent, Some(report.matching_s), began.elapsed().as_secs_f64());
            reports.push(report);
        }
        data.get_or_insert(d);
    }
    let (Some(data), false) = (data, reports.is_empty()) else { return Ok(()) };
    let names = labels(&reports[0].truth.names, &reports[0].truth.categories);
    print(
        &reports.iter().map(|r| &r.evaluation).collect::<Vec<_>>(),
        &names,
        r.json,
        r.per_class || r.json,
    );
    // The numbers are out whatever becomes of the files, and one file that fails does not cost the other.
    let written =
        r.dt_out.as_ref().map_or(Ok(()), |path| write_results(path, &reports[0].detections));
    if let Some(dir) = &r.report {
        page(dir, &paths, &all, &data, &reports, &names)?;
    }
    written
}

/// Finds out before the evaluation whether its files can be written.
fn check_outputs(r: &Request, topology: &Topology) -> Result<()> {
    if topology.rank > 0 {
        return Ok(());
    }
    if let Some(path) = &r.dt_out {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if path.is_dir() {
            return Err(Error::Usage(format!(
                "--dt-out {}: is a folder, expected a file",
                path.display()
            )));
        }
        // Makes a file without a name; a folder that is missing is not made.
        let problem = |e| {
            Error::Usage(format!(
                "--dt-out {}: cannot write there: {e}\nhint: make the folder first",
                path.display()
            ))
        };
        tempfile::tempfile_in(folder).map(drop).map_err(problem)?;
    }
    if let Some(dir) = &r.report {
        report::check(dir)?;
    }
    Ok(())
}

/// A split without any box, as test-dev: the results file is all there is to get.
fn without_truth(r: &Request, detector: &Detector, job: &Job) -> Result<()> {
    let data = job.data;
    let split = &data.split.meta.split;
    let Some(path) = &r.dt_out else {
        return Err(Error::Usage(format!(
            "none of the {} images of split `{split}` has a box to evaluate against\nhint: --dt-out detections_{split}_NAME_results.json writes what the server takes",
            data.len()
        )));
    };
    let began = Instant::now();
    let found = detect_all(detector, job)?;
    job.world.barrier("evaluation's end")?;
    if let Some((detections, spent)) = found {
        tell(data, &spent, None, began.elapsed().as_secs_f64());
        write_results(path, &detections)?;
        tracing::info!(
            "no ground truth in `{split}`: {} detections in {}, no numbers",
            detections.len(),
            path.display()
        );
    }
    Ok(())
}

/// Speed, and where the time went.
fn tell(data: &Dataset, spent: &Spent, matching_s: Option<f64>, seconds: f64) {
    let Spent { decode_s, network_s, nms_s } = *spent;
    let share = |s: f64| 100.0 * s / (decode_s + network_s + nms_s).max(1e-9);
    let matching = matching_s.map_or_else(String::new, |s| format!("; matching {s:.2} s"));
    tracing::info!(
        "{} images of {} in {seconds:.1} s ({:.1} images/s): network {:.1} %, decoding {:.1} %, NMS {:.2} % of the ranks' time{matching}",
        data.len(),
        data.split.meta.split,
        data.len() as f64 / seconds,
        share(network_s),
        share(decode_s),
        share(nms_s),
    );
}

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
        // Boxes are in the original's pixels.
        let shrunken = record.entry.is_shrunken();
        Some(if shrunken {
            image::imageops::resize(&stored, width, height, image::imageops::FilterType::Triangle)
        } else {
            stored
        })
    };
    let titles: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    let facts: Vec<Vec<(String, String)>> = saved.iter().map(|(_, c)| facts(c)).collect();
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

/// How it was detected.
fn facts(c: &Config) -> Vec<(String, String)> {
    let e = &c.eval;
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
        "score above {}, NMS at {}, {} an image",
        e.score_threshold, e.nms_iou, e.per_image
    );
    [("network", network), ("input", input), ("detections", rule)]
        .map(|(n, v)| (n.to_owned(), v))
        .to_vec()
}

/// Writes detections in COCO's results format.
fn write_results(path: &Path, detections: &[Detection]) -> Result<()> {
    let text = results_json(detections).to_string();
    write_atomically(path, |file| file.write_all(text.as_bytes()))
        .map_err(Error::io("cannot write", path))
}
