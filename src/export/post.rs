//! From raw predictions to the outputs of the graph: scores and boxes of all points, or detections
//! after NMS with the rules of [`crate::eval::detect`].

use super::graph::{Dim, Graph, int};
use super::heads::Predicted;
use super::level::{Level, decode, range, size_of};
use super::proto::{FLOAT, INT64};
use crate::eval::EvalConfig;
use crate::model::Rank;

/// Predictions of one level, with its cells in one dimension, row by row.
#[derive(Debug)]
pub struct Flat {
    /// Values to rank by `[N, h w, C]`.
    ranked: String,
    /// Factor of the final scores `[N, h w, 1]`; none where `ranked` is the final score.
    factor: Option<String>,
    /// Boxes `[N, h w, 4]`, pixels of the network input, not clipped.
    boxes: String,
}

/// Scores and boxes of one level, as [`crate::model::heads::scored`] computes them.
pub fn flat(g: &mut Graph, level: &Level, p: &Predicted, rank: Rank, offset: f64) -> Flat {
    let points = level.points(g, offset);
    let boxes = decode(g, &points, &p.distances);
    let mut rows = |maps: &str, channels: i64| {
        let last = g.with("Transpose", &[maps], vec![super::graph::ints("perm", &[0, 2, 3, 1])]);
        g.reshape(&last, &[0, -1, channels])
    };
    // The number of classes is that of the maps.
    let boxes = rows(&boxes, 4);
    let quality = p.quality.as_deref().map(|q| rows(q, 1));
    let last = g.with("Transpose", &[&p.cls], vec![super::graph::ints("perm", &[0, 2, 3, 1])]);
    let classes = g.with("Shape", &[&p.cls], vec![int("start", 1), int("end", 2)]);
    let [keep, rest] = [0, -1].map(|v| g.integers(&[v]));
    let shape = g.concat(&[keep, rest, classes], 0);
    let cls = g.op("Reshape", &[&last, &shape]);
    let (ranked, factor) = match (rank, quality) {
        (Rank::Class, factor) => (cls, factor),
        (_, Some(quality)) => (g.op("Mul", &[&cls, &quality]), None),
        (_, None) => (cls, None),
    };
    let ranked = if rank == Rank::Root { g.op("Sqrt", &[&ranked]) } else { ranked };
    Flat { ranked, factor, boxes }
}

/// Outputs `boxes` `[N, P, 4]` and the final `scores` `[N, P, C]`; also `ranking` `[N, P, C]` if
/// threshold and limits apply to other values than the final scores.
pub fn raw(g: &mut Graph, levels: &[Flat], points: Dim, classes: i64) {
    let all = |g: &mut Graph, parts: Vec<String>| g.concat(&parts, 1);
    let boxes = all(g, levels.iter().map(|l| l.boxes.clone()).collect());
    let ranked = all(g, levels.iter().map(|l| l.ranked.clone()).collect());
    let factors: Vec<String> = levels.iter().filter_map(|l| l.factor.clone()).collect();
    let shape = |last| [Dim::Named("N"), points, Dim::Fixed(last)];
    let doc = "x1, y1, x2, y2 in pixels of the network input, not clipped";
    g.output(&boxes, ("boxes", FLOAT, &shape(4), doc));
    let (shape, doc) = (shape(classes), "score of every class");
    if factors.is_empty() {
        return g.output(&ranked, ("scores", FLOAT, &shape, doc));
    }
    let factors = all(g, factors);
    let scores = g.op("Mul", &[&ranked, &factors]);
    g.output(&scores, ("scores", FLOAT, &shape, doc));
    let doc = "what the score threshold and the limit of candidates of a level apply to";
    g.output(&ranked, ("ranking", FLOAT, &shape, doc));
}

/// The largest f32 that is not above `v`, so that `x > v` is the same in f32 as with `v` in f64.
fn rounded_down(v: f64) -> f64 {
    let nearest = v as f32;
    f64::from(if f64::from(nearest) > v { nearest.next_down() } else { nearest })
}

/// Candidates of one level or of all, `[N, K]`; boxes `[N, K, 4]`.
struct Candidates {
    /// Final scores; -1 where there is no candidate.
    scores: String,
    labels: String,
    boxes: String,
}

/// The best `per_level` pairs of point and class of a level; those below the threshold have a
/// score of -1.
fn candidates(g: &mut Graph, level: &Flat, c: &EvalConfig, classes: i64) -> Candidates {
    let pairs = g.reshape(&level.ranked, &[0, -1]);
    let count = g.with("Shape", &[&pairs], vec![int("start", 1), int("end", 2)]);
    let limit = g.integers(&[i64::try_from(c.per_level).unwrap_or(i64::MAX)]);
    let count = g.op("Min", &[&count, &limit]);
    let best = g.call("TopK", &[&pairs, &count], vec![int("axis", 1)], 2);
    let (ranked, index) = (&best[0], &best[1]);
    let classes = g.integer(classes);
    let labels = g.op("Mod", &[index, &classes]);
    let points = g.op("Div", &[index, &classes]);
    let points = g.unsqueeze(&points, 2);
    let mut at = |values: &str| g.with("GatherND", &[values, &points], vec![int("batch_dims", 1)]);
    let boxes = at(&level.boxes);
    let factor = level.factor.as_deref().map(at);
    let last = g.integers(&[2]);
    let scores = match factor {
        Some(factor) => {
            let factor = g.op("Squeeze", &[&factor, &last]);
            g.op("Mul", &[ranked, &factor])
        }
        None => ranked.clone(),
    };
    let threshold = g.number(rounded_down(c.score_threshold));
    let is_above = g.op("Greater", &[ranked, &threshold]);
    let none = g.number(-1.0);
    Candidates { scores: g.op("Where", &[&is_above, &scores, &none]), labels, boxes }
}

