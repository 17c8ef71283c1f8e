//! Tests on the photos in the folder `DW_DATA` (`coco128`, `bccd`, `neu-det`). Without it, there
//! are no tests.

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};
use serde_json::Value;
use support::{bin, launch, run};

/// Called with the folder `DW_DATA`.
type Test = fn(&Path);

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let tests: [(&str, Test); 7] = [
        ("both_splits_of_real_photos_are_packed", both_splits_are_packed),
        ("jpeg_and_zstd_give_the_same_pixels", codecs_give_the_same_pixels),
        ("r50_overfits_four_photos_on_two_ranks", r50_overfits_four_photos),
        ("other_categories_need_no_code", other_categories_need_no_code),
        ("coco_and_voc_forms_of_a_set_have_the_same_boxes", coco_and_voc_forms_agree),
        ("exported_forms_of_a_set_have_the_same_boxes", exported_forms_agree),
        ("a_voc_folder_becomes_an_exported_detector", voc_folder_to_exported_detector),
    ];
    let data = std::env::var_os("DW_DATA").map(PathBuf::from);
    let trials = data.into_iter().flat_map(|d| {
        tests.map(|(name, test)| {
            let d = d.clone();
            Trial::test(name, move || {
                test(&d);
                Ok(())
            })
        })
    });
    libtest_mimic::run(&args, trials.collect()).exit_code()
}

fn pack(coco: &Path, out: &Path, more: &[&str]) {
    run(Command::new(bin("dw-pack")).arg(coco).arg("-o").arg(out).args(more));
    run(Command::new(bin("dw-pack")).arg("verify").arg(out));
}

/// Two images have no boxes, some have crowds, one is greyscale: all are packed.
fn both_splits_are_packed(data: &Path) {
    let dir = tempfile::tempdir().unwrap();
    pack(&data.join("coco128"), dir.path(), &["--split", "train2017", "--split", "val2017"]);
    let info: Value = serde_json::from_str(&run(Command::new(bin("dw-pack"))
        .arg("info")
        .arg(dir.path())
        .arg("--json")))
    .unwrap();
    let (train, val) = (&info["splits"]["train2017"], &info["splits"]["val2017"]);
    assert_eq!((&train["images"], &val["images"]), (&128.into(), &128.into()));
    assert_eq!(train["boxes"].as_u64().unwrap() + train["crowd"].as_u64().unwrap(), 939);
    assert_eq!(val["boxes"], 898);
    assert_eq!(info["categories"].as_array().unwrap().len(), 80);
}

fn codecs_give_the_same_pixels(data: &Path) {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    pack(&data.join("coco128"), a.path(), &["--split", "train2017"]);
    pack(&data.join("coco128"), b.path(), &["--split", "train2017", "--pixels", "jpeg"]);
    let open = |d: &tempfile::TempDir| dw_shards::Split::open(d.path(), "train2017").unwrap();
    let (a, b) = (open(&a), open(&b));
    for i in 0..a.len() {
        assert!(
            a.record(i).unwrap().decode().unwrap() == b.record(i).unwrap().decode().unwrap(),
            "record {i}"
        );
    }
}

fn losses(work: &Path) -> Vec<f64> {
    let text = std::fs::read_to_string(work.join("metrics.jsonl")).unwrap();
    text.lines()
        .filter_map(|l| serde_json::from_str::<Value>(l).unwrap()["loss"].as_f64())
        .collect()
}

fn r50_overfits_four_photos(data: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let (shards, work) = (dir.path().join("s"), dir.path().join("w"));
    pack(&data.join("coco128"), &shards, &["--split", "train2017"]);
    let mut job = launch(2, "dw-train");
    job.args(["dw_r50_fpn_1x", "--init", "random", "--device", "cpu", "--data"])
        .arg(&shards)
        .arg("--work-dir")
        .arg(&work);
    for set in [
        "data.limit=4",
        "data.short_side=256",
        "train.warmup_steps=0",
        "train.max_steps=60",
        "eval.every_epochs=0",
        "checkpoint.every_steps=1000",
    ] {
        job.args(["--set", set]);
    }
    run(&mut job);
    let losses = losses(&work);
    let lowest = losses.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(losses.len() == 60 && lowest < 0.8 * losses[0], "first {}, lowest {lowest}", losses[0]);
}

