//! `dw` trains dense object detectors with Dual Weighting label assignment.
//!
//! Modules in dependency order; each one uses only those above it (`tests/architecture.rs`):
//!
//! * [`geometry`]: anchor points, boxes and distances, IoU and GIoU
//! * [`device`]: CPU or CUDA, precision, CPU threads, and how the ranks of a job join on them
//! * [`loss`]: loss functions, and reduction of their terms to the global loss
//! * [`model`]: ResNet and ResNeXt, DCNv2, FPN, heads, weights by name
//! * [`assign`]: label assignment: the interface of strategies, and the strategies
//! * [`data`]: order of images, augmentation, threads that prepare batches
//! * [`eval`]: detections of all ranks, and their evaluation
//! * [`train`]: plan, loop and step of a run; SGD on flat buffers; checkpoints; logs
//! * [`show`]: pictures of predictions and training curves
//! * [`export`]: a network as an ONNX model
//! * [`config`]: TOML files and `--set` options to one checked [`config::Config`]
//! * [`app`]: what the programs do
//!
//! Functions that the `tch` bindings lack are in the crate `dw_torch`.
//!
//! Shapes in names and comments: B images, P anchor points over all levels, G ground-truth boxes,
//! C classes, N (point, box) pairs; `cls_bpc` is a tensor `[B, P, C]`, `ltrb_bp4` is `[B, P, 4]`.
//! `docs/architecture.md` has a diagram.

pub mod app;
pub mod assign;
pub mod config;
pub mod data;
pub mod device;
pub mod eval;
pub mod export;
pub mod geometry;
pub mod loss;
pub mod model;
pub mod show;
pub mod train;

pub use dw_base::{Error, Result};
