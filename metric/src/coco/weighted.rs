//! Precision at the recall points, with each image counted as often as it was drawn.
//!
//! The matches of an image do not depend on other images, so they are computed once. An image drawn
//! n times counts like n images with adjacent ids: among equal scores, all detections of the first
//! copy precede those of the second. The result is bit-identical to that of evaluating these
//! copies.

use super::accumulate::{Block, all_bits, bits, outcome};
use super::config::{Area, MetricConfig, RECALLS, recall_point};
use super::groups::Groups;
use super::matching::{BLOCK, Scenes, flags};
use super::ranking::Ranked;
use super::types::Problem;

/// A detection that is a true positive at some threshold, that counts at only some thresholds, or
/// that is tied (same image, equal score) with such a detection.
struct Event {
    image: u32,
    /// Thresholds at which it is a true positive, one bit each.
    right: u32,
    /// Thresholds at which it is a false positive, one bit each.
    wrong: u32,
    /// Number of [`Steps::false_images`] ranked before it.
    before: u32,
    /// For the first event of an image with this score, the number of such events; 0 for the
    /// others.
    tied: u32,
}

/// The detections of one (category, area range) by rank, at a block of thresholds.
struct Steps {
    num_thresholds: usize,
    events: Vec<Event>,
    /// Images of the detections that are false positives at every threshold. Most detections are,
    /// and only their number matters.
    false_images: Vec<u32>,
}

/// Matches of one (category, area range) as a function of how often each image is drawn.
pub(crate) struct Weighted {
    /// Image and number of its ground-truth boxes that are not ignored.
    truth: Vec<(u32, u32)>,
    /// One for each block of thresholds.
    blocks: Vec<Steps>,
}

impl Steps {
    fn new(block: &Block) -> Self {
        let Block { ranked, flags, area, num_thresholds, .. } = *block;
        let every = all_bits(num_thresholds);
        let (mut events, mut false_images) = (vec![], vec![]);
        let mut start = 0;
        while start < ranked.len() {
            let end = start + ranked.tied(start);
            let image = ranked.image[start];
            let of =
                |i: usize| outcome(area, ranked.size[i], (flags.hit[i], flags.ignored[i]), every);
            let counted: Vec<(u32, u32)> =
                (start..end).map(of).filter(|(right, wrong)| right | wrong != 0).collect();
            if counted.iter().all(|o| *o == (0, every)) {
                false_images.extend(counted.iter().map(|_| image));
            } else {
                let before = false_images.len() as u32;
                events.extend(counted.iter().enumerate().map(|(i, &(right, wrong))| {
                    let tied = if i == 0 { counted.len() as u32 } else { 0 };
                    Event { image, right, wrong, before, tied }
                }));
            }
            start = end;
        }
        // False positives after the last event do not affect precision.
        false_images.truncate(events.last().map_or(0, |e| e.before as usize));
        false_images.shrink_to_fit();
        Self { num_thresholds, events, false_images }
    }

    /// Precision `[T, R]` of this block. `needed` is the number of true positives at which each
    /// recall point is reached.
    fn precision(&self, weights: &[u32], needed: &[u32; RECALLS], out: &mut [f64]) {
        out.fill(0.0);
        let mut counts = Counts::default();
        let mut from = 0;
        for (i, e) in self.events.iter().enumerate() {
            let before = e.before as usize;
            let passed = &self.false_images[from..before];
            counts.fp_every += passed.iter().map(|&i| weights[i as usize]).sum::<u32>();
            from = before;
            let weight = weights[e.image as usize];
            match e.tied {
                _ if weight == 0 => {}
                0 => {}
                1 => counts.add(e, weight, needed, out),
                n => {
                    for _ in 0..weight {
                        for e in &self.events[i..i + n as usize] {
                            counts.add(e, 1, needed, out);
                        }
                    }
                }
            }
        }
        // Interpolated precision at a recall point is the highest precision at this or a higher
        // recall.
        for curve in out.chunks_exact_mut(RECALLS) {
            for r in (1..RECALLS).rev() {
                if curve[r] > curve[r - 1] {
                    curve[r - 1] = curve[r];
                }
            }
        }
    }
}

/// Running counts over the ranked detections, for each threshold.
#[derive(Default)]
struct Counts {
    fp_every: u32,
    fp: [u32; BLOCK],
    tp: [u32; BLOCK],
    /// Number of recall points reached.
    reached: [usize; BLOCK],
}

