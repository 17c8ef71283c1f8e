//! `dw-lab`: a table survives interruptions and failures, is not run twice, and is shown with
//! intervals.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::{Job, Sandbox, assert_contains, assert_fails, bin, files_in, output, run, stderr};

/// Writes the folder of a table. Each row is one configuration: file name and text.
fn table(sandbox: &Sandbox, rows: &[(&str, &str)]) -> String {
    let folder = sandbox.path("mine");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).unwrap();
    for (name, text) in rows {
        std::fs::write(Path::new(&folder).join(name), text).unwrap();
    }
    folder
}

const DW: (&str, &str) = (
    "1_dw.toml",
    "base = \"dw_r50_fpn_1x\"\n[row]\ntitle = \"DW | default\"\npaper = { AP = 41.5 }\n\
     [eval]\nbag_images = 2\n",
);
const FCOS: (&str, &str) = (
    "2_fcos.toml",
    "base = \"fcos_r50_fpn_1x\"\n[row]\ntitle = \"FCOS <b>\"\nnote = \"A note.\"\n",
);

/// `dw-lab run` of a table with the smoke configuration.
fn lab(sandbox: &Sandbox, table: &str, more: &[&str]) -> Command {
    let mut c = Command::new(bin("dw-lab"));
    c.args(["run", table, "--base", "smoke", "--data", &sandbox.shards()]);
    c.args(["--out", &sandbox.path("lab"), "--device", "cpu"]).args(more);
    c
}

/// The files of finished runs, with their texts.
fn results(sandbox: &Sandbox) -> Vec<(PathBuf, String)> {
    let files = files_in(&sandbox.path("lab/mine"), ".json");
    files.into_iter().map(|p| (p.clone(), std::fs::read_to_string(p).unwrap())).collect()
}

#[test]
fn a_table_is_run_once_and_shown() {
    let sandbox = Sandbox::new();
    let mine = table(&sandbox, &[DW, FCOS]);
    let plan = output(&mut lab(&sandbox, &mine, &["--seeds", "2", "--dry-run"]));
    assert_contains(&stderr(&plan), &["0 of 4"]);
    let plan = String::from_utf8(plan.stdout).unwrap();
    assert_contains(&plan, &["dw seed 1", "fcos seed 0"]);
    assert!(!Path::new(&sandbox.path("lab")).exists(), "a dry run writes nothing");

    run(&mut lab(&sandbox, &mine, &["--seeds", "2", "--jobs", "2"]));
    let first = results(&sandbox);
    assert_eq!(first.len(), 4);
    let text = &first[0].1;
    assert_contains(
        text,
        &["\"AP\":", "\"bag_candidates\":", "\"peak_memory_mib\":", "\"smoke\"", "41.5"],
    );
    assert!(!text.contains(&sandbox.shards()), "a result does not name folders: {text}");
    // Two seeds are two runs.
    assert_ne!(
        std::fs::read(sandbox.path("lab/mine/dw-seed0/work/metrics.jsonl")).unwrap(),
        std::fs::read(sandbox.path("lab/mine/dw-seed1/work/metrics.jsonl")).unwrap()
    );

    // Finished runs are not repeated, even if only the result file is left.
    std::fs::remove_dir_all(sandbox.path("lab/mine/dw-seed0")).unwrap();
    let again = stderr(&output(&mut lab(&sandbox, &mine, &["--seeds", "2"])));
    assert_contains(&again, &["4 of 4"]);
    assert_eq!(results(&sandbox), first);
    let launched = stderr(&output(&mut lab(&sandbox, &mine, &["--launcher", "mpirun -n 2"])));
    assert_contains(&launched, &["dw seed 0", "--launcher"]);
    let other = ["--seeds", "2", "--set", "train.lr=0.5"];
    assert_fails(&mut lab(&sandbox, &mine, &other), 2, &["dw-seed0.json", "train.lr", "--out"]);

    let show = |more: &[&str]| {
        let mut c = Command::new(bin("dw-lab"));
        c.args(["show", &mine, "--out", &sandbox.path("lab")]).args(more);
        run(&mut c)
    };
    let markdown = show(&[]);
    let row = markdown.lines().find(|l| l.contains("FCOS")).unwrap();
    assert_contains(row, &["FCOS \\<b\\> (2)", " ± "]);
    assert_contains(&markdown, &["DW \\| default", "41.5", "--base smoke", "A note."]);
    let weights = markdown.split("| row | candidates | unweighted | correlation |").nth(1).unwrap();
    assert_contains(weights, &["| DW \\| default | ", "| FCOS \\<b\\> | - | - | - |"]);
    let (md, html) = (sandbox.path("t.md"), sandbox.path("t.html"));
    show(&["-o", &md]);
    show(&["-o", &html]);
    let svg = std::fs::read_to_string(sandbox.path("t.svg")).unwrap();
    assert_contains(&svg, &["<svg", "FCOS &lt;b&gt;"]);
    let html = std::fs::read_to_string(html).unwrap();
    assert_eq!(html.matches("<svg").count(), 2, "AP and differences");
    assert_contains(&html, &["FCOS &#60;b&#62;"]);
    let mut c = Command::new(bin("dw-lab"));
    c.args(["show", &mine, "--out", &sandbox.path("lab"), "-o", "t.pdf"]);
    assert_fails(&mut c, 2, &["t.pdf", ".md", ".html"]);
}

