//! Points in the central part of a box are positive; of several boxes the smallest one counts.

use std::sync::Arc;

use dw::assign::hard::{BoxLoss, BoxTerm, FocalAndCenterness};
use dw::assign::positives::Count;
use dw::assign::{ImageBoxes, Matcher, PointTargets, Strategy, StrategyConfig, Targets};
use dw::geometry::{Grid, STRIDES};
use dw::model::{ModelConfig, Params, Rank};
use serde::{Deserialize, Serialize};

/// `[assign]` with `kind = "center"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CenterConfig {
    /// Share of a box's width and height whose points are positive.
    pub share: f64,
}

impl StrategyConfig for CenterConfig {
    fn kind(&self) -> &'static str {
        "center"
    }

    fn check(&self) -> Result<(), String> {
        let ok = self.share > 0.0 && self.share <= 1.0;
        let text = "`assign.share`: expected a number above 0 and at most 1; found";
        if ok { Ok(()) } else { Err(format!("{text} {}", self.share)) }
    }

    fn caution(&self, _: &ModelConfig) -> Option<String> {
        None
    }

    fn summary(&self) -> String {
        format!("points in the central {} of each box", self.share)
    }

    fn build(&self, _: &mut Params, classes: i64) -> Strategy {
        let bbox = BoxTerm { loss: BoxLoss::Giou, weight: 1.0, floor: 1.0, plus: 0.0 };
        Strategy {
            matcher: Arc::new(CentralPoints { share: self.share as f32 }),
            criterion: Box::new(FocalAndCenterness { bbox, count: Count::Positives, classes }),
            inference: Rank::Class.into(),
        }
    }
}

struct CentralPoints {
    share: f32,
}

impl Matcher for CentralPoints {
    fn targets(&self, grid: &Grid, images: &[ImageBoxes]) -> Targets {
        let mut out = PointTargets::default();
        for (i, image) in images.iter().enumerate() {
            let first_gt = out.boxes.len() as i64;
            let mut point = i as i64 * grid.num_points();
            for (&(h, w), &stride) in grid.sizes.iter().zip(&STRIDES) {
                let at = |cell: i64| (cell as f32 + grid.offset as f32) * stride as f32;
                for (row, col) in (0..h).flat_map(|row| (0..w).map(move |col| (row, col))) {
                    if let Some(gt) = self.box_of([at(col), at(row)], &image.boxes) {
                        out.positive.push(point);
                        out.gt.push(first_gt + gt as i64);
                    }
                    point += 1;
                }
            }
            out.add_boxes(i, image);
        }
        Targets::Points(out.tensors())
    }
}

impl CentralPoints {
    /// The smallest box whose central part contains a point.
    fn box_of(&self, [x, y]: [f32; 2], boxes: &[[f32; 4]]) -> Option<usize> {
        let size = |[x1, y1, x2, y2]: [f32; 4]| (x2 - x1, y2 - y1);
        let is_central = |b: [f32; 4]| {
            let (dx, dy) = (x - f32::midpoint(b[0], b[2]), y - f32::midpoint(b[1], b[3]));
            let (w, h) = size(b);
            2.0 * dx.abs() < self.share * w && 2.0 * dy.abs() < self.share * h
        };
        let area = |n: usize| size(boxes[n]).0 * size(boxes[n]).1;
        let candidates = (0..boxes.len()).filter(|n| is_central(boxes[*n]));
        candidates.min_by(|a, b| area(*a).total_cmp(&area(*b)))
    }
}
