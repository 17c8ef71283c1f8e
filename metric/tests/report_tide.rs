//! Comparison of the error breakdown with the authors' `tidecv` 1.0.1 (foreground 0.5, background
//! 0.1, 100 detections per image, crowds as ignore regions). The cases whose names begin with m are
//! in the folder of `DW_GOLDENS`.
//!
//! COCO's AP50 of the same cases is 29.784, 26.288, 28.574, 42.067 and 44.593; the differences
//! between the two are listed in `analysis::tide`.

#![expect(clippy::unreadable_literal, reason = "as tidecv prints them")]

use std::path::{Path, PathBuf};

use dw_metric::analysis::Analysis;
use dw_metric::{Detection, GroundTruth, MetricConfig, Problem};
use serde_json::Value;

struct Case {
    name: &'static str,
    ap: f64,
    /// Cls, Loc, Both, Dupe, Bkg, Miss.
    gains: [f64; 6],
    counts: [usize; 6],
    false_positives: f64,
    false_negatives: f64,
}

/// As printed by tidecv.
const CASES: [Case; 5] = [
    Case {
        name: "t01-basic",
        ap: 29.78460376363851,
        gains: [
            0.029566352071032753,
            10.052227582579018,
            0.0,
            1.4993017581788273,
            10.864096420556162,
            17.757925619043366,
        ],
        counts: [7, 77, 8, 60, 336, 65],
        false_positives: 23.680742771014952,
        false_negatives: 25.94156487630679,
    },
    Case {
        name: "t05-crowd",
        ap: 26.332400440515453,
        gains: [
            0.746294944960308,
            24.151564636461362,
            0.0,
            2.265414422035093,
            6.750404500255602,
            7.635447427607605,
        ],
        counts: [7, 159, 16, 89, 329, 30],
        false_positives: 26.934926292157815,
        false_negatives: 24.520843643957736,
    },
    Case {
        name: "t07-dense",
        ap: 28.54957337387379,
        gains: [0.0, 5.4492370397245935, 0.0, 0.0, 7.18009073862698, 5.734458126828834],
        counts: [35, 83, 12, 113, 231, 55],
        false_positives: 22.5395355370173,
        false_negatives: 10.974051747244182,
    },
    Case {
        name: "m01-basic",
        ap: 40.96478659669233,
        gains: [
            0.7774144699363532,
            11.578870049112957,
            0.28351503399156996,
            1.0375315771875293,
            7.021750966812299,
            17.342422679374543,
        ],
        counts: [174, 818, 224, 592, 3636, 1145],
        false_positives: 15.891649046872047,
        false_negatives: 27.98595289049377,
    },
    Case {
        name: "m03-fine",
        ap: 37.25672851079296,
        gains: [
            0.9066864443501856,
            11.042296474596476,
            0.0015709086419022356,
            0.738010053846196,
            0.8418378540249236,
            16.484938296886206,
        ],
        counts: [101, 714, 180, 365, 2926, 1031],
        false_positives: 4.327429905048639,
        false_negatives: 33.95392760663086,
    },
];

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn bbox(v: &Value) -> [f64; 4] {
    std::array::from_fn(|i| v["bbox"][i].as_f64().unwrap())
}

fn check(case: &Case, folder: &Path) {
    let (gt, dt) = (json(&folder.join("gt.json")), json(&folder.join("dt.json")));
    let list = |k: &str| gt[k].as_array().unwrap().clone();
    let id = |v: &Value, k: &str| v[k].as_i64().unwrap();
    let images: Vec<i64> = list("images").iter().map(|i| id(i, "id")).collect();
    let categories: Vec<i64> = list("categories").iter().map(|c| id(c, "id")).collect();
    let truth = list("annotations").into_iter().map(|a| GroundTruth {
        id: id(&a, "id"),
        image_id: id(&a, "image_id"),
        category_id: id(&a, "category_id"),
        bbox: bbox(&a),
        area: a["area"].as_f64().unwrap(),
        crowd: id(&a, "iscrowd") == 1,
    });
    let truth: Vec<GroundTruth> = truth.collect();
    let found = dt.as_array().unwrap().iter().map(|d| Detection {
        image_id: id(d, "image_id"),
        category_id: id(d, "category_id"),
        bbox: bbox(d),
        score: d["score"].as_f64().unwrap(),
    });
    let found: Vec<Detection> = found.collect();
    let problem =
        Problem { images: &images, categories: &categories, truth: &truth, detections: &found };
    let t = Analysis::new(&problem, &MetricConfig::default()).tide;
    assert_eq!(t.counts, case.counts, "{}", case.name);
    let pairs = [
        (t.ap, case.ap),
        (t.false_positives, case.false_positives),
        (t.false_negatives, case.false_negatives),
    ];
    for (found, expected) in pairs.into_iter().chain(t.gains.into_iter().zip(case.gains)) {
        assert!((found - expected).abs() < 1e-9, "{}: {found}, tidecv {expected}", case.name);
    }
}

#[test]
fn numbers_equal_those_of_tidecv() {
    let small = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/coco");
    let given = std::env::var_os("DW_GOLDENS");
    let large = given.iter().flat_map(|d| std::env::split_paths(d)).map(|d| d.join("coco"));
    let folders: Vec<PathBuf> = std::iter::once(small).chain(large).collect();
    let mut checked = 0;
    for case in &CASES {
        match folders.iter().map(|f| f.join(case.name)).find(|f| f.is_dir()) {
            Some(folder) => {
                check(case, &folder);
                checked += 1;
            }
            None => println!("{}: skipped, no such folder", case.name),
        }
    }
    // Two of the cases are in DW_GOLDENS only.
    assert_eq!(checked, if folders[1..].iter().any(|f| f.is_dir()) { CASES.len() } else { 3 });
}
