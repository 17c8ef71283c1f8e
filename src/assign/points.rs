//! Targets of hard assigners: at most one box per point.
//!
//! They hold indices and the unrounded boxes. The criterion computes the quantities that are
//! derived from them (distances, centre-ness) in its own kind.
//!
//! Shapes: P points over all levels, G boxes of the batch, N positive points.

use tch::Tensor;

use super::ImageBoxes;
use crate::geometry::Grid;

/// Hard targets of one batch on the host.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct PointTargets {
    /// Boxes `[x1, y1, x2, y2]`, image after image, `[G, 4]`, pixels.
    pub boxes: Vec<[f32; 4]>,
    /// Class of each box, `[G]`.
    pub labels: Vec<i64>,
    /// Image of each box, `0..B`, `[G]`.
    pub image: Vec<i64>,
    /// Positive points, `image * P + point`, ascending, `[N]`.
    pub positive: Vec<i64>,
    /// Box of each positive point, `0..G`, `[N]`.
    pub gt: Vec<i64>,
    /// Points that take no part in the loss, `image * P + point`.
    pub ignored: Vec<i64>,
}

/// [`PointTargets`] as tensors.
#[derive(Debug)]
pub struct PointTensors {
    /// Boxes `[G, 4]`, pixels.
    pub boxes: Tensor,
    /// Class of each box `[G]`.
    pub labels: Tensor,
    /// Image of each box `[G]`.
    pub image: Tensor,
    /// Positive points `[N]`.
    pub positive: Tensor,
    /// Box of each positive point `[N]`.
    pub gt: Tensor,
    /// Points that take no part in the loss.
    pub ignored: Tensor,
}

impl PointTargets {
    /// Adds image `index`. `owners` is the box of each of its points; `None` for points without a
    /// box.
    pub fn add_image(
        &mut self,
        index: usize,
        image: &ImageBoxes,
        grid: &Grid,
        owners: impl IntoIterator<Item = Option<usize>>,
    ) {
        let (first_gt, first_point) = (self.boxes.len() as i64, index as i64 * grid.num_points());
        for (point, gt) in owners.into_iter().enumerate() {
            if let Some(gt) = gt {
                self.positive.push(first_point + point as i64);
                self.gt.push(first_gt + gt as i64);
            }
        }
        self.add_boxes(index, image);
    }

    /// Adds the boxes of image `index`.
    pub fn add_boxes(&mut self, index: usize, image: &ImageBoxes) {
        self.boxes.extend(&image.boxes);
        self.labels.extend(&image.labels);
        self.image.resize(self.boxes.len(), index as i64);
    }

    /// Ignores the points of an image outside the `valid` number of rows and columns of each level.
    /// `first_point` is the index of the image's first point.
    pub fn ignore_outside(&mut self, grid: &Grid, valid: &[(i64, i64)], first_point: i64) {
        let mut first = first_point;
        for (&(h, w), &(rows, cols)) in grid.sizes.iter().zip(valid) {
            for row in 0..h {
                let from = if row < rows { cols } else { 0 };
                self.ignored.extend((from..w).map(|col| first + row * w + col));
            }
            first += h * w;
        }
    }

    /// Copies to tensors in host memory, with floats in f32.
    pub fn tensors(&self) -> PointTensors {
        PointTensors {
            boxes: Tensor::from_slice(self.boxes.as_flattened()).view([-1, 4]),
            labels: Tensor::from_slice(&self.labels),
            image: Tensor::from_slice(&self.image),
            positive: Tensor::from_slice(&self.positive),
            gt: Tensor::from_slice(&self.gt),
            ignored: Tensor::from_slice(&self.ignored),
        }
    }
}

impl PointTensors {
    /// Multiplies the rows of ignored points by 0. Values `[B, P, C]` that are not finite become
    /// NaN there, and are not hidden.
    pub fn without_ignored(&self, values_bpc: Tensor) -> Tensor {
        if self.ignored.numel() == 0 {
            return values_bpc;
        }
        let size = values_bpc.size();
        let options = (values_bpc.kind(), values_bpc.device());
        let kept = Tensor::ones([size[0] * size[1]], options).index_fill_(0, &self.ignored, 0.0);
        values_bpc * kept.view([size[0], size[1], 1])
    }

    /// Applies `f` to every tensor.
    pub(super) fn map<E>(
        &self,
        f: impl Fn(&Tensor) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Self, E> {
        Ok(Self {
            boxes: f(&self.boxes)?,
            labels: f(&self.labels)?,
            image: f(&self.image)?,
            positive: f(&self.positive)?,
            gt: f(&self.gt)?,
            ignored: f(&self.ignored)?,
        })
    }
}
