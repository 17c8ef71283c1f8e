//! Compares exported models, run with onnxruntime, with the program's own networks.
#![allow(clippy::print_stdout, reason = "measured differences, with --nocapture")]

mod support;

use std::collections::BTreeMap;

use dw::export::Form;
use dw::model::Rank;
use dw::model::heads::Scored;
use support::network::{Exported, batches, predict};
use support::onnx::{Ran, python, run_model, script};
use support::run;
use tch::Tensor;

fn off(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    (found - expected).abs().max().double_value(&[])
}

/// Compares scores and boxes of a network with and without padding.
fn compare(name: &str, sets: &[&str], (h, w): (i64, i64), fixed: bool) {
    let network = Exported::new(name, sets);
    let form = Form { size: fixed.then_some((h, w)), nms: false };
    let folder = network.write(form);
    let batches = batches(h, w);
    let ran = run_model(folder.path(), &batches);
    let mut largest = [0.0f64; 2];
    for (i, batch) in batches.iter().enumerate() {
        let Scored { ranked, factor, boxes, .. } = predict(&network.detector, batch);
        let scores = match &factor {
            Some(factor) => &ranked * factor.unsqueeze(-1),
            None => ranked.shallow_clone(),
        };
        let score = off(&ran.output(i, "scores"), &scores);
        // Coordinates above 1000 pixels are compared by their relative error.
        let scale = (boxes.abs() / 1000.0).clamp_min(1.0);
        let pixels = off(&(ran.output(i, "boxes") / &scale), &(&boxes / &scale));
        if factor.is_some() {
            assert!(off(&ran.output(i, "ranking"), &ranked) < 1e-4, "{name}: ranking");
        }
        let spread = scores.std(true).double_value(&[]);
        let sides = boxes.std(true).double_value(&[]);
        println!("{name} {i}: scores {score:.1e} of {spread:.2}, boxes {pixels:.1e} of {sides:.0}");
        assert!(spread > 0.02 && sides > 10.0, "{name}: predictions are the same everywhere");
        largest = [largest[0].max(score), largest[1].max(pixels)];
    }
    assert!(largest[0] < 1e-4, "{name}: scores are off by {:e}", largest[0]);
    assert!(largest[1] < 0.01, "{name}: boxes are off by {:e} pixels", largest[1]);
    check_description(&ran, &network, fixed.then_some((h, w)));
}

fn check_description(ran: &Ran, network: &Exported, size: Option<(i64, i64)>) {
    let Exported { config, detector, .. } = network;
    let text = |key: &str| ran.metadata()[key].as_str().unwrap();
    assert_eq!(text("classes"), r#"["circle","square","star"]"#);
    assert_eq!(text("score_threshold"), config.eval.score_threshold.to_string());
    assert_eq!(text("nms_iou"), config.eval.nms_iou.to_string());
    let rule: serde_json::Value = serde_json::from_str(text("size_rule")).unwrap();
    assert_eq!(rule["short_side"], config.data.short_side);
    assert_eq!(rule.get("size"), size.map(|(h, w)| serde_json::json!([h, w])).as_ref());
    assert_eq!(text("rank") == "class", detector.inference.rank == Rank::Class);
    let expected = match size {
        Some((h, w)) => serde_json::json!({"images": ["N", 3, h, w]}),
        None => serde_json::json!({"images": ["N", 3, "H", "W"]}),
    };
    assert_eq!(*ran.inputs(), expected);
}

/// Settings of small networks with the structure of large ones.
const SMALL: [&str; 3] = ["model.width=0.25", "model.channels=32", "model.init=random"];

#[test]
fn r50() {
    compare("dw_r50_fpn_1x", &[], (96, 128), true);
}

#[test]
fn r101_of_any_size() {
    compare("dw_r101_fpn_1x", &[], (128, 96), false);
}

#[test]
fn x101() {
    compare("dw_x101_64x4d_fpn_mstrain_2x", &[], (64, 96), true);
}

#[test]
fn heads_and_strategies_of_any_size() {
    for name in [
        "dw_r50_fpn_worefine_1x",
        "fcos_plain_r50_fpn_1x",
        "atss_r50_fpn_1x",
        "gfl_r50_fpn_1x",
        "gflv2_fcos_r50_fpn_1x",
        "gflv2_atss_r50_fpn_1x",
        "paa_r50_fpn_1x",
        "autoassign_r50_fpn_1x",
    ] {
        compare(name, &SMALL, (96, 160), false);
    }
    // Untrained, its low quality would make all scores nearly 0.
    let even = [&SMALL[..], &["model.initial_quality=0.5"]].concat();
    compare("simota_r50_fpn_1x", &even, (96, 160), false);
}

#[test]
fn heads_of_a_fixed_size() {
    for name in ["gflv2_atss_r50_fpn_1x", "tood_r50_fpn_1x", "vfnet_r50_fpn_1x"] {
        compare(name, &SMALL, (160, 96), true);
    }
    let other = ["model.head_norm=none", "model.fpn_extra=on_input", "model.fpn_relu=false"];
    compare("dw_r50_fpn_1x", &[&SMALL[..], &other].concat(), (96, 96), true);
    // Refinement with points at the corners of cells.
    let corners = [&SMALL[..], &["model.refine=true"]].concat();
    compare("autoassign_r50_fpn_1x", &corners, (96, 128), false);
    let basic = [&SMALL[..], &["model.backbone=resnet18", "model.norm=gn"]].concat();
    compare("dw_r50_fpn_1x", &basic, (160, 96), false);
    compare("tood_r50_fpn_1x", &basic, (160, 96), false);
    compare("vfnet_r50_fpn_1x", &basic, (160, 96), false);
}

#[test]
fn deformable_convolutions() {
    compare("dw_r50_fpn_dconv_c3-c5_mstrain_2x", &SMALL, (96, 128), false);
}

/// Every field of `src/export/proto.rs` has the number and type that it has in ONNX.
#[test]
fn fields_are_those_of_onnx() {
    let listed = run(std::process::Command::new(python()).arg(script("fields.py")));
    let fields: BTreeMap<&str, &str> = listed.lines().filter_map(|l| l.split_once(' ')).collect();
    let source = include_str!("../src/export/proto.rs");
    let (mut message, mut tag, mut count) = (String::new(), String::new(), 0);
    for line in source.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("pub struct ") {
            message = match name.trim_end_matches(" {") {
                "TensorTypeProto" => "TypeProto.Tensor".into(),
                "DimensionProto" => "TensorShapeProto.Dimension".into(),
                name => name.to_owned(),
            };
        } else if let Some(options) = line.strip_prefix("#[prost(") {
            let number = options.split('"').rev().nth(1).unwrap();
            // Type numbers in protobuf descriptors.
            let kind = match options.split([',', ' ']).next().unwrap() {
                "float" => 2,
                "int64" => 3,
                "int32" => 5,
                "string" => 9,
                "message" => 11,
                "bytes" => 12,
                other => panic!("{other}"),
            };
            tag = format!("{number} {kind}");
        } else if let Some((name, _)) = line.strip_prefix("pub ").and_then(|l| l.split_once(':')) {
            let name = format!("{message}.{}", name.trim_start_matches("r#"));
            let Some(expected) = fields.get(name.as_str()) else { continue };
            // An enumeration is an integer.
            assert_eq!(tag, expected.replace(" 14", " 5"), "{name}");
            count += 1;
        }
    }
    assert_eq!(count, source.matches("#[prost(").count());
}
