//! Golden cases: results of the reference implementation (kinds `loss`, `head`, `detector`,
//! `detect`), of the paper's formulas (`paper`), of other systems (`lab`) and of pycocotools
//! (`coco`). One test per case and precision.
//!
//! `DW_GOLDENS` names the folder, or several separated by `:` (default: the small copy beside this
//! file). `DW_GOLDEN_KINDS` selects kinds; `DW_DEVICE=cuda` computes on a GPU. A case is a folder
//! at any depth, and its kind is the `kind` of its `case.json`.
//!
//! Scripts parse the lines `golden KIND/CASE f32 ok` and `golden KIND/CASE f32 FAILED: why`.

#![expect(clippy::print_stdout, reason = "one line per case for scripts")]

mod case;
mod coco;
mod detect;
mod detector;
mod find;
mod heads;
#[path = "../support/kernels.rs"]
mod kernels;
mod lab;
mod loss;
mod network;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use case::{Case, Check};
use dw::device::{self, Choice, Precision};
use dw_launch::Topology;
use find::Found;
use libtest_mimic::{Arguments, Failed, Trial};
use tch::{Device, Kind};

/// Environment variable that makes tensors in host memory use the custom CUDA kernels.
const KERNELS: &str = "DW_KERNELS";

/// The cases of one kind that have a test.
struct Suite {
    /// `kind` of a case, or `kind/system` where each system of a kind has its own test.
    key: &'static str,
    /// Precisions in which the cases are computed.
    precisions: &'static [Kind],
    check: Check,
}

impl Suite {
    /// Whether `kind`, which may be `kind/system`, selects these cases.
    fn is_selected_by(&self, kind: &str) -> bool {
        self.key == kind || self.key.split('/').next() == Some(kind)
    }
}

const SUITES: [Suite; 19] = [
    Suite { key: "loss", precisions: &[Kind::Float, Kind::Double], check: loss::released },
    Suite { key: "paper", precisions: &[Kind::Float, Kind::Double], check: loss::paper },
    Suite { key: "head", precisions: &[Kind::Float, Kind::Double], check: network::head },
    Suite { key: "detector", precisions: &[Kind::Float, Kind::Double], check: detector::check },
    Suite { key: "detect", precisions: &[Kind::Float], check: detect::check },
    Suite { key: "lab/atss", precisions: &[Kind::Float, Kind::Double], check: lab::atss },
    Suite { key: "lab/gfl", precisions: &[Kind::Float, Kind::Double], check: lab::gfl },
    Suite {
        key: "lab/fcos",
        precisions: &[Kind::Float, Kind::Double],
        check: lab::both_forms_of_fcos,
    },
    Suite {
        key: "lab/autoassign",
        precisions: &[Kind::Float, Kind::Double],
        check: lab::autoassign,
    },
    Suite {
        key: "lab-own/autoassign_variants",
        precisions: &[Kind::Float, Kind::Double],
        check: lab::autoassign,
    },
    Suite {
        key: "lab-own/table1",
        precisions: &[Kind::Float, Kind::Double],
        check: lab::weighting,
    },
    Suite { key: "lab/gflv2", precisions: &[Kind::Float, Kind::Double], check: lab::gflv2 },
    Suite {
        key: "lab-dgqp",
        precisions: &[Kind::Float, Kind::Double],
        check: heads::quality_predictor,
    },
    Suite { key: "lab/ota", precisions: &[Kind::Float, Kind::Double], check: lab::ota },
    Suite { key: "lab/paa", precisions: &[Kind::Float, Kind::Double], check: lab::paa },
    Suite { key: "lab/tood", precisions: &[Kind::Float, Kind::Double], check: lab::tood },
    Suite { key: "lab/vfnet", precisions: &[Kind::Float, Kind::Double], check: lab::vfnet },
    Suite {
        key: "lab-head",
        precisions: &[Kind::Float, Kind::Double],
        check: heads::task_aligned_head,
    },
    Suite { key: "coco", precisions: &[Kind::Double], check: coco::check },
];

