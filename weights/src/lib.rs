//! Reads, converts and downloads weight files without libtorch: PyTorch `.pth` files in every
//! container format, mmdetection checkpoints and `.safetensors`.
//!
//! * [`file`]: opens any of these formats; pickles are parsed as data and never executed
//! * [`classes`]: the class names in a file
//! * [`convert`]: writes `.safetensors` files with the same tensors
//! * [`fetch`]: downloads pretrained ImageNet weights and verifies their checksum
//! * [`cli`]: the `dw-weights` command line

pub mod classes;
pub mod cli;
pub mod convert;
pub mod fetch;
pub mod file;
mod output;

pub use dw_base::{Error, Result};
pub use file::{Dtype, Weights};
