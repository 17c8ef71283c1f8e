//! What other evaluators take without a word or die of: refused by name, or counted in a warning.

mod coco_support;

use coco_support::{Files, results, truth};
use dw_metric::{Params, json};
use serde_json::{Value, json};

/// The text of a value with its string `"NAN"` and the like as bare words, which JSON does not have but Python writes.
fn bare(value: &Value) -> String {
    value
        .to_string()
        .replace("\"NaN\"", "NaN")
        .replace("\"Infinity\"", "Infinity")
        .replace("\"-Infinity\"", "-Infinity")
}

/// The error's text; it must be a data error.
fn refused(truth: &str, results: &str) -> String {
    let e = Files::new(truth, results).run(&Params::default()).expect_err("accepted");
    assert_eq!(e.exit_code(), 3, "{e}");
    e.to_string()
}

/// Results with `field` of item `n` changed.
fn results_with(n: usize, field: &str, value: Value) -> String {
    let mut r = results();
    r[n][field] = value;
    bare(&r)
}

/// Results without `field` of item `n`.
fn results_without(n: usize, field: &str) -> String {
    let mut r = results();
    r[n].as_object_mut().unwrap().remove(field);
    r.to_string()
}

fn truth_with(change: impl FnOnce(&mut Value)) -> String {
    let mut t = truth();
    change(&mut t);
    bare(&t)
}

#[test]
fn a_field_of_a_detection() {
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
            let e = refused(&truth().to_string(), &results_with(n, field, value.clone()));
            for part in ["dt.json", &format!("results[{n}]"), &format!("`{field}`"), found] {
                assert!(e.contains(part), "{field} = {value} in {n}: no `{part}` in: {e}");
            }
        }
        for field in ["image_id", "category_id", "bbox", "score"] {
            let e = refused(&truth().to_string(), &results_without(n, field));
            assert!(e.contains(&format!("results[{n}]: `{field}`: is missing")), "{e}");
        }
    }
    let huge = results().to_string().replace("0.8", "1e999");
    assert!(
        refused(&truth().to_string(), &huge)
            .contains("results[1]: `score`: expected a finite number, found `1e999`")
    );
}

#[test]
fn results_that_are_no_list() {
    let e = refused(&truth().to_string(), &json!({"annotations": results()}).to_string());
    assert!(e.contains("dt.json: results: expected a list of detections, found an object"), "{e}");
    assert!(
        refused(&truth().to_string(), "[1]").contains("results[0]: expected an object, found `1`")
    );
    assert!(refused(&truth().to_string(), "").contains("the file ends"));
    assert!(refused(&truth().to_string(), &format!("{} x", results())).contains("found more"));
    let twice = format!("{}{}", results(), results());
    assert!(
        refused(&truth().to_string(), &twice)
            .contains("results: expected the end of the file, found more")
    );
}

#[test]
fn cut_anywhere() {
    let (truth, results) = (truth().to_string(), results().to_string());
    for n in 0..results.len() {
        assert!(refused(&truth, &results[..n]).contains("the file ends"), "cut at {n}");
    }
    for n in 0..truth.len() {
        assert!(refused(&truth[..n], &results).contains("the file ends"), "cut at {n}");
    }
}

/// A changed byte may give another valid file, an error, but never a crash.
#[test]
fn any_byte_changed() {
    let (truth, results) = (truth().to_string(), results().to_string());
    for (n, byte) in (0..results.len())
        .flat_map(|n| [(n, b'"'), (n, b'}'), (n, b'-'), (n, b'9'), (n, b'\\'), (n, 0xff)])
    {
        let mut bytes = results.clone().into_bytes();
        bytes[n] = byte;
        let ours = Files::new(&truth, &bytes).run(&Params::default());
        // Where it is not even JSON, it must not be taken for results.
        if serde_json::from_slice::<Value>(&bytes).is_err() && bytes.is_ascii() {
            assert!(
                ours.is_err(),
                "byte {n} as {}: {}",
                byte as char,
                String::from_utf8_lossy(&bytes)
            );
        }
    }
}

#[test]
fn ground_truth_that_is_refused() {
    let results = results().to_string();
    for field in ["id", "image_id", "category_id", "bbox"] {
        let t = truth_with(|t| drop(t["annotations"][1].as_object_mut().unwrap().remove(field)));
        let e = refused(&t, &results);
        assert!(e.contains(&format!("gt.json: annotations[1]: `{field}`: is missing")), "{e}");
    }
    let e = refused(&truth_with(|t| t["annotations"][2]["id"] = json!(1)), &results);
    assert!(
        e.contains("annotations[2]: `id`: expected each id once, found 1 also in annotations[0]"),
        "{e}"
    );
    let e = refused(&truth_with(|t| t["annotations"][2]["area"] = json!("NaN")), &results);
    assert!(e.contains("annotations[2]: `area`: expected a finite number, found `NaN`"), "{e}");
    for section in ["images", "categories"] {
        let e =
            refused(&truth_with(|t| drop(t.as_object_mut().unwrap().remove(section))), &results);
        assert!(e.contains(&format!("`{section}` is missing")), "{e}");
    }
    let e = refused(&truth()["annotations"].to_string(), &results);
    assert!(
        e.contains("gt.json: ground truth: expected an object") && e.contains("found a list"),
        "{e}"
    );
    assert!(
        refused(&truth_with(|t| t["images"][1] = json!({})), &results)
            .contains("images[1]: `id`: is missing")
    );
}

