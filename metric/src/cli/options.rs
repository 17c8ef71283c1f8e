//! Options of `dw-eval coco`, and the parsers of its lists.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Instant;

use dw_base::{Error, Result};

use crate::coco::bootstrap::{Bootstrap, Samples, bootstrap};
use crate::coco::config::{Area, MetricConfig, linspace};
use crate::coco::types::Problem;

/// Shown below the help of `dw-eval coco`.
pub const EXAMPLES: &str = "Examples:
  dw-eval coco --gt instances_val2017.json --dt results.json
  dw-eval coco --gt gt.json --dt dt.json --json --max-dets 10,300
  dw-eval coco --gt gt.json --dt dt.json --per-class --iou-thresholds 0.5:0.9:0.1 \\
      --area-ranges tiny:0..256,rest:256..inf
  dw-eval coco --gt gt.json --dt a.json --compare b.json --report page --images val2017
  dw-eval coco --gt gt.json --dt a.json --compare b.json --bootstrap 1000 --per-class

Exit codes: 0 success, 2 invalid option or unreadable input, 3 invalid data or unwritable report,
5 out of memory or threads";

/// Evaluates a results file against a ground-truth file.
#[derive(Debug, Clone, clap::Args)]
pub struct CocoArgs {
    /// Ground truth (instances_*.json)
    #[arg(long)]
    pub gt: PathBuf,
    /// Results: [{"image_id": .., "category_id": .., "bbox": [x, y, w, h], "score": ..}, ..]
    #[arg(long)]
    pub dt: PathBuf,
    /// Print JSON, including AP of each class
    #[arg(long)]
    pub json: bool,
    /// Print a table of each class: AP, AP50, AP75, AR, number of boxes
    #[arg(long)]
    pub per_class: bool,
    /// Thresholds and limits.
    #[command(flatten)]
    pub limits: Limits,
    /// Write an HTML report to index.html in this folder
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Second results file to compare with --dt on the same ground truth
    #[arg(long, value_name = "DT2.json")]
    pub compare: Option<PathBuf>,
    /// Folder of the images shown in the report
    #[arg(long, value_name = "DIR", requires = "report")]
    pub images: Option<PathBuf>,
    /// Also read images whose `file_name` or link points outside the folder of --images
    #[arg(long, requires = "images")]
    pub allow_outside: bool,
}

/// Thresholds and limits as typed; an option that is not given keeps COCO's default.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Limits {
    /// Maximum detections per image and class; AP uses the last [default: 1,10,100]
    #[arg(long, value_name = "N,..")]
    pub max_dets: Option<String>,
    /// Area ranges in square pixels, besides `all`
    /// [default: small:0..1024,medium:1024..9216,large:9216..1e10]
    #[arg(long, value_name = "NAME:LOW..HIGH,..")]
    pub area_ranges: Option<String>,
    /// IoU thresholds, as a list or LOW:HIGH:STEP [default: 0.5:0.95:0.05]
    #[arg(long, value_name = "T,..")]
    pub iou_thresholds: Option<String>,
    /// Count matches with annotation id 0, which pycocotools drops
    #[arg(long)]
    pub count_id_zero: bool,
    /// Print 95 % confidence intervals of AP from N random samples of the images, and whether
    /// those of a comparison's differences exclude 0 [default: 0, off]
    #[arg(long, value_name = "N")]
    pub bootstrap: Option<usize>,
    /// Seed of these samples [default: 0]
    #[arg(long, value_name = "S", requires = "bootstrap")]
    pub bootstrap_seed: Option<u64>,
}

/// Allowed number of bootstrap samples. With fewer, too few samples lie outside an interval to
/// determine its ends; more only cost memory without improving it.
const REPLICATES: RangeInclusive<usize> = 100..=10_000;

impl Limits {
    /// Whether an option was given.
    pub fn any(&self) -> bool {
        self.max_dets.is_some()
            || self.area_ranges.is_some()
            || self.iou_thresholds.is_some()
            || self.count_id_zero
            || self.bootstrap.is_some()
    }

