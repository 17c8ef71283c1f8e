//! Tests on the photos in the folder `DW_DATA` (`coco128`, `bccd`); without it there are none.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};
use serde_json::Value;
use support::{bin, launch, run};

/// Called with the folder `DW_DATA`.
type Test = fn(&Path);

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let tests: [(&str, Test); 4] = [
        ("both_splits_of_real_photos_are_packed", both_splits_are_packed),
        ("jpeg_and_zstd_give_the_same_pixels", codecs_give_the_same_pixels),
        ("r50_overfits_four_photos_on_two_ranks", r50_overfits_four_photos),
        ("other_categories_need_no_code", other_categories_need_no_code),
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
