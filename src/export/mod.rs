//! A network as an ONNX model, for programs that run it without libtorch.
//!
//! The model's input is bytes; normalisation, decoding of the boxes and optionally NMS are part of
//! it. `docs/deploy.md` describes inputs, outputs and metadata.
//!
//! * [`proto`]: ONNX's messages
//! * [`graph`]: builds a graph of operators
//! * [`layers`], [`backbone`], [`level`], [`heads`]: the network as operators
//! * [`post`]: normalisation, scores, boxes, NMS

pub mod backbone;
pub mod graph;
pub mod heads;
pub mod layers;
pub mod level;
pub mod post;
pub mod proto;

use prost::Message;
use serde_json::json;

use crate::data::DataConfig;
use crate::data::augment::{ALIGN, MEAN, STD};
use crate::eval::EvalConfig;
use crate::geometry::{STRIDES, level_sizes};
use crate::model::{Detector, ModelConfig, Rank};
use crate::{Error, Result};
use graph::{Dim, Graph, IR_VERSION, OPSET};
use proto::{INT64, ModelProto, OperatorSetIdProto, StringStringEntryProto, UINT8};

/// The network, and the contents of its metadata.
#[derive(Debug, Clone, Copy)]
pub struct Network<'a> {
    /// Weights and post-processing.
    pub detector: &'a Detector,
    /// The architecture of `detector`.
    pub model: &'a ModelConfig,
    /// Names of the classes, by label.
    pub classes: &'a [String],
    /// Size of the network input.
    pub input: &'a DataConfig,
    /// Thresholds and limits.
    pub eval: &'a EvalConfig,
}

/// Form of the exported model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Form {
    /// (height, width) of the network input, pixels; `None`: any multiples of 32.
    pub size: Option<(i64, i64)>,
    /// Whether the model contains NMS.
    pub nms: bool,
}

/// Largest side of a fixed network input, pixels.
const MAX_SIDE: i64 = 16384;
/// A protobuf message must be smaller than this, bytes.
const MAX_BYTES: usize = 1 << 31;
/// Default of `image_size`: no padding.
const WHOLE: i64 = i32::MAX as i64;

/// Serialises a network as an ONNX model.
///
/// # Errors
/// A size that is not a multiple of 32, post-processing that cannot be exported, a network too
/// large for one file.
pub fn export(network: &Network, form: Form) -> Result<Vec<u8>> {
    check(network, form)?;
    let Network { detector, model, classes, eval, .. } = *network;
    let (rank, offset) = (detector.inference.rank, detector.offset);
    let source = layers::Source::new(&detector.params);
    let mut g = Graph::default();
    let inputs = inputs(&mut g, form);
    let scale = STD.map(|s| f64::from(1.0 / s));
    let x = post::normalised(&mut g, inputs, &MEAN.map(f64::from), &scale);
    let pyramid = backbone::pyramid(&mut g, &source, model, &x)?;
    let sizes = form.size.map(|(h, w)| level_sizes(h, w));
    let mut levels = vec![];
    for (i, features) in pyramid.into_iter().enumerate() {
        let level = level::Level::new(&mut g, &features, STRIDES[i], sizes.map(|s| s[i]));
        levels.push((level, features));
    }
    let predicted = heads::predict(&mut g, &source, model, &levels, offset)?;
    let mut flat = vec![];
    for ((level, _), p) in levels.iter().zip(&predicted) {
        flat.push(post::flat(&mut g, level, p, rank, offset));
    }
    let num_classes = classes.len() as i64;
    if form.nms {
        post::nms(&mut g, &flat, eval, num_classes, inputs);
    } else {
        let count = sizes.map(|s| s.iter().map(|(h, w)| h * w).sum());
        let points = count.map_or(Dim::Named("P"), Dim::Fixed);
        post::raw(&mut g, &flat, points, num_classes);
    }
    let file = model_of(g, metadata(network, form));
    if file.encoded_len() >= MAX_BYTES {
        return Err(Error::Usage(format!(
            "cannot export: the network has {} bytes, and an ONNX file holds less than {MAX_BYTES}",
            file.encoded_len()
        )));
    }
    Ok(file.encode_to_vec())
}

/// Adds the inputs; returns their names.
fn inputs(g: &mut Graph, form: Form) -> (&'static str, &'static str) {
    let [h, w] = match form.size {
        Some((h, w)) => [Dim::Fixed(h), Dim::Fixed(w)],
        None => [Dim::Named("H"), Dim::Named("W")],
    };
    let doc = "RGB, 0 to 255, padded at the right and at the bottom";
    g.input(("images", UINT8, &[Dim::Named("N"), Dim::Fixed(3), h, w], doc));
    let doc = "height and width of each image without padding; or one row for all images";
    let dims = [Dim::Named("N_or_1"), Dim::Fixed(2)];
    g.optional_input(("image_size", INT64, &dims, doc), &[WHOLE; 2], &[1, 2]);
    ("images", "image_size")
}

/// Rejects what cannot be exported.
fn check(network: &Network, form: Form) -> Result<()> {
    let align = i64::from(ALIGN);
    if let Some((h, w)) = form.size
        && [h, w].iter().any(|n| n % align != 0 || !(align..=MAX_SIDE).contains(n))
    {
        return Err(Error::Usage(format!(
            "--size {h} {w}: expected multiples of {align} from {align} to {MAX_SIDE}, pixels\n\
             hint: round up; images are padded to the size of the network input"
        )));
    }
    if form.nms && network.detector.inference.vote {
        return Err(Error::Usage(
            "--nms: this network's detections are moved by score voting after NMS (`assign.vote`), \
             which has no ONNX operator\n\
             hint: --set assign.vote=false exports NMS without voting; without --nms the model has \
             scores and boxes of all points"
                .into(),
        ));
    }
    Ok(())
}

fn model_of(g: Graph, metadata: Vec<(&str, String)>) -> ModelProto {
    let entry = |(key, value): (&str, String)| StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value),
    };
    ModelProto {
        ir_version: Some(IR_VERSION),
        producer_name: Some("dw".to_owned()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        doc_string: Some("Object detector; docs/deploy.md describes its use.".to_owned()),
        graph: Some(g.finish("dw")),
        opset_import: vec![OperatorSetIdProto {
            domain: Some(String::new()),
            version: Some(OPSET),
        }],
        metadata_props: metadata.into_iter().map(entry).collect(),
    }
}

/// Keys and values that a program needs to use the model.
fn metadata(network: &Network, form: Form) -> Vec<(&'static str, String)> {
    let Network { detector, classes, input, eval, .. } = *network;
    let rank = match detector.inference.rank {
        Rank::Score => "score",
        Rank::Root => "root",
        Rank::Class => "class",
    };
    let mut size_rule = json!({
        "short_side": input.short_side,
        "long_side": input.long_side,
        "multiple_of": ALIGN,
        "padding": "right and bottom",
    });
    if let Some((height, width)) = form.size {
        size_rule["size"] = json!([height, width]);
    }
    vec![
        ("classes", json!(classes).to_string()),
        ("size_rule", size_rule.to_string()),
        ("score_threshold", eval.score_threshold.to_string()),
        ("per_level", eval.per_level.to_string()),
        ("nms_iou", eval.nms_iou.to_string()),
        ("per_image", eval.per_image.to_string()),
        ("strides", json!(STRIDES).to_string()),
        ("rank", rank.to_owned()),
        ("score_voting", detector.inference.vote.to_string()),
        ("nms", form.nms.to_string()),
    ]
}
