//! User errors: each ends with the right exit code, names the key, file and value, and does not
//! damage existing files.

mod support;

use std::path::Path;
use std::process::Command;

use support::{
    Sandbox, assert_contains, assert_fails, assert_line_contains, bin, files_in, flip_bit,
    has_word, last_error, launch, output, run, run_failing, stderr,
};

/// Settings of a run without evaluation; `steps` limits its length, for example
/// `train.max_steps=2`.
fn short(steps: &str) -> [&str; 2] {
    ["eval.every_epochs=0", steps]
}

fn train(sandbox: &Sandbox, sets: &[&str]) -> Command {
    let mut c = launch(0, "dw-train");
    c.args(sandbox.train_args("w", sets));
    c
}

#[test]
fn configuration_errors_name_the_key_and_the_nearest_valid_one() {
    let sandbox = Sandbox::new();
    let set = |set: &str, keys: &[&str]| assert_fails(&mut train(&sandbox, &[set]), 2, keys);
    set("train.learning_rate=1", &["`train.learning_rate`", "hint:", "`train.lr`"]);
    set("data.flip=often", &["`data.flip`", "expected", "number", "found", "often"]);
    let file = sandbox.path("my.toml");
    std::fs::write(&file, "base = \"smoke\"\n[model]\nwidht = 0.5\n").unwrap();
    let mut c = launch(0, "dw-train");
    c.args([&file, "--data", &sandbox.shards()]);
    assert_fails(&mut c, 2, &["my.toml", "`model.widht`", "hint:", "`model.width`"]);
    std::fs::write(&file, "base = \"smoke\"\n[model\n").unwrap();
    assert_fails(launch(0, "dw-train").arg(&file), 2, &["my.toml", "line 2"]);
    let keys = ["`no_such_config`", "hint:", "dw_r50_fpn_1x"];
    assert_fails(launch(0, "dw-train").arg("no_such_config"), 2, &keys);
    std::fs::write(&file, b"base = \"smoke\" # \xff").unwrap();
    assert_fails(launch(0, "dw-train").arg(&file), 2, &["my.toml", "UTF-8"]);
    for more in [&[][..], &["--dry-run"]] {
        let mut c = train(&sandbox, &[]);
        let keys = ["`model.init`", "imagnet", "hint: did you mean `imagenet`?"];
        assert_fails(c.args(["--init", "imagnet"]).args(more), 2, &keys);
    }
}

#[test]
fn an_error_of_all_ranks_is_printed_once() {
    let sandbox = Sandbox::new();
    let args = sandbox.train_args("w", &["train.epoch=1"]);
    let error = run_failing(launch(2, "dw-train").args(args), 2);
    assert_eq!(error.matches("error: ").count(), 1, "{error}");
    assert_contains(&error, &["`train.epochs`"]);
}

#[test]
fn missing_data_and_splits_are_named() {
    let sandbox = Sandbox::new();
    let mut c = launch(0, "dw-train");
    c.args(["smoke", "--data", "/no/such/shards"]);
    assert_fails(&mut c, 2, &["/no/such/shards", "hint:", "dw-pack"]);
    let mut c = launch(0, "dw-train");
    c.args(["smoke", "--data", &sandbox.path("coco")]);
    assert_fails(&mut c, 2, &["coco: expected", "hint: did you mean", "coco/shards?"]);
    let keys = ["`test`", "train2017", "val2017", "hint:", "data.train_split="];
    assert_fails(&mut train(&sandbox, &["data.train_split=test"]), 2, &keys);
}

#[test]
fn truncated_and_damaged_shards_are_named() {
    let sandbox = Sandbox::new();
    let shard = &files_in(&sandbox.shards(), ".dwshard")[0];
    let content = std::fs::read(shard).unwrap();
    let cut = content.len() - 100;
    std::fs::write(shard, &content[..cut]).unwrap();
    let lengths = [content.len().to_string(), cut.to_string()];
    let name = shard.file_name().unwrap().to_str().unwrap();
    let keys = [name, &lengths[0], &lengths[1]];
    assert_fails(&mut train(&sandbox, &[]), 3, &keys);
    std::fs::write(shard, &content).unwrap();
    flip_bit(&files_in(&sandbox.shards(), ".dwindex")[0]);
    assert_fails(&mut train(&sandbox, &[]), 3, &["train2017.dwindex", "checksum"]);
}

