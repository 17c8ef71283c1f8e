//! The order in which libtorch's CUDA library is opened, and errors of the CUDA runtime. Fake
//! libraries (`support/fake_cuda.cpp`, `support/fake_cudart.c`) replace the real ones, so no GPU is
//! needed.

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::{Job, Sandbox, assert_contains, assert_fails, bin, launch, output, run, stderr};
use tempfile::TempDir;

/// The fake CUDA runtime.
const RUNTIME: &str = "libfakecudart.so";

/// The fake NCCL: logs when it is opened. `libtorch_cuda.so` depends on it.
const NCCL: &str = r#"
#include <stdio.h>
__attribute__((constructor)) static void opened(void) { fputs("fake: nccl opened\n", stderr); }
void dw_fake_nccl(void) {}
"#;

/// Builds the fake libraries; returns their folder.
fn fake_libraries() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support");
    let include = Path::new(env!("DW_LIBTORCH_LIB")).join("../include");
    let nccl = dir.path().join("nccl.c");
    std::fs::write(&nccl, NCCL).unwrap();
    let nccl_library = dir.path().join("libnccl.so.2");
    run(Command::new("cc")
        .args(["-shared", "-fPIC", "-Wl,-soname,libnccl.so.2", "-o"])
        .arg(&nccl_library)
        .arg(&nccl));
    let runtime = dir.path().join(RUNTIME);
    run(Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&runtime)
        .arg(sources.join("fake_cudart.c")));
    let cuda = dir.path().join("libtorch_cuda.so");
    run(Command::new("c++")
        .args(["-std=c++17", "-shared", "-fPIC", "-w", "-Wl,--no-as-needed", "-o"])
        .arg(&cuda)
        .arg(sources.join("fake_cuda.cpp"))
        .arg("-I")
        .arg(&include)
        .arg(&nccl_library));
    dir
}

/// Makes a command load the fake libraries. `LD_LIBRARY_PATH` is searched before libtorch's own
/// path.
fn with_fake<'a>(command: &'a mut Command, fake: &TempDir) -> &'a mut Command {
    command.env("LD_LIBRARY_PATH", fake.path()).env("CUDA_VISIBLE_DEVICES", "")
}

/// Asserts that all these texts occur, in this order.
fn assert_order(log: &str, texts: &[&str]) {
    let places: Vec<Option<usize>> = texts.iter().map(|t| log.find(t)).collect();
    let all = places.iter().all(Option::is_some);
    assert!(all && places.is_sorted(), "expected {texts:?} in this order: {log}");
}

/// The fake library aborts when it is unloaded, so exit code 0 also shows that this never happens.
#[test]
fn cuda_is_opened_before_libtorch_looks_for_it_and_before_nccl() {
    let (fake, sandbox) = (fake_libraries(), Sandbox::with_images(4, 2));
    let order = ["fake: cuda opened, allocator expandable_segments:True", "fake: hooks found"];
    let log = |command: &mut Command| stderr(&output(with_fake(command, &fake)));
    // The fake library has no device, so `auto` falls back to the CPU.
    let sets = ["train.max_steps=2", "eval.every_epochs=1"];
    let auto = |work: &str| sandbox.train_args_on("auto", work, &sets);
    let train = log(launch(0, "dw-train").args(auto("a")));
    assert_order(&train, &order);
    assert_contains(&train, &["no GPU"]);
    assert_order(&log(Command::new(bin("dw-eval")).arg(sandbox.path("a"))), &order);

    // `--version` reports CUDA and NCCL.
    for name in ["dw-train", "dw-eval-network", "dw-detect", "dw-show", "dw-lab"] {
        let version = log(Command::new(bin(name)).arg("--version"));
        assert_order(&version, &order);
        assert_eq!(version.matches("fake: nccl opened").count(), 1, "{version}");
    }

    // `--device cpu` opens neither.
    let cpu = log(launch(0, "dw-train").args(sandbox.train_args("b", &sets)));
    assert!(!cpu.contains("fake:"), "{cpu}");
    // A user's setting of the allocator is kept.
    let mut c = launch(0, "dw-train");
    c.args(auto("c")).arg("--dry-run").env("PYTORCH_CUDA_ALLOC_CONF", "backend:native");
    assert_contains(&log(&mut c), &["fake: cuda opened, allocator backend:native"]);
}

#[test]
fn a_gpu_that_cannot_be_used_is_an_error_with_the_reason() {
    let (fake, sandbox) = (fake_libraries(), Sandbox::with_images(4, 2));
    let train = |device: &str, vars: &[(&str, &str)], code: i32, keys: &[&str]| {
        let mut command = launch(0, "dw-train");
        with_fake(&mut command, &fake)
            .env_remove("CUDA_VISIBLE_DEVICES")
            .env("LD_PRELOAD", fake.path().join(RUNTIME))
            .args(sandbox.train_args_on(device, "a", &["train.max_steps=1"]))
            .envs(vars.iter().copied());
        assert_fails(&mut command, code, keys);
    };
    // SLURM has allocated a GPU, but the runtime finds none.
    let keys = ["--device auto", "SLURM_JOB_GPUS=0", "CUDA error 100: no CUDA-capable device"];
    train("auto", &[("SLURM_JOB_GPUS", "0")], 2, &keys);
    train("auto", &[("SLURM_JOB_GPUS", "0")], 2, &["hint:", "--device cpu"]);
    train("cuda", &[], 2, &["--device cuda", "no CUDA-capable device"]);
    // The runtime finds a device that fails. The quoted texts are those of the fake runtime.
    let failing = |code: &'static str| [("FAKE_DEVICES", "2"), ("FAKE_SET", code)];
    let keys = ["CUDA device 0", "uncorrectable ECC error", "nvidia-smi"];
    train("auto", &failing("214"), 4, &keys);
    train("cuda", &failing("2"), 5, &["CUDA device 0", "out of memory"]);
    train("cuda", &failing("101"), 2, &["CUDA device 0", "invalid device ordinal", "hint:"]);
}

#[test]
fn a_preempted_run_exits_with_75_although_the_library_cannot_be_unloaded() {
    let (fake, sandbox) = (fake_libraries(), Sandbox::with_images(8, 2));
    let sets = [
        "train.max_steps=100000",
        "train.epochs=100000",
        "eval.every_epochs=0",
        "checkpoint.every_minutes=60.0",
    ];
    let mut command = launch(0, "dw-train");
    command.args(sandbox.train_args_on("auto", "a", &sets));
    let job = Job::start(with_fake(&mut command, &fake));
    job.wait_until("the first step", || !sandbox.rows_so_far("a").is_empty());
    job.signal("USR1");
    let (code, log) = job.wait(Duration::from_mins(1));
    assert_eq!(code, Some(75), "{log}");
    assert_contains(&log, &["fake: cuda opened", "signal"]);
    assert_eq!(sandbox.newest_step("a"), sandbox.steps("a").len(), "{log}");
}
