//! The bootstrap: every sample equals the evaluation of the drawn images, on any number of threads.

mod coco_support;

use coco_support::Set;
use dw_metric::{Bootstrap, Detection, GroundTruth, MetricConfig, Problem, bootstrap, evaluate};

const SETTINGS: Bootstrap = Bootstrap { replicates: 6, seed: 5 };

/// A set with each image repeated as often as drawn. The copies of an image have adjacent ids.
fn repeated(set: &Set, counts: &[u32]) -> Set {
    let mut ids = set.images.clone();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), counts.len());
    let copies = |id: i64| {
        let rank = ids.binary_search(&id).unwrap();
        (0..i64::from(counts[rank])).map(move |copy| rank as i64 * 1_000_000 + copy)
    };
    Set {
        images: ids.iter().flat_map(|&id| copies(id)).collect(),
        categories: set.categories.clone(),
        truth: set
            .truth
            .iter()
            .flat_map(|g| copies(g.image_id).map(|image_id| GroundTruth { image_id, ..*g }))
            .collect(),
        detections: set
            .detections
            .iter()
            .flat_map(|d| copies(d.image_id).map(|image_id| Detection { image_id, ..*d }))
            .collect(),
    }
}

/// Compares all samples with evaluations of repeated images.
fn assert_equal(set: &Set, config: &MetricConfig) {
    let mut ids = set.images.clone();
    ids.sort_unstable();
    ids.dedup();
    let samples = bootstrap(&set.problem(), config, SETTINGS);
    assert_eq!(samples.categories.len(), set.categories.len());
    for i in 0..SETTINGS.replicates {
        let drawn = repeated(set, &SETTINGS.draw(ids.len(), i));
        let plain = evaluate(&drawn.problem(), config);
        let named = plain.named();
        for (name, values) in &samples.numbers {
            let expected = named.iter().find(|n| n.0 == *name).unwrap().1;
            assert_eq!(values[i].to_bits(), expected.to_bits(), "{name} of sample {i}");
        }
        for (k, ap) in plain.per_class().into_iter().enumerate() {
            assert_eq!(samples.categories[k][i].to_bits(), ap.to_bits(), "class {k} of sample {i}");
        }
        let names: Vec<&String> = samples.numbers.iter().map(|n| &n.0).collect();
        assert!(named.iter().filter(|n| n.0.starts_with("AP")).map(|n| &n.0).eq(names));
    }
}

#[test]
fn samples_equal_evaluations_of_repeated_images() {
    for seed in 0..6 {
        assert_equal(&Set::random(seed, 40, 3), &MetricConfig::default());
    }
    // Few images and many classes: classes are missing in some samples.
    assert_equal(&Set::random(7, 4, 12), &MetricConfig::default());
}

#[test]
fn samples_follow_the_configuration() {
    let default = MetricConfig::default();
    let set = Set::random(11, 30, 2);
    for config in [
        MetricConfig { max_dets: vec![1, 3], ..default.clone() },
        MetricConfig { iou: vec![0.6], ..default.clone() },
        // More than one block of thresholds.
        MetricConfig { iou: (1..=70).map(|i| f64::from(i) / 70.0).collect(), ..default.clone() },
        MetricConfig { areas: default.areas[..2].to_vec(), ..default.clone() },
        MetricConfig { count_id_zero: true, ..default },
    ] {
        assert_equal(&set, &config);
    }
}

/// All scores equal, NaN scores, id 0, images without boxes, nothing at all.
#[test]
fn samples_of_special_cases() {
    let config = MetricConfig::default();
    let mut set = Set::random(3, 25, 2);
    for d in &mut set.detections {
        d.score = 0.5;
    }
    set.truth[0].id = 0;
    assert_equal(&set, &config);
    for d in set.detections.iter_mut().step_by(3) {
        d.score = f64::NAN;
    }
    set.images.extend(500..600);
    set.images.push(500);
    assert_equal(&set, &config);
    set.detections.clear();
    assert_equal(&set, &config);
    let nothing = Problem { images: &[], categories: &[1], truth: &[], detections: &[] };
    let samples = bootstrap(&nothing, &config, SETTINGS);
    assert_eq!(samples.number("AP"), Some(&[-1.0; 6][..]));
}

#[test]
fn samples_do_not_depend_on_the_number_of_threads() {
    let set = Set::random(9, 60, 4);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| bootstrap(&set.problem(), &MetricConfig::default(), SETTINGS))
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(5));
    let other = Bootstrap { seed: 6, ..SETTINGS };
    assert_ne!(one.numbers, bootstrap(&set.problem(), &MetricConfig::default(), other).numbers);
}
