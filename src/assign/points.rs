//! Hard targets: at most one box a point. What is computed from them (distances, centre-ness) the criterion computes in
//! its own kind: targets hold indices and the boxes as they are.

use tch::{Device, Kind, Tensor};

/// Targets of one batch, as plain numbers (made by loader threads).
#[derive(Debug, Default, Clone, PartialEq)]
pub struct PointTargets {
    /// Boxes of all images, image after image, pixels.
    pub boxes: Vec<[f32; 4]>,
    /// Label of each box.
    pub labels: Vec<i64>,
    /// Positive points, `image * P + point`, ascending.
    pub positive: Vec<i64>,
    /// Box of each positive point.
    pub gt: Vec<i64>,
}

/// [`PointTargets`] as tensors.
#[derive(Debug)]
pub struct PointTensors {
    /// `[G, 4]`, pixels.
    pub boxes: Tensor,
    /// `[G]`
    pub labels: Tensor,
    /// `[N]`
    pub positive: Tensor,
    /// `[N]`
    pub gt: Tensor,
}

impl PointTargets {
    /// As tensors in host memory.
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
    /// On `device`, with floats of `kind`; shares what is there already.
    #[must_use]
    pub fn to(&self, kind: Kind, device: Device) -> Self {
        Self {
            boxes: self.boxes.to_device(device).to_kind(kind),
            labels: self.labels.to_device(device),
            positive: self.positive.to_device(device),
            gt: self.gt.to_device(device),
        }
    }
}
