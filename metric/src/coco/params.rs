//! Thresholds, area ranges and limits: COCO's, or the user's.

use crate::error::{Error, Result};

/// A range of ground-truth areas in pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct Area {
    /// `all`, `small`, ...
    pub name: String,
    /// Smallest area, inclusive.
    pub low: f64,
    /// Largest area, inclusive.
    pub high: f64,
}

impl Area {
    fn new(name: &str, low: f64, high: f64) -> Self {
        Self { name: name.into(), low, high }
    }

    /// The range that the headline numbers are of.
    pub fn all() -> Self {
        Self::new("all", 0.0, 1e10)
    }

    /// Whether an area does not belong to the range.
    pub fn excludes(&self, area: f64) -> bool {
        area < self.low || area > self.high
    }
}

/// Thresholds and limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Params {
    /// IoU thresholds.
    pub iou: Vec<f64>,
    /// Area ranges; the first is the headline's, `all`.
    pub areas: Vec<Area>,
    /// Detections of an (image, category), ascending; AP is at the last.
    pub max_dets: Vec<usize>,
    /// Count a match with annotation id 0 (pycocotools loses it).
    pub count_id_zero: bool,
}

impl Default for Params {
    fn default() -> Self {
        let areas = vec![
            Area::all(),
            Area::new("small", 0.0, 1024.0),
            Area::new("medium", 1024.0, 9216.0),
            Area::new("large", 9216.0, 1e10),
        ];
        Self {
            iou: linspace(0.5, 0.95, 10),
            areas,
            max_dets: vec![1, 10, 100],
            count_id_zero: false,
        }
    }
}

/// Number of recall points of a precision curve: 0, 0.01, ..., 1.
pub const RECALLS: usize = 101;

/// Recall point `i`, to the bit as numpy's `linspace(0, 1, 101)`.
pub fn recall_point(i: usize) -> f64 {
    if i == RECALLS - 1 { 1.0 } else { i as f64 * (1.0 / 100.0) }
}

/// numpy's `linspace`, to the bit: start + i * step, the last set to the end.
fn linspace(low: f64, high: f64, n: usize) -> Vec<f64> {
    let step = (high - low) / (n.max(2) - 1) as f64;
    (0..n).map(|i| if i + 1 == n && n > 1 { high } else { i as f64 * step + low }).collect()
}

fn number(text: &str, what: &str) -> Result<f64> {
    let n: Option<f64> = text.trim().parse().ok();
    n.filter(|n| !n.is_nan())
        .ok_or_else(|| Error::Usage(format!("{what}: expected a number, found `{text}`")))
}

/// Most values of one `LOW:HIGH:STEP`.
const MOST_THRESHOLDS: f64 = 1000.0;

/// Reads `--iou-thresholds`: a list `0.5,0.75`, or `LOW:HIGH:STEP` with both ends.
///
/// # Errors
/// Not numbers, outside 0..1, not ascending, a step that does not reach the end.
pub fn iou_thresholds(text: &str) -> Result<Vec<f64>> {
    let what = "--iou-thresholds";
    let parts: Vec<&str> = text.split(':').collect();
    let values = match parts[..] {
        [list] => list.split(',').map(|v| number(v, what)).collect::<Result<Vec<f64>>>()?,
        [low, high, step] => {
            let (low, high, step) = (number(low, what)?, number(high, what)?, number(step, what)?);
            let steps = ((high - low) / step).round();
            if !(step > 0.0
                && high >= low
                && steps < MOST_THRESHOLDS
                && (low + steps * step - high).abs() < 1e-9)
            {
                let hint = "expected LOW:HIGH:STEP with HIGH a whole number of steps above LOW, as 0.5:0.95:0.05";
                return Err(Error::Usage(format!("{what}: {hint}; found `{text}`")));
            }
            linspace(low, high, steps as usize + 1)
        }
        _ => {
            return Err(Error::Usage(format!(
                "{what}: expected a list as 0.5,0.75 or LOW:HIGH:STEP, found `{text}`"
            )));
        }
    };
    if values.iter().any(|v| !(*v > 0.0 && *v <= 1.0)) || values.windows(2).any(|w| w[0] >= w[1]) {
        return Err(Error::Usage(format!(
            "{what}: expected ascending numbers above 0 and up to 1, found `{text}`"
        )));
    }
    Ok(values)
}

/// Reads `--max-dets`: `1,10,100`, ascending.
///
/// # Errors
/// Not whole numbers above 0 in ascending order.
pub fn max_dets(text: &str) -> Result<Vec<usize>> {
    let values: Option<Vec<usize>> = text.split(',').map(|v| v.trim().parse().ok()).collect();
    let ascending = |v: &Vec<usize>| v[0] > 0 && v.windows(2).all(|w| w[0] < w[1]);
    values.filter(ascending).ok_or_else(|| {
        Error::Usage(format!(
            "--max-dets: expected ascending whole numbers above 0 as 1,10,100, found `{text}`"
        ))
    })
}

/// Reads `--area-ranges`: `tiny:0..256,rest:256..inf`. `all` is put first where it is not named.
///
/// # Errors
/// Another form, a name used twice, a high end below the low one.
pub fn area_ranges(text: &str) -> Result<Vec<Area>> {
    let bad =
        |found: &str, why: &str| Error::Usage(format!("--area-ranges: {why}, found `{found}`"));
    let mut out: Vec<Area> = vec![];
    for part in text.split(',') {
        let form = "expected NAME:LOW..HIGH in pixels, as tiny:0..256,rest:256..inf";
        let (name, range) = part.split_once(':').ok_or_else(|| bad(part, form))?;
        let (low, high) = range.split_once("..").ok_or_else(|| bad(part, form))?;
        let (name, low, high) =
            (name.trim(), number(low, "--area-ranges")?, number(high, "--area-ranges")?);
        if name.is_empty() || high < low {
            return Err(bad(part, "expected a name and LOW not above HIGH"));
        }
        if out.iter().any(|a| a.name == name) {
            return Err(bad(part, "expected each name once"));
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
    fn the_ninth_threshold_is_numpys() {
        assert_eq!(Params::default().iou[8].to_bits(), 0.899_999_999_999_999_9_f64.to_bits());
        assert_eq!(iou_thresholds("0.5:0.95:0.05").unwrap(), Params::default().iou);
        assert_eq!(iou_thresholds("0.5,0.75").unwrap(), [0.5, 0.75]);
        assert_eq!(iou_thresholds("0.5:0.5:0.1").unwrap(), [0.5]);
    }

    #[test]
    fn all_comes_first() {
        let names = |t| area_ranges(t).unwrap().into_iter().map(|a| a.name).collect::<Vec<_>>();
        assert_eq!(names("tiny:0..256"), ["all", "tiny"]);
        assert_eq!(names("tiny:0..256,rest:256..inf,all:16..inf"), ["all", "tiny", "rest"]);
    }

    #[test]
    fn options_that_mean_nothing() {
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
