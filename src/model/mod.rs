//! The detector: ResNet, FPN and FCOS head.

pub mod fpn;
pub mod head;
pub mod layers;
pub mod params;
pub mod resnet;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

pub use head::Outputs;
pub use layers::NormKind;
pub use params::Params;
pub use resnet::Backbone;

/// What decides the network's shape.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Architecture {
    /// Depth of the backbone.
    pub backbone: Backbone,
    /// Multiplier of the backbone's channels.
    pub width: f64,
    /// Channels of neck and head.
    pub channels: i64,
    /// Norm layers of the backbone.
    pub norm: NormKind,
    /// Frozen stages of the backbone (-1: none).
    pub frozen_stages: i64,
    /// Box refinement.
    pub refine: bool,
    /// Classes.
    pub classes: i64,
}

/// A network with its parameters.
#[derive(Debug)]
pub struct Detector {
    /// Named tensors that the layers share.
    pub params: Params,
    backbone: resnet::ResNet,
    neck: fpn::Fpn,
    head: head::Head,
}

impl Detector {
    /// Builds a network with random weights (seeded by `tch::manual_seed`).
    pub fn new(a: &Architecture, kind: Kind, device: Device) -> Self {
        let mut params = Params::new(kind, device);
        let spec = resnet::Spec { backbone: a.backbone, width: a.width, norm: a.norm, frozen_stages: a.frozen_stages };
        let backbone = resnet::ResNet::new(&mut params, spec);
        let neck = fpn::Fpn::new(&mut params, &backbone.channels[1..], a.channels);
        let head = head::Head::new(&mut params, a.classes, a.channels, a.refine);
        Self { params, backbone, neck, head }
    }

    /// Normalised images `[B, 3, H, W]` (H and W multiples of 32) to predictions.
    pub fn forward(&self, images: &Tensor, train: bool) -> Outputs {
        let c = self.backbone.forward(images, train);
        self.head.forward(&self.neck.forward(&c[1..]))
    }

    /// Predictions from given features P3..P7.
    pub fn head(&self) -> &head::Head {
        &self.head
    }
}
