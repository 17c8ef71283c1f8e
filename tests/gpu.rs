//! Tests of a device: agreement with the CPU, the order of work on two streams, exit codes.
//! `DW_DEVICE` selects the device (`cuda` or `cpu`); without it the tests use a GPU if there is
//! one, else the CPU. `DW_LOADED=1` prints the loaded libraries after each trial as `loaded: PATH`.
#![expect(clippy::print_stdout, reason = "lines `loaded: PATH` for scripts")]

#[path = "support/kernels.rs"]
mod kernels;
mod support;

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dw::assign::{AssignConfig, ImageBoxes, Progress};
use dw::device::CudaSide;
use dw::device::join::self_test;
use dw::device::{self, Choice, Precision, buffer_of, cuda};
use dw::geometry::{Grid, level_sizes};
use dw::model::{Detector, Params};
use dw::train::TrainConfig;
use dw::train::buckets::Buckets;
use dw::train::config::GradCompression;
use dw::train::flat::Flat;
use dw::train::input::{Input, Pixels};
use dw::train::step::Step;
use dw_launch::abort::exit_now;
use dw_launch::nccl::{self, Library, Nccl};
use dw_launch::{Op, Solo, Topology, World};
use libtest_mimic::{Arguments, Trial};
use support::doubling::Doubling;
use support::{Sandbox, bin, launch, run};
use tch::{Device, Kind, Tensor};

/// Set in a child process of this program that calls `abort`.
const ABORT: &str = "DW_GPU_ABORT";
/// Set in a child process that runs the custom CUDA kernels on tensors in host memory.
const KERNELS: &str = "DW_KERNELS";

fn main() {
    let choice = match std::env::var("DW_DEVICE").as_deref() {
        Ok("cpu") => Choice::Cpu,
        Ok("cuda") => Choice::Cuda,
        _ => Choice::Auto,
    };
    let required = std::env::var_os("DW_DEVICE").is_some();
    device::open(choice);
    let device = match device::pick(choice, &Topology::from_env()) {
        Ok(device) => device,
        // For example, the CPU build of libtorch on a machine with a GPU.
        Err(_) if !required => Device::Cpu,
        Err(e) => {
            let trials = vec![Trial::test("the_device", move || Err(e.to_string().into()))];
            return finish(trials);
        }
    };
    Precision::F32.apply(device).unwrap();
    if std::env::var_os(ABORT).is_some() {
        world(device).abort(4, "test");
    }
    if std::env::var_os(KERNELS).is_some() {
        kernels::use_on_cpu("", "");
    }
    finish(trials(device));
}

/// The trials of a device. `benches/gpu_correctness.py` runs them by these names.
fn trials(device: Device) -> Vec<Trial> {
    let mut trials = vec![
        trial("network_and_gradients_are_the_cpus", move || network(device)),
        trial("stream_order_of_two_ranks", move || stream_order(device)),
        trial("out_of_memory_is_code_5", move || out_of_memory(device)),
        trial("training_follows_the_cpu", move || training(device, 1)),
        trial("bf16_gradients_point_where_the_cpus_in_f32_do", move || bf16(device)),
    ];
    if !device.is_cuda() {
        trials.push(trial("stream_order_with_own_kernels", stream_order_with_kernels));
        return trials;
    }
    trials.extend([
        trial("own_kernels_are_used_and_right", move || {
            assert!(dw_torch::has_kernels());
            device::kernels::check(device).unwrap();
            let mut params = Params::new(Kind::Float, device);
            let strategy = AssignConfig::default().build(&mut params, 80);
            let off = dw::train::kernels::difference(&strategy, 80, device, 512);
            assert!(off > 0.0 && off < 1e-3, "the loss differs by {off:.1e}");
        }),
        trial("nccl_joins_and_tests_itself", move || self_test(&world(device), device).unwrap()),
        trial("nccl_keeps_what_one_rank_has", move || one_rank(device)),
        trial("nccl_abort_ends", move || abort_exits(device)),
    ]);
    // NCCL before 2.30 refuses two ranks on one device.
    let minor = |v: &str| v.split('.').nth(1).and_then(|m| m.parse::<u32>().ok());
    let shares = nccl::version().and_then(|v| minor(&v)).is_some_and(|m| m >= 30);
    if cfg!(feature = "mpi") && (tch::Cuda::device_count() > 1 || shares) {
        trials.push(trial("two_ranks_follow_the_cpu", move || training(device, 2)));
    }
    trials
}

/// Runs the trials and exits without running the destructors of libraries, whose threads may still
/// be active.
fn finish(trials: Vec<Trial>) {
    let failed = libtest_mimic::run(&Arguments::from_args(), trials).has_failed();
    exit_now(if failed { 101 } else { 0 })
}