#[test]
fn damaged_checkpoints_and_those_of_another_network_are_refused() {
    let sandbox = Sandbox::new();
    sandbox.train(0, "w", &short("train.max_steps=2"));
    let keys = ["model.channels: 32 -> 64", "hint:"];
    assert_fails(&mut train(&sandbox, &["train.max_steps=4", "model.channels=64"]), 2, &keys);
    let folder = sandbox.checkpoints("w")[0].clone();
    let eval = || {
        let mut c = launch(0, "dw-eval");
        c.arg(&folder);
        c
    };
    flip_bit(&folder.join("model.safetensors"));
    assert_fails(&mut eval(), 3, &["model.safetensors", "expected", "found"]);
    // A run does not restart from step 1 over a damaged checkpoint that had been complete.
    let mut again = train(&sandbox, &short("train.max_steps=2"));
    assert_fails(&mut again, 3, &["step-", "damaged", "hint:", "remove"]);
    std::fs::remove_file(folder.join("DONE")).unwrap();
    assert_fails(&mut eval(), 3, &[folder.to_str().unwrap(), "DONE"]);
    assert_fails(launch(0, "dw-eval").arg("/no/such"), 2, &["/no/such"]);
    let other = sandbox.path("coco");
    assert_fails(launch(0, "dw-eval").arg(&other), 2, &[&other, "no complete checkpoint", "hint:"]);
    // An incomplete checkpoint is skipped, and the run starts from step 1.
    run(&mut train(&sandbox, &short("train.max_steps=2")));
    assert!(sandbox.steps("w").iter().all(|r| r["attempt"] == 2));
}

/// A damaged checkpoint is skipped if an older one is intact.
#[test]
fn a_run_continues_from_the_newest_intact_checkpoint() {
    let sandbox = Sandbox::new();
    let sets = |steps| ["checkpoint.every_steps=2", "eval.every_epochs=0", steps];
    sandbox.train(0, "w", &sets("train.max_steps=4"));
    let newest = sandbox.checkpoints("w").pop().unwrap();
    // `checkpoints` as a link to another disk, as is usual on clusters.
    let (inside, elsewhere) = (sandbox.path("w/checkpoints"), sandbox.path("scratch"));
    std::fs::rename(&inside, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &inside).unwrap();
    let mut manifest = std::fs::read(newest.join("manifest.json")).unwrap();
    manifest[0] = 0xff;
    std::fs::write(newest.join("manifest.json"), manifest).unwrap();
    let log = stderr(&output(&mut train(&sandbox, &sets("train.max_steps=6"))));
    assert_line_contains(&log, &["WARN", "skipping", "step-00000004"]);
    assert_line_contains(&log, &["resuming from", "step-00000002"]);
    assert_eq!(sandbox.steps("w").len(), 6, "rows of the steps before are kept");
}

/// Evaluation on data with other categories is refused; the error names the first that differs.
#[test]
fn data_with_other_categories_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.train(0, "w", &short("train.max_steps=1"));
    let other = sandbox.path("other");
    run(Command::new(bin("dw-pack"))
        .args(["synth", &other, "--images", "2", "--val", "2"])
        .args(["--classes", "2", "--side", "96"]));
    run(Command::new(bin("dw-pack")).arg(&other));
    let mut c = launch(0, "dw-eval");
    c.args([&sandbox.path("w"), "--data", &(other + "/shards")]);
    assert_fails(&mut c, 3, &["categories", "label 2", "`triangle`"]);
}

