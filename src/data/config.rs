//! `[data]`: which images are read, at which size, and how far ahead.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Maximum length of a side of a resized image, pixels.
pub const MAX_SIDE: u32 = 8192;

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Folder of shards.
    pub shards: PathBuf,
    /// Training split; empty: `train2017`, or the only split whose name begins with `train`.
    pub train_split: String,
    /// Validation split; empty: `val2017`, or the only split whose name begins with `val`.
    pub val_split: String,
    /// Shorter side of the network input, pixels.
    pub short_side: u32,
    /// Largest longer side of the network input, pixels.
    pub long_side: u32,
    /// `[low, high]`: draw the shorter side of training images from this range, pixels; empty:
    /// always `short_side`.
    pub multi_scale: Vec<u32>,
    /// Probability of a horizontal flip.
    pub flip: f64,
    /// Use only the first N images of a split (0: all).
    pub limit: usize,
    /// Skip training images without boxes or with a side under 32 pixels.
    pub filter_empty: bool,
    /// Number of consecutive positions of the order that share a padded shape.
    pub group: usize,
    /// Put images of one orientation into the same group, which reduces padding.
    pub aspect_grouping: bool,
    /// Decode JPEG images at a fraction of their size where the network input is smaller. Faster,
    /// but the pixels differ from those of OpenCV. No effect on shards of the `zstd` codec.
    pub scaled_decode: bool,
    /// Number of parts of the data; each node reads only its own parts (1: every node reads all),
    /// which saves reads and page cache. The order of the images depends on this number, not on the
    /// number of nodes.
    pub canonical_nodes: usize,
    /// Loader threads of a rank (0: as many as its CPU threads).
    pub workers: usize,
    /// Memory of a rank for batches prepared ahead, MiB (page-locked for a GPU). Two batches are
    /// always allowed.
    pub prefetch_mib: usize,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            shards: "coco/shards".into(),
            train_split: String::new(),
            val_split: String::new(),
            short_side: 800,
            long_side: 1333,
            multi_scale: vec![],
            flip: 0.5,
            limit: 0,
            filter_empty: true,
            group: 2,
            aspect_grouping: false,
            scaled_decode: false,
            canonical_nodes: 1,
            workers: 0,
            prefetch_mib: 4096,
        }
    }
}
