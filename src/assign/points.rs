//! Targets of hard assigners: at most one box a point.
//!
//! They hold indices and the unrounded boxes. What follows from them (distances, centre-ness) is
//! computed by the criterion in its own kind.
//!
//! Shapes: P points over all levels, G boxes of the batch, N positive points.

use tch::{Device, Kind, Tensor};

use crate::torch;

/// Hard targets of one batch on the host.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct PointTargets {
    /// Boxes `[x1, y1, x2, y2]`, image after image, `[G, 4]`, pixels.
    pub boxes: Vec<[f32; 4]>,
    /// Class of each box, `[G]`.
    pub labels: Vec<i64>,
    /// Positive points, `image * P + point`, ascending, `[N]`.
    pub positive: Vec<i64>,
    /// Box of each positive point, `0..G`, `[N]`.
    pub gt: Vec<i64>,
}

/// [`PointTargets`] as tensors.
#[derive(Debug)]
pub struct PointTensors {
    /// Boxes `[G, 4]`, pixels.
    pub boxes: Tensor,
    /// Class of each box `[G]`.
    pub labels: Tensor,
    /// Positive points `[N]`.
    pub positive: Tensor,
    /// Box of each positive point `[N]`.
    pub gt: Tensor,
}

impl PointTargets {
    /// Copies to tensors in host memory, with floats in f32.
    pub fn tensors(&self) -> PointTensors {
        PointTensors {
            boxes: Tensor::from_slice(self.boxes.as_flattened()).view([-1, 4]),
            labels: Tensor::from_slice(&self.labels),
            positive: Tensor::from_slice(&self.positive),
            gt: Tensor::from_slice(&self.gt),
        }
    }
}

impl PointTensors {
    /// Copies to `device`, with floats of `kind`; tensors that are there already are shared.
    #[must_use]
    pub fn to(&self, kind: Kind, device: Device) -> Self {
        Self {
            boxes: torch::upload(&self.boxes, device).to_kind(kind),
            labels: torch::upload(&self.labels, device),
            positive: torch::upload(&self.positive, device),
            gt: torch::upload(&self.gt, device),
        }
    }

    /// All tensors.
    pub(super) fn tensors_mut(&mut self) -> [&mut Tensor; 4] {
        let Self { boxes, labels, positive, gt } = self;
        [boxes, labels, positive, gt]
    }
}
