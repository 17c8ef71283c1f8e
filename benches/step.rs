//! Measures a training step on prepared images: forward, loss, backward with its all-reduce, SGD.
//! Prints one JSON line.
//!
//! The network, the image size and the number of boxes match those of the PyTorch detector that it
//! is compared with (`benches/run.sh`, `benches/gpu_peer.py`). Under mpirun the ranks reduce their
//! gradients as in training; with `--apart` they only start and end together.
#![expect(clippy::print_stdout, reason = "the result is a JSON line")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use dw::assign::{ImageBoxes, Progress, Targets};
use dw::config;
use dw::data::sampler::{stream, unit};
use dw::device::join::join;
use dw::device::{self, Choice, Precision, buffer_of, upload};
use dw::geometry::{Grid, level_sizes};
use dw::model::Detector;
use dw::train::buckets::Cost;
use dw::train::input::{Input, Pixels};
use dw::train::queue::Enqueued;
use dw::train::step::{Part, Step};
use dw_launch::abort::exit_now;
use dw_launch::{Op, Topology, World};
use dw_torch::Profile;
use serde_json::json;
use tch::{Device, Kind, Tensor};

#[derive(Parser)]
struct Args {
    /// Configuration of the network
    #[arg(long, default_value = "dw_r50_fpn_1x")]
    config: String,
    #[arg(long, default_value_t = 2)]
    batch: i64,
    #[arg(long, default_value_t = 320)]
    height: i64,
    #[arg(long, default_value_t = 416)]
    width: i64,
    #[arg(long, default_value_t = 8)]
    boxes: usize,
    #[arg(long, default_value_t = 10)]
    steps: usize,
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    #[arg(long, default_value_t = 2)]
    threads: i32,
    /// Precision: auto, f32, tf32, bf16 or f64
    #[arg(long, default_value = "auto", value_parser = precision)]
    precision: Precision,
    /// Device: auto, cpu or cuda
    #[arg(long, value_enum, default_value = "cpu")]
    device: Choice,
    /// Do not reduce gradients: measures how much several processes slow each other down without
    /// communication
    #[arg(long)]
    apart: bool,
    /// Count the calls per step that wait for the GPU
    #[arg(long)]
    count_syncs: bool,
    /// Record three more steps as a Chrome trace in this file
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Passed by `cargo bench`; ignored.
    #[arg(long, hide = true)]
    bench: bool,
}

fn precision(text: &str) -> Result<Precision, String> {
    use Precision::{Auto, Bf16, F32, F64, Tf32};
    [Auto, F32, Tf32, Bf16, F64]
        .into_iter()
        .find(|p| p.name() == text)
        .ok_or_else(|| "expected auto, f32, tf32, bf16 or f64".into())
}

/// A training step that is repeated on the same batch.
struct Repeated {
    step: Step,
    world: Arc<World>,
    images: Tensor,
    targets: Targets,
    device: Device,
}

/// Times of the measured steps in seconds.
struct Measured {
    /// Median of whole steps.
    step_s: f64,
    /// Shortest step.
    min_s: f64,
    /// Means of forward, loss, backward and SGD.
    parts: [f64; 4],
    /// Median time that a step waits for its communication.
    exposed_s: f64,
}

/// Number of steps in a recorded trace.
const TRACED: usize = 3;

