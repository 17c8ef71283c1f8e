//! `dw-export`: an exported network gives the same detections as the trained one, also in the
//! programs of `docs/deploy.md`; NMS in the model; requests that are refused.
#![allow(clippy::print_stdout, reason = "measured differences, with --nocapture")]

mod support;

use std::path::Path;
use std::process::Command;

use dw::data::augment::{Transform, decode, padded, render};
use dw::data::{DataConfig, Dataset};
use dw::eval::EvalConfig;
use dw::eval::detect::{Detection, Image, candidates, select};
use dw::export::Form;
use dw_metric::Detection as Row;
use serde_json::Value;
use support::network::{Exported, batches, predict};
use support::onnx::{Batch, Ran, python, run_model};
use support::{Sandbox, assert_fails, bin, launch, run};
use tch::{Kind, Tensor};

fn numbers(t: &Tensor) -> Vec<f32> {
    Vec::try_from(t.to_kind(Kind::Float).contiguous().view([-1])).unwrap()
}

/// Detections of each image of call `i`.
fn detections(ran: &Ran, i: usize, images: usize) -> Vec<Vec<Detection>> {
    let of = |name: &str| numbers(&ran.output(i, name));
    let (boxes, scores, labels, image) = (of("boxes"), of("scores"), of("labels"), of("image"));
    let mut out = vec![vec![]; images];
    for (k, b) in boxes.chunks_exact(4).enumerate() {
        let bbox = [b[0], b[1], b[2], b[3]];
        out[image[k] as usize].push(Detection { bbox, score: scores[k], label: labels[k] as u32 });
    }
    out
}

fn iou(a: &[f32; 4], b: &[f32; 4]) -> f64 {
    let side = |i: usize| f64::from((a[i + 2].min(b[i + 2]) - a[i].max(b[i])).max(0.0));
    let area = |b: &[f32; 4]| f64::from((b[2] - b[0]) * (b[3] - b[1]));
    let overlap = side(0) * side(1);
    overlap / (area(a) + area(b) - overlap)
}

/// Asserts that each detection has a counterpart in the other list: the same class, a box within
/// 0.01 pixels and a score within 1e-4. A detection within 1e-4 of a threshold may lack one.
/// Returns the number of such exceptions.
fn matched(what: &str, found: &[Detection], expected: &[Detection], c: &EvalConfig) -> usize {
    let near = |a: f64, b: f64| (a - b).abs() < 1e-4;
    let mut exceptions = 0;
    for (own, others) in [(found, expected), (expected, found)] {
        for d in own {
            let same = |o: &&Detection| {
                let is_near = |i: usize| (o.bbox[i] - d.bbox[i]).abs() <= 0.01;
                o.label == d.label && (o.score - d.score).abs() <= 1e-4 && (0..4).all(is_near)
            };
            if others.iter().any(|o| same(&o)) {
                continue;
            }
            exceptions += 1;
            let score = f64::from(d.score);
            let last = others.last().map_or(0.0, |o| f64::from(o.score));
            let at_limit = others.len() >= c.per_image && near(score, last);
            let of_class = own.iter().chain(others).filter(|o| o.label == d.label);
            let at_iou = of_class.map(|o| iou(&o.bbox, &d.bbox)).any(|v| near(v, c.nms_iou));
            let explained = at_limit || at_iou || near(score, c.score_threshold);
            assert!(explained, "{what}: {d:?} has no partner in {others:?}");
        }
    }
    exceptions
}

