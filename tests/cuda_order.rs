//! What happens around libtorch's CUDA half, with a stand-in for it: `support/fake_cuda.cpp` registers itself with
//! libtorch as the real library does. Nothing here needs a GPU.

mod support;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use support::{Job, Sandbox, assert_contains, bin, launch, run, run_failing, stderr};
use tempfile::TempDir;

/// The stand-in for the CUDA runtime.
const RUNTIME: &str = "libfakecudart.so";

/// A folder with the stand-ins for `libtorch_cuda.so` and for the `libnccl.so.2` that it needs.
fn fake() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support");
    let include = Path::new(env!("DW_LIBTORCH_LIB")).join("../include");
    let nccl = dir.path().join("nccl.c");
    std::fs::write(
        &nccl,
        "#include <stdio.h>\n__attribute__((constructor)) static void opened(void) { fputs(\"fake: nccl opened\\n\", stderr); }\n\
         void dw_fake_nccl(void) {}\n",
    )
    .unwrap();
    let libraries = dir.path().join("libnccl.so.2");
    run(Command::new("cc")
        .args(["-shared", "-fPIC", "-Wl,-soname,libnccl.so.2", "-o"])
        .arg(&libraries)
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
        .arg(&libraries));
    dir
}

/// A command that finds the stand-ins first. libtorch's own search path comes after `LD_LIBRARY_PATH`.
fn with<'a>(command: &'a mut Command, fake: &TempDir) -> &'a mut Command {
    command.env("LD_LIBRARY_PATH", fake.path()).env("CUDA_VISIBLE_DEVICES", "")
}

fn text(out: &Output) -> String {
    stderr(out)
}

/// The sandbox of each of these words, which must come in this order.
fn in_order(text: &str, words: &[&str]) {
    let places: Vec<Option<usize>> = words.iter().map(|w| text.find(w)).collect();
    assert!(
        places.iter().all(Option::is_some) && places.is_sorted(),
        "expected {words:?} in this order: {text}"
    );
}

#[test]
fn cuda_is_opened_before_libtorch_looks_for_it_and_before_nccl() {
    let (fake, sandbox) = (fake(), Sandbox::with_images(4, 2));
    let order = ["fake: cuda opened, allocator expandable_segments:True", "fake: hooks found"];
    // Starts, seeds, trains two steps, evaluates; the stand-in has no device, and none is visible.
    let sets = ["train.max_steps=2", "eval.every_epochs=1"];
    let auto = |work: &str| -> Vec<String> {
        let args = sandbox.train_args(work, &sets).into_iter();
        args.map(|a| if a == "cpu" { "auto".to_owned() } else { a }).collect()
    };
    let out = with(launch(0, "dw-train").args(auto("a")), &fake).output().unwrap();
    assert_eq!(
        out.status.code(),
        Some(0),
        "the stand-in aborts when it is unloaded: {}",
        text(&out)
    );
    in_order(&text(&out), &order);
    assert_contains(&text(&out), &["no GPU is visible"]);

    let eval = with(Command::new(bin("dw-eval")).arg(sandbox.path("a")), &fake).output().unwrap();
    assert_eq!(eval.status.code(), Some(0), "{}", text(&eval));
    in_order(&text(&eval), &order);

    // The version's text asks for both libraries.
    for name in ["dw-train", "dw-detect", "dw-show"] {
        let version = with(Command::new(bin(name)).arg("--version"), &fake).output().unwrap();
        assert_eq!(version.status.code(), Some(0), "{}", text(&version));
        in_order(&text(&version), &order);
        let opened = text(&version);
        assert_eq!(
            opened.matches("fake: nccl opened").count(),
            1,
            "as a dependency of the CUDA half: {opened}"
        );
    }

    // --device cpu touches neither; a user's settings of the allocator stay.
    let cpu =
        with(launch(0, "dw-train").args(sandbox.train_args("b", &sets)), &fake).output().unwrap();
    assert!(cpu.status.success() && !text(&cpu).contains("fake:"), "{}", text(&cpu));
    let own = with(launch(0, "dw-train").args(auto("c")).arg("--dry-run"), &fake)
        .env("PYTORCH_CUDA_ALLOC_CONF", "backend:native")
        .output();
    in_order(&text(&own.unwrap()), &["fake: cuda opened, allocator backend:native"]);
}

#[test]
fn a_gpu_that_cannot_be_used_is_an_error_with_the_reason() {
    let (fake, sandbox) = (fake(), Sandbox::with_images(4, 2));
    let train = |device: &str, vars: &[(&str, &str)], code: i32| {
        let mut command = launch(0, "dw-train");
        let args = sandbox.train_args("a", &["train.max_steps=1"]).into_iter();
        with(&mut command, &fake)
            .env_remove("CUDA_VISIBLE_DEVICES")
            .env("LD_PRELOAD", fake.path().join(RUNTIME));
        command
            .args(args.map(|a| if a == "cpu" { device.to_owned() } else { a }))
            .envs(vars.iter().copied());
        run_failing(&mut command, code)
    };
    // SLURM gave a GPU, and the runtime finds none.
    let e = train("auto", &[("SLURM_JOB_GPUS", "0")], 2);
    assert_contains(
        &e,
        &[
            "--device auto",
            "SLURM_JOB_GPUS=0",
            "CUDA error 100: no CUDA-capable device",
            "hint:",
            "--device cpu",
        ],
    );
    assert_contains(&train("cuda", &[], 2), &["--device cuda", "no CUDA-capable device"]);
    // A device that is there and run_failing.
    let failing = |code: &'static str| [("FAKE_DEVICES", "2"), ("FAKE_SET", code)];
    assert_contains(
        &train("auto", &failing("214"), 4),
        &["CUDA device 0 of ", "uncorrectable ECC error", "nvidia-smi"],
    );
    assert_contains(&train("cuda", &failing("2"), 5), &["CUDA device 0 of ", "out of memory"]);
    assert_contains(&train("cuda", &failing("101"), 2), &["invalid device ordinal", "hint:"]);
}

#[test]
fn a_preemption_stays_a_preemption_when_the_runtime_cannot_be_unloaded() {
    let (fake, sandbox) = (fake(), Sandbox::with_images(8, 2));
    let mut command = launch(0, "dw-train");
    let sets = [
        "train.max_steps=100000",
        "train.epochs=100000",
        "eval.every_epochs=0",
        "checkpoint.every_minutes=60.0",
    ];
    let args = sandbox.train_args("a", &sets).into_iter();
    let job = Job::start(with(
        command.args(args.map(|a| if a == "cpu" { "auto".to_owned() } else { a })),
        &fake,
    ));
    job.until("step 1/");
    job.signal("USR1");
    let (code, text) = job.end(Duration::from_mins(1));
    assert_eq!(code, Some(75), "{text}");
    assert_contains(&text, &["fake: cuda opened", "stopped by a signal"]);
}
