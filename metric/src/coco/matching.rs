//! Greedy matching of detections with ground truth, image by image, at each IoU threshold.

use rayon::prelude::*;

use super::config::{Area, MetricConfig};
use super::ranking::Ranked;
use super::types::{Detection, GroundTruth, Problem};

/// Number of thresholds handled in one pass, one bit each.
pub(crate) const BLOCK: usize = 32;

/// Boxes of one category on one image.
struct Scene {
    /// Indices into the problem's ground truth, in the order of the input.
    truth: Vec<u32>,
    /// Positions in the category's ranking, ascending.
    detections: Vec<u32>,
}

/// Images with ground truth of one category; on all others nothing can match.
pub(crate) struct Scenes(Vec<Scene>);

impl Scenes {
    /// Collects the ground truth (indices and images) and the ranked detections of each image.
    pub(crate) fn new(
        (truth, images): (&[u32], &[u32]),
        ranked: &Ranked,
        num_images: usize,
    ) -> Self {
        const NONE: u32 = u32::MAX;
        let mut scene_of = vec![NONE; num_images];
        let mut scenes: Vec<Scene> = vec![];
        for (&g, &image) in truth.iter().zip(images) {
            let at = &mut scene_of[image as usize];
            if *at == NONE {
                *at = scenes.len() as u32;
                scenes.push(Scene { truth: vec![], detections: vec![] });
            }
            scenes[*at as usize].truth.push(g);
        }
        for (position, &image) in ranked.image.iter().enumerate() {
            let at = scene_of[image as usize];
            if at != NONE {
                scenes[at as usize].detections.push(position as u32);
            }
        }
        Self(scenes)
    }
}

