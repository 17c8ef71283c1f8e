//! COCO's detection metric with pycocotools' results, corner by corner: order of ties, crowds, ignored areas.
//!
//! Detections are matched per (category, image), accumulated per category; categories run in parallel.

use std::collections::HashMap;

use rayon::prelude::*;

/// A ground-truth box.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroundTruth {
    /// Annotation id.
    pub id: i64,
    /// Image.
    pub image_id: i64,
    /// Category.
    pub category_id: i64,
    /// `[x, y, w, h]`
    pub bbox: [f64; 4],
    /// Area that decides small, medium, large.
    pub area: f64,
    /// May take any number of detections, which then do not count.
    pub crowd: bool,
}

/// A detection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Detection {
    /// Image.
    pub image_id: i64,
    /// Category.
    pub category_id: i64,
    /// `[x, y, w, h]`
    pub bbox: [f64; 4],
    /// Score.
    pub score: f64,
}

/// What is to be evaluated. Order of truth and detections matters for ties, as in pycocotools.
#[derive(Debug)]
pub struct Problem<'a> {
    /// Image ids.
    pub images: &'a [i64],
    /// Category ids.
    pub categories: &'a [i64],
    /// Ground truth.
    pub truth: &'a [GroundTruth],
    /// Detections; those of other images or categories are left out.
    pub detections: &'a [Detection],
}

/// Thresholds and limits.
#[derive(Debug, Clone, PartialEq)]
pub struct Params {
    /// IoU thresholds.
    pub iou: Vec<f64>,
    /// Area ranges `[low, high]`, both ends inclusive; the first is "all".
    pub areas: Vec<[f64; 2]>,
    /// Detections of an (image, category), ascending.
    pub max_dets: Vec<usize>,
    /// Count a match with annotation id 0 (pycocotools loses it).
    pub count_id_zero: bool,
}

impl Default for Params {
    fn default() -> Self {
        // numpy's linspace, bit for bit: start + i * step, the last set to the end.
        let step = (0.95 - 0.5) / 9.0;
        let iou = (0..10).map(|i| if i == 9 { 0.95 } else { f64::from(i) * step + 0.5 }).collect();
        let areas = vec![[0.0, 1e10], [0.0, 1024.0], [1024.0, 9216.0], [9216.0, 1e10]];
        Self { iou, areas, max_dets: vec![1, 10, 100], count_id_zero: false }
    }
}

/// Recall points of the precision curve.
const RECALLS: usize = 101;

fn recall_point(i: usize) -> f64 {
    if i == RECALLS - 1 { 1.0 } else { i as f64 * (1.0 / 100.0) }
}

/// Precision and recall tables.
#[derive(Debug)]
pub struct Evaluation {
    /// `[T, R, K, A, M]`, -1 where there is nothing to find.
    pub precision: Vec<f64>,
    /// `[T, K, A, M]`
    pub recall: Vec<f64>,
    params: Params,
    categories: usize,
}

/// COCO's 12 numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(missing_docs, reason = "COCO's own names")]
pub struct Summary {
    pub ap: f64,
    pub ap50: f64,
    pub ap75: f64,
    pub ap_small: f64,
    pub ap_medium: f64,
    pub ap_large: f64,
    pub ar1: f64,
    pub ar10: f64,
    pub ar100: f64,
    pub ar_small: f64,
    pub ar_medium: f64,
    pub ar_large: f64,
}