fn main() {
    let choice = if std::env::var("DW_DEVICE").is_ok_and(|d| d == "cuda") {
        Choice::Cuda
    } else {
        Choice::Cpu
    };
    device::open(choice);
    match device::pick(choice, &Topology::from_env()) {
        Ok(device) => case::set_device(device),
        Err(e) => return finish(&Arguments::from_args(), vec![failing("device", e.to_string())]),
    }
    // The tolerances are for IEEE f32, not for TF32.
    if let Err(e) = Precision::F32.apply(case::device()) {
        return finish(&Arguments::from_args(), vec![failing("precision", e.to_string())]);
    }
    tch::set_num_threads(1);
    dw_torch::use_loss_kernels(true);
    let args = Arguments::from_args();
    let (roots, required) = match std::env::var_os("DW_GOLDENS") {
        Some(list) => (std::env::split_paths(&list).collect(), true),
        None => (vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/data")], false),
    };
    let wanted = std::env::var("DW_GOLDEN_KINDS").ok();
    let wanted: Option<Vec<&str>> = wanted.as_ref().map(|k| k.split_whitespace().collect());
    let (mut trials, skipped) = trials(&roots, wanted.as_deref());
    if trials.is_empty() && required {
        let roots: Vec<String> = roots.iter().map(|r| r.display().to_string()).collect();
        trials.push(failing("folder", format!("no golden cases in {}", roots.join(", "))));
    }
    if std::env::var_os(KERNELS).is_some() {
        kernels::use_on_cpu("", "");
    } else if case::device() == Device::Cpu && trials.iter().any(|t| t.name().starts_with("loss/"))
    {
        trials.push(Trial::test("loss_by_the_programs_kernels", loss_by_kernels));
    }
    if skipped > 0 && !args.list {
        println!("golden: {skipped} cases of other kinds not run");
    }
    finish(&args, trials);
}

/// Runs the cases of the loss with the custom CUDA kernels, in a child process because kernels are
/// set for a whole process.
fn loss_by_kernels() -> Result<(), Failed> {
    let out = Command::new(std::env::current_exe()?)
        .args(["loss/", "--test-threads", "1"])
        .env(KERNELS, "cpu")
        .output()?;
    if out.status.success() && String::from_utf8_lossy(&out.stdout).contains(" f32 ok") {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned().into())
}

/// Runs the trials and exits without running the destructors of libraries, whose threads may still
/// be active.
fn finish(args: &Arguments, trials: Vec<Trial>) {
    let failed = libtest_mimic::run(args, trials).has_failed();
    dw_launch::abort::exit_now(if failed { 101 } else { 0 })
}

/// The tests of all cases of the wanted kinds, and the number of cases of kinds without a test.
fn trials(roots: &[PathBuf], wanted: Option<&[&str]>) -> (Vec<Trial>, usize) {
    let (mut trials, mut skipped) = (vec![], 0);
    let known = |kind: &str| SUITES.iter().any(|s| s.is_selected_by(kind));
    for kind in wanted.iter().copied().flatten().filter(|k| !known(k)) {
        trials.push(failing(kind, format!("no test for golden cases of kind `{kind}`")));
    }
    let mut names = BTreeSet::new();
    for root in roots {
        if !root.is_dir() {
            let why = format!("DW_GOLDENS: {} is not a folder", root.display());
            trials.push(failing("folder", why));
        }
        for path in find::cases(root) {
            let case = match find::describe(root, path) {
                Ok(case) => case,
                Err(why) => {
                    trials.push(failing("case", why));
                    continue;
                }
            };
            let matches = |s: &&Suite| s.key == case.kind || s.key == case.system_key();
            let Some(suite) = SUITES.iter().find(matches) else {
                skipped += 1;
                continue;
            };
            if wanted.is_some_and(|kinds| !kinds.iter().any(|k| suite.is_selected_by(k))) {
                continue;
            }
            if !names.insert(case.name.clone()) {
                trials.push(failing(&case.name, "two cases have this name".into()));
                continue;
            }
            trials.extend(suite.precisions.iter().map(|&p| trial(&case, p, suite.check)));
        }
    }
    (trials, skipped)
}

/// A test that fails with this reason.
fn failing(name: &str, why: String) -> Trial {
    Trial::test(name.to_owned(), move || Err(Failed::from(why)))
}

fn trial(found: &Found, precision: Kind, check: Check) -> Trial {
    let digits = if precision == Kind::Float { "f32" } else { "f64" };
    let (name, path) = (found.name.clone(), found.path.clone());
    Trial::test(format!("{name}_{digits}"), move || {
        let result = Case::read(&path).and_then(|case| check(&case, precision));
        match &result {
            Ok(()) => println!("golden {name} {digits} ok"),
            Err(why) => println!("golden {name} {digits} FAILED: {why}"),
        }
        result.map_err(Failed::from)
    })
}
