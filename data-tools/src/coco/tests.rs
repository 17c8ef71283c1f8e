//! Tests of the parser.

use super::*;

fn parse(text: &str) -> Result<Coco> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("instances_x.json");
    std::fs::write(&path, text).unwrap();
    read(&path)
}

#[test]
fn section_order_and_unknown_fields_do_not_matter() {
    let coco = parse(
        r#"{"info":{"x":[1]},"annotations":[{"id":7,"image_id":3,"category_id":9,
            "bbox":[1,2,3.5,4],"segmentation":[[1,2]]}],
            "categories":[{"id":9,"name":"b"},{"id":2,"name":"a","supercategory":"s"}],
            "images":[{"id":3,"file_name":"a.jpg","width":10,"height":20}]}"#,
    )
    .unwrap();
    assert_eq!(
        coco.categories.iter().map(|c| c.id).collect::<Vec<_>>(),
        [2, 9],
        "categories are sorted by id"
    );
    assert_eq!(coco.annotations[0].area, 14.0, "a missing area is w * h");
}

#[test]
fn integral_floats_and_boolean_flags_are_accepted() {
    let coco = parse(
        r#"{"images":[{"id":3.0,"file_name":"a.jpg","width":640.0,"height":480.0}],
            "categories":[{"id":1.0,"name":"a"}],"annotations":[
            {"id":1e2,"image_id":3.0,"category_id":1.0,"bbox":[1,2,3,4],"iscrowd":false},
            {"id":2,"image_id":3,"category_id":1,"bbox":[1,2,3,4],"iscrowd":true},
            {"id":3,"image_id":3,"category_id":1,"bbox":[1,2,3,4],"iscrowd":1.0},
            {"id":4,"image_id":3,"category_id":1,"bbox":[1,2,3,4],"ignore":true},
            {"id":5,"image_id":3,"category_id":1,"bbox":[1,2,3,4],"ignore":null}]}"#,
    )
    .unwrap();
    let image = &coco.images[0];
    assert_eq!((image.id, image.width, image.height), (3, 640, 480));
    let found: Vec<_> = coco.annotations.iter().map(|a| (a.id, a.iscrowd, a.ignore)).collect();
    let expected = [(100, false), (2, true), (3, true), (4, false), (5, false)];
    assert_eq!(found, expected.map(|(id, iscrowd)| (id, iscrowd, id == 4)));
    assert_eq!(coco.categories[0].id, 1);
}

#[test]
fn invalid_numbers_are_reported_with_entry_and_field() {
    let image = |field: &str, value: &str| {
        let good = r#"{"id":3,"file_name":"a.jpg","width":640,"height":480}"#;
        let old = good.split(['{', ',', '}']).find(|f| f.starts_with(field)).unwrap();
        let bad = good.replace(old, &format!("{field}:{value}"));
        parse(&format!(r#"{{"images":[{bad}],"categories":[],"annotations":[]}}"#))
            .unwrap_err()
            .to_string()
    };
    for (field, value, words) in [
        ("\"id\"", "1.5", ["`id`", "found 1.5"]),
        ("\"id\"", "\"7\"", ["`id`", "string"]),
        ("\"id\"", "1e300", ["`id`", "found 1"]),
        ("\"width\"", "640.5", ["`width`", "found 640.5"]),
        ("\"height\"", "-1", ["`height`", "found -1"]),
        ("\"height\"", "5000000000", ["`height`", "found 5000000000"]),
    ] {
        let text = image(field, value);
        let located = text.contains("images[0]") && text.contains("line 1");
        assert!(located && words.iter().all(|w| text.contains(w)), "{text}");
    }
    let annotation = |text: &str| {
        let all = format!(r#"{{"images":[],"categories":[],"annotations":[{{{text}}}]}}"#);
        parse(&all).unwrap_err().to_string()
    };
    let text = annotation(r#""id":1,"image_id":2.5"#);
    assert!(text.contains("annotations[0]") && text.contains("`image_id`"), "{text}");
    let text = annotation(r#""id":1,"iscrowd":2"#);
    assert!(text.contains("`iscrowd`") && text.contains("found 2"), "{text}");
    let text = annotation(r#""id":1,"ignore":0.5"#);
    assert!(text.contains("`ignore`") && text.contains("found 0.5"), "{text}");
}

#[test]
fn byte_order_marks_are_accepted_and_repeated_sections_rejected() {
    let text = r#"{"images":[],"annotations":[],"categories":[]}"#;
    parse(&format!("\u{feff}{text}")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("utf16.json");
    let utf16: Vec<u8> =
        format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    std::fs::write(&path, utf16).unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("UTF-16"));
    let e = parse(&text.replace("annotations", "images")).unwrap_err().to_string();
    assert!(e.contains("`images`") && e.contains("second"), "{e}");
}

#[test]
fn errors_name_entry_and_field() {
    let text = r#"{"images":[],"categories":[],"annotations":[
        {"id":1,"image_id":1,"category_id":1,"bbox":[0,0,1,1]},
        {"id":2,"image_id":1,"bbox":[0,0,1,1]}]}"#;
    let e = parse(text).unwrap_err().to_string();
    assert!(e.contains("annotations[1]") && e.contains("category_id"), "{e}");
    let e = parse(&text[..text.len() / 2]).unwrap_err().to_string();
    assert!(e.contains("annotations[0]") && e.contains("EOF"), "{e}");
    let e = parse(r#"{"images":[],"annotations":[]}"#).unwrap_err().to_string();
    assert!(e.contains("`categories`"), "{e}");
    let e = parse(r#"{"images":[],"categories":[]}"#).unwrap_err().to_string();
    assert!(e.contains("`annotations`"), "{e}");
    let e = parse("[]").unwrap_err().to_string();
    assert!(e.contains("`images`"), "{e}");
}
