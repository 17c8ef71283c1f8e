//! Invalid files cause an error that names the item, or a warning with a count.

mod coco_support;

use coco_support::{Files, results, truth};
use dw_metric::{MetricConfig, json};
use serde_json::{Value, json};

/// A value as text with strings such as `"NaN"` unquoted, as Python writes them, although this is
/// not valid JSON.
fn python_json(value: &Value) -> String {
    value
        .to_string()
        .replace("\"NaN\"", "NaN")
        .replace("\"Infinity\"", "Infinity")
        .replace("\"-Infinity\"", "-Infinity")
}

/// Evaluates the files and returns the message of the expected data error.
fn data_error(truth: &str, results: &str) -> String {
    let e = Files::new(truth, results).run(&MetricConfig::default()).expect_err("no error");
    assert_eq!(e.exit_code(), 3, "{e}");
    e.to_string()
}

/// Results with another value of `field` in item `n`.
fn results_with(n: usize, field: &str, value: Value) -> String {
    let mut r = results();
    r[n][field] = value;
    python_json(&r)
}

/// Results without `field` of item `n`.
fn results_without(n: usize, field: &str) -> String {
    let mut r = results();
    r[n].as_object_mut().unwrap().remove(field);
    r.to_string()
}

/// Ground truth changed by `change`.
fn truth_with(change: impl FnOnce(&mut Value)) -> String {
    let mut t = truth();
    change(&mut t);
    python_json(&t)
}

#[test]
fn invalid_and_missing_fields_of_a_detection() {
    for n in [0, 2] {
        for (field, value, found) in [
            ("image_id", json!(99), "found 99"),
            ("image_id", json!("1"), "found a string"),
            ("image_id", json!(null), "found `null`"),
            ("image_id", json!(1.5), "found `1.5`"),
            ("category_id", json!("3"), "found a string"),
            ("category_id", json!(null), "found `null`"),
            ("category_id", json!(true), "found `true`"),
            ("score", json!("0.5"), "found a string"),
            ("score", json!(null), "found `null`"),
            ("score", json!([0.5]), "found a list"),
            ("score", json!("NaN"), "found `NaN`"),
            ("score", json!("Infinity"), "found `Infinity`"),
            ("score", json!("-Infinity"), "found `-Infinity`"),
            ("bbox", json!([0, 0, 10]), "expected 4 numbers, found 3"),
            ("bbox", json!([0, 0, 10, 10, 0.9]), "expected 4 numbers, found 5"),
            ("bbox", json!([]), "expected 4 numbers, found 0"),
            ("bbox", json!([0, "NaN", 10, 10]), "found `NaN`"),
            ("bbox", json!([0, 0, "Infinity", 10]), "found `Infinity`"),
            ("bbox", json!([0, 0, null, 10]), "found `null`"),
            ("bbox", json!({"x": 0}), "expected 4 numbers, found an object"),
        ] {
            let e = data_error(&truth().to_string(), &results_with(n, field, value.clone()));
            for part in ["dt.json", &format!("results[{n}]"), &format!("`{field}`"), found] {
                assert!(e.contains(part), "{field} = {value} in {n}: no `{part}` in {e}");
            }
        }
        for field in ["image_id", "category_id", "bbox", "score"] {
            let e = data_error(&truth().to_string(), &results_without(n, field));
            assert!(e.contains(&format!("results[{n}]: `{field}`")), "{e}");
        }
    }
    let huge = results().to_string().replace("0.8", "1e999");
    assert!(data_error(&truth().to_string(), &huge).contains("results[1]: `score`"));
}

#[test]
fn results_that_are_not_a_list() {
    let e = data_error(&truth().to_string(), &json!({"annotations": results()}).to_string());
    assert!(e.contains("dt.json: results") && e.contains("found an object"), "{e}");
    assert!(data_error(&truth().to_string(), "[1]").contains("results[0]: expected an object"));
    assert!(data_error(&truth().to_string(), "").contains("the file ends"));
    assert!(data_error(&truth().to_string(), &format!("{} x", results())).contains("found more"));
    let twice = format!("{}{}", results(), results());
    assert!(data_error(&truth().to_string(), &twice).contains("expected the end of the file"));
}

#[test]
fn truncation_at_every_byte_is_an_error() {
    let (truth, results) = (truth().to_string(), results().to_string());
    for n in 0..results.len() {
        assert!(data_error(&truth, &results[..n]).contains("the file ends"), "cut at {n}");
    }
    for n in 0..truth.len() {
        assert!(data_error(&truth[..n], &results).contains("the file ends"), "cut at {n}");
    }
}

