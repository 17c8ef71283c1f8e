//! What a device must do: the same numbers as the CPU, sums and streams in order, ends with the right codes. `DW_DEVICE`
//! names the device (`cuda` or `cpu`); without it a GPU is taken where there is one, else the CPU, on which the same code
//! runs. `DW_LOADED=1` prints the libraries that are loaded after each trial.
#![expect(clippy::print_stdout, reason = "one line a library for scripts")]

mod support;

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dw::assign::{ImageBoxes, Progress};
use dw::boxes::{Grid, level_sizes};
use dw::config::{GradCompression, TrainConfig};
use dw::device::{self, Choice, Precision, cuda};
use dw::join::self_test;
use dw::model::Detector;
use dw::torch::CudaSide;
use dw::train::buckets::{Buckets, buffer_of};
use dw::train::flat::Flat;
use dw::train::step::Step;
use dw_launch::abort::exit_now;
use dw_launch::nccl::{self, Library, Nccl};
use dw_launch::{Op, Solo, Topology, World};
use libtest_mimic::{Arguments, Trial};
use support::doubling::Doubling;
use support::{Sandbox, bin, launch, run};
use tch::{Device, Kind, Tensor};

/// Set in a child of this program that is to end itself.
const ABORT: &str = "DW_GPU_ABORT";

fn main() {
    let choice = match std::env::var("DW_DEVICE").as_deref() {
        Ok("cpu") => Choice::Cpu,
        Ok("cuda") => Choice::Cuda,
        // Where a GPU cannot be used, as with libtorch's CPU install, the same code runs on the CPU.
        _ => Choice::Auto,
    };
    let named = std::env::var_os("DW_DEVICE").is_some();
    device::open(choice);
    let device = match device::pick(choice, &Topology::from_env()) {
        Ok(device) => device,
        Err(_) if !named => Device::Cpu,
        Err(e) => {
            let trials = vec![Trial::test("the_device", move || Err(e.to_string().into()))];
            return finish(trials);
        }
    };
    Precision::F32.apply().unwrap();
    if std::env::var_os(ABORT).is_some() {
        world(device).abort(4, "as told");
    }
    let mut trials = vec![
        trial("network_and_gradients_are_the_cpus", move || network(device)),
        trial("stream_order_of_two_ranks", move || stream_order(device)),
        trial("out_of_memory_is_code_5", move || out_of_memory(device)),
        trial("training_follows_the_cpu", move || training(device, 1)),
    ];
    if device.is_cuda() {
        trials.push(trial("nccl_joins_and_tests_itself", move || {
            self_test(&world(device), device).unwrap()
        }));
        trials.push(trial("nccl_keeps_what_one_rank_has", move || one_rank(device)));
        trials.push(trial("nccl_abort_ends", move || abort_ends(device)));
    }
    // NCCL before 2.30 refuses two ranks on one device.
    let minor = |v: &str| v.split('.').nth(1).and_then(|m| m.parse::<u32>().ok());
    let shares = nccl::version().and_then(|v| minor(&v)).is_some_and(|m| m >= 30);
    if device.is_cuda() && cfg!(feature = "mpi") && (tch::Cuda::device_count() > 1 || shares) {
        trials.push(trial("two_ranks_follow_the_cpu", move || training(device, 2)));
    }
    finish(trials);
}

/// Runs the trials and ends the process as the programs do: without the destructors of libraries that threads may be in.
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

/// This process as the only rank: NCCL on a GPU.
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
    let from = Detector::new(&config.model, 3, kind, Device::Cpu);
    let here = Detector::new(&config.model, 3, kind, device);
    for (to, from) in here.params.entries.iter().zip(&from.params.entries) {
        tch::no_grad(|| to.tensor.shallow_clone().copy_(&from.tensor));
    }
    // Networks on other devices have drawn from other generators by now.
    tch::manual_seed(4);
    here
}

fn images(device: Device, kind: Kind) -> Tensor {
    device::upload(&Tensor::rand([2, 3, 96, 128], (kind, Device::Cpu)), device, kind)
}

