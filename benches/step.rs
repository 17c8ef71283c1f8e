//! One training step on prepared images: forward, loss, backward with its all-reduce, SGD; prints one JSON line.
//!
//! The same network, sizes and number of boxes as the peer measured beside it. Under mpirun the ranks add their gradients as
//! in training; `--apart` leaves them independent of each other, but for starting together.
#![expect(clippy::print_stdout, reason = "the result")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use dw::assign::{ImageBoxes, Progress, Targets};
use dw::boxes::{Grid, level_sizes};
use dw::config;
use dw::data::sampler::{stream, unit};
use dw::device::{self, Choice, Precision, upload};
use dw::join::join;
use dw::model::Detector;
use dw::torch::{self, Profile};
use dw::train::buckets::{Cost, buffer_of};
use dw::train::step::{Input, Step};
use dw_launch::abort::exit_now;
use dw_launch::{Op, Topology, World};
use serde_json::json;
use tch::{Device, Kind, Tensor};

#[derive(Parser)]
struct Args {
    /// Configuration whose network is measured
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
    /// auto, f32, tf32 or f64
    #[arg(long, default_value = "auto", value_parser = precision)]
    precision: Precision,
    /// Device: auto, cpu or cuda
    #[arg(long, value_enum, default_value = "cpu")]
    device: Choice,
    /// Ranks that do not add their gradients: what several processes cost each other without any communication
    #[arg(long)]
    apart: bool,
    /// Count the calls of a step that wait for the GPU
    #[arg(long)]
    count_syncs: bool,
    /// Record three more steps as a Chrome trace
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn precision(text: &str) -> Result<Precision, String> {
    let known = [Precision::Auto, Precision::F32, Precision::Tf32, Precision::F64];
    known
        .into_iter()
        .find(|p| p.name() == text)
        .ok_or_else(|| "expected auto, f32, tf32 or f64".into())
}

/// A step with the batch that it computes on again and again.
struct Repeated {
    step: Step,
    images: Tensor,
    targets: Targets,
    device: Device,
}

/// Steps of a recorded trace.
const TRACED: usize = 3;

fn main() {
    dw_launch::prepare();
    let a = Args::parse();
    device::open(a.device);
    let device = device::pick(a.device, &Topology::from_env()).expect("the device");
    let precision = a.precision.resolve(device).expect("a precision of this device");
    precision.apply().expect("libtorch's settings");
    tch::set_num_threads(a.threads);
    torch::flush_denormals();
    tch::manual_seed(0);
    let job = join(device, &mut None).expect("the other ranks");
    let world = if a.apart { Arc::new(World::solo()) } else { job.clone() };
    let mut step = Repeated::new(&a, precision.kind(), device, &world);
    job.barrier("start").expect("peers");
    for _ in 0..a.warmup {
        step.run();
    }
    torch::reset_peak_bytes(device).expect("the allocator");
    let (mut times, mut parts, mut costs) = (vec![], [0.0; 4], vec![]);
    for _ in 0..a.steps {
        let (marks, cost) = step.run();
        times.push((marks[4] - marks[0]).as_secs_f64());
        costs.push(cost.exposed_s);
        for (p, m) in parts.iter_mut().zip(marks.windows(2)) {
            *p += (m[1] - m[0]).as_secs_f64() / a.steps as f64;
        }
    }
    let device_peak = torch::peak_bytes(device).expect("the allocator").map(|b| b >> 20);
    let median = middle(&mut times);
    let ranks = world.size();
    let (count, alone) = step.step.communication();
    let exposed = middle(&mut costs);
    let bare = bare_all_reduce(&step.step.flat.grads, &world);
    let syncs = a.count_syncs.then(|| step.syncs(a.steps));
    if let Some(path) = &a.trace {
        step.trace(path);
    }
    job.barrier("end").expect("peers");
    if job.rank() == 0 {
        let row = json!({"what": "dw step", "config": a.config, "batch": a.batch, "height": a.height, "width": a.width,
            "threads": a.threads, "device": format!("{device:?}"), "precision": precision.name(), "ranks": ranks, "apart": a.apart,
            "step_s_median": median, "step_s_min": times[0], "images_per_s": (a.batch * ranks as i64) as f64 / median,
            "forward_s": parts[0], "loss_s": parts[1], "backward_s": parts[2], "sgd_s": parts[3], "peak_mib": peak_mib(),
            "device_peak_mib": device_peak, "syncs_per_step": syncs, "trace_steps": a.trace.is_some().then_some(TRACED), "buckets": count,
            "gradient_mib": step.step.flat.grads.numel() as f64 / 262_144.0, "comm_exposed_s": exposed, "comm_alone_s": alone,
            "comm_hidden": 1.0 - exposed / alone.max(1e-12), "bare_all_reduce_s": bare});
        println!("{row}");
    }
    job.leave(0);
    exit_now(0)
}

impl Repeated {
    fn new(a: &Args, kind: Kind, device: Device, world: &Arc<World>) -> Self {
        let config = config::load(&a.config, &[]).expect("a configuration");
        let mut net = Detector::new(&config.model, 80, kind, device);
        let strategy = config.assign.build(&mut net.params, 80);
        let targets = strategy
            .matcher
            .targets(&Grid::centers(&level_sizes(a.height, a.width)), &truth(a))
            .to(kind, device);
        let step = Step::new(net, strategy, &config, world).expect("memory");
        let images = Tensor::rand([a.batch, 3, a.height, a.width], (Kind::Float, Device::Cpu));
        Self { step, images: upload(&images, device, kind), targets, device }
    }

