//! Backbones: images to the feature maps C2..C5.

pub mod deform;
pub mod resnet;