/// Compares NMS in exported networks with random weights with the program's own post-processing.
#[test]
fn nms_in_the_model_is_that_of_the_program() {
    let small = ["model.width=0.25", "model.channels=32", "model.init=random", "eval.per_level=50"];
    // Few candidates, many candidates, and networks whose threshold does not apply to the final
    // score.
    for (name, threshold, size) in [
        ("dw_r50_fpn_1x", "eval.score_threshold=0.008", None),
        ("dw_r50_fpn_1x", "eval.score_threshold=0.9", Some((96, 160))),
        ("fcos_plain_r50_fpn_1x", "eval.score_threshold=0.0201", Some((96, 160))),
        ("simota_r50_fpn_1x", "eval.score_threshold=0.0", None),
    ] {
        let network = Exported::new(name, &[&small[..], &[threshold]].concat());
        let folder = network.write(Form { size, nms: true });
        let batches = batches(96, 160);
        let ran = run_model(folder.path(), &batches);
        let c = &network.config.eval;
        for (i, batch) in batches.iter().enumerate() {
            let scored = predict(&network.detector, batch);
            let images = batch.images.size()[0] as usize;
            let found = detections(&ran, i, images);
            for (k, found) in found.iter().enumerate() {
                let of = |t: &Tensor| numbers(&t.get(k as i64));
                let factor = scored.factor.as_ref().map(of);
                let [h, w] = batch.sizes.as_ref().map_or([96, 160], |s| s[k]);
                let image = Image {
                    ranked: &of(&scored.ranked),
                    factor: factor.as_deref(),
                    boxes: &of(&scored.boxes),
                    levels: &scored.levels,
                    size: (w as f32, h as f32),
                    scale: (1.0, 1.0),
                };
                let expected = select(&candidates(&image, c, false), c, false);
                let exceptions = matched(&format!("{name} {i} {k}"), found, &expected, c);
                println!("{name} {i} {k}: {} detections, {exceptions} apart", expected.len());
                assert!(threshold.contains("0.9") == expected.is_empty(), "{}", expected.len());
                assert!(exceptions * 10 <= expected.len(), "{exceptions} detections differ");
            }
        }
    }
}

/// Rows of a results file as detections of one image.
fn rows_of(rows: &[Value], image: i64, categories: &[i64]) -> Vec<Detection> {
    let of_image = rows.iter().filter(|r| r["image_id"] == image);
    let row = |r: &Value| {
        let v = |i: usize| r["bbox"][i].as_f64().unwrap();
        let bbox = [v(0), v(1), v(0) + v(2), v(1) + v(3)].map(|v| v as f32);
        let category = r["category_id"].as_i64().unwrap();
        let label = categories.iter().position(|c| *c == category).unwrap() as u32;
        Detection { bbox, score: r["score"].as_f64().unwrap() as f32, label }
    };
    of_image.map(row).collect()
}

/// All images of a split as batches of one, with their scale.
fn inputs(data: &Dataset, c: &DataConfig) -> (Vec<Batch>, Vec<(f32, f32)>) {
    let one = |&record: &usize| {
        let record = data.split.record(record).unwrap();
        let (width, height) = record.entry.original();
        let t = Transform::eval(width, height, c);
        let (w, h) = padded(std::iter::once((t.width, t.height)));
        let mut bytes = vec![0; (3 * w * h) as usize];
        render(&decode(&record, &t, c).unwrap(), &t, (w, h), &mut bytes);
        let images = Tensor::from_slice(&bytes).view([1, i64::from(h), i64::from(w), 3]);
        let sizes = Some(vec![[i64::from(t.height), i64::from(t.width)]]);
        let scale = (t.width as f32 / width as f32, t.height as f32 / height as f32);
        (Batch { images: images.permute([0, 3, 1, 2]), sizes }, scale)
    };
    data.records.iter().map(one).unzip()
}

fn in_original_pixels(d: &Detection, scale: (f32, f32)) -> Detection {
    let [x1, y1, x2, y2] = d.bbox;
    Detection { bbox: [x1 / scale.0, y1 / scale.1, x2 / scale.0, y2 / scale.1], ..*d }
}

/// The program in `docs/deploy.md` in this language.
fn documented(language: &str) -> &'static str {
    let text = include_str!("../docs/deploy.md");
    let (_, rest) = text.split_once(&format!("```{language}\n")).unwrap();
    rest.split_once("```").unwrap().0
}

/// What the Python program prints for a picture: class, score and box.
fn printed_by_python(folder: &Path, picture: &Path) -> Vec<(String, f32, [f32; 4])> {
    let program = folder.join("detect.py");
    std::fs::write(&program, documented("python")).unwrap();
    let model = folder.join("model.onnx");
    let out = run(Command::new(python()).arg(program).args([model.as_path(), picture]));
    let line = |line: &str| {
        let mut words: Vec<&str> = line.split(' ').collect();
        let values = words.split_off(words.len() - 5);
        let values: Vec<f32> = values.iter().map(|v| v.parse().unwrap()).collect();
        (words.join(" "), values[0], [values[1], values[2], values[3], values[4]])
    };
    out.lines().map(line).collect()
}

