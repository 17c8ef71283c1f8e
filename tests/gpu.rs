//! What only a CUDA device can show. Without one nothing runs here; `make gpu-check` (`DW_GPU=1`) then fails instead.

mod support;

use std::process::ExitCode;
use std::sync::Arc;

use dw::assign::dw::{CenterPrior, Inputs, terms};
use dw::assign::{DwConfig, PairsBuilder};
use dw::boxes::level_sizes;
use dw::device::{self, Choice};
use dw::loss::reduce;
use dw::model::Detector;
use dw::torch::CudaSide;
use dw::train::buckets::buffer_of;
use dw::train::to_device;
use dw_launch::nccl::{self, Library, Nccl};
use dw_launch::{Collectives, Op, Solo, Topology, World};
use libtest_mimic::{Arguments, Trial};
use support::{Place, launch, run};
use tch::{Device, Kind, Tensor};

fn main() -> ExitCode {
    let device = device::pick(Choice::Auto, &Topology::from_env()).unwrap_or(Device::Cpu);
    let mut trials = vec![];
    if let Device::Cuda(index) = device {
        trials.push(trial("network_and_gradients_are_the_cpus", move || network(device)));
        trials.push(trial("nccl_adds_what_one_rank_has", move || one_rank(index)));
        trials.push(trial("training_follows_the_cpu", move || training(1)));
        // NCCL before 2.30 refuses two ranks on one device.
        let shares = nccl::version().is_some_and(|v| v.split('.').nth(1).and_then(|m| m.parse().ok()).unwrap_or(0) >= 30);
        if tch::Cuda::device_count() > 1 || shares {
            trials.push(trial("two_ranks_follow_the_cpu", move || training(2)));
        }
    } else if std::env::var_os("DW_GPU").is_some() {
        trials.push(Trial::test("a_cuda_device", || Err("libtorch sees no CUDA device (nvidia-smi; make setup)".into())));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(name: &str, check: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        check();
        Ok(())
    })
}

/// Loss and all gradients of a small network on a device, in one vector.
fn gradients(device: Device, kind: Kind) -> (f64, Tensor) {
    tch::manual_seed(3);
    let config = dw::config::load("smoke", &[]).unwrap();
    let net = Detector::new(&config.model, 3, kind, Device::Cpu);
    let here = Detector::new(&config.model, 3, kind, device);
    for (to, from) in here.params.entries.iter().zip(&net.params.entries) {
        tch::no_grad(|| to.tensor.shallow_clone().copy_(&from.tensor));
    }
    // Networks on other devices have drawn from other generators by now.
    tch::manual_seed(4);
    let images = to_device(&Tensor::rand([2, 3, 96, 128], (kind, Device::Cpu)), device, kind);
    let rule = DwConfig::default();
    let levels = level_sizes(96, 128);
    let mut builder = PairsBuilder::new(&levels, 3, &rule);
    builder.image(&[[10.0, 12.0, 60.0, 70.0], [50.0, 20.0, 110.0, 90.0]], &[0, 2]);
    builder.image(&[[5.0, 5.0, 30.0, 40.0]], &[1]);
    let outputs = here.forward(&images, true);
    let (cls, distances, objectness) = outputs.flatten();
    let (mean, sigma) = &here.head().prior;
    let pairs = builder.finish().tensors().to(kind, device);
    let inputs = Inputs { cls: &cls, distances: &distances, objectness: &objectness, pairs: &pairs, prior: CenterPrior { mean, sigma } };
    let loss = reduce(&terms(&rule, &inputs).0, false, &World::solo()).unwrap();
    loss.local.backward();
    let trained = here.params.entries.iter().filter(|e| e.trainable && e.tensor.grad().defined());
    let flat: Vec<Tensor> =
        trained.map(|e| e.tensor.grad().to_device(Device::Cpu).to_kind(Kind::Double).contiguous().reshape([-1])).collect();
    (loss.total(), Tensor::cat(&flat, 0))
}

fn network(device: Device) {
    for (kind, tolerance) in [(Kind::Double, 1e-9), (Kind::Float, 1e-3)] {
        let ((a, ga), (b, gb)) = (gradients(Device::Cpu, kind), gradients(device, kind));
        assert!((a - b).abs() <= tolerance * a.abs(), "{kind:?}: loss {a} on the CPU, {b} on the device");
        let error = f64::try_from((&ga - &gb).norm() / ga.norm()).unwrap();
        assert!(error <= tolerance, "{kind:?}: the gradient is off by {error} of its norm");
    }
}

fn one_rank(index: usize) {
    let stream = CudaSide::new(index).unwrap();
    let library = Library::open_on_all(&Solo).unwrap();
    let nccl: Arc<dyn Collectives> = Arc::new(Nccl::join(library, Arc::new(Solo), Box::new(stream)).unwrap());
    let world = World::new(nccl).unwrap();
    for kind in [Kind::Float, Kind::Double, Kind::BFloat16] {
        let t = Tensor::rand([1 << 20], (kind, Device::Cuda(index)));
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

fn training(ranks: usize) {
    let place = Place::new();
    let losses = |device: &str, ranks: usize| -> Vec<f64> {
        let sets = ["eval.every_epochs=1", "train.max_steps=20", &format!("train.images_per_rank={}", 2 / ranks)];
        let mut args = place.train_args(device, &sets);
        let at = args.iter().position(|a| a == "cpu").unwrap();
        device.clone_into(&mut args[at]);
        run(launch(if ranks == 1 { 0 } else { ranks }, "dw-train").args(args).env("NCCL_MULTI_RANK_GPU_ENABLE", "1"));
        place.steps(device).iter().map(|s| s["loss"].as_f64().unwrap()).collect()
    };
    // The same ranks on both: a sum that NCCL gets wrong shows in every later loss.
    let (cpu, cuda) = (losses("cpu", ranks), losses("cuda", ranks));
    assert_eq!(cuda.len(), 20);
    for (step, (a, b)) in cpu.iter().zip(&cuda).enumerate() {
        // Rounding grows with the steps; a gradient that is off by a factor shows at once.
        let tolerance = if step == 0 { 1e-3 } else { 0.02 };
        assert!((a - b).abs() <= tolerance * a, "step {step}: loss {a} on the CPU, {b} on the device");
    }
    assert!(cuda[19] < cuda[0], "{cuda:?}");
}