fn main() {
    dw_launch::prepare();
    let a = Args::parse();
    let (device, precision) = set_up(&a);
    let job = join(device, &mut None).expect("the other ranks");
    // Libraries and the connections to the other ranks.
    let start_mib = host_peak_mib();
    let world = if a.apart { Arc::new(World::solo()) } else { job.clone() };
    let mut step = Repeated::new(&a, precision, device, &world);
    job.barrier("start").expect("peers");
    for _ in 0..a.warmup {
        step.run();
    }
    dw_torch::reset_peak_bytes(device).expect("the allocator");
    let measured = step.measure(a.steps);
    let device_peak = dw_torch::peak_bytes(device).expect("the allocator").map(|b| b >> 20);
    let Measured { step_s, parts, exposed_s, .. } = measured;
    let ranks = world.size();
    let (buckets, alone_s) = step.step.communication();
    let bare_s = bare_all_reduce(&step.step.flat.grads, &world, device);
    let on_host = !device.is_cuda();
    let syncs = a.count_syncs.then(|| step.syncs(a.steps));
    if let Some(path) = &a.trace {
        step.trace(path);
    }
    job.barrier("end").expect("peers");
    if job.rank() == 0 {
        let row = json!({
            "what": "dw step",
            "config": a.config,
            "batch": a.batch,
            "height": a.height,
            "width": a.width,
            "threads": a.threads,
            "device": format!("{device:?}"),
            "precision": precision.name(),
            "ranks": ranks,
            "apart": a.apart,
            "step_s_median": step_s,
            "step_s_min": measured.min_s,
            "images_per_s": (a.batch * ranks as i64) as f64 / step_s,
            "forward_s": parts[0],
            "loss_s": parts[1],
            "backward_s": parts[2],
            "sgd_s": parts[3],
            "peak_mib": host_peak_mib(),
            "start_mib": start_mib,
            "device_peak_mib": device_peak,
            "syncs_per_step": syncs,
            "trace_steps": a.trace.is_some().then_some(TRACED),
            "buckets": buckets,
            "gradient_mib": step.step.flat.grads.numel() as f64 / 262_144.0,
            "kernels": dw_torch::has_kernels(),
            // On a GPU the device waits, not the host.
            "comm_exposed_s": on_host.then_some(exposed_s),
            "comm_alone_s": on_host.then_some(alone_s),
            "comm_hidden": on_host.then_some(1.0 - exposed_s / alone_s.max(1e-12)),
            "bare_all_reduce_s": bare_s,
        });
        println!("{row}");
    }
    job.leave(0);
    exit_now(0)
}

/// Opens the device and configures libtorch for it.
fn set_up(a: &Args) -> (Device, Precision) {
    device::open(a.device);
    let device = device::pick(a.device, &Topology::from_env()).expect("the device");
    let precision = a.precision.resolve(device).expect("a precision of this device");
    precision.apply(device).expect("libtorch's settings");
    device::return_freed(device);
    tch::set_num_threads(a.threads);
    dw_torch::flush_denormals();
    tch::manual_seed(0);
    (device, precision)
}

impl Repeated {
    fn new(a: &Args, precision: Precision, device: Device, world: &Arc<World>) -> Self {
        let config = config::load(&a.config, &[]).expect("a configuration");
        let mut net = Detector::new(&config.model, 80, precision.kind(), device);
        net.activations = precision.activations();
        let strategy = config.assign.build(&mut net.params, 80);
        let targets = strategy
            .matcher
            .targets(&Grid::centers(&level_sizes(a.height, a.width)), &truth(a))
            .to(precision.kind(), device);
        let step = Step::new(net, strategy, &config.train, world).expect("memory");
        device::keep_freed(device);
        let images = Tensor::rand([a.batch, 3, a.height, a.width], (Kind::Float, Device::Cpu));
        let images = upload(&images, device, precision.activations());
        Self { step, world: world.clone(), images, targets, device }
    }

    /// Waits until the device has finished all enqueued work, and returns the time.
    fn mark(device: Device) -> Instant {
        if let Device::Cuda(index) = device {
            tch::Cuda::synchronize(index as i64);
        }
        Instant::now()
    }

    /// Enqueues one step; `after` is called after each of its parts.
    fn enqueue(&mut self, after: impl FnMut(Part)) -> Enqueued {
        let images = Pixels::Normalised(&self.images);
        let input = Input { images, targets: &self.targets, at: Progress::default() };
        self.step.run(&[input], 1e-5, false, None, after).expect("peers")
    }

    /// Waits for a step; returns the cost of its communication.
    fn wait(&self, step: Enqueued) -> Cost {
        let done = step.wait(&self.world).expect("the device");
        assert!(done.is_finite, "{done:?}");
        done.cost
    }

    /// Runs one step. Returns the times before, between and after its four parts, and the cost of
    /// its communication.
    fn run(&mut self) -> (Vec<Instant>, Cost) {
        let device = self.device;
        let mut marks = vec![Self::mark(device)];
        let step = self.enqueue(|_| marks.push(Self::mark(device)));
        (marks, self.wait(step))
    }