impl Summary {
    /// With COCO's names, in COCO's order.
    pub fn named(&self) -> [(&'static str, f64); 12] {
        [
            ("AP", self.ap),
            ("AP50", self.ap50),
            ("AP75", self.ap75),
            ("APs", self.ap_small),
            ("APm", self.ap_medium),
            ("APl", self.ap_large),
            ("AR1", self.ar1),
            ("AR10", self.ar10),
            ("AR100", self.ar100),
            ("ARs", self.ar_small),
            ("ARm", self.ar_medium),
            ("ARl", self.ar_large),
        ]
    }
}

/// Boxes of one (category, image).
#[derive(Default)]
struct Group {
    truth: Vec<GroundTruth>,
    /// Best first, at most the largest limit.
    detections: Vec<Detection>,
}

/// One (category, image, area): detections with their fate at every threshold.
struct Matched {
    scores: Vec<f64>,
    /// `[T][D]`
    hit: Vec<Vec<bool>>,
    /// `[T][D]`
    ignored: Vec<Vec<bool>>,
    /// Ground truth that counts.
    positives: usize,
}

fn iou(d: &[f64; 4], g: &GroundTruth) -> f64 {
    let [dx, dy, dw, dh] = *d;
    let [gx, gy, gw, gh] = g.bbox;
    let w = (dx + dw).min(gx + gw) - dx.max(gx);
    let h = (dy + dh).min(gy + gh) - dy.max(gy);
    if w <= 0.0 || h <= 0.0 {
        return 0.0;
    }
    let overlap = w * h;
    let union = if g.crowd { dw * dh } else { dw * dh + gw * gh - overlap };
    overlap / union
}

fn match_group(group: &Group, area: [f64; 2], params: &Params) -> Matched {
    let outside = |a: f64| a < area[0] || a > area[1];
    // Ignored ground truth last, else in file order.
    let mut truth: Vec<(&GroundTruth, bool)> = group.truth.iter().map(|g| (g, g.crowd || outside(g.area))).collect();
    truth.sort_by_key(|g| g.1);
    let ious: Vec<Vec<f64>> = group.detections.iter().map(|d| truth.iter().map(|(g, _)| iou(&d.bbox, g)).collect()).collect();
    let n = group.detections.len();
    let mut out = Matched {
        scores: group.detections.iter().map(|d| d.score).collect(),
        hit: vec![vec![false; n]; params.iou.len()],
        ignored: vec![vec![false; n]; params.iou.len()],
        positives: truth.iter().filter(|g| !g.1).count(),
    };
    let mut taken = vec![false; truth.len()];
    for (t, &threshold) in params.iou.iter().enumerate() {
        taken.fill(false);
        for (d, ious) in ious.iter().enumerate() {
            let mut best = threshold.min(1.0 - 1e-10);
            let mut found: Option<usize> = None;
            for (g, &(truth_box, ignored)) in truth.iter().enumerate() {
                if taken[g] && !truth_box.crowd {
                    continue;
                }
                // A counted match is never given up for an ignored one, and those come last.
                if ignored && found.is_some_and(|m| !truth[m].1) {
                    break;
                }
                // On equal IoU the later one wins.
                if ious[g] < best {
                    continue;
                }
                best = ious[g];
                found = Some(g);
            }
            let mut hit = false;
            if let Some(g) = found {
                taken[g] = true;
                out.ignored[t][d] = truth[g].1;
                // pycocotools stores the annotation's id as the match, and 0 means none.
                hit = truth[g].0.id != 0 || params.count_id_zero;
            }
            out.hit[t][d] = hit;
            let [_, _, w, h] = group.detections[d].bbox;
            if !hit && outside(w * h) {
                out.ignored[t][d] = true;
            }
        }
    }
    out
}

/// Matches and accumulates.
pub fn evaluate(problem: &Problem, params: &Params) -> Evaluation {
    let most = params.max_dets.iter().copied().max().unwrap_or(0);
    let mut images = problem.images.to_vec();
    images.sort_unstable();
    images.dedup();
    let category: HashMap<i64, usize> = problem.categories.iter().enumerate().map(|(k, &c)| (c, k)).collect();
    let known = |image: i64, cat: i64| Some((*category.get(&cat)?, images.binary_search(&image).ok()?));
    let mut groups: Vec<HashMap<usize, Group>> = (0..problem.categories.len()).map(|_| HashMap::new()).collect();
    for g in problem.truth {
        if let Some((k, i)) = known(g.image_id, g.category_id) {
            groups[k].entry(i).or_default().truth.push(*g);
        }
    }
    for d in problem.detections {
        if let Some((k, i)) = known(d.image_id, d.category_id) {
            groups[k].entry(i).or_default().detections.push(*d);
        }
    }
    let (t, k, a, m) = (params.iou.len(), problem.categories.len(), params.areas.len(), params.max_dets.len());
    let mut out = Evaluation {
        precision: vec![-1.0; t * RECALLS * k * a * m],
        recall: vec![-1.0; t * k * a * m],
        params: params.clone(),
        categories: k,
    };
    let curves: Vec<Vec<Option<Curves>>> = groups.into_par_iter().map(|g| category_curves(g, params, most)).collect();
    for (k_, curves) in curves.into_iter().enumerate() {
        for (am, curve) in curves.into_iter().enumerate() {
            let Some(curve) = curve else { continue };
            let (a_, m_) = (am / m, am % m);
            for t_ in 0..t {
                out.recall[((t_ * k + k_) * a + a_) * m + m_] = curve.recall[t_];
                for r in 0..RECALLS {
                    out.precision[(((t_ * RECALLS + r) * k + k_) * a + a_) * m + m_] = curve.precision[t_][r];
                }
            }
        }
    }
    out
}

struct Curves {
    /// `[T]`
    recall: Vec<f64>,
    /// `[T][R]`
    precision: Vec<Vec<f64>>,
}

/// Curves of one category, for each (area, limit) in that order; `None` without ground truth that counts.
fn category_curves(groups: HashMap<usize, Group>, params: &Params, most: usize) -> Vec<Option<Curves>> {
    let mut groups: Vec<(usize, Group)> = groups.into_iter().collect();
    groups.sort_by_key(|g| g.0);
    for (_, g) in &mut groups {
        g.detections.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap_or(std::cmp::Ordering::Equal));
        g.detections.truncate(most);
    }
    let mut out = vec![];
    for &area in &params.areas {
        let matched: Vec<Matched> = groups.iter().map(|(_, g)| match_group(g, area, params)).collect();
        let positives: usize = matched.iter().map(|m| m.positives).sum();
        for &limit in &params.max_dets {
            out.push((positives > 0).then(|| accumulate(&matched, positives, limit, params.iou.len())));
        }
    }
    out
}

