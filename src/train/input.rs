//! What a step is given: the images and targets of a rank, or a part of them.

use tch::{Device, Kind, Tensor};

use crate::assign::{Progress, Targets};
use crate::data::images::{Images, Normalisation};
use crate::device::upload;

/// The images and targets of a rank in one step, or a part of them.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The images.
    pub images: Pixels<'a>,
    /// Targets of the images, in host or device memory.
    pub targets: &'a Targets,
    /// Progress of the run.
    pub at: Progress,
}

/// Images of a batch, from which the network's input is made at the start of each forward pass.
#[derive(Debug, Clone, Copy)]
pub enum Pixels<'a> {
    /// Bytes in host memory, and their normalisation.
    Bytes(&'a Images, &'a Normalisation),
    /// Normalised images `[B, 3, H, W]`, in host or device memory.
    Normalised(&'a Tensor),
}

impl Pixels<'_> {
    /// The network's input `[B, 3, H, W]`: channels-last, of `kind`, on `device`.
    pub fn prepare(self, device: Device, kind: Kind) -> Tensor {
        match self {
            Self::Bytes(images, normalisation) => {
                upload(&normalisation.apply(images, kind), device, kind)
            }
            Self::Normalised(images) => upload(images, device, kind),
        }
    }
}