fn other_categories_need_no_code(data: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let (shards, work) = (dir.path().join("s"), dir.path().join("w"));
    pack(&data.join("bccd"), &shards, &[]);
    let mut job = launch(2, "dw-train");
    job.args(["smoke", "--device", "cpu", "--data"]).arg(&shards).arg("--work-dir").arg(&work);
    job.args(["--set", "data.limit=40", "--set", "train.epochs=1"]);
    run(&mut job);
    assert!(losses(&work).iter().all(|l| l.is_finite()));
    let json = run(launch(2, "dw-eval")
        .arg(&work)
        .args(["--device", "cpu", "--json", "--split", "test2017"]));
    let names: Vec<String> = serde_json::from_str::<Value>(&json).unwrap()["per_class"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    assert_eq!(names, ["RBC", "WBC", "Platelets"]);
}

/// Class and box of every object of the images, by the stem of the file name.
type Boxes = BTreeMap<String, Vec<(String, [f64; 4])>>;

fn boxes(shards: &Path, name: &str) -> Boxes {
    let split = dw_shards::Split::open(shards, name).unwrap();
    let image = |i| {
        let record = split.record(i).unwrap();
        let stem = Path::new(&record.annotations.file_name).with_extension("");
        let name = |label: u32| split.categories()[label as usize].name.clone();
        let boxes = record.annotations.boxes.iter().map(|b| (name(b.label), b.bbox)).collect();
        (stem.to_str().unwrap().to_owned(), boxes)
    };
    (0..split.len()).map(image).collect()
}

/// Copies the VOC form of `neu-det`, whose pictures are those of its COCO form.
fn copy_voc(data: &Path, to: &Path) {
    let set = data.join("neu-det");
    for folder in ["Annotations", "ImageSets/Main"] {
        copy_files(&set.join("voc").join(folder), &to.join(folder));
    }
    for split in ["train2017", "val2017"] {
        copy_files(&set.join(split), &to.join("JPEGImages"));
    }
}

fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn coco_and_voc_forms_agree(data: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let (voc, a, b) = (dir.path().join("voc"), dir.path().join("a"), dir.path().join("b"));
    copy_voc(data, &voc);
    pack(&data.join("neu-det"), &a, &["--pixels", "jpeg"]);
    pack(&voc, &b, &["--pixels", "jpeg"]);
    for (coco, voc, images) in [("train2017", "train", 1440), ("val2017", "val", 360)] {
        let expected = boxes(&a, coco);
        assert_eq!(expected.len(), images);
        assert!(boxes(&b, voc) == expected, "{voc}");
    }
}

/// The boxes of these data sets have integer coordinates. VOC stores them exactly; YOLO rounds
/// them, which is undone on reading.
fn exported_forms_agree(data: &Path) {
    for (set, splits) in
        [("bccd", &["train2017", "val2017", "test2017"][..]), ("neu-det", &["val2017"])]
    {
        let dir = tempfile::tempdir().unwrap();
        let shards = dir.path().join("shards");
        let only: Vec<&str> = splits.iter().flat_map(|s| ["--split", s]).collect();
        pack(&data.join(set), &shards, &[&["--pixels", "jpeg"], &only[..]].concat());
        for format in ["voc", "yolo"] {
            let (form, packed) = (dir.path().join(format), dir.path().join("packed"));
            let mut export = Command::new(bin("dw-pack"));
            run(export.arg("export").arg(&shards).arg(&form).args(["--format", format]));
            pack(&form, &packed, &["--pixels", "jpeg"]);
            for split in splits {
                // `data.yaml` has the splits train, val and test.
                let name = if format == "yolo" { split.trim_end_matches("2017") } else { split };
                assert!(boxes(&packed, name) == boxes(&shards, split), "{set} {format} {split}");
            }
            std::fs::remove_dir_all(&packed).unwrap();
        }
    }
}

/// The commands of the README, with a small network and few pictures.
fn voc_folder_to_exported_detector(data: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let (voc, work) = (dir.path().join("voc"), dir.path().join("work"));
    copy_voc(data, &voc);
    run(Command::new(bin("dw-pack")).arg(&voc));
    let mut train = launch(1, "dw-train");
    train.args(["smoke", "--device", "cpu", "--data"]).arg(voc.join("shards"));
    train.arg("--work-dir").arg(&work).args(["--set", "data.limit=120"]);
    run(&mut train);
    let evaluated = std::fs::read_to_string(work.join("metrics.jsonl")).unwrap();
    assert!(evaluated.contains("\"AP\""), "evaluated while training");
    let onnx = dir.path().join("photos.onnx");
    run(Command::new(bin("dw-export")).arg(&work).arg(&onnx).arg("--nms"));
    let model = std::fs::read(&onnx).unwrap();
    for class in ["crazing", "rolled-in_scale", "scratches"] {
        assert!(model.windows(class.len()).any(|w| w == class.as_bytes()), "{class}");
    }
    let detected = run(Command::new(bin("dw-detect"))
        .arg(&work)
        .arg(voc.join("JPEGImages/scratches_10.jpg"))
        .args(["--device", "cpu", "--json", "--score", "0"]));
    let line: Value = serde_json::from_str(detected.lines().next().unwrap()).unwrap();
    assert_eq!((&line["width"], &line["height"]), (&200.into(), &200.into()));
}