fn accumulate(matched: &[Matched], positives: usize, limit: usize, thresholds: usize) -> Curves {
    // (score, group, detection), images ascending; a stable sort keeps that order among ties.
    let mut order: Vec<(f64, usize, usize)> =
        matched.iter().enumerate().flat_map(|(g, m)| m.scores.iter().take(limit).enumerate().map(move |(d, &s)| (s, g, d))).collect();
    order.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(std::cmp::Ordering::Equal));
    let mut curves = Curves { recall: vec![], precision: vec![] };
    for t in 0..thresholds {
        let (mut tp, mut fp) = (0.0, 0.0);
        let (mut recall, mut precision) = (Vec::with_capacity(order.len()), Vec::with_capacity(order.len()));
        for &(_, g, d) in &order {
            if !matched[g].ignored[t][d] {
                if matched[g].hit[t][d] {
                    tp += 1.0;
                } else {
                    fp += 1.0;
                }
            }
            recall.push(tp / positives as f64);
            precision.push(tp / (fp + tp + f64::EPSILON));
        }
        for i in (1..precision.len()).rev() {
            if precision[i] > precision[i - 1] {
                precision[i - 1] = precision[i];
            }
        }
        curves.recall.push(recall.last().copied().unwrap_or(0.0));
        let at = |r: f64| recall.partition_point(|&v| v < r);
        curves.precision.push((0..RECALLS).map(|r| precision.get(at(recall_point(r))).copied().unwrap_or(0.0)).collect());
    }
    curves
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut n) = (0.0, 0usize);
    for v in values.filter(|&v| v > -1.0) {
        sum += v;
        n += 1;
    }
    if n == 0 { -1.0 } else { sum / n as f64 }
}