fn trial(name: &str, check: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        check();
        if std::env::var_os("DW_LOADED").is_some() {
            for path in cuda::loaded_libraries() {
                println!("loaded: {}", path.display());
            }
        }
        Ok(())
    })
}

/// The communicator of this process as the only rank: NCCL on a GPU.
fn world(device: Device) -> World {
    let Device::Cuda(index) = device else { return World::new(Arc::new(Solo)).unwrap() };
    let stream = CudaSide::new(index).unwrap();
    let library = Library::open_on_all(&Solo).unwrap();
    World::new(Arc::new(Nccl::join(library, Arc::new(Solo), Box::new(stream)).unwrap())).unwrap()
}

/// The small network with the same weights on every device.
fn detector(device: Device, kind: Kind) -> Detector {
    tch::manual_seed(3);
    let config = dw::config::load("smoke", &[]).unwrap();
    let source = Detector::new(&config.model, 3, kind, Device::Cpu);
    let net = Detector::new(&config.model, 3, kind, device);
    for (to, from) in net.params.entries.iter().zip(&source.params.entries) {
        tch::no_grad(|| to.tensor.shallow_clone().copy_(&from.tensor));
    }
    // The random generators of the devices are in different states by now.
    tch::manual_seed(4);
    net
}

/// The gradient of the small network with bf16 activations on the device. Rounding moves some
/// activations across the kink of a ReLU. It also moves some sampling points of the box refinement,
/// which initially lie near the centres of cells, across these centres, where the gradient is
/// discontinuous.
fn bf16(device: Device) {
    let (_, expected) = gradients(Device::Cpu, Kind::Float, Kind::Float);
    let (_, found) = gradients(device, Kind::Float, Kind::BFloat16);
    let cosine = expected.dot(&found) / (expected.norm() * found.norm());
    assert!(cosine.double_value(&[]) > 0.95, "cosine {cosine:?}");
}

fn images(device: Device, kind: Kind) -> Tensor {
    device::upload(&Tensor::rand([2, 3, 96, 128], (kind, Device::Cpu)), device, kind)
}

/// The loss of the small network on a device, and all gradients as one f64 vector on the CPU.
fn gradients(device: Device, kind: Kind, activations: Kind) -> (f64, Tensor) {
    let config = dw::config::load("smoke", &[]).unwrap();
    let mut net = detector(device, kind);
    net.activations = activations;
    let strategy = config.assign.build(&mut net.params, 3);
    let mut step = Step::new(net, strategy, &config.train, &Arc::new(World::solo())).unwrap();
    let truth = [
        ImageBoxes {
            boxes: vec![[10.0, 12.0, 60.0, 70.0], [50.0, 20.0, 110.0, 90.0]],
            labels: vec![0, 2],
            padded: None,
        },
        ImageBoxes { boxes: vec![[5.0, 5.0, 30.0, 40.0]], labels: vec![1], padded: None },
    ];
    let targets = step.matcher().targets(&Grid::centers(&level_sizes(96, 128)), &truth);
    let images = images(device, kind);
    let images = Pixels::Normalised(&images);
    let input = Input { images, targets: &targets, at: Progress::default() };
    let predicted = step.forward(images);
    let loss = step.loss(&predicted, &input, None, false).unwrap();
    step.backward(&loss, &[]).unwrap();
    (loss.read().unwrap().total(), step.flat.grads.to_device(Device::Cpu).to_kind(Kind::Double))
}

fn network(device: Device) {
    for (kind, tolerance) in [(Kind::Double, 1e-9), (Kind::Float, 1e-3)] {
        let [(a, ga), (b, gb)] = [Device::Cpu, device].map(|d| gradients(d, kind, kind));
        assert!(
            (a - b).abs() <= tolerance * a.abs(),
            "{kind:?}: loss {a} on the CPU, {b} on the device"
        );
        let error = f64::try_from((&ga - &gb).norm() / ga.norm()).unwrap();
        assert!(error <= tolerance, "{kind:?}: the gradient is off by {error} of its norm");
    }
}

fn one_rank(device: Device) {
    let world = world(device);
    for kind in [Kind::Float, Kind::Double, Kind::BFloat16] {
        let t = Tensor::rand([1 << 20], (kind, device));
        let before = t.copy();
        // SAFETY: the tensor is contiguous and lives until the sums are finished.
        unsafe {
            world.start_sum(buffer_of(&t), "test").unwrap();
            world.finish().unwrap();
            world.all_reduce_raw(buffer_of(&t), Op::Max, "test").unwrap();
        }
        assert!(t.allclose(&before, 0.0, 0.0, false), "{kind:?}");
    }
    world.leave(0);
}

