//! Properties of the metric that hold for any boxes.

mod coco_support;

use coco_support::Set;
use dw_metric::{Detection, Evaluation, GroundTruth, MetricConfig, Problem, evaluate};

fn bits(e: &Evaluation) -> Vec<u64> {
    let tables = [
        e.precision(),
        e.recall(),
        e.scores(),
        e.per_class(),
        e.summary().named().map(|n| n.1).to_vec(),
    ];
    tables.concat().iter().map(|v| v.to_bits()).collect()
}

fn on_threads<T: Send>(n: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(work)
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let set = Set::random(1, 100, 5);
    let run = || bits(&evaluate(&set.problem(), &MetricConfig::default()));
    let one = on_threads(1, run);
    for n in [2, 3, 8] {
        assert_eq!(on_threads(n, run), one, "{n} threads");
    }
}

#[test]
fn results_do_not_depend_on_the_order_of_categories_and_images() {
    let set = Set::random(2, 60, 6);
    let e = evaluate(&set.problem(), &MetricConfig::default());
    let (mut categories, mut images) = (set.categories.clone(), set.images.clone());
    categories.reverse();
    images.rotate_left(17);
    images.push(images[3]);
    let other = evaluate(
        &Problem { categories: &categories, images: &images, ..set.problem() },
        &MetricConfig::default(),
    );
    let mut classes = other.per_class();
    classes.reverse();
    assert_eq!(classes, e.per_class());
    assert!((other.summary().ap - e.summary().ap).abs() < 1e-14);
}

/// Uses more thresholds than fit into one block of flags.
#[test]
fn many_thresholds_equal_each_one_alone() {
    let set = Set::random(3, 40, 3);
    let iou: Vec<f64> = (1..=80).map(|i| f64::from(i) / 80.0).collect();
    let all =
        evaluate(&set.problem(), &MetricConfig { iou: iou.clone(), ..MetricConfig::default() });
    for (t, &threshold) in iou.iter().enumerate() {
        let one = evaluate(
            &set.problem(),
            &MetricConfig { iou: vec![threshold], ..MetricConfig::default() },
        );
        for k in 0..3 {
            for a in 0..4 {
                for m in 0..3 {
                    assert_eq!(all.recall_at(t, k, a, m), one.recall_at(0, k, a, m));
                    for r in 0..101 {
                        assert_eq!(
                            all.precision_at(t, r, k, a, m),
                            one.precision_at(0, r, k, a, m)
                        );
                        assert_eq!(all.score_at(t, r, k, a, m), one.score_at(0, r, k, a, m));
                    }
                }
            }
        }
    }
}

#[test]
fn numbers_are_in_range_and_ordered() {
    for seed in 10..30 {
        let set = Set::random(seed, 20, 4);
        let e = evaluate(&set.problem(), &MetricConfig::default());
        let s = e.summary();
        for (name, v) in s.named() {
            assert!(v == -1.0 || (0.0..=1.0).contains(&v), "{name} {v}");
        }
        assert!(s.ap <= s.ap50 + 1e-12 && s.ap75 <= s.ap50 + 1e-12);
        assert!(s.ar1 <= s.ar10 && s.ar10 <= s.ar100);
        for t in 1..10 {
            assert!(
                e.ap_at(e.config.iou[t]) <= e.ap_at(e.config.iou[t - 1]) + 1e-12,
                "AP does not rise with the IoU threshold"
            );
        }
    }
}

/// A detection with the lowest score cannot lower AP; a false positive with the highest score
/// cannot raise it.
#[test]
fn effect_of_one_more_detection() {
    for seed in 40..60 {
        let set = Set::random(seed, 15, 2);
        let ap = evaluate(&set.problem(), &MetricConfig::default()).summary().ap;
        let Some(&g) = set.truth.first() else { continue };
        let with = |bbox: [f64; 4], score: f64| {
            let mut detections = set.detections.clone();
            detections.push(Detection {
                image_id: g.image_id,
                category_id: g.category_id,
                bbox,
                score,
            });
            evaluate(
                &Problem { detections: &detections, ..set.problem() },
                &MetricConfig::default(),
            )
            .summary()
            .ap
        };
        assert!(with(g.bbox, -1.0) >= ap - 1e-12);
        assert!(with([5000.0, 5000.0, 9.0, 9.0], 2.0) <= ap + 1e-12);
    }
}

#[test]
fn perfect_detections_have_ap_1() {
    let set = Set::random(70, 50, 4);
    let kept: Vec<GroundTruth> = set.truth.iter().filter(|g| !g.crowd).copied().collect();
    let detections: Vec<Detection> = kept
        .iter()
        .map(|g| Detection {
            image_id: g.image_id,
            category_id: g.category_id,
            bbox: g.bbox,
            score: 0.5,
        })
        .collect();
    let s = evaluate(
        &Problem { truth: &kept, detections: &detections, ..set.problem() },
        &MetricConfig::default(),
    )
    .summary();
    assert!((s.ap - 1.0).abs() < 1e-12 && s.ar100 == 1.0, "{s:?}");
}
