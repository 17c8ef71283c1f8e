//! Weight files without libtorch: PyTorch's `.pth` in all its containers, mmdetection checkpoints, `.safetensors`.
//!
//! * [`file`]: opens any of them; a pickle is parsed as data and never executed
//! * [`convert`]: writes `.safetensors` with the same names
//! * [`fetch`]: the pinned ImageNet files, checked against the hash in their names
//! * [`cli`]: the `dw-weights` command

mod classes;
pub mod cli;
pub mod convert;
pub mod error;
pub mod fetch;
pub mod file;

pub use error::{Error, Result};
pub use file::{Dtype, Weights};