/// IoU of a detection and ground truth; for a crowd, intersection over the detection's area. No
/// fused multiply-add, which would round differently from pycocotools.
fn iou(d: &Detection, g: &GroundTruth) -> f64 {
    let [dx, dy, dw, dh] = d.bbox;
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

/// Buffers reused from scene to scene.
#[derive(Default)]
struct Scratch {
    /// Ranking positions of the detections that reach the lowest threshold.
    candidates: Vec<u32>,
    /// Highest IoU of each candidate.
    best: Vec<f64>,
    /// `[candidate][truth]`, truth in the order of the input.
    ious: Vec<f64>,
    /// IoUs of one detection.
    row: Vec<f64>,
    /// Ground truth as (index in the scene, ignored, crowd), ignored boxes last.
    order: Vec<(u32, bool, bool)>,
    /// Whether ground truth is matched already.
    taken: Vec<bool>,
}

impl Scratch {
    /// Computes the IoUs of one scene; `floor` is the lowest threshold.
    fn overlaps(&mut self, problem: &Problem, ranked: &Ranked, scene: &Scene, floor: f64) {
        self.candidates.clear();
        self.best.clear();
        self.ious.clear();
        for &position in &scene.detections {
            let d = &problem.detections[ranked.detection[position as usize] as usize];
            self.row.clear();
            self.row.extend(scene.truth.iter().map(|&g| iou(d, &problem.truth[g as usize])));
            let best = self.row.iter().fold(f64::NEG_INFINITY, |a, &b| if b > a { b } else { a });
            if best >= floor {
                self.candidates.push(position);
                self.best.push(best);
                self.ious.extend_from_slice(&self.row);
            }
        }
    }

    /// Matches the candidates in one area range. Calls `on_match` with the indices of threshold,
    /// candidate and ground truth in the scene, and whether the ground truth is ignored.
    fn matches(
        &mut self,
        problem: &Problem,
        scene: &Scene,
        area: &Area,
        thresholds: &[f64],
        mut on_match: impl FnMut(usize, usize, usize, bool),
    ) {
        self.order.clear();
        self.order.extend(scene.truth.iter().enumerate().map(|(n, &g)| {
            let g = &problem.truth[g as usize];
            (n as u32, g.crowd || area.excludes(g.area), g.crowd)
        }));
        self.order.sort_by_key(|o| o.1);
        let width = scene.truth.len();
        for (t, &threshold) in thresholds.iter().enumerate() {
            self.taken.clear();
            self.taken.resize(width, false);
            let start = lowest_match(threshold);
            for (c, row) in self.ious.chunks_exact(width).enumerate() {
                if self.best[c] < start {
                    continue;
                }
                let mut best = start;
                let mut partner: Option<(u32, bool)> = None;
                for &(n, ignored, crowd) in &self.order {
                    if self.taken[n as usize] && !crowd {
                        continue;
                    }
                    // A match that counts is never replaced by an ignored one. Ignored boxes come
                    // last.
                    if ignored && partner.is_some_and(|p| !p.1) {
                        break;
                    }
                    // The last of equal IoUs is matched, as in pycocotools.
                    if row[n as usize] >= best {
                        best = row[n as usize];
                        partner = Some((n, ignored));
                    }
                }
                if let Some((n, ignored)) = partner {
                    self.taken[n as usize] = true;
                    on_match(t, c, n as usize, ignored);
                }
            }
        }
    }
}

/// Lowest IoU of a matching pair, as in pycocotools.
fn lowest_match(threshold: f64) -> f64 {
    threshold.min(1.0 - 1e-10)
}

/// Outcome of a category's detections by ranking position, one bit per threshold of a block.
#[derive(Debug, Clone)]
pub(crate) struct Flags {
    /// Matched; with annotation id 0 only if `count_id_zero` is set.
    pub(crate) hit: Vec<u32>,
    /// Matched with ignored ground truth.
    pub(crate) ignored: Vec<u32>,
}

/// Flags of one detection in one area range.
struct Flag {
    area: u32,
    position: u32,
    hit: u32,
    ignored: u32,
}

/// Number of scenes per task, large enough to make the cost of scheduling small.
const SCENES_PER_TASK: usize = 64;

/// Matches at a block of thresholds; returns the flags of each area range.
pub(crate) fn flags(
    problem: &Problem,
    config: &MetricConfig,
    thresholds: &[f64],
    ranked: &Ranked,
    scenes: &Scenes,
) -> Vec<Flags> {
    let floor = lowest_match(thresholds.iter().copied().fold(f64::INFINITY, f64::min));
    let one = |scratch: &mut Scratch, out: &mut Vec<Flag>, scene: &Scene| {
        scratch.overlaps(problem, ranked, scene, floor);
        for (a, area) in config.areas.iter().enumerate() {
            let first = out.len();
            out.extend(scratch.candidates.iter().map(|&position| Flag {
                area: a as u32,
                position,
                hit: 0,
                ignored: 0,
            }));
            scratch.matches(problem, scene, area, thresholds, |t, c, n, ignored| {
                let flag = &mut out[first + c];
                // pycocotools stores the annotation id as the match, where 0 means unmatched.
                let counts = config.count_id_zero || problem.truth[scene.truth[n] as usize].id != 0;
                flag.hit |= u32::from(counts) << t;
                flag.ignored |= u32::from(ignored) << t;
            });
        }
    };
    let task = |scenes: &[Scene]| {
        let (mut scratch, mut out) = (Scratch::default(), vec![]);
        for scene in scenes {
            one(&mut scratch, &mut out, scene);
        }
        out
    };
    let found: Vec<Vec<Flag>> = scenes.0.par_chunks(SCENES_PER_TASK).map(task).collect();
    let none = Flags { hit: vec![0; ranked.len()], ignored: vec![0; ranked.len()] };
    let mut out = vec![none; config.areas.len()];
    for f in found.into_iter().flatten() {
        let (flags, p) = (&mut out[f.area as usize], f.position as usize);
        (flags.hit[p], flags.ignored[p]) = (f.hit, f.ignored);
    }
    out
}