#[test]
fn a_trained_network_detects_the_same() {
    let sandbox = Sandbox::with_images(60, 12);
    let sets = ["train.epochs=14", "eval.every_epochs=0", "data.short_side=100"];
    sandbox.train(1, "w", &sets);
    let (work, dt, gt) = (
        sandbox.path("w"),
        sandbox.path("dt.json"),
        sandbox.path("coco/annotations/instances_val2017.json"),
    );
    let json = |c: &mut Command| serde_json::from_str::<Value>(&run(c)).unwrap();
    let own =
        json(launch(0, "dw-eval").args([&work, "--device", "cpu", "--json", "--dt-out", &dt]));
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.onnx");
    run(Command::new(bin("dw-export")).args([work.as_ref(), model.as_path(), "--nms".as_ref()]));

    let c = DataConfig { short_side: 100, long_side: 128, ..DataConfig::default() };
    let data = Dataset::open(Path::new(&sandbox.shards()), "val2017", 0, false).unwrap();
    let (batches, scales) = inputs(&data, &c);
    let ran = run_model(folder.path(), &batches);
    let rows: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(&dt).unwrap()).unwrap();
    let categories: Vec<i64> = data.categories().iter().map(|c| c.id).collect();
    let (mut found_rows, mut exceptions, mut pictures) = (vec![], 0, 0);
    for (i, scale) in scales.iter().enumerate() {
        let entry = data.split.entry(data.records[i]);
        let expected = rows_of(&rows, entry.image_id, &categories);
        let found: Vec<Detection> =
            detections(&ran, i, 1)[0].iter().map(|d| in_original_pixels(d, *scale)).collect();
        exceptions += matched("trained", &found, &expected, &EvalConfig::default());
        found_rows.extend(found.iter().map(|d| {
            let [x1, y1, x2, y2] = d.bbox.map(f64::from);
            Row {
                image_id: entry.image_id,
                category_id: categories[d.label as usize],
                bbox: [x1, y1, x2 - x1, y2 - y1],
                score: f64::from(d.score),
            }
        }));
        if i < 3 {
            let name = data.split.record(data.records[i]).unwrap().annotations.file_name.clone();
            let picture = sandbox.path("coco/val2017/") + &name;
            let printed = printed_by_python(folder.path(), Path::new(&picture));
            assert_eq!(printed.len(), found.len());
            for ((name, score, bbox), d) in printed.iter().zip(&found) {
                assert_eq!(*name, data.categories()[d.label as usize].name);
                assert!((score - d.score).abs() < 2e-3, "{score} {d:?}");
                assert!(
                    bbox.iter().zip(d.bbox).all(|(a, b)| (a - b).abs() < 0.1),
                    "{bbox:?} {d:?}"
                );
            }
            pictures += printed.len();
            // A model of a fixed size takes any picture.
            let fixed = tempfile::tempdir().unwrap();
            let mut export = Command::new(bin("dw-export"));
            export.arg(&work).arg(fixed.path().join("model.onnx"));
            run(export.args(["--nms", "--size", "96", "128"]));
            printed_by_python(fixed.path(), Path::new(&picture));
        }
    }
    let all = sandbox.path("onnx.json");
    dw::eval::write_results(std::fs::File::create(&all).unwrap(), &found_rows).unwrap();
    let exported =
        json(Command::new(bin("dw-eval")).args(["coco", "--gt", &gt, "--dt", &all, "--json"]));
    let ap = |v: &Value| v["AP"].as_f64().unwrap();
    println!("AP {} and {}, {} detections", ap(&own), ap(&exported), rows.len());
    println!("{exceptions} detections at thresholds, {pictures} by the documented program");
    assert!(ap(&own) >= 0.05, "AP {}", ap(&own));
    assert!((ap(&own) - ap(&exported)).abs() <= 0.0005, "{} and {}", ap(&own), ap(&exported));
    assert!(exceptions * 100 <= rows.len() && pictures > 0);
}

/// Compiles the C++ program with the library of the Python package, which has no headers.
fn cpp_program(folder: &Path, include: &str) -> std::path::PathBuf {
    let site =
        run(Command::new(python()).args(["-c", "import site; print(*site.getsitepackages())"]));
    let packages = Path::new(site.trim()).join("onnxruntime/capi");
    let is_library = |n: &str| n.starts_with("libonnxruntime.so");
    let mut names = packages.read_dir().unwrap().map(|e| e.unwrap().file_name());
    let library = names.find(|n| is_library(n.to_str().unwrap())).unwrap();
    // The name under which programs look for the library.
    let link = folder.join("libonnxruntime.so.1");
    std::os::unix::fs::symlink(packages.join(library), &link).unwrap();
    let (source, program) = (folder.join("detect.cpp"), folder.join("detect"));
    std::fs::write(&source, documented("cpp")).unwrap();
    let mut compiler = Command::new("g++");
    compiler.args(["-std=c++17", "-Wall", "-Wextra", "-I", include]).arg(source).arg(link);
    run(compiler.arg(format!("-Wl,-rpath,{}", folder.display())).arg("-o").arg(&program));
    program
}