#[test]
fn an_interrupted_table_goes_on_with_its_checkpoint() {
    let sandbox = Sandbox::new();
    let mine = table(&sandbox, &[DW]);
    let sets = ["--set", "train.epochs=60", "--set", "checkpoint.every_steps=7"];
    let job = Job::start(&mut lab(&sandbox, &mine, &sets));
    let work = "lab/mine/dw-seed0/work";
    job.wait_until("a checkpoint", || sandbox.newest_step(work) > 0);
    job.signal("TERM");
    let (code, log) = job.wait(Duration::from_mins(3));
    assert_eq!(code, Some(75), "{log}");
    assert!(results(&sandbox).is_empty());
    assert!(support::processes(&sandbox.path(work)).is_empty(), "the run has ended, too");
    // The checkpoint is not used for a run with other settings.
    let other = ["--set", "train.epochs=30", "--set", "checkpoint.every_steps=7"];
    let keys = ["dw seed 0", "train.epochs: 60 -> 30", "hint:"];
    assert_fails(&mut lab(&sandbox, &mine, &other), 2, &keys);
    run(&mut lab(&sandbox, &mine, &sets));
    assert_eq!(results(&sandbox).len(), 1);
    assert_eq!(sandbox.last_attempt(work), 2, "the second start went on");
}

#[test]
fn a_row_that_fails_does_not_stop_the_others() {
    let sandbox = Sandbox::new();
    let diverges = ("1_diverges.toml", "base = \"dw_r50_fpn_1x\"\n[train]\nlr = 1e30\n");
    let mine = table(&sandbox, &[diverges, FCOS]);
    let keys = ["diverges seed 0", "1 of 2", "train.log", "hint:"];
    // Disables the clipping and warm-up of `smoke`, which would hide the row's learning rate.
    let sets = ["--set", "train.clip_norm=0", "--set", "train.warmup_steps=0"];
    assert_fails(&mut lab(&sandbox, &mine, &sets), 3, &keys);
    let names: Vec<_> = results(&sandbox).into_iter().map(|r| r.0).collect();
    assert!(names.len() == 1 && names[0].ends_with("fcos-seed0.json"), "{names:?}");
}

#[test]
fn two_at_once_share_a_table() {
    let sandbox = Sandbox::new();
    let mine = table(&sandbox, &[DW, FCOS]);
    let sets = ["--set", "train.epochs=20"];
    let first = Job::start(&mut lab(&sandbox, &mine, &sets));
    first.wait_until("the first run", || {
        Path::new(&sandbox.path("lab/mine/dw-seed0/work")).exists()
    });
    // The first process is running `dw`; this one takes `fcos`.
    let log = stderr(&output(&mut lab(&sandbox, &mine, &sets)));
    assert_contains(&log, &["dw seed 0", "another dw-lab"]);
    let (code, log) = first.wait(Duration::from_mins(8));
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(results(&sandbox).len(), 2);
}

#[test]
fn mistakes_are_reported_before_anything_runs() {
    let sandbox = Sandbox::new();
    let mine = table(&sandbox, &[DW, FCOS]);
    let fails = |more: &[&str], keys: &[&str]| {
        assert_fails(&mut lab(&sandbox, &mine, more), 2, keys);
        assert!(!Path::new(&sandbox.path("lab")).exists(), "{more:?}");
    };
    fails(&["--rows", "dw,nothing"], &["`nothing`", "dw, fcos"]);
    fails(&["--set", "train.seed=3"], &["train.seed", "--seeds"]);
    fails(&["--set", "eval.every_epochs=0"], &["`dw`", "eval.every_epochs"]);
    fails(&["--launcher", "mpirun 'n"], &["--launcher"]);
    let replaces = ["--set", "assign.kind=dw", "--launcher", "mpirun 'n"];
    fails(&replaces, &["assign.kind", "different values", "rows dw and fcos"]);
    fails(&["--jobs", "999"], &["--jobs 999"]);
    let none = sandbox.path("none");
    assert_fails(&mut lab(&sandbox, &none, &[]), 2, &[&none, "table5"]);
    let mut c = Command::new(bin("dw-lab"));
    c.args(["show", "table5", "--out", &sandbox.path("lab")]);
    assert_fails(&mut c, 2, &["table5", "dw-lab run table5"]);
}