#[test]
fn errors_in_result_files_name_record_and_field() {
    let sandbox = Sandbox::new();
    let gt = sandbox.path("coco/annotations/instances_val2017.json");
    let dt = sandbox.path("dt.json");
    let coco = |text: &str, keys: &[&str]| {
        std::fs::write(&dt, text).unwrap();
        let mut c = launch(0, "dw-eval");
        c.args(["coco", "--gt", &gt, "--dt", &dt]);
        assert_fails(&mut c, 3, keys);
    };
    coco("{}", &["dt.json", "expected", "list", "found"]);
    coco(
        r#"[{"image_id":5,"category_id":1,"bbox":[0,0,1,1],"score":1}]"#,
        &["results[0]", "`image_id`", "found 5"],
    );
    coco(
        r#"[{"image_id":1000001,"category_id":1,"bbox":[0,0,1],"score":1}]"#,
        &["results[0]", "`bbox`", "found 3"],
    );
    coco(r#"[{"image_id":1000001,"category_id":1,"bbox":[0,0,1,1]}]"#, &["results[0]", "`score`"]);
    coco("[{", &["dt.json", "results[0]", "byte 2", "hint: "]);
    std::fs::write(&dt, "[]").unwrap();
    let json = run(launch(0, "dw-eval").args(["coco", "--gt", &gt, "--dt", &dt, "--json"]));
    assert_contains(&json, &["\"AP\":0.0"]);
}

#[test]
fn dry_run_prints_the_settings_and_writes_nothing() {
    let sandbox = Sandbox::new();
    let mut c = train(&sandbox, &["train.lr=0.04"]);
    let table = run(c.arg("--dry-run"));
    assert_line_contains(&table, &["learning rate", "0.02", "0.04 at 4 images"]);
    assert_contains(&table, &["parameters", "[train]", "momentum = 0.9", "[eval]"]);
    assert!(!Path::new(&sandbox.path("w")).exists());
}

#[test]
fn every_binary_has_help_with_examples_and_a_version() {
    let all = ["dw-weights", "dw-pack", "dw-train", "dw-eval", "dw-detect", "dw-export"];
    for name in all.into_iter().chain(["dw-show", "dw-lab", "dw-launch"]) {
        assert_contains(&run(Command::new(bin(name)).arg("--help")), &["Examples:", name]);
        assert_contains(&run(Command::new(bin(name)).arg("--version")), &[name, "("]);
    }
    for name in ["dw-train", "dw-eval", "dw-show", "dw-lab"] {
        let version = run(Command::new(bin(name)).arg("--version"));
        assert_contains(&version, &["libtorch 2.11.0", "MPI:", "NCCL:"]);
    }
}

#[test]
fn resume_none_does_not_overwrite_an_earlier_run() {
    let sandbox = Sandbox::new();
    sandbox.train(0, "w", &short("train.max_steps=4"));
    let state = || (sandbox.checkpoints("w"), sandbox.rows("w").len());
    let before = state();
    let mut c = train(&sandbox, &short("train.max_steps=2"));
    assert_fails(c.args(["--resume", "none"]), 2, &["step 4", "hint:", "--work-dir"]);
    assert_eq!(state(), before);
}

/// Settings that determine the order of the images must not change on a resume.
#[test]
fn settings_of_the_data_order_must_not_change() {
    let sandbox = Sandbox::new();
    sandbox.train(0, "w", &short("train.max_steps=2"));
    let sets = [&short("train.max_steps=4")[..], &["data.limit=5"]].concat();
    let keys = ["data.limit: 0 -> 5", "hint:", "config.toml"];
    assert_fails(&mut train(&sandbox, &sets), 2, &keys);
    let mut other = launch(0, "dw-train");
    other.args(sandbox.train_args("w2", &["data.canonical_nodes=3"]));
    let log = run_failing(&mut other, 2);
    let error = last_error(&log);
    assert_contains(error, &["data.canonical_nodes", "global batch"]);
    assert!(has_word(error, "3") && has_word(error, "2"), "value and global batch: {error}");
}

/// More than four threads per core are refused before any thread is started; a dry run only warns.
#[test]
fn too_many_threads_are_refused() {
    let sandbox = Sandbox::new();
    let cores = std::thread::available_parallelism().unwrap().get();
    for key in ["train.threads", "data.workers"] {
        let set = format!("{key}=100000");
        let log = run_failing(&mut train(&sandbox, &[&set]), 2);
        let error = last_error(&log);
        assert_contains(error, &[key, "100000", "hint:"]);
        assert!(has_word(error, &cores.to_string()), "number of cores: {error}");
        let dry_run = output(train(&sandbox, &[&set]).arg("--dry-run"));
        assert_line_contains(&stderr(&dry_run), &["WARN", key, "100000"]);
    }
    let count = (cores + 1).to_string();
    let set = format!("train.threads={count}");
    let sets = [&short("train.max_steps=1")[..], &[set.as_str()]].concat();
    let log = stderr(&output(&mut train(&sandbox, &sets)));
    assert_line_contains(&log, &["WARN", "train.threads", &count]);
    // The configuration of a large machine can be evaluated on a small one.
    run(launch(0, "dw-eval").args([&sandbox.path("w"), "--set", "train.threads=4000"]));
}

/// `OMP_NUM_THREADS`, which `dw-launch --threads` sets, applies if the configuration sets no number
/// of threads.
#[test]
fn the_environment_sets_the_threads_that_the_configuration_leaves_open() {
    let sandbox = Sandbox::new();
    let dry = |value: &str, sets: &[&str]| {
        run(train(&sandbox, sets).arg("--dry-run").env("OMP_NUM_THREADS", value))
    };
    assert_contains(&dry("3", &[]), &[", 3 threads each"]);
    assert_contains(&dry("3,2", &["train.threads=1"]), &[", 1 threads each"]);
    let mut many = train(&sandbox, &[]);
    assert_fails(many.env("OMP_NUM_THREADS", "4000"), 2, &["OMP_NUM_THREADS = 4000", "hint:"]);
}

/// If the system cannot start a thread, the process exits with an error and code 5.
#[test]
fn threads_that_cannot_be_started_end_the_run() {
    let sandbox = Sandbox::new();
    let sets = [&short("train.max_steps=1")[..], &["data.workers=8"]].concat();
    let mut c = train(&sandbox, &sets);
    // The stack of every thread exceeds the address space.
    let out = c.env("RUST_MIN_STACK", (1u64 << 46).to_string()).output().unwrap();
    let log = stderr(&out);
    assert_eq!(out.status.code(), Some(5), "{log}");
    assert_contains(&log, &["thread", "hint:"]);
}

/// Splits with other names are used if there is only one choice; if there are several, the error
/// lists them.
#[test]
fn splits_with_other_names_are_used_if_unambiguous() {
    let sandbox = Sandbox::new();
    let coco = |name: &str| sandbox.path("coco") + "/" + name;
    let json = |name: &str| coco(&format!("annotations/instances_{name}.json"));
    for (old, new) in [("train2017", "train"), ("val2017", "valid")] {
        std::fs::rename(coco(old), coco(new)).unwrap();
        std::fs::rename(json(old), json(new)).unwrap();
    }
    std::fs::remove_dir_all(sandbox.shards()).unwrap();
    run(Command::new(bin("dw-pack")).arg(sandbox.path("coco")));
    let log = stderr(&output(&mut train(&sandbox, &["train.epochs=1"])));
    assert_line_contains(&log, &["data.train_split", "`train`"]);
    assert_line_contains(&log, &["data.val_split", "`valid`"]);
    let keys = ["`train2017`", "hint:", "data.train_split=train"];
    assert_fails(&mut train(&sandbox, &["data.train_split=train2017"]), 2, &keys);
    std::fs::copy(json("train"), json("train_b")).unwrap();
    run(Command::new(bin("dw-pack")).arg(sandbox.path("coco")));
    assert_fails(&mut train(&sandbox, &[]), 2, &["train, train_b", "hint:", "data.train_split="]);
}

#[test]
fn invalid_numbers_are_refused_with_their_key() {
    let sandbox = Sandbox::new();
    let refused = |sets: &[&str], keys: &[&str]| assert_fails(&mut train(&sandbox, sets), 2, keys);
    refused(&["assign.beta=nan"], &["`assign.beta`"]);
    refused(&["train.lr=inf"], &["`train.lr`"]);
    refused(&["train.lr_steps=[5]"], &["`train.lr_steps`", "hint:"]);
    refused(&["train.accumulation_steps=4"], &["accumulation_steps", "`train.accumulate`"]);
    refused(&["train.accumulate=0"], &["`train.accumulate`", "1 to"]);
    refused(&["train.accumulate=2", "model.norm=bn"], &["`train.accumulate`", "`model.norm`"]);
    refused(&["assign.prior=threshold", "assign.prior_value=1.5"], &["assign.prior_value"]);
    refused(&["train.images_per_rank=1152921504606846976"], &["`train.images_per_rank`"]);
    refused(&["train.epochs=9223372036854775807"], &["`train.epochs`"]);
    refused(&["checkpoint.every_minutes=1e18"], &["`checkpoint.every_minutes`"]);
    refused(&["assign.mu=1e6"], &["`assign.mu`", "at most"]);
    refused(&["assign.gamma1=1e-20"], &["`assign.gamma1`", "at least"]);
    // A split name that looks like a number is accepted as a name.
    refused(&["data.train_split=2017"], &["`2017`", "train"]);
}

/// If no point passes the threshold, each step is marked in the metrics, and a warning is logged
/// after 50 such steps.
#[test]
fn a_threshold_that_excludes_every_point_is_reported() {
    let sandbox = Sandbox::new();
    let sets = [
        "assign.prior=threshold",
        "assign.prior_value=0.999999",
        "eval.every_epochs=0",
        "train.max_steps=55",
        "train.epochs=90",
    ];
    let log = stderr(&output(&mut train(&sandbox, &sets)));
    assert_line_contains(&log, &["WARN", "assign.prior_value", "0.999999"]);
    assert_line_contains(&log, &["WARN", "50 steps"]);
    assert_line_contains(&log, &["WARN", "55 of 55 steps"]);
    assert_contains(&log, &["hint:", "data.filter_empty"]);
    let rows = sandbox.rows("w");
    assert!(rows.len() == 55 && rows.iter().all(|r| r["no_positive"] == 1));
    sandbox.train(0, "v", &short("train.max_steps=3"));
    let rows = sandbox.rows("v");
    assert!(rows.len() == 3 && rows.iter().all(|r| r["no_positive"] == 0));
}

#[test]
fn an_unwritable_results_file_is_reported_before_the_evaluation() {
    let sandbox = Sandbox::new();
    sandbox.train(0, "w", &["train.epochs=1"]);
    let mut c = launch(0, "dw-eval");
    c.args([&sandbox.path("w"), "--dt-out", &sandbox.path("no/such/dt.json")]);
    let log = run_failing(&mut c, 2);
    assert_contains(&log, &["--dt-out", "no/such/dt.json", "hint:"]);
    // An evaluation would have logged its speed.
    assert!(!log.contains("images/s"), "{log}");
}

/// Valid settings that are probably not intended are warnings.
#[test]
fn unusual_settings_are_warnings() {
    let empty = tempfile::tempdir().unwrap();
    let warns = |config: &str, sets: &[&str], warning: &str| {
        let mut c = launch(0, "dw-train");
        c.args([config, "--dry-run", "--device", "cpu"]).current_dir(empty.path());
        for set in sets {
            c.args(["--set", set]);
        }
        stderr(&output(&mut c)).lines().any(|l| l.contains("WARN") && l.contains(warning))
    };
    let never_aligned = "none task alignment";
    assert!(warns("tood_r50_fpn_1x", &["train.epochs=4", "train.lr_steps=[3]"], never_aligned));
    assert!(!warns("tood_r50_fpn_1x", &[], never_aligned));
    let other_head =
        "assign.kind = \"atss\": the head differs from that of ATSS in model.tower_bias";
    assert!(warns("atss_r50_fpn_1x", &["model.tower_bias=true"], other_head));
    assert!(!warns("atss_r50_fpn_1x", &[], "the head differs"));
    let strict = ["assign.prior=threshold", "assign.prior_value=0.9"];
    assert!(warns("dw_r50_fpn_1x", &strict, "these boxes are not trained on"));
    assert!(warns("dw_r50_fpn_1x", &["train.max_steps=100"], "never reaches its value"));
}
