//! Heads: pyramid features P3..P7 to predictions.

pub mod fcos;