#[test]
fn a_file_that_is_not_there_is_a_usage_error() {
    let files = Files::new(truth().to_string(), results().to_string());
    std::fs::remove_file(files.dt()).unwrap();
    let e = files.run(&Params::default()).unwrap_err();
    assert!(e.exit_code() == 2 && e.to_string().contains("dt.json"), "{e}");
}

/// AP and warnings of what is accepted.
fn accepted(truth: &str, results: &str) -> (f64, Vec<String>) {
    let (e, warnings) = Files::new(truth, results).run(&Params::default()).unwrap();
    (e.summary().ap, warnings)
}

/// AP of a perfect result, which is a rounding below 1.
fn whole(ap: f64) -> bool {
    (ap - 1.0).abs() < 1e-9
}

fn one(warnings: &[String], parts: &[&str]) {
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for part in parts {
        assert!(warnings[0].contains(part), "no `{part}` in {warnings:?}");
    }
}

#[test]
fn accepted_with_a_counted_warning() {
    let (t, r) = (truth().to_string(), results().to_string());
    let (ap, w) = accepted(&t, &results_with(1, "category_id", json!(8)));
    assert!((ap - 0.5).abs() < 1e-9);
    one(&w, &["1 detections of categories", "ids 8"]);
    assert!(!w[0].contains("no detection"));
    let (ap, w) = accepted(&t, "[]");
    assert_eq!(ap, 0.0);
    one(&w, &["the results list is empty"]);
    let lacking = |field: &'static str| {
        truth_with(|t| drop(t["annotations"][2].as_object_mut().unwrap().remove(field)))
    };
    let (ap, w) = accepted(&lacking("area"), &r);
    assert!(whole(ap));
    one(&w, &["1 annotations without `area`"]);
    let (ap, w) = accepted(&lacking("iscrowd"), &r);
    assert!(whole(ap));
    one(&w, &["1 annotations without `iscrowd`"]);
    let (_, w) = accepted(&truth_with(|t| t["annotations"][0]["image_id"] = json!(5)), &r);
    one(&w, &["1 annotations of images"]);
    let (_, w) = accepted(&truth_with(|t| t["annotations"][0]["category_id"] = json!(5)), &r);
    one(&w, &["1 annotations of categories"]);
    let (ap, w) =
        accepted(&truth_with(|t| drop(t.as_object_mut().unwrap().remove("annotations"))), &r);
    assert_eq!(ap, -1.0);
    one(&w, &["no `annotations`"]);
}

/// The commonest cause of AP 0: the model's class numbers instead of category ids.
#[test]
fn no_known_category_at_all_names_them() {
    let r = results()
        .to_string()
        .replace("\"category_id\":3", "\"category_id\":0")
        .replace("\"category_id\":7", "\"category_id\":1");
    let (ap, w) = accepted(&truth().to_string(), &r);
    assert_eq!(ap, 0.0);
    one(&w, &["3 detections", "ids 0, 1", "3 cup, 7 cat", "hint"]);
}

#[test]
fn annotation_id_zero_says_what_it_costs() {
    let files =
        Files::new(truth_with(|t| t["annotations"][1]["id"] = json!(0)), results().to_string());
    let (e, w) = files.run(&Params::default()).unwrap();
    assert!((e.summary().ap - 0.5).abs() < 1e-9, "the category with the one lost match has AP 0");
    one(&w, &["id 0", "0.500000 without, 1.000000 with", "--count-id-zero"]);
    let (e, w) = files.run(&Params { count_id_zero: true, ..Params::default() }).unwrap();
    assert!(whole(e.summary().ap));
    one(&w, &["0.500000 without, 1.000000 with"]);
}

#[test]
fn accepted_as_it_is() {
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
        let (ap, w) = accepted(&t, &results_with(2, field, value.clone()));
        assert!(whole(ap) && w.is_empty(), "{field} = {value}: {ap}, {w:?}");
    }
    for bbox in [json!([0, 0, 0, 0]), json!([0, 0, -5, 10]), json!([-900, 1e6, 10, 10])] {
        let (ap, w) = accepted(&t, &results_with(2, "bbox", bbox));
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
        |t: &mut Value| t["info"] = json!({"note": "\u{e4}\n\"}"}),
    ] {
        let (ap, w) = accepted(&truth_with(change), &results().to_string());
        assert!(whole(ap) && w.is_empty(), "{ap}, {w:?}");
    }
}

#[test]
fn names_and_sizes_of_images_are_kept() {
    let t = truth_with(|t| t["categories"][0]["name"] = json!("caf\u{e9} \"1\""));
    let text = t.replace('\u{e9}', "\\u00e9");
    let files = Files::new(text, "[]");
    let truth = json::truth(&files.gt(), &mut vec![]).unwrap();
    assert_eq!(truth.names, ["caf\u{e9} \"1\"", "cat"]);
    assert_eq!(truth.files[0].file_name.as_deref(), Some("a.jpg"));
    assert_eq!((truth.files[0].width, truth.files[1].width), (Some(100.0), None));
    assert_eq!(truth.images, [1, 2]);
}
