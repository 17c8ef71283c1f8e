//! `dw` trains dense object detectors with Dual Weighting label assignment.
//!
//! Data flows one way: shards -> [`data`] -> [`model`] -> [`assign`] -> [`loss`] -> [`train`] -> [`eval`] -> [`show`].
//! `docs/architecture.md` has the picture.
//!
//! * [`config`]: TOML files and `--set` to one checked [`config::Config`]
//! * [`plan`]: configuration + world + data to the numbers a run uses
//! * [`boxes`]: anchor points, distances <-> boxes, IoU and GIoU
//! * [`data`]: which image when, augmentation, threads that prepare batches
//! * [`model`]: ResNet and ResNeXt, DCNv2, FPN, FCOS head with box refinement, weight files by name
//! * [`assign`]: label assignment: the seam, and the strategies behind it (DW in both formulas, FCOS)
//! * [`loss`]: loss functions, and local sums to the global loss
//! * [`train`]: the loop, one step, SGD on flat buffers, schedule, checkpoints, records
//! * [`eval`]: detections on all ranks, `dw-eval` with a network (the metric and its report are the crate `dw-metric`)
//! * [`show`]: pictures of predictions and curves
//! * [`device`], [`threads`], [`torch`]: CPU or CUDA, CPU threads, and what the libtorch bindings lack
//! * [`join`]: the ranks of a job on their devices
//! * [`app`]: what the binaries share

pub mod app;
pub mod assign;
pub mod boxes;
pub mod config;
pub mod data;
pub mod device;
pub mod error;
pub mod eval;
pub mod join;
pub mod loss;
pub mod model;
pub mod plan;
pub mod show;
pub mod threads;
pub mod torch;
pub mod train;

pub use error::{Error, Result};
