//! Golden numbers: the reference implementation's (`loss head detector detect`), the paper's formulas' (`paper`) and
//! pycocotools' (`coco`), one test result per case and precision.
//!
//! `DW_GOLDENS` names the folder (default: the small copy beside this file); `DW_GOLDEN_KINDS` selects kinds;
//! `DW_DEVICE=cuda` computes on a GPU.

#![expect(clippy::print_stdout, reason = "one line a case for scripts")]

mod case;
mod coco;
mod detect;
mod loss;
mod network;

use std::path::{Path, PathBuf};

use case::{Case, Check};
use dw::device::{self, Choice, Precision};
use dw_launch::Topology;
use libtest_mimic::{Arguments, Failed, Trial};
use tch::Kind;

/// Kinds that are tested, with the precisions that their cases have values for.
const KINDS: [(&str, &[Kind], Check); 6] = [
    ("loss", &[Kind::Float, Kind::Double], loss::released),
    ("paper", &[Kind::Float, Kind::Double], loss::paper),
    ("head", &[Kind::Float, Kind::Double], network::head),
    ("detector", &[Kind::Float, Kind::Double], network::detector),
    ("detect", &[Kind::Float], detect::check),
    ("coco", &[Kind::Double], coco::check),
];

fn main() {
    let choice = if std::env::var("DW_DEVICE").is_ok_and(|d| d == "cuda") { Choice::Cuda } else { Choice::Cpu };
    device::open(choice);
    match device::pick(choice, &Topology::from_env()) {
        Ok(device) => case::set_device(device),
        Err(e) => return finish(&Arguments::from_args(), vec![failing("device", e.to_string())]),
    }
    // f32 is IEEE's: the tolerances are.
    if let Err(e) = Precision::F32.apply() {
        return finish(&Arguments::from_args(), vec![failing("precision", e.to_string())]);
    }
    tch::set_num_threads(1);
    let args = Arguments::from_args();
    let (root, named) = match std::env::var_os("DW_GOLDENS") {
        Some(dir) => (PathBuf::from(dir), true),
        None => (Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data"), false),
    };
    let wanted: Option<Vec<String>> = std::env::var("DW_GOLDEN_KINDS").ok().map(|k| k.split_whitespace().map(str::to_owned).collect());
    let mut trials = vec![];
    let mut not_run = 0;
    if named && !root.is_dir() {
        trials.push(failing("folder", format!("DW_GOLDENS names {}, which does not exist", root.display())));
    }
    for kind in wanted.iter().flatten().filter(|k| !KINDS.iter().any(|(known, ..)| known == k)) {
        trials.push(failing(kind, format!("no test for golden cases of kind `{kind}`")));
    }
    for folder in folders(&root) {
        let kind = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let cases = folders(&folder);
        let Some(&(name, precisions, check)) = KINDS.iter().find(|(known, ..)| *known == kind) else {
            not_run += cases.len();
            continue;
        };
        if wanted.as_ref().is_some_and(|w| !w.iter().any(|k| k == name)) {
            continue;
        }
        for path in cases {
            for &precision in precisions {
                trials.push(trial(name, &path, precision, check));
            }
        }
    }
    if trials.is_empty() && named {
        trials.push(failing("folder", format!("no golden cases in {}", root.display())));
    }
    if not_run > 0 && !args.list {
        println!("golden: {not_run} cases of other kinds not run");
    }
    finish(&args, trials);
}

/// Runs the trials and ends the process as the programs do: without the destructors of libraries that threads may be in.
fn finish(args: &Arguments, trials: Vec<Trial>) {
    let failed = libtest_mimic::run(args, trials).has_failed();
    dw_launch::abort::exit_now(if failed { 101 } else { 0 })
}

fn failing(name: &str, why: String) -> Trial {
    Trial::test(name.to_owned(), move || Err(Failed::from(why)))
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).filter(|p| p.is_dir()).collect();
    found.sort();
    found
}

fn trial(kind: &'static str, path: &Path, precision: Kind, check: Check) -> Trial {
    let digits = if precision == Kind::Float { "f32" } else { "f64" };
    let name = format!("{kind}/{}", path.file_name().unwrap_or_default().to_string_lossy());
    let path = path.to_owned();
    Trial::test(format!("{name}_{digits}"), move || {
        let result = Case::read(&path).and_then(|case| check(&case, precision));
        match &result {
            Ok(()) => println!("golden {name} {digits} ok"),
            Err(why) => println!("golden {name} {digits} FAILED: {why}"),
        }
        result.map_err(Failed::from)
    })
}
