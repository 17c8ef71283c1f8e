//! The strategies, one file each; none knows another.

pub mod dw;
mod dw_config;
pub mod fcos;
