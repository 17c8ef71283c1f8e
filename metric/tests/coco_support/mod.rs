//! A small problem as files, random problems, and their evaluation.
#![allow(dead_code, reason = "each test uses a part")]

use std::path::PathBuf;

use dw_metric::{Detection, Error, Evaluation, GroundTruth, MetricConfig, Problem, evaluate, json};
use serde_json::{Value, json};

/// Ground truth on two images, in two categories.
pub fn truth() -> Value {
    json!({
        "images": [{"id": 1, "file_name": "a.jpg", "width": 100, "height": 80}, {"id": 2}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 10, 10],
             "area": 100, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 7, "bbox": [20, 20, 10.5, 10],
             "area": 100, "iscrowd": 0},
            {"id": 3, "image_id": 2, "category_id": 3, "bbox": [5, 5, 40, 40],
             "area": 1500, "iscrowd": 0},
        ],
        "categories": [{"id": 3, "name": "cup"}, {"id": 7, "name": "cat"}],
    })
}

/// A perfect result for [`truth`].
pub fn results() -> Value {
    json!([
        {"image_id": 1, "category_id": 3, "bbox": [0, 0, 10, 10], "score": 0.9},
        {"image_id": 1, "category_id": 7, "bbox": [20, 20, 10.5, 10], "score": 0.8},
        {"image_id": 2, "category_id": 3, "bbox": [5, 5, 40, 40], "score": 0.7},
    ])
}

/// A ground-truth and a results file in a temporary folder.
pub struct Files {
    pub dir: tempfile::TempDir,
}

impl Files {
    pub fn new(truth: impl AsRef<[u8]>, results: impl AsRef<[u8]>) -> Self {
        let files = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::write(files.gt(), truth).unwrap();
        std::fs::write(files.dt(), results).unwrap();
        files
    }

    pub fn gt(&self) -> PathBuf {
        self.dir.path().join("gt.json")
    }

    pub fn dt(&self) -> PathBuf {
        self.dir.path().join("dt.json")
    }

    /// Evaluation and warnings.
    pub fn run(&self, config: &MetricConfig) -> Result<(Evaluation, Vec<String>), Error> {
        let mut warnings = vec![];
        let truth = json::truth(&self.gt(), &mut warnings)?;
        let detections = json::results(&self.dt(), &truth, &mut warnings)?;
        let problem = truth.problem(&detections);
        let result = evaluate(&problem, config);
        warnings.extend(dw_metric::cli::id_zero_warning(&problem, &result));
        Ok((result, warnings))
    }
}

/// A deterministic random number generator (splitmix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// A random problem with ties, crowds and detections near the ground truth.
pub struct Set {
    pub images: Vec<i64>,
    pub categories: Vec<i64>,
    pub truth: Vec<GroundTruth>,
    pub detections: Vec<Detection>,
}

impl Set {
    pub fn random(seed: u64, images: u64, categories: u64) -> Self {
        let mut r = Random::new(seed);
        let mut set = Self {
            images: (0..images as i64).map(|i| i * 7 % 101 + 1).collect(),
            categories: (0..categories as i64).map(|c| c * 3 + 1).collect(),
            truth: vec![],
            detections: vec![],
        };
        for &image_id in &set.images.clone() {
            for _ in 0..r.below(12) {
                let category_id = set.categories[r.below(categories) as usize];
                let side = [8, 20, 60, 150][r.below(4) as usize];
                let bbox = [r.below(300), r.below(300), side + r.below(side), side + r.below(side)]
                    .map(|v| v as f64);
                let area = bbox[2] * bbox[3] * (0.5 + r.below(50) as f64 / 100.0);
                let id = set.truth.len() as i64 + 1;
                set.truth.push(GroundTruth {
                    id,
                    image_id,
                    category_id,
                    bbox,
                    area,
                    crowd: r.below(12) == 0,
                });
                for _ in 0..r.below(4) {
                    let moved = bbox.map(|v| v + r.below(side) as f64 / 4.0);
                    set.detections.push(Detection {
                        image_id,
                        category_id,
                        bbox: moved,
                        score: r.below(20) as f64 / 20.0,
                    });
                }
                let category_id = set.categories[r.below(categories) as usize];
                set.detections.push(Detection {
                    image_id,
                    category_id,
                    bbox,
                    score: r.below(20) as f64 / 20.0,
                });
            }
        }
        set
    }

    pub fn problem(&self) -> Problem<'_> {
        Problem {
            images: &self.images,
            categories: &self.categories,
            truth: &self.truth,
            detections: &self.detections,
        }
    }
}
