//! The COCO metric. The order of ties and the treatment of crowds and ignored areas are exactly
//! those of pycocotools.
//!
//! Detections are matched per (category, image) and accumulated per category. Results do not depend
//! on the number of threads. Modules in dependency order:
//!
//! * [`types`]: boxes and the problem to evaluate
//! * [`config`]: thresholds, area ranges and limits
//! * `groups`: boxes by category
//! * `ranking`: detections of a category by score
//! * `matching`: greedy matching of detections with ground truth
//! * `accumulate`: precision and recall from matches
//! * [`matches`]: the outcome for each box, for reports
//! * [`evaluation`]: the tables of precision, recall and scores
//! * [`summary`]: AP and AR from the tables
//! * `weighted`: precision with images counted several times
//! * [`bootstrap`]: AP of resampled images, and intervals

mod accumulate;
pub mod bootstrap;
pub mod config;
pub mod evaluation;
mod groups;
mod matching;
mod ranking;
pub mod summary;
pub mod types;
mod weighted;

use rayon::prelude::*;

use accumulate::{Block, Curves, accumulate};
use config::{Area, MetricConfig};
use evaluation::{ClassArea, ClassCounts, Evaluation};
use groups::Groups;
pub(crate) use groups::Positions;
use matching::{BLOCK, Scenes};
use ranking::Ranked;
use types::Problem;

/// Evaluates detections against ground truth, on rayon's threads.
///
/// ```
/// use dw_metric::{Detection, GroundTruth, MetricConfig, Problem, evaluate};
///
/// let (image_id, category_id) = (7, 1);
/// let bbox = [10.0, 10.0, 40.0, 20.0]; // x, y, w, h
/// let truth = [GroundTruth { id: 1, image_id, category_id, bbox, area: 800.0, crowd: false }];
/// let shifted = [12.0, 10.0, 40.0, 20.0]; // IoU 0.905
/// let detections = [Detection { image_id, category_id, bbox: shifted, score: 0.8 }];
/// let problem =
///     Problem { images: &[7], categories: &[1], truth: &truth, detections: &detections };
///
/// let evaluation = evaluate(&problem, &MetricConfig::default());
/// let summary = evaluation.summary();
/// assert!((summary.ap50 - 1.0).abs() < 1e-9);
/// assert!((summary.ap - 0.9).abs() < 1e-9); // matched at 9 of 10 IoU thresholds
/// assert_eq!(summary.ap_large, -1.0); // no large ground truth
/// ```
pub fn evaluate(problem: &Problem, config: &MetricConfig) -> Evaluation {
    let groups = Groups::new(problem);
    // One category per task: the most frequent one can hold a third of all boxes.
    let categories = (0..problem.categories.len()).into_par_iter().with_max_len(1);
    let (classes, tables) = categories
        .map(|k| (count(problem, &groups, k), category(problem, config, &groups, k)))
        .unzip();
    Evaluation { config: config.clone(), categories: problem.categories.to_vec(), classes, tables }
}

/// Number of boxes of category `k`.
fn count(problem: &Problem, groups: &Groups, k: usize) -> ClassCounts {
    let (truth, _) = groups.truth.of(k);
    let crowds = truth.iter().filter(|&&g| problem.truth[g as usize].crowd).count();
    ClassCounts { truth: truth.len() - crowds, crowds, detections: groups.detections.of(k).0.len() }
}

/// Curves of category `k`, for each area range.
fn category(problem: &Problem, config: &MetricConfig, groups: &Groups, k: usize) -> Vec<ClassArea> {
    let ranked =
        Ranked::new(problem.detections, groups.detections.of(k), groups.images, &config.max_dets);
    let scenes = Scenes::new(groups.truth.of(k), &ranked, groups.images);
    let positives = |a: &Area| {
        let truth = groups.truth.of(k).0.iter().map(|&g| &problem.truth[g as usize]);
        truth.filter(|g| !g.crowd && !a.excludes(g.area)).count()
    };
    let empty = |a| ClassArea {
        positives: positives(a),
        curves: vec![Curves::default(); config.max_dets.len()],
    };
    let mut out: Vec<ClassArea> = config.areas.iter().map(empty).collect();
    for thresholds in config.iou.chunks(BLOCK) {
        let flags = matching::flags(problem, config, thresholds, &ranked, &scenes);
        out.par_iter_mut().enumerate().for_each(|(a, class)| {
            let block = Block {
                ranked: &ranked,
                flags: &flags[a],
                area: &config.areas[a],
                positives: class.positives,
                num_thresholds: thresholds.len(),
            };
            accumulate(&block, &mut class.curves);
        });
    }
    out
}
