//! Pictures of positive and negative weights, after figures of the DW paper.
//!
//! * [`functions`]: P_neg by IoU, and the weights of four anchors
//! * [`draw`]: the weights of one object's points under several functions

pub mod draw;
pub mod functions;
