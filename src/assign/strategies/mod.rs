//! The assignment strategies, one file each. They do not depend on each other.

pub mod atss;
pub mod autoassign;
pub mod dw;
mod dw_config;
pub mod fcos;
pub mod gfl;
pub mod ota;
pub mod paa;
pub mod simota;
pub mod tal;
pub mod vfl;
pub mod weighting;