#[test]
#[ignore = "requires ONNXRUNTIME_INCLUDE, the folder of onnxruntime_cxx_api.h"]
fn the_documented_cpp_program_detects_the_same() {
    let include = std::env::var("ONNXRUNTIME_INCLUDE").expect("ONNXRUNTIME_INCLUDE is set");
    let small = ["model.width=0.25", "model.channels=32", "model.init=random"];
    let sets = [&small[..], &["eval.score_threshold=0.008"]].concat();
    let folder = Exported::new("dw_r50_fpn_1x", &sets).write(Form { size: None, nms: true });
    let (h, w) = (90, 150);
    let batch = Batch { sizes: Some(vec![[h, w]]), ..batches(96, 160).remove(0) };
    let pixels = batch.images.get(0).narrow(1, 0, h).narrow(2, 0, w).permute([1, 2, 0]);
    let mut ppm = format!("P6\n{w} {h}\n255\n").into_bytes();
    ppm.extend(Vec::<u8>::try_from(pixels.contiguous().view([-1])).unwrap());
    let picture = folder.path().join("picture.ppm");
    std::fs::write(&picture, ppm).unwrap();
    let expected = detections(&run_model(folder.path(), &[batch]), 0, 1).remove(0);

    let program = cpp_program(folder.path(), &include);
    let model = folder.path().join("model.onnx");
    let out = run(Command::new(program).args([&model, &picture]));
    let found: Vec<Vec<f32>> =
        out.lines().map(|l| l.split(' ').map(|v| v.parse().unwrap()).collect()).collect();
    assert!(!expected.is_empty() && found.len() == expected.len(), "{out}");
    for (row, d) in found.iter().zip(&expected) {
        let numbers = [d.label as f32, d.score].into_iter().chain(d.bbox);
        assert!(row.iter().zip(numbers).all(|(a, b)| (a - b).abs() < 1e-3), "{row:?} {d:?}");
    }
}

#[test]
fn wrong_requests_are_refused() {
    let sandbox = Sandbox::new();
    sandbox.train(1, "w", &["train.epochs=1", "train.max_steps=1", "eval.every_epochs=0"]);
    let (work, out) = (sandbox.path("w"), sandbox.path("out.onnx"));
    let export = |options: &[&str]| {
        let mut c = Command::new(bin("dw-export"));
        c.args([&work, &out]).args(options);
        c
    };
    for (options, keys) in [
        (&["--size", "100", "128"][..], &["--size 100 128", "multiples of 32", "hint:"][..]),
        (&["--size", "0", "32"], &["--size 0 32"]),
        (&["--size", "32", "32000"], &["--size 32 32000"]),
        (&["--config", "smoke"], &["--config"]),
    ] {
        assert_fails(&mut export(options), 2, keys);
    }
    let both = export(&["--size", "32", "32", "--dynamic"]).output().unwrap();
    assert_eq!(both.status.code(), Some(2));
    assert!(!Path::new(&out).exists());
    let missing = sandbox.path("nowhere/out.onnx");
    assert_fails(Command::new(bin("dw-export")).args([&work, &missing]), 3, &["nowhere"]);
    run(&mut export(&["--size", "64", "96"]));
    assert!(std::fs::metadata(&out).unwrap().len() > 100_000);
}

/// Score voting has no operator; the network itself can be exported.
#[test]
fn nms_with_score_voting_is_refused() {
    let small = ["model.width=0.25", "model.channels=32", "model.init=random"];
    let network = Exported::new("paa_r50_fpn_1x", &small);
    let refused = network.export(Form { size: None, nms: true }).unwrap_err();
    assert_eq!(refused.exit_code(), 2);
    let text = refused.to_string();
    assert!(["--nms", "assign.vote", "hint:"].iter().all(|key| text.contains(key)), "{text}");
    let without = Exported::new("paa_r50_fpn_1x", &[&small[..], &["assign.vote=false"]].concat());
    without.export(Form { size: None, nms: true }).unwrap();
}
