//! Results files larger than one piece are parsed correctly, even if text within a detection looks
//! like the border between two detections.

mod coco_support;

use std::fmt::Write;

use coco_support::{Files, Random};
use dw_metric::{Detection, json};
use serde_json::Value;

const TRUTH: &str = r#"{"images":[{"id":0},{"id":1},{"id":2}],"annotations":[],
"categories":[{"id":1,"name":"a"}]}"#;

/// A results file of about `size` bytes with `extra` fields in some detections.
fn text(seed: u64, size: usize, extra: &[&str]) -> String {
    let mut r = Random::new(seed);
    let mut out = String::from(" [\n");
    let spaces = ["", "", " ", "\n", " \r\n\t ", "  "];
    while out.len() < size {
        if !out.ends_with("[\n") {
            let (a, b) = (spaces[r.below(6) as usize], spaces[r.below(6) as usize]);
            write!(out, "{a},{b}").unwrap();
        }
        let long = [(); 5].map(|()| r.below(u64::MAX) as f64 / 1e17 - 20.0);
        let extra = if extra.is_empty() { "" } else { extra[r.below(extra.len() as u64) as usize] };
        let [a, b, c, d, e] = long;
        let image = r.below(3);
        write!(out, r#"{{"image_id":{image},{extra}"category_id":1,"#).unwrap();
        write!(out, r#""bbox":[{a},{b:.2},{c:.0}e-2,{d}],"score":{e:e}}}"#).unwrap();
    }
    out.push_str("\n] \n");
    out
}

/// Python's json module reads and writes halves of surrogate pairs, which are no Unicode text.
#[test]
fn a_file_name_that_is_not_unicode_is_no_fault() {
    let truth = TRUTH.replace(r#"{"id":0}"#, r#"{"id":0,"file_name":"a\ud800.jpg"}"#);
    let files = Files::new(&truth, "[]");
    let truth = json::truth(&files.gt(), &mut vec![]).unwrap();
    assert_eq!((truth.files[0].file_name.as_deref(), truth.images.len()), (None, 3));
}

/// Compares the parsed detections with serde_json's.
fn check(text: &str) {
    let files = Files::new(TRUTH, text);
    let truth = json::truth(&files.gt(), &mut vec![]).unwrap();
    let parsed = json::results(&files.dt(), &truth, &mut vec![]).unwrap();
    let tree: Vec<Value> = serde_json::from_str(text).unwrap();
    assert_eq!(parsed.len(), tree.len());
    for (n, (parsed, row)) in parsed.iter().zip(&tree).enumerate() {
        let number = |v: &Value| v.as_f64().unwrap();
        let expected = Detection {
            image_id: row["image_id"].as_i64().unwrap(),
            category_id: row["category_id"].as_i64().unwrap(),
            bbox: [0, 1, 2, 3].map(|i| number(&row["bbox"][i])),
            score: number(&row["score"]),
        };
        assert_eq!(*parsed, expected, "detection {n}");
    }
}

#[test]
fn several_pieces() {
    check(&text(1, 5 << 20, &[]));
}

#[test]
fn apparent_borders_inside_detections() {
    check(&text(
        2,
        5 << 20,
        &[
            r#""note":"},{","a":[{"x":{}},{"y":[]}] ,"#,
            r#""b":[{},{},{}],"#,
            r#""c":"\"},{\"image_id\":1,\"","#,
            "",
        ],
    ));
    // The range of a task contains only apparent borders.
    let nested = format!(r#""a":[{}{{}}],"#, "{},".repeat(5000));
    check(&text(3, 6 << 20, &[&nested]));
}

#[test]
fn detections_larger_than_a_piece() {
    let long = format!(r#""a":"{}","#, "x".repeat(1_500_000));
    check(&text(4, 9 << 20, &[&long, "", ""]));
}

/// The index of a detection counts those of all pieces before it.
#[test]
fn an_error_in_a_late_piece_has_the_right_index() {
    let mut text = text(5, 4 << 20, &[]);
    let n = serde_json::from_str::<Vec<Value>>(&text).unwrap().len() - 1;
    let at = text.rfind("\"score\"").unwrap();
    text.replace_range(at..at + 7, "\"skore\"");
    let files = Files::new(TRUTH, &text);
    let truth = json::truth(&files.gt(), &mut vec![]).unwrap();
    let e = json::results(&files.dt(), &truth, &mut vec![]).unwrap_err().to_string();
    assert!(e.contains(&format!("results[{n}]: `score`")), "{e}");
}
