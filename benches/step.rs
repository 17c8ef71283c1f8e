//! One training step on prepared images: forward, loss, backward with its all-reduce, SGD; prints one JSON line.
//!
//! The same network, sizes and number of boxes as the peer measured beside it. Under mpirun the ranks add their gradients as
//! in training; `--apart` leaves them independent of each other, but for starting together.
#![expect(clippy::print_stdout, reason = "the result")]

use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use dw::app;
use dw::assign::dw::{CenterPrior, Inputs, terms};
use dw::assign::{DwConfig, PairsBuilder};
use dw::boxes::level_sizes;
use dw::config::{self, TrainConfig};
use dw::data::sampler::{stream, unit};
use dw::device::{self, Choice};
use dw::loss::reduce;
use dw::model::Detector;
use dw::train::buckets::{Buckets, buffer_of};
use dw::train::flat::Flat;
use dw::train::{sgd, to_device};
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
    threads: i32,
    /// Device: auto, cpu or cuda
    #[arg(long, value_enum, default_value = "cpu")]
    device: Choice,
    /// Ranks that do not add their gradients: what several processes cost each other without any communication
    #[arg(long)]
    apart: bool,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    dw_launch::prepare();
    let a = Args::parse();
    tch::set_num_threads(a.threads);
    dw::torch::flush_denormals();
    tch::manual_seed(0);
    let device = device::pick(a.device, &Topology::from_env()).expect("the device");
    let mut net = Detector::new(&config::load(&a.config, &[]).expect("a configuration").model, 80, Kind::Float, device);
    let mut flat = Flat::new(&mut net.params);
    let images = to_device(&Tensor::rand([a.batch, 3, a.height, a.width], (Kind::Float, Device::Cpu)), device, Kind::Float);
    let (sizes, rule) = (level_sizes(a.height, a.width), DwConfig::default());
    let mut rng = stream(&[1]);
    let mut draw = |low: f64, high: f64| low + unit(&mut rng) * (high - low).max(1.0);
    let mut builder = PairsBuilder::new(&sizes, 80, &rule);
    for _ in 0..a.batch {
        let (mut boxes, mut labels) = (vec![], vec![]);
        for _ in 0..a.boxes {
            let (w, h) = (draw(16.0, 16.0 + 0.4 * a.width as f64), draw(16.0, 16.0 + 0.4 * a.height as f64));
            let (x, y) = (draw(0.0, a.width as f64 - w), draw(0.0, a.height as f64 - h));
            boxes.push([x as f32, y as f32, (x + w) as f32, (y + h) as f32]);
            labels.push(draw(0.0, 80.0) as i64);
        }
        builder.image(&boxes, &labels);
    }
    let pairs = builder.finish().tensors().to(Kind::Float, device);
    // What the host has enqueued counts when the device has done it.
    let mark = || {
        if let Device::Cuda(index) = device {
            tch::Cuda::synchronize(index as i64);
        }
        Instant::now()
    };
    let job = join(device, &mut None).expect("the other ranks");
    let world = if a.apart { Arc::new(World::solo()) } else { job.clone() };
    let mut buckets = Buckets::new(&net.params, &flat, &TrainConfig::default(), &world);
    job.barrier("start").expect("peers");
    let (mut times, mut parts, mut costs) = (vec![], [0.0; 4], vec![]);
    for n in 0..a.steps + 2 {
        let mut marks = vec![mark()];
        let out = net.forward(&images, true);
        let (cls, distances, objectness) = out.flatten();
        marks.push(mark());
        let (mean, sigma) = &net.head().prior;
        let prior = CenterPrior { mean, sigma };
        let inputs = Inputs { cls: &cls, distances: &distances, objectness: &objectness, pairs: &pairs, prior };
        let loss = reduce(&terms(&rule, &inputs).0, false, &world).expect("one process");
        marks.push(mark());
        let cost = buckets.backward(&loss.local).expect("peers");
        marks.push(mark());
        sgd::step(&mut flat, 1e-5, 0.9, 1e-4, 1.0);
        marks.push(mark());
        if n >= 2 {
            times.push((marks[4] - marks[0]).as_secs_f64());
            costs.push(cost.exposed_s);
            for (p, m) in parts.iter_mut().zip(marks.windows(2)) {
                *p += (m[1] - m[0]).as_secs_f64() / a.steps as f64;
            }
        }
    }
    let median = middle(&mut times);
    let ranks = world.size();
    let (count, alone) = buckets.facts();
    let exposed = middle(&mut costs);
    let bare = bare_all_reduce(&flat.grads, &world);
    job.barrier("end").expect("peers");
    if job.rank() > 0 {
        return job.leave(0);
    }
    let row = json!({"what": "dw step", "config": a.config, "batch": a.batch, "height": a.height, "width": a.width, "threads": a.threads, "device": format!("{device:?}"),
        "ranks": ranks, "apart": a.apart, "step_s_median": median, "step_s_min": times[0], "images_per_s": (a.batch * ranks as i64) as f64 / median, "forward_s": parts[0], "loss_s": parts[1],
        "backward_s": parts[2], "sgd_s": parts[3], "peak_mib": peak_mib(), "buckets": count, "gradient_mib": flat.grads.numel() as f64 / 262_144.0,
        "comm_exposed_s": exposed, "comm_alone_s": alone, "comm_hidden": 1.0 - exposed / alone.max(1e-12), "bare_all_reduce_s": bare});
    println!("{row}");
    job.leave(0);
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
