//! The report page is well-formed for any data, escapes text from the data, and is written
//! atomically.

mod report_support;

use dw_metric::report::{Input, check, render, write};
use dw_metric::{Detection, GroundTruth, MetricConfig, evaluate};
use report_support::{Data, evaluated, input};

fn page(data: &Data) -> String {
    let problem = data.problem();
    let evaluation = evaluated(&problem);
    render(&[input(data, &problem, &evaluation)]).unwrap()
}

/// Checks that all sections are there, tags are balanced, no number is `NaN`, and nothing is
/// loaded.
fn assert_valid(page: &str) {
    for id in [
        "numbers",
        "errors",
        "by-class",
        "curves",
        "scores",
        "confusion",
        "sizes",
        "images",
        "labels",
        "notes",
    ] {
        assert_eq!(page.matches(&format!("id=\"{id}\"")).count(), 1, "{id}");
    }
    for tag in
        ["section", "table", "tr", "figure", "svg", "details", "script", "div", "select", "tbody"]
    {
        let opened =
            page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    for bad in [">NaN", ">inf", ">-1<", ">-1.000<", ">-100.0<", "http://", "https://", "url("] {
        // The only allowed URL is the SVG name space.
        let page = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!page.contains(bad), "{bad}: {}", &page[page.find(bad).unwrap() - 100..][..200]);
    }
    assert!(page.ends_with("</html>"));
}

#[test]
fn pages_of_one_and_two_runs() {
    let (a, b) = (Data::new(12, 3, 0.5), Data::new(12, 3, 0.2));
    let (p, q) = (a.problem(), b.problem());
    let (e, f) = (evaluated(&p), evaluated(&q));
    let one = render(&[input(&a, &p, &e)]).unwrap();
    assert_valid(&one);
    assert!(
        one.contains("data:image/jpeg;base64,")
            && one.contains("Best images")
            && one.contains("2020-02-02")
    );
    let two =
        render(&[input(&a, &p, &e), Input { title: "the other", ..input(&b, &q, &f) }]).unwrap();
    assert_valid(&two);
    assert!(
        two.contains("Largest differences") && two.contains("the other") && two.contains("Δ AP50")
    );
    assert_eq!(render(&[]).unwrap_err().exit_code(), 2);
    let three = [input(&a, &p, &e); 3];
    assert_eq!(render(&three).unwrap_err().exit_code(), 2);
}

#[test]
fn text_from_the_data_is_escaped() {
    let nasty = "<b>&\"x'</script><script>alert(1)</script>{{ 1 }}";
    let mut data = Data::new(3, 2, 0.4);
    data.names = vec![nasty.into(), "plain".into()];
    let problem = data.problem();
    let evaluation = evaluated(&problem);
    let name = |_| Some(nasty.to_string());
    let facts = [(nasty.to_string(), nasty.to_string())];
    let clean = page(&Data { names: vec!["a".into(), "b".into()], ..Data::new(3, 2, 0.4) });
    let base = input(&data, &problem, &evaluation);
    let dirty = Input {
        title: nasty,
        data: nasty,
        date: nasty,
        facts: &facts,
        image_names: Some(&name),
        ..base
    };
    let page = render(&[dirty]).unwrap();
    assert_valid(&page);
    for bad in ["<b>&\"", "<b>&#38;", "alert(1)</script>", "'</"] {
        assert!(!page.contains(bad), "{bad}: {}", &page[page.find(bad).unwrap() - 100..][..200]);
    }
    assert!(page.matches("alert(1)").count() > 9);
    assert_eq!(page.matches("<script").count(), clean.matches("<script").count());
}

#[test]
fn pages_of_incomplete_data() {
    let full = || Data::new(5, 2, 0.4);
    let cases: Vec<(&str, Data)> = vec![
        ("no images", Data { images: vec![], ..full() }),
        ("no classes", Data { categories: vec![], ..full() }),
        (
            "nothing",
            Data {
                images: vec![],
                categories: vec![],
                truth: vec![],
                found: vec![],
                names: vec![],
            },
        ),
        ("no detections", Data { found: vec![], ..full() }),
        ("no truth", Data { truth: vec![], ..full() }),
        ("one class", Data::new(5, 1, 0.4)),
        ("perfect", Data::new(5, 2, 0.0)),
        ("no true positives", Data::new(5, 2, 40.0)),
        ("duplicate names", Data { names: vec!["same".into(), "same".into()], ..full() }),
        ("no names", Data { names: vec![], ..full() }),
    ];
    for (what, data) in &cases {
        println!("{what}");
        assert_valid(&page(data));
    }
    let (a, b) = (&cases[4].1, &cases[3].1);
    let (p, q) = (a.problem(), b.problem());
    let (e, f) = (evaluated(&p), evaluated(&q));
    assert_valid(&render(&[input(a, &p, &e), input(b, &q, &f)]).unwrap());
}