impl Evaluation {
    fn dims(&self) -> (usize, usize, usize, usize) {
        (self.params.iou.len(), self.categories, self.params.areas.len(), self.params.max_dets.len())
    }

    fn ap(&self, iou: Option<f64>, area: usize, category: Option<usize>) -> f64 {
        let (t, k, a, m) = self.dims();
        let thresholds = (0..t).filter(|&i| iou.is_none_or(|v| (self.params.iou[i] - v).abs() < 1e-12));
        let limit = m - 1;
        mean(thresholds.flat_map(|ti| {
            (0..RECALLS).flat_map(move |r| {
                let ks = category.map_or(0..k, |c| c..c + 1);
                ks.map(move |ki| self.precision[(((ti * RECALLS + r) * k + ki) * a + area) * m + limit])
            })
        }))
    }

    fn ar(&self, area: usize, limit: usize) -> f64 {
        let (t, k, a, m) = self.dims();
        mean((0..t * k).map(|i| self.recall[(i * a + area) * m + limit]))
    }

    /// AP of each category over all thresholds; -1 without ground truth.
    pub fn per_class(&self) -> Vec<f64> {
        (0..self.categories).map(|k| self.ap(None, 0, Some(k))).collect()
    }

    /// The 12 numbers (with COCO's own areas and limits in [`Params`]).
    pub fn summary(&self) -> Summary {
        Summary {
            ap: self.ap(None, 0, None),
            ap50: self.ap(Some(0.5), 0, None),
            ap75: self.ap(Some(0.75), 0, None),
            ap_small: self.ap(None, 1, None),
            ap_medium: self.ap(None, 2, None),
            ap_large: self.ap(None, 3, None),
            ar1: self.ar(0, 0),
            ar10: self.ar(0, 1),
            ar100: self.ar(0, 2),
            ar_small: self.ar(1, 2),
            ar_medium: self.ar(2, 2),
            ar_large: self.ar(3, 2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gt(id: i64, bbox: [f64; 4]) -> GroundTruth {
        GroundTruth { id, image_id: 1, category_id: 1, bbox, area: bbox[2] * bbox[3], crowd: false }
    }

    fn dt(bbox: [f64; 4], score: f64) -> Detection {
        Detection { image_id: 1, category_id: 1, bbox, score }
    }

    fn run(truth: &[GroundTruth], detections: &[Detection]) -> Summary {
        evaluate(&Problem { images: &[1], categories: &[1], truth, detections }, &Params::default()).summary()
    }

    #[test]
    fn perfect_half_and_nothing() {
        let (a, b) = ([0., 0., 10., 10.], [50., 50., 10., 10.]);
        assert!((run(&[gt(1, a)], &[dt(a, 0.9)]).ap - 1.0).abs() < 1e-12);
        let half = run(&[gt(1, a), gt(2, b)], &[dt(a, 0.9)]);
        assert!((half.ap - 51.0 / 101.0).abs() < 1e-12 && half.ar100 == 0.5);
        assert_eq!(run(&[gt(1, a)], &[]).ap, 0.0);
        assert_eq!(run(&[], &[dt(a, 0.9)]).ap, -1.0);
        assert_eq!(run(&[gt(1, a)], &[dt(a, 0.9)]).ap_large, -1.0);
    }

    #[test]
    fn a_crowd_swallows_detections() {
        let crowd = GroundTruth { crowd: true, ..gt(2, [50., 50., 40., 40.]) };
        let s = run(
            &[gt(1, [0., 0., 10., 10.]), crowd],
            &[dt([55., 55., 10., 10.], 0.99), dt([60., 60., 10., 10.], 0.98), dt([0., 0., 10., 10.], 0.5)],
        );
        assert!((s.ap - 1.0).abs() < 1e-12, "{s:?}");
    }
}
