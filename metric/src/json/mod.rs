//! Readers for COCO's JSON files. Input on which pycocotools fails or miscounts is an error.
//!
//! * `cursor`: parser for single JSON values
//! * `source`: random access to a file, or the contents of a pipe
//! * `stream`: a source as a stream of JSON values
//! * `truth`: ground truth
//! * `results`: detections

mod cursor;
mod results;
mod source;
mod stream;
mod truth;

pub use results::results;
pub use truth::{Image, Truth, truth};