    /// The configuration that the options describe.
    ///
    /// # Errors
    /// [`Error::Usage`] for an invalid option.
    pub fn config(&self) -> Result<MetricConfig> {
        let mut config =
            MetricConfig { count_id_zero: self.count_id_zero, ..MetricConfig::default() };
        if let Some(text) = &self.max_dets {
            config.max_dets = max_dets(text)?;
        }
        if let Some(text) = &self.area_ranges {
            config.areas = area_ranges(text)?;
        }
        if let Some(text) = &self.iou_thresholds {
            config.iou = iou_thresholds(text)?;
        }
        self.resampling()?;
        Ok(config)
    }

    /// The bootstrap that the options describe; `None` if it is off.
    ///
    /// # Errors
    /// [`Error::Usage`] for a number of samples that is out of range.
    fn resampling(&self) -> Result<Option<Bootstrap>> {
        let replicates = self.bootstrap.unwrap_or(0);
        if replicates == 0 {
            return Ok(None);
        }
        if !REPLICATES.contains(&replicates) {
            return Err(Error::Usage(format!(
                "--bootstrap: expected {} to {} samples, or 0 for none, found {replicates}\n\
                 hint: 1000 samples are enough for 95 % intervals",
                REPLICATES.start(),
                REPLICATES.end()
            )));
        }
        Ok(Some(Bootstrap { replicates, seed: self.bootstrap_seed.unwrap_or(0) }))
    }

    /// The samples of each problem; empty without `--bootstrap`. Logs settings and duration.
    ///
    /// # Errors
    /// [`Error::Usage`] for an invalid option.
    pub fn samples(&self, problems: &[Problem]) -> Result<Vec<Samples>> {
        let Some(settings) = self.resampling()? else { return Ok(vec![]) };
        let (config, began) = (self.config()?, Instant::now());
        let samples = problems.iter().map(|p| bootstrap(p, &config, settings)).collect();
        tracing::info!(
            "bootstrap: {} samples of the images, seed {}, in {:.1} s",
            settings.replicates,
            settings.seed,
            began.elapsed().as_secs_f64()
        );
        Ok(samples)
    }
}

/// Parses a number other than NaN; `option` is named in the error.
fn number(text: &str, option: &str) -> Result<f64> {
    let n: Option<f64> = text.trim().parse().ok();
    n.filter(|n| !n.is_nan())
        .ok_or_else(|| Error::Usage(format!("{option}: expected a number, found `{text}`")))
}

/// Maximum number of values of one `LOW:HIGH:STEP`.
const MAX_THRESHOLDS: f64 = 1000.0;

/// Parses `--iou-thresholds`: a list `0.5,0.75`, or `LOW:HIGH:STEP` with both ends included.
///
/// # Errors
/// Values that are not numbers, not in 0..1 or not ascending; a step that does not reach the end.
fn iou_thresholds(text: &str) -> Result<Vec<f64>> {
    const OPTION: &str = "--iou-thresholds";
    let bad = |expected| Error::Usage(format!("{OPTION}: expected {expected}, found `{text}`"));
    let parts: Vec<&str> = text.split(':').collect();
    let values = match parts[..] {
        [list] => list.split(',').map(|v| number(v, OPTION)).collect::<Result<Vec<f64>>>()?,
        [low, high, step] => {
            let [low, high, step] =
                [number(low, OPTION)?, number(high, OPTION)?, number(step, OPTION)?];
            let steps = ((high - low) / step).round();
            let reached = (low + steps * step - high).abs() < 1e-9;
            if !(step > 0.0 && high >= low && steps < MAX_THRESHOLDS && reached) {
                let form = "LOW:HIGH:STEP with HIGH a whole number of steps above LOW, \
                            as 0.5:0.95:0.05";
                return Err(bad(form));
            }
            linspace(low, high, steps as usize + 1)
        }
        _ => return Err(bad("a list as 0.5,0.75 or LOW:HIGH:STEP")),
    };
    if values.iter().any(|v| !(*v > 0.0 && *v <= 1.0)) || values.windows(2).any(|w| w[0] >= w[1]) {
        return Err(bad("ascending numbers above 0 and up to 1"));
    }
    Ok(values)
}