impl Counts {
    /// Counts a detection `weight` times, and stores the highest precision at the last recall point
    /// reached.
    fn add(&mut self, e: &Event, weight: u32, needed: &[u32; RECALLS], out: &mut [f64]) {
        for t in bits(e.wrong) {
            self.fp[t] += weight;
        }
        for t in bits(e.right) {
            self.tp[t] += weight;
            // Precision rises with each copy of a true positive, so only that of the last copy is
            // needed.
            let (tp, fp) = (f64::from(self.tp[t]), f64::from(self.fp[t] + self.fp_every));
            let precision = tp / (fp + tp + f64::EPSILON);
            let reached = &mut self.reached[t];
            while *reached < RECALLS && needed[*reached] <= self.tp[t] {
                *reached += 1;
            }
            // Recall point 0 needs one true positive, so at least one point is reached.
            let best = &mut out[t * RECALLS + *reached - 1];
            if precision > *best {
                *best = precision;
            }
        }
    }
}

/// Number of true positives of `positives` at which each recall point is reached.
fn needed(positives: u32) -> [u32; RECALLS] {
    std::array::from_fn(|r| {
        let (recall, all) = (recall_point(r), f64::from(positives));
        let reaches = |n: u32| f64::from(n) / all >= recall;
        // Rounding can make the product inexact.
        let mut n = ((recall * all).ceil() as u32).max(1);
        while n > 1 && reaches(n - 1) {
            n -= 1;
        }
        while !reaches(n) {
            n += 1;
        }
        n
    })
}

impl Weighted {
    /// Precision `[T, R]`, with the ground truth and detections of each image counted as often as
    /// given in `weights`, which is indexed by the rank of the image id. All -1 without ground
    /// truth that is not ignored.
    pub(crate) fn precision(&self, weights: &[u32], out: &mut [f64]) {
        let positives = self.truth.iter().map(|&(image, n)| weights[image as usize] * n).sum();
        if positives == 0 {
            out.fill(-1.0);
            return;
        }
        let needed = needed(positives);
        let mut rest = out;
        for block in &self.blocks {
            let (part, others) = rest.split_at_mut(block.num_thresholds * RECALLS);
            block.precision(weights, &needed, part);
            rest = others;
        }
    }
}

/// Matches of category `k` at the largest limit, for each area range.
pub(crate) fn category(
    problem: &Problem,
    config: &MetricConfig,
    groups: &Groups,
    k: usize,
) -> Vec<Weighted> {
    let ranked =
        Ranked::new(problem.detections, groups.detections.of(k), groups.images, &config.max_dets);
    let (truth, images) = groups.truth.of(k);
    let scenes = Scenes::new((truth, images), &ranked, groups.images);
    let counted = |area: &Area| {
        let boxes = truth.iter().map(|&g| &problem.truth[g as usize]).zip(images);
        let boxes = boxes.filter(|(g, _)| !g.crowd && !area.excludes(g.area));
        let mut of_images: Vec<u32> = boxes.map(|(_, &image)| image).collect();
        of_images.sort_unstable();
        of_images.chunk_by(|a, b| a == b).map(|same| (same[0], same.len() as u32)).collect()
    };
    let empty = |area| Weighted { truth: counted(area), blocks: vec![] };
    let mut out: Vec<Weighted> = config.areas.iter().map(empty).collect();
    for thresholds in config.iou.chunks(BLOCK) {
        let flags = flags(problem, config, thresholds, &ranked, &scenes);
        for ((out, flags), area) in out.iter_mut().zip(&flags).zip(&config.areas) {
            let num_thresholds = thresholds.len();
            let block = Block { ranked: &ranked, flags, area, positives: 0, num_thresholds };
            out.blocks.push(Steps::new(&block));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needed_is_the_smallest_count_that_reaches_a_recall_point() {
        for positives in [1, 2, 3, 7, 99, 100, 101, 1000, 36_335] {
            for (r, n) in needed(positives).into_iter().enumerate() {
                let reaches = |n: u32| f64::from(n) / f64::from(positives) >= recall_point(r);
                assert!(n >= 1 && reaches(n) && (n == 1 || !reaches(n - 1)), "{positives} {r}");
            }
        }
    }
}
