//! What `dw-eval`, `dw-detect` and `dw-show` share: options of detection, and the log of the speed.

use crate::config::Config;
use crate::data::config::MAX_SIDE;
use crate::eval::infer::Timings;
use crate::model::{Rank, Tower};

/// Parses `SHORTxLONG`, pixels.
pub fn scale(text: &str) -> std::result::Result<(u32, u32), String> {
    let sides = text
        .split_once('x')
        .and_then(|(short, long)| Some((short.parse().ok()?, long.parse().ok()?)));
    sides
        .filter(|(short, long)| (32..=*long).contains(short) && *long <= MAX_SIDE)
        .ok_or_else(|| format!("expected SHORTxLONG from 32 to {MAX_SIDE}, for example 800x1333"))
}

/// Parses a number of images, at least 1.
pub fn batch(text: &str) -> std::result::Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a number, at least 1".into())
}

/// Parses a score.
pub fn score(text: &str) -> std::result::Result<f64, String> {
    let value = text.parse().ok().filter(|s| (0.0..=1.0).contains(s));
    value.ok_or_else(|| "expected a number from 0 to 1".into())
}

/// Smallest score without `--score`.
pub const SCORE: f64 = 0.3;

/// Logs a warning if `--score` is below `eval.score_threshold`, since the network returns no such
/// detections, unless the threshold applies to a probability that is multiplied by a quality
/// afterwards. 0 selects all detections.
pub fn check_score(option: Option<f64>, config: &Config, rank: Rank) {
    let threshold = config.eval.score_threshold;
    let has_quality = matches!(config.model.quality_tower, Tower::Reg | Tower::Cls);
    let limits = rank != Rank::Class || !has_quality;
    let below = option.filter(|s| *s > 0.0 && *s < threshold && limits);
    if let Some(score) = below {
        tracing::warn!(
            "--score {score}: there are no detections of a score below eval.score_threshold = \
             {threshold}"
        );
    }
}

/// Applies the options `--batch`, `--scale` and `--flip` to a configuration.
pub fn apply(config: &mut Config, batch: Option<usize>, scale: Option<(u32, u32)>, flip: bool) {
    if let Some((short, long)) = scale {
        (config.data.short_side, config.data.long_side) = (short, long);
    }
    config.eval.batch = batch.unwrap_or(config.eval.batch);
    config.eval.flip |= flip;
}

/// Logs the speed and the share of each part of the work. `what`: the images, as "8 images of
/// val2017"; `rest`: further parts of the work, as text to append.
pub fn log_speed(what: &str, count: usize, timings: &Timings, rest: &str, seconds: f64) {
    let Timings { decode_s, network_s, nms_s } = *timings;
    let share = |s: f64| 100.0 * s / (decode_s + network_s + nms_s).max(1e-9);
    tracing::info!(
        "{what} in {seconds:.1} s ({:.1} images/s): network {:.1} %, decoding {:.1} %, \
         NMS {:.2} % of the ranks' time{rest}",
        count as f64 / seconds.max(1e-9),
        share(network_s),
        share(decode_s),
        share(nms_s),
    );
}
