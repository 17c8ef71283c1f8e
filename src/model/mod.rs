//! The detector: ResNet or ResNeXt backbone, FPN, and a dense head.
//!
//! Shapes: B images, H x W input size in pixels, h x w size of a level in cells, P points over all
//! levels, C classes.

pub mod backbone;
pub mod config;
pub mod fpn;
pub mod heads;
pub mod layers;
pub mod params;
pub mod weights;

use tch::{Device, Kind, Tensor};

pub use config::{Backbone, Distances, FpnExtra, HeadKind, HeadNorm, ModelConfig, Tower};
pub use heads::{ClassOutput, Inference, Outputs, Predictions, Rank};
pub use layers::NormKind;
pub use params::Params;

/// The network and its parameters.
#[derive(Debug)]
pub struct Detector {
    /// All named tensors; the layers hold shallow clones.
    pub params: Params,
    backbone: backbone::resnet::ResNet,
    neck: fpn::Fpn,
    head: heads::Head,
    /// Number of classes.
    pub classes: i64,
    /// Post-processing; set by the assignment strategy.
    pub inference: Inference,
    /// Offset of the points within their cells, see [`crate::geometry::Grid::offset`]; set by the
    /// assignment strategy.
    pub offset: f64,
    /// Kind of the activations between images and raw predictions: that of the parameters, or bf16.
    /// Raw predictions have the parameters' kind in both cases.
    pub activations: Kind,
}

impl Detector {
    /// Builds a network for `classes` classes with random weights, drawn from the generator that
    /// `tch::manual_seed` seeds.
    pub fn new(config: &ModelConfig, classes: usize, kind: Kind, device: Device) -> Self {
        let mut params = Params::new(kind, device);
        let backbone = backbone::resnet::ResNet::new(&mut params, config);
        let neck = fpn::Fpn::new(&mut params, &backbone.channels[1..], config);
        let classes = classes as i64;
        let head = heads::Head::new(&mut params, config, classes);
        let inference = Inference::default();
        Self { params, backbone, neck, head, classes, inference, offset: 0.5, activations: kind }
    }

    /// Normalised images `[B, 3, H, W]`, H and W multiples of 32, to raw predictions. `train`
    /// selects the mode of the norm layers.
    pub fn forward(&self, images: &Tensor, train: bool) -> Outputs {
        // A statement of its own, so that C2..C5 are dropped before the head runs.
        let pyramid = self.features(images, train).1;
        self.head.forward(&pyramid, self.offset)
    }

    /// Normalised images `[B, 3, H, W]` to the backbone's feature maps C2..C5 (strides 4 to 32) and
    /// the pyramid P3..P7 (strides 8 to 128).
    pub fn features(&self, images: &Tensor, train: bool) -> (Vec<Tensor>, Vec<Tensor>) {
        let c = self.backbone.forward(&images.to_kind(self.activations), train);
        let p = self.neck.forward(&c[1..]);
        (c, p)
    }

    /// Multiply-adds of the convolutions for one image of `height` x `width` pixels. Norm layers,
    /// activations and sampling are not counted, as is usual.
    pub fn cost(&self, height: i64, width: i64) -> u64 {
        let (backbone, c) = self.backbone.cost((height, width));
        let (neck, p) = self.neck.cost(&c[1..]);
        backbone + neck + self.head.cost(&p)
    }

    /// The head, to compute predictions from given features P3..P7.
    pub fn head(&self) -> &heads::Head {
        &self.head
    }
}