#[test]
fn nan_and_infinite_input() {
    let mut data = Data::new(4, 2, 0.3);
    let box_of = |bbox| Detection { image_id: 1, category_id: 2, bbox, score: 0.5 };
    data.found.push(Detection { score: f64::NAN, ..box_of([0.; 4]) });
    data.found.push(Detection { score: f64::INFINITY, ..box_of([f64::NAN; 4]) });
    data.found.push(Detection { score: -3.0, ..box_of([1e300, 1e300, -5., 1e300]) });
    data.truth.push(GroundTruth {
        id: 999,
        image_id: 1,
        category_id: 2,
        bbox: [f64::NAN; 4],
        area: f64::NAN,
        crowd: false,
    });
    assert_valid(&page(&data));
}

#[test]
fn other_configurations_and_different_classes() {
    let (a, b) = (Data::new(6, 3, 0.4), Data::new(4, 5, 0.4));
    let (p, q) = (a.problem(), b.problem());
    let config = MetricConfig { iou: vec![0.6], max_dets: vec![7], ..MetricConfig::default() };
    let (e, f) = (evaluate(&p, &config), evaluated(&q));
    assert_valid(&render(&[input(&a, &p, &e)]).unwrap());
    assert_valid(&render(&[input(&a, &p, &e), input(&b, &q, &f)]).unwrap());
    assert_valid(&render(&[input(&b, &q, &f), input(&a, &p, &e)]).unwrap());
}

/// A confident detection on background and an unreached box are listed with their image.
#[test]
fn likely_label_errors_are_listed_with_their_images() {
    let mut data = Data::new(3, 2, 0.0);
    data.found.push(Detection {
        image_id: 2,
        category_id: 4,
        bbox: [900., 900., 9., 9.],
        score: 0.97,
    });
    let bbox = [600., 600., 30., 20.];
    data.truth.push(GroundTruth {
        id: 999,
        image_id: 3,
        category_id: 2,
        bbox,
        area: 600.,
        crowd: false,
    });
    let page = page(&data);
    assert_valid(&page);
    let section = &page[page.find("id=\"labels\"").unwrap()..page.find("id=\"notes\"").unwrap()];
    for text in [
        "Confident detections without ground truth: 1 in all.",
        "<b>image 2</b><span class=\"sums\">kind 2 0.97, highest IoU 0.00</span>",
        "Ground truth that no detection reaches: 1 in all.",
        "<b>image 3</b><span class=\"sums\">kind 1, 30 × 20 pixels, highest IoU 0.00</span>",
        "a score of at least 0.5",
    ] {
        assert!(section.contains(text), "{text}: {section}");
    }
    assert_eq!(section.matches("<use href=\"#photo-").count(), 2);
    // Long lists are truncated, with a note.
    let many = Data { truth: vec![], ..Data::new(60, 2, 0.0) };
    let confident = many.found.iter().filter(|d| d.score >= 0.5).count();
    let many = self::page(&many);
    assert!(many.contains(&format!("{confident} in all, the first 50 are listed.")), "{confident}");
}

#[test]
fn page_size_with_many_classes_is_limited() {
    let data = Data::new(400, 1200, 0.4);
    let problem = data.problem();
    let evaluation = evaluated(&problem);
    let page = render(&[Input { pictures: None, ..input(&data, &problem, &evaluation) }]).unwrap();
    assert_valid(&page);
    assert!(page.len() < 4_000_000, "{}", page.len());
    assert!(
        page.contains("kind 1200")
            && page.contains("data:image/png;base64,")
            && page.contains("image ")
    );
}

#[test]
fn page_is_written_atomically() {
    let data = Data::new(3, 2, 0.4);
    let problem = data.problem();
    let evaluation = evaluated(&problem);
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("a/b");
    let inputs = [input(&data, &problem, &evaluation)];
    for _ in 0..2 {
        let file = write(&to, &inputs).unwrap();
        assert_valid(&std::fs::read_to_string(&file).unwrap());
        assert_eq!(std::fs::read_dir(&to).unwrap().count(), 1);
    }
    // A folder in place of the page: an error, and no temporary file is left.
    let blocked = folder.path().join("c");
    std::fs::create_dir_all(blocked.join("index.html/x")).unwrap();
    assert_eq!(check(&blocked).unwrap_err().exit_code(), 2, "before the evaluation");
    assert_eq!(write(&blocked, &inputs).unwrap_err().exit_code(), 3, "after it");
    assert_eq!(std::fs::read_dir(&blocked).unwrap().count(), 1);
}