/// Boxes clipped to the part of the network input without padding.
fn clipped(g: &mut Graph, boxes: &str, images: &str, image_size: &str) -> String {
    let input = size_of(g, images);
    let limit = g.op("Min", &[image_size, &input]);
    let limit = g.pick(&limit, 1, &[1, 0, 1, 0]);
    let limit = g.cast(&limit, FLOAT);
    let limit = g.unsqueeze(&limit, 1);
    let boxes = g.op("Min", &[boxes, &limit]);
    let zero = g.number(0.0);
    g.op("Max", &[&boxes, &zero])
}

/// Boxes shifted by class, so that one NMS treats every class separately. The shift is
/// `label * (largest coordinate of a candidate + 1)`, as in [`crate::eval::detect`] and mmcv.
fn moved_apart(g: &mut Graph, c: &Candidates) -> String {
    let zero = g.number(0.0);
    let is_candidate = g.op("GreaterOrEqual", &[&c.scores, &zero]);
    let is_candidate = g.unsqueeze(&is_candidate, 2);
    let boxes = g.op("Where", &[&is_candidate, &c.boxes, &zero]);
    let axes = g.integers(&[1, 2]);
    let largest = g.with("ReduceMax", &[&boxes, &axes], vec![int("keepdims", 1)]);
    let one = g.number(1.0);
    let step = g.op("Add", &[&largest, &one]);
    let labels = g.cast(&c.labels, FLOAT);
    let labels = g.unsqueeze(&labels, 2);
    let shift = g.op("Mul", &[&labels, &step]);
    g.op("Add", &[&c.boxes, &shift])
}

/// Outputs the detections of all images in one list, image by image, each by descending score.
/// `images` `[N, 3, H, W]` and `image_size` `[N or 1, 2]` are the inputs.
pub fn nms(
    g: &mut Graph,
    levels: &[Flat],
    c: &EvalConfig,
    classes: i64,
    (images, image_size): (&str, &str),
) {
    let levels: Vec<Candidates> = levels.iter().map(|l| candidates(g, l, c, classes)).collect();
    let mut all = |of: fn(&Candidates) -> &String| {
        g.concat(&levels.iter().map(|l| of(l).clone()).collect::<Vec<_>>(), 1)
    };
    let (scores, labels, boxes) = (all(|c| &c.scores), all(|c| &c.labels), all(|c| &c.boxes));
    let boxes = clipped(g, &boxes, images, image_size);
    let all = Candidates { scores, labels, boxes };
    let apart = moved_apart(g, &all);
    let scores_as_one_class = g.unsqueeze(&all.scores, 1);
    // Boxes are kept by descending score, so this limit takes the best ones over all classes.
    let limit = g.integers(&[i64::try_from(c.per_image).unwrap_or(i64::MAX)]);
    let iou = g.floats(&[rounded_down(c.nms_iou)], &[1]);
    // Scores below 0 are not candidates.
    let threshold = g.floats(&[-0.5], &[1]);
    let inputs = [apart.as_str(), &scores_as_one_class, &limit, &iou, &threshold];
    let kept = g.op("NonMaxSuppression", &inputs);
    // Rows of (image, class, candidate).
    let at = g.pick(&kept, 1, &[0, 2]);
    let of = |g: &mut Graph, values: &str| g.op("GatherND", &[values, &at]);
    let (boxes, scores, labels) = (of(g, &all.boxes), of(g, &all.scores), of(g, &all.labels));
    let image = g.integer(0);
    let image = g.with("Gather", &[&kept, &image], vec![int("axis", 1)]);
    let found = Dim::Named("M");
    let doc = "x1, y1, x2, y2 in pixels of the network input";
    g.output(&boxes, ("boxes", FLOAT, &[found, Dim::Fixed(4)], doc));
    g.output(&scores, ("scores", FLOAT, &[found], "score"));
    g.output(&labels, ("labels", INT64, &[found], "class, from 0"));
    g.output(&image, ("image", INT64, &[found], "image of the batch, from 0"));
}

/// Normalised network input from bytes `images` `[N, 3, H, W]`: 0 in the padding, which is what
/// lies outside `image_size`.
pub fn normalised(
    g: &mut Graph,
    (images, image_size): (&str, &str),
    mean: &[f64],
    scale: &[f64],
) -> String {
    let x = g.cast(images, FLOAT);
    let mean = g.floats(mean, &[1, 3, 1, 1]);
    let scale = g.floats(scale, &[1, 3, 1, 1]);
    let x = g.op("Sub", &[&x, &mean]);
    let x = g.op("Mul", &[&x, &scale]);
    let hw = size_of(g, images);
    let mut is_inside = |axis: i64, shape: &[i64]| {
        let count = super::level::element(g, &hw, axis);
        let places = range(g, &count);
        let places = g.reshape(&places, shape);
        let size = g.pick(image_size, 1, &[axis]);
        let size = g.reshape(&size, &[-1, 1, 1, 1]);
        g.op("Less", &[&places, &size])
    };
    let rows = is_inside(0, &[1, 1, -1, 1]);
    let columns = is_inside(1, &[1, 1, 1, -1]);
    let is_image = g.op("And", &[&rows, &columns]);
    let zero = g.number(0.0);
    g.op("Where", &[&is_image, &x, &zero])
}
