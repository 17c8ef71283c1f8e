//! What all programs of `dw` share; it depends on none of the other crates.
//!
//! * [`text`]: text that came from a file, made safe to print
//! * [`names`]: names that came from a file, checked before they become a path
//! * [`file`]: files that are whole or not there

pub mod file;
pub mod names;
pub mod text;
