//! Step time and training hours on more GPUs, predicted from measured numbers.
//!
//! * [`inputs`]: the measured numbers, and their checks
//! * [`model`]: the prediction
//! * `table`: the prediction as text
//! * [`measure`]: latency and bandwidth of this machine's all-reduce

pub mod inputs;
pub mod measure;
pub mod model;
mod table;

pub use self::inputs::{Gpus, Inputs};
pub use self::model::Prediction;
pub use self::table::table;