    /// Now, when the device has done what the host has enqueued.
    fn mark(device: Device) -> Instant {
        if let Device::Cuda(index) = device {
            tch::Cuda::synchronize(index as i64);
        }
        Instant::now()
    }

    /// One step with the times before, between and after its parts.
    fn run(&mut self) -> (Vec<Instant>, Cost) {
        let mut marks = vec![Self::mark(self.device)];
        let input = Input { images: &self.images, targets: &self.targets, at: Progress::default() };
        let done = self
            .step
            .run(input, 1e-5, false, None, |_| marks.push(Self::mark(self.device)))
            .expect("peers");
        assert!(done.is_finite(), "{done:?}");
        (marks, done.cost)
    }

    /// Calls of one step that wait for the GPU, the marks between its parts left out.
    fn syncs(&mut self, steps: usize) -> f64 {
        if !self.device.is_cuda() {
            return 0.0;
        }
        let count = |n: usize, step: &mut Self| {
            torch::count_syncs(|| {
                for _ in 0..n {
                    step.run();
                }
            })
            .expect("libtorch's count of synchronisations")
            .1
        };
        let marks = torch::count_syncs(|| Self::mark(self.device))
            .expect("libtorch's count of synchronisations")
            .1 as f64;
        count(steps, self) as f64 / steps as f64 - 5.0 * marks
    }

    fn trace(&mut self, path: &std::path::Path) {
        let profile = Profile::start(self.device).expect("libtorch's profiler");
        for _ in 0..TRACED {
            self.run();
        }
        profile.write(path).expect("the trace");
    }
}

/// Drawn boxes of a batch.
fn truth(a: &Args) -> Vec<ImageBoxes> {
    let mut rng = stream(&[1]);
    let mut draw = |low: f64, high: f64| low + unit(&mut rng) * (high - low).max(1.0);
    let mut image = |_| {
        let mut drawn = ImageBoxes::default();
        for _ in 0..a.boxes {
            let (w, h) =
                (draw(16.0, 16.0 + 0.4 * a.width as f64), draw(16.0, 16.0 + 0.4 * a.height as f64));
            let (x, y) = (draw(0.0, a.width as f64 - w), draw(0.0, a.height as f64 - h));
            drawn.boxes.push([x as f32, y as f32, (x + w) as f32, (y + h) as f32]);
            drawn.labels.push(draw(0.0, 80.0) as i64);
        }
        drawn
    };
    (0..a.batch).map(&mut image).collect()
}

/// The middle of some numbers, which are sorted on the way.
fn middle(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Seconds of one plain all-reduce of the whole buffer by all ranks at once: the median of five.
fn bare_all_reduce(grads: &Tensor, world: &World) -> f64 {
    let mut times = vec![];
    for _ in 0..5 {
        world.barrier("bare").expect("peers");
        let began = Instant::now();
        // SAFETY: the buffer is contiguous and lives through the call.
        unsafe { world.all_reduce_raw(buffer_of(grads), Op::Sum, "bare") }.expect("peers");
        times.push(began.elapsed().as_secs_f64());
    }
    middle(&mut times)
}

/// Largest resident memory of this process, MiB.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) / 1024
}