    /// Runs steps as in training, where the numbers of a step on a GPU are read after the next step
    /// has been enqueued. Returns the seconds between the ends of consecutive steps.
    fn stream(&mut self, steps: usize) -> Vec<f64> {
        let (mut times, mut last) = (vec![], Self::mark(self.device));
        let mut pending = None;
        for n in 0..=steps {
            let next = (n < steps).then(|| self.enqueue(|_| ()));
            if let Some(step) = std::mem::replace(&mut pending, next) {
                self.wait(step);
                times.push(last.elapsed().as_secs_f64());
                last = Instant::now();
            }
        }
        times
    }

    /// Measures steps and, separately on a GPU, their parts.
    fn measure(&mut self, steps: usize) -> Measured {
        let (mut times, mut parts, mut exposed) = (vec![], [0.0; 4], vec![]);
        for _ in 0..steps {
            let (marks, cost) = self.run();
            times.push((marks[4] - marks[0]).as_secs_f64());
            exposed.push(cost.exposed_s);
            for (p, m) in parts.iter_mut().zip(marks.windows(2)) {
                *p += (m[1] - m[0]).as_secs_f64() / steps as f64;
            }
        }
        // On a CPU the marks do not delay the steps, so the times above are used.
        if self.device.is_cuda() {
            // The first time covers the enqueueing of two steps and the last that of none, so both
            // are dropped.
            times = self.stream(3 * steps + 2)[1..=3 * steps].to_vec();
        }
        let (step_s, exposed_s) = (median(&mut times), median(&mut exposed));
        Measured { step_s, min_s: times[0], parts, exposed_s }
    }

    /// Number of calls per step that wait for the GPU.
    fn syncs(&mut self, steps: usize) -> f64 {
        if !self.device.is_cuda() {
            return 0.0;
        }
        let run = || (0..steps).map(|_| self.enqueue(|_| ())).collect::<Vec<_>>();
        let counted = dw_torch::count_syncs(run);
        let (pending, count) = counted.expect("libtorch's count of synchronisations");
        for step in pending {
            self.wait(step);
        }
        count as f64 / steps as f64
    }

    /// Records a trace of [`TRACED`] steps.
    fn trace(&mut self, path: &std::path::Path) {
        let profile = Profile::start(self.device).expect("libtorch's profiler");
        self.stream(TRACED);
        profile.write(path).expect("the trace");
    }
}

/// Random boxes of a batch.
fn truth(a: &Args) -> Vec<ImageBoxes> {
    let mut rng = stream(&[1]);
    let mut uniform = |low: f64, high: f64| low + unit(&mut rng) * (high - low).max(1.0);
    let (width, height) = (a.width as f64, a.height as f64);
    let mut image = |_| {
        let mut truth = ImageBoxes::default();
        for _ in 0..a.boxes {
            let (w, h) = (uniform(16.0, 16.0 + 0.4 * width), uniform(16.0, 16.0 + 0.4 * height));
            let (x, y) = (uniform(0.0, width - w), uniform(0.0, height - h));
            truth.boxes.push([x as f32, y as f32, (x + w) as f32, (y + h) as f32]);
            truth.labels.push(uniform(0.0, 80.0) as i64);
        }
        truth
    };
    (0..a.batch).map(&mut image).collect()
}

/// The median of some values, which are sorted in place.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Median time in seconds of five all-reduces of the whole gradient buffer, without other work.
fn bare_all_reduce(grads: &Tensor, world: &World, device: Device) -> f64 {
    let mut times = vec![];
    for _ in 0..5 {
        world.barrier("bare").expect("peers");
        let began = Instant::now();
        // SAFETY: the buffer is contiguous and lives through the call.
        unsafe { world.all_reduce_raw(buffer_of(grads), Op::Sum, "bare") }.expect("peers");
        times.push((Repeated::mark(device) - began).as_secs_f64());
    }
    median(&mut times)
}

/// Peak resident memory of this process in MiB.
fn host_peak_mib() -> u64 {
    device::peak_mib(Device::Cpu).expect("the CPU") as u64
}
