//! Synthetic data sets for the report's tests.

use dw_metric::report::Input;
use dw_metric::{Detection, Evaluation, GroundTruth, MetricConfig, Problem, evaluate};
use image::{Rgb, RgbImage};

/// A data set and detections.
pub struct Data {
    pub images: Vec<i64>,
    pub categories: Vec<i64>,
    pub truth: Vec<GroundTruth>,
    pub found: Vec<Detection>,
    pub names: Vec<String>,
}

impl Data {
    /// `images` images of four boxes each. Detections are shifted by up to half of `noise` times
    /// the side of their box.
    pub fn new(images: i64, classes: i64, noise: f64) -> Self {
        let mut state = 7u64;
        let mut random = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / (1u64 << 31) as f64
        };
        let mut data = Data {
            images: (1..=images).collect(),
            categories: (1..=classes).map(|c| c * 2).collect(),
            truth: vec![],
            found: vec![],
            names: (1..=classes).map(|c| format!("kind {c}")).collect(),
        };
        for image_id in 1..=images {
            for i in 0..4 {
                let category_id = ((random() * classes as f64) as i64 + 1) * 2;
                let side = 10.0 + random() * 150.0;
                let bbox = [random() * 200.0, random() * 100.0, side, side];
                let id = image_id * 10 + i;
                data.truth.push(GroundTruth {
                    id,
                    image_id,
                    category_id,
                    bbox,
                    area: side * side,
                    crowd: random() < 0.03,
                });
                let mut off = || side * noise * (random() - 0.5);
                let bbox = [bbox[0] + off(), bbox[1] + off(), side, side];
                let category_id = if random() < 0.2 * noise { 2 } else { category_id };
                data.found.push(Detection { image_id, category_id, bbox, score: random() });
            }
        }
        data
    }

    pub fn problem(&self) -> Problem<'_> {
        Problem {
            images: &self.images,
            categories: &self.categories,
            truth: &self.truth,
            detections: &self.found,
        }
    }
}

pub fn evaluated(problem: &Problem) -> Evaluation {
    evaluate(problem, &MetricConfig::default())
}

pub fn input<'a>(
    data: &'a Data,
    problem: &'a Problem<'a>,
    evaluation: &'a Evaluation,
) -> Input<'a> {
    Input {
        title: "a run",
        data: "invented",
        date: "2020-02-02",
        facts: &[],
        problem,
        evaluation,
        names: &data.names,
        image_names: None,
        pictures: Some(&|id| Some(RgbImage::from_pixel(320, 240, Rgb([id as u8, 90, 120])))),
    }
}
