//! From shards to batches: the records of a split ([`dataset`]), the order of the images
//! ([`sampler`]), augmentation ([`augment`], [`resize`]), the pixels of a batch ([`images`]), and
//! the threads that prepare batches ahead of the training loop ([`loader`]).

pub mod augment;
pub mod config;
pub mod dataset;
pub mod images;
pub mod loader;
pub mod resize;
pub mod sampler;

pub use config::DataConfig;
pub use dataset::Dataset;
pub use loader::{Batch, Loader};