/// Loss and all gradients of a small network on a device, in one vector.
fn gradients(device: Device, kind: Kind) -> (f64, Tensor) {
    let config = dw::config::load("smoke", &[]).unwrap();
    let mut net = detector(device, kind);
    let strategy = config.assign.build(&mut net.params, 3);
    let mut step = Step::new(net, strategy, &config, &Arc::new(World::solo())).unwrap();
    let truth = [
        ImageBoxes {
            boxes: vec![[10.0, 12.0, 60.0, 70.0], [50.0, 20.0, 110.0, 90.0]],
            labels: vec![0, 2],
        },
        ImageBoxes { boxes: vec![[5.0, 5.0, 30.0, 40.0]], labels: vec![1] },
    ];
    let targets = step.matcher().targets(&Grid::centers(&level_sizes(96, 128)), &truth);
    let predicted = step.forward(&images(device, kind));
    let loss = step.loss(&predicted, &targets, &Progress::default(), false).unwrap();
    step.backward(&loss).unwrap();
    (loss.total(), step.flat.grads.to_device(Device::Cpu).to_kind(Kind::Double))
}

fn network(device: Device) {
    for (kind, tolerance) in [(Kind::Double, 1e-9), (Kind::Float, 1e-3)] {
        let ((a, ga), (b, gb)) = (gradients(Device::Cpu, kind), gradients(device, kind));
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

/// A rank that gives up ends at once, whatever the communicator holds.
fn abort_ends(device: Device) {
    let began = Instant::now();
    let out = Command::new(std::env::current_exe().unwrap())
        .envs([(ABORT, "1"), ("DW_DEVICE", name_of(device))])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(4), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(began.elapsed() < Duration::from_mins(1));
}

/// Two ranks with the same gradients, whose sums take far longer than backward: what training goes on with must be exactly
/// twice what backward left in each bucket.
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
            p.cls.square().mean(None) + p.distances.mean(None) + p.quality.square().mean(None)
        };
        // The hooks send nothing outside of `Buckets::backward`.
        loss(&net).backward();
        let own = flat.grads.copy();
        // The first step is warm-up and the second sends after backward; then buckets go out while backward runs.
        for step in 0..4 {
            let _ = flat.grads.shallow_clone().zero_();
            let loss = loss(&net);
            backend.delay_compute();
            buckets.backward(&loss).unwrap();
            let (sums, before) = backend.take();
            assert!(sums > 3, "only {sums} buckets");
            let twice = before.to_kind(Kind::Float) * 2.0;
            let wrong = i64::try_from(flat.grads.ne_tensor(&twice).sum(Kind::Int64)).unwrap();
            assert_eq!(
                wrong, 0,
                "{compression:?}, step {step}: numbers that are not twice the gradient"
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

fn name_of(device: Device) -> &'static str {
    if device.is_cuda() { "cuda" } else { "cpu" }
}

/// A command line of the smoke run on a device.
fn on(sandbox: &Sandbox, device: &str, sets: &[&str]) -> Vec<String> {
    let args = sandbox.train_args(device, sets).into_iter().enumerate();
    args.map(|(i, a)| if i == 2 { device.to_owned() } else { a }).collect()
}

fn out_of_memory(device: Device) {
    let sandbox = Sandbox::new();
    let args = on(&sandbox, name_of(device), &["train.max_steps=4", "eval.every_epochs=0"]);
    let out = Command::new(bin("dw-train")).args(args).env("DW_FAULT", "oom@0:2").output().unwrap();
    assert_eq!(out.status.code(), Some(5), "{}", String::from_utf8_lossy(&out.stderr));
}

fn training(device: Device, ranks: usize) {
    let sandbox = Sandbox::new();
    let losses = |device: &str, ranks: usize| -> Vec<f64> {
        let images = format!("train.images_per_rank={}", 2 / ranks);
        let args = on(
            &sandbox,
            device,
            &[
                "eval.every_epochs=1",
                "train.max_steps=20",
                "train.precision=f32",
                "train.lr=0.008",
                "train.warmup_steps=100",
                &images,
            ],
        );
        run(launch(if ranks == 1 { 0 } else { ranks }, "dw-train")
            .args(args)
            .env("NCCL_MULTI_RANK_GPU_ENABLE", "1"));
        sandbox.steps(device).iter().map(|s| s["loss"].as_f64().unwrap()).collect()
    };
    // The same ranks on both: a sum that NCCL gets wrong shows in every later loss.
    let cpu = losses("cpu", ranks);
    let other = if device.is_cuda() { losses("cuda", ranks) } else { cpu.clone() };
    assert_eq!(other.len(), 20);
    for (step, (a, b)) in cpu.iter().zip(&other).enumerate() {
        // With a low rate rounding hardly grows in 20 steps; a gradient that is off by a factor shows at once.
        let tolerance = if step == 0 { 1e-3 } else { 0.02 };
        assert!(
            (a - b).abs() <= tolerance * a,
            "step {}: loss {a} on the CPU, {b} on the device",
            step + 1
        );
    }
}