/// A changed byte may give another valid file or an error, but never a panic.
#[test]
fn no_changed_byte_causes_a_panic() {
    let (truth, results) = (truth().to_string(), results().to_string());
    for (n, byte) in (0..results.len())
        .flat_map(|n| [(n, b'"'), (n, b'}'), (n, b'-'), (n, b'9'), (n, b'\\'), (n, 0xff)])
    {
        let mut bytes = results.clone().into_bytes();
        bytes[n] = byte;
        let result = Files::new(&truth, &bytes).run(&MetricConfig::default());
        // Invalid JSON must not be accepted.
        if serde_json::from_slice::<Value>(&bytes).is_err() && bytes.is_ascii() {
            assert!(
                result.is_err(),
                "byte {n} as {}: {}",
                byte as char,
                String::from_utf8_lossy(&bytes)
            );
        }
    }
}

#[test]
fn invalid_ground_truth() {
    let results = results().to_string();
    for field in ["id", "image_id", "category_id", "bbox"] {
        let t = truth_with(|t| drop(t["annotations"][1].as_object_mut().unwrap().remove(field)));
        let e = data_error(&t, &results);
        assert!(e.contains(&format!("annotations[1]: `{field}`")), "{e}");
        assert!(e.contains("gt.json"), "{e}");
    }
    let e = data_error(&truth_with(|t| t["annotations"][2]["id"] = json!(1)), &results);
    assert!(e.contains("annotations[2]: `id`") && e.contains("annotations[0]"), "{e}");
    let e = data_error(&truth_with(|t| t["annotations"][2]["area"] = json!("NaN")), &results);
    assert!(e.contains("annotations[2]: `area`") && e.contains("found `NaN`"), "{e}");
    for section in ["images", "categories"] {
        let e =
            data_error(&truth_with(|t| drop(t.as_object_mut().unwrap().remove(section))), &results);
        assert!(e.contains(&format!("`{section}`")), "{e}");
    }
    let e = data_error(&truth()["annotations"].to_string(), &results);
    assert!(e.contains("gt.json") && e.contains("found a list"), "{e}");
    assert!(
        data_error(&truth_with(|t| t["images"][1] = json!({})), &results)
            .contains("images[1]: `id`")
    );
}

#[test]
fn a_missing_file_is_a_usage_error() {
    let files = Files::new(truth().to_string(), results().to_string());
    std::fs::remove_file(files.dt()).unwrap();
    let e = files.run(&MetricConfig::default()).unwrap_err();
    assert!(e.exit_code() == 2 && e.to_string().contains("dt.json"), "{e}");
}

/// AP and warnings of valid files.
fn evaluated(truth: &str, results: &str) -> (f64, Vec<String>) {
    let (e, warnings) = Files::new(truth, results).run(&MetricConfig::default()).unwrap();
    (e.summary().ap, warnings)
}

/// Whether AP is that of a perfect result, which is slightly below 1 due to rounding.
fn perfect(ap: f64) -> bool {
    (ap - 1.0).abs() < 1e-9
}

/// Checks that there is exactly one warning, which contains all `parts`.
fn assert_one(warnings: &[String], parts: &[&str]) {
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for part in parts {
        assert!(warnings[0].contains(part), "no `{part}` in {warnings:?}");
    }
}

#[test]
fn tolerated_defects_are_counted_in_a_warning() {
    let (t, r) = (truth().to_string(), results().to_string());
    let (ap, w) = evaluated(&t, &results_with(1, "category_id", json!(8)));
    assert!((ap - 0.5).abs() < 1e-9);
    assert_one(&w, &["1 detections", "ids 8"]);
    assert!(!w[0].contains("hint"));
    let (ap, w) = evaluated(&t, "[]");
    assert_eq!(ap, 0.0);
    assert_one(&w, &["empty"]);
    let lacking = |field: &'static str| {
        truth_with(|t| drop(t["annotations"][2].as_object_mut().unwrap().remove(field)))
    };
    let (ap, w) = evaluated(&lacking("area"), &r);
    assert!(perfect(ap));
    assert_one(&w, &["1 annotations", "`area`"]);
    let (ap, w) = evaluated(&lacking("iscrowd"), &r);
    assert!(perfect(ap));
    assert_one(&w, &["1 annotations", "`iscrowd`"]);
    let (_, w) = evaluated(&truth_with(|t| t["annotations"][0]["image_id"] = json!(5)), &r);
    assert_one(&w, &["1 annotations", "`images`"]);
    let (_, w) = evaluated(&truth_with(|t| t["annotations"][0]["category_id"] = json!(5)), &r);
    assert_one(&w, &["1 annotations", "`categories`"]);
    let (ap, w) =
        evaluated(&truth_with(|t| drop(t.as_object_mut().unwrap().remove("annotations"))), &r);
    assert_eq!(ap, -1.0);
    assert_one(&w, &["`annotations`"]);
}

