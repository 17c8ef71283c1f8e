//! From shards to batches: which image when ([`sampler`]), how it is changed ([`augment`]), and the threads that do
//! it ahead of time ([`loader`]).

pub mod augment;
pub mod dataset;
pub mod loader;
pub mod resize;
pub mod sampler;

pub use dataset::Dataset;
pub use loader::{Batch, Loader};