/// A rank that aborts exits at once, whatever the state of the communicator.
fn abort_exits(device: Device) {
    let began = Instant::now();
    let out = Command::new(std::env::current_exe().unwrap())
        .envs([(ABORT, "1"), ("DW_DEVICE", name_of(device))])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(4), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(began.elapsed() < Duration::from_mins(1));
}

/// Two ranks with the same gradients, and sums that take far longer than backward. The reduced
/// gradients must be exactly twice those that backward wrote into each bucket.
fn stream_order(device: Device) {
    for compression in [GradCompression::None, GradCompression::Bf16] {
        let mut net = detector(device, Kind::Float);
        let flat = Flat::new(&mut net.params).unwrap();
        let images = images(device, Kind::Float);
        let backend = Arc::new(Doubling::new(device));
        let world = Arc::new(World::new(backend.clone()).unwrap());
        let config = TrainConfig {
            grad_compression: compression,
            bucket_mib: 0.5,
            first_bucket_mib: 0.1,
            ..TrainConfig::default()
        };
        let mut buckets = Buckets::new(&net.params, &flat, &config, &world).unwrap();
        let loss = |net: &Detector| {
            let p = net.forward(&images, true).flatten();
            p.cls.square().mean(None) + p.distances.mean(None) + p.quality().square().mean(None)
        };
        // Outside `Buckets::backward` the hooks start no sum.
        loss(&net).backward();
        let own = flat.grads.copy();
        // The first step is a warm-up and the second reduces after backward; from the third on,
        // buckets are reduced while backward runs.
        for step in 0..4 {
            let _ = flat.grads.shallow_clone().zero_();
            let loss = loss(&net);
            backend.delay_compute();
            buckets.backward(&loss).unwrap();
            let (sums, inputs) = backend.take_inputs();
            assert!(sums > 3, "only {sums} buckets");
            let twice = inputs.to_kind(Kind::Float) * 2.0;
            let wrong = i64::try_from(flat.grads.ne_tensor(&twice).sum(Kind::Int64)).unwrap();
            assert_eq!(
                wrong, 0,
                "{compression:?}, step {step}: values that are not twice the gradient"
            );
            let error = f64::try_from((&flat.grads / 2.0 - &own).norm() / own.norm()).unwrap();
            let rounding = if compression == GradCompression::None { 1e-4 } else { 1e-2 };
            assert!(
                error < rounding,
                "{compression:?}, step {step}: the gradient is off by {error} of its norm"
            );
        }
        world.leave(0);
    }
}

/// The same where the kernels add gradients to their buffers.
fn stream_order_with_kernels() {
    run(Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "stream_order_of_two_ranks"])
        .envs([(KERNELS, "1"), ("DW_DEVICE", "cpu")]));
}

fn name_of(device: Device) -> &'static str {
    if device.is_cuda() { "cuda" } else { "cpu" }
}

fn out_of_memory(device: Device) {
    let sandbox = Sandbox::new();
    let sets = ["train.max_steps=4", "eval.every_epochs=0"];
    let args = sandbox.train_args_on(name_of(device), "w", &sets);
    let out = Command::new(bin("dw-train")).args(args).env("DW_FAULT", "oom@0:2").output().unwrap();
    assert_eq!(out.status.code(), Some(5), "{}", String::from_utf8_lossy(&out.stderr));
}

fn training(device: Device, ranks: usize) {
    let sandbox = Sandbox::new();
    let losses = |device: &str, ranks: usize| -> Vec<f64> {
        let images = format!("train.images_per_rank={}", 2 / ranks);
        let sets = [
            "eval.every_epochs=1",
            "train.max_steps=20",
            "train.precision=f32",
            "train.lr=0.008",
            "train.warmup_steps=100",
            &images,
        ];
        let args = sandbox.train_args_on(device, device, &sets);
        run(launch(if ranks == 1 { 0 } else { ranks }, "dw-train")
            .args(args)
            .env("NCCL_MULTI_RANK_GPU_ENABLE", "1"));
        sandbox.steps(device).iter().map(|s| s["loss"].as_f64().unwrap()).collect()
    };
    // The same number of ranks on both devices: a wrong sum of NCCL changes every later loss.
    let cpu = losses("cpu", ranks);
    let other = if device.is_cuda() { losses("cuda", ranks) } else { cpu.clone() };
    assert_eq!(other.len(), 20);
    for (step, (a, b)) in cpu.iter().zip(&other).enumerate() {
        // At a low learning rate, rounding errors hardly grow in 20 steps, while a gradient with a
        // wrong scale exceeds the tolerance.
        let tolerance = if step == 0 { 1e-3 } else { 0.02 };
        assert!(
            (a - b).abs() <= tolerance * a,
            "step {}: loss {a} on the CPU, {b} on the device",
            step + 1
        );
    }
}