/// The usual cause of AP 0: class indices of the model instead of category ids.
#[test]
fn only_unknown_categories_lists_the_known_ones() {
    let r = results()
        .to_string()
        .replace("\"category_id\":3", "\"category_id\":0")
        .replace("\"category_id\":7", "\"category_id\":1");
    let (ap, w) = evaluated(&truth().to_string(), &r);
    assert_eq!(ap, 0.0);
    assert_one(&w, &["3 detections", "ids 0, 1", "3 cup, 7 cat", "hint"]);
}

#[test]
fn annotation_id_zero_warns_with_both_aps() {
    let files =
        Files::new(truth_with(|t| t["annotations"][1]["id"] = json!(0)), results().to_string());
    let (e, w) = files.run(&MetricConfig::default()).unwrap();
    assert!((e.summary().ap - 0.5).abs() < 1e-9, "the category with the dropped match has AP 0");
    assert_one(&w, &["id 0", "0.500000", "1.000000", "--count-id-zero"]);
    let (e, w) =
        files.run(&MetricConfig { count_id_zero: true, ..MetricConfig::default() }).unwrap();
    assert!(perfect(e.summary().ap));
    assert_one(&w, &["0.500000", "1.000000"]);
}

#[test]
fn harmless_deviations_give_no_warning() {
    let t = truth().to_string();
    for (field, value) in [
        ("score", json!(-3)),
        ("score", json!(17.5)),
        ("image_id", json!(2.0)),
        ("id", json!(1)),
        ("area", json!("anything")),
        ("iscrowd", json!(1)),
        (
            "segmentation",
            json!({"counts": "},{\"image_id\":1", "size": [[1, {}], null, true, false, -1.5e-3]}),
        ),
    ] {
        let (ap, w) = evaluated(&t, &results_with(2, field, value.clone()));
        assert!(perfect(ap) && w.is_empty(), "{field} = {value}: {ap}, {w:?}");
    }
    for bbox in [json!([0, 0, 0, 0]), json!([0, 0, -5, 10]), json!([-900, 1e6, 10, 10])] {
        let (ap, w) = evaluated(&t, &results_with(2, "bbox", bbox));
        assert!(ap < 0.9 && w.is_empty());
    }
    for change in [
        |t: &mut Value| t["images"].as_array_mut().unwrap().push(json!({"id": 1})),
        |t: &mut Value| t["images"].as_array_mut().unwrap().push(json!({"id": 50, "width": null})),
        |t: &mut Value| {
            t["categories"].as_array_mut().unwrap().push(json!({"id": 3, "name": "again"}));
        },
        |t: &mut Value| {
            t["categories"]
                .as_array_mut()
                .unwrap()
                .push(json!({"id": 8, "name": "without ground truth"}));
        },
        |t: &mut Value| t["annotations"][0]["ignore"] = json!(1),
        |t: &mut Value| t["annotations"][0]["iscrowd"] = json!(false),
        |t: &mut Value| t["images"][0]["width"] = json!("100"),
        |t: &mut Value| t["images"][0]["file_name"] = json!(12),
        |t: &mut Value| t["categories"][0]["name"] = json!(7),
        |t: &mut Value| t["categories"][0]["name"] = json!(null),
        |t: &mut Value| {
            t["annotations"][0]["attributes"] = json!(["NaN", "Infinity", "-Infinity"]);
        },
        |t: &mut Value| t["info"] = json!({"note": "\u{e4}\n\"}"}),
    ] {
        let (ap, w) = evaluated(&truth_with(change), &results().to_string());
        assert!(perfect(ap) && w.is_empty(), "{ap}, {w:?}");
    }
}

#[test]
fn names_and_sizes_of_images_are_read() {
    let t = truth_with(|t| t["categories"][0]["name"] = json!("caf\u{e9} \"1\""));
    let text = t.replace('\u{e9}', "\\u00e9");
    let files = Files::new(text, "[]");
    let truth = json::truth(&files.gt(), &mut vec![]).unwrap();
    assert_eq!(truth.names, ["caf\u{e9} \"1\"", "cat"]);
    assert_eq!(truth.files[0].file_name.as_deref(), Some("a.jpg"));
    assert_eq!((truth.files[0].width, truth.files[1].width), (Some(100.0), None));
    assert_eq!(truth.images, [1, 2]);
}