/// Parses `--max-dets`: ascending positive integers, as `1,10,100`.
fn max_dets(text: &str) -> Result<Vec<usize>> {
    let values: Option<Vec<usize>> = text.split(',').map(|v| v.trim().parse().ok()).collect();
    let ascending = |v: &Vec<usize>| v[0] > 0 && v.windows(2).all(|w| w[0] < w[1]);
    values.filter(ascending).ok_or_else(|| {
        Error::Usage(format!(
            "--max-dets: expected ascending positive integers as 1,10,100, found `{text}`"
        ))
    })
}

/// Parses `--area-ranges`, as `tiny:0..256,rest:256..inf`. The range `all` is moved to the front,
/// and added where it is missing.
///
/// # Errors
/// A malformed or unnamed range, a duplicate name, a high end below the low end.
fn area_ranges(text: &str) -> Result<Vec<Area>> {
    const OPTION: &str = "--area-ranges";
    let bad = |found: &str, expected: &str| {
        Error::Usage(format!("{OPTION}: expected {expected}, found `{found}`"))
    };
    let mut out: Vec<Area> = vec![];
    for part in text.split(',') {
        let form = "NAME:LOW..HIGH in square pixels, as tiny:0..256,rest:256..inf";
        let (name, range) = part.split_once(':').ok_or_else(|| bad(part, form))?;
        let (low, high) = range.split_once("..").ok_or_else(|| bad(part, form))?;
        let (name, low, high) = (name.trim(), number(low, OPTION)?, number(high, OPTION)?);
        if name.is_empty() || high < low {
            return Err(bad(part, "a name and LOW not above HIGH"));
        }
        if out.iter().any(|a| a.name == name) {
            return Err(bad(part, "each name once"));
        }
        out.push(Area::new(name, low, high));
    }
    match out.iter().position(|a| a.name == "all") {
        Some(at) => out[..=at].rotate_right(1),
        None => out.insert(0, Area::all()),
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iou_thresholds_are_a_list_or_a_range() {
        assert_eq!(iou_thresholds("0.5:0.95:0.05").unwrap(), MetricConfig::default().iou);
        assert_eq!(iou_thresholds("0.5,0.75").unwrap(), [0.5, 0.75]);
        assert_eq!(iou_thresholds("0.5:0.5:0.1").unwrap(), [0.5]);
    }

    #[test]
    fn area_range_all_comes_first() {
        let names = |t| area_ranges(t).unwrap().into_iter().map(|a| a.name).collect::<Vec<_>>();
        assert_eq!(names("tiny:0..256"), ["all", "tiny"]);
        assert_eq!(names("tiny:0..256,rest:256..inf,all:16..inf"), ["all", "tiny", "rest"]);
    }

    #[test]
    fn invalid_values_are_usage_errors() {
        for bad in [
            "",
            "x",
            "0.5,",
            "0,0.5",
            "0.5,1.1",
            "0.75,0.5",
            "0.5,0.5",
            "0.5:0.9:0.3",
            "0.9:0.5:0.1",
            "0.5:0.95",
            "nan",
            "0.5:0.95:0",
        ] {
            assert_eq!(iou_thresholds(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
        for bad in ["", "0", "10,1", "1,1", "-1", "1.5", "1,,2"] {
            assert_eq!(max_dets(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
        for bad in
            ["", "tiny", "tiny:0", "tiny:0..x", "tiny:5..1", ":0..1", "a:0..1,a:1..2", "a:nan..1"]
        {
            assert_eq!(area_ranges(bad).unwrap_err().exit_code(), 2, "{bad}");
        }
    }
}
