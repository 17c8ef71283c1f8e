//! Measures the loss of a strategy without a network, forward and backward, on random predictions
//! for two images of 800 x 1333. Prints one JSON line with time and memory for each number of
//! boxes.
//!
//! Box sizes are sampled from the annotations of real photos (`--annotations`), else log-uniformly.
#![expect(clippy::print_stdout, reason = "the results are JSON lines")]

use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use dw::assign::{ImageBoxes, Progress};
use dw::config::{self, Config};
use dw::data::sampler::{stream, unit};
use dw::device;
use dw::geometry::{BINS, Grid, STRIDES, distances_of_bins, level_sizes};
use dw::model::{ClassOutput, Distances, HeadKind, Outputs, Params};
use dw::train::step::loss_of;
use dw_launch::World;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

#[derive(Parser)]
struct Args {
    /// Numbers of boxes per image to measure
    #[arg(long, value_delimiter = ',', default_value = "7,40,300")]
    boxes: Vec<usize>,
    #[arg(long, default_value_t = 10)]
    steps: usize,
    #[arg(long, default_value_t = 2)]
    threads: i32,
    /// Built-in configurations whose strategies are measured
    #[arg(long, value_delimiter = ',', default_value = "smoke")]
    configs: Vec<String>,
    /// Set one key, as assign.kind=fcos or assign.formula=paper (may be repeated)
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
    /// File instances_*.json of COCO to sample box sizes from
    #[arg(long)]
    annotations: Option<PathBuf>,
    /// Passed by `cargo bench`; ignored.
    #[arg(long, hide = true)]
    bench: bool,
}

const IMAGES: i64 = 2;
const CLASSES: i64 = 80;
/// 800 x 1333, padded to a multiple of 32.
const SIZE: (i64, i64) = (800, 1344);

fn main() {
    let a = Args::parse();
    tch::set_num_threads(a.threads);
    dw_torch::flush_denormals();
    tch::manual_seed(0);
    let shapes = shapes(a.annotations.as_deref());
    for name in &a.configs {
        let config = config::load(name, &a.set).expect("a configuration");
        for boxes in &a.boxes {
            let mut row = measure(*boxes, &shapes, &config, a.steps);
            row["config"] = json!(name);
            println!("{row}");
        }
    }
}

/// Widths and heights of boxes, relative to the image.
fn shapes(annotations: Option<&std::path::Path>) -> Vec<(f64, f64)> {
    let Some(path) = annotations else {
        let mut rng = stream(&[2]);
        return (0..1000)
            .map(|_| ((unit(&mut rng) * -4.0).exp(), (unit(&mut rng) * -4.0).exp()))
            .collect();
    };
    let json: Value =
        serde_json::from_slice(&std::fs::read(path).expect("annotations")).expect("JSON");
    let list = |key: &str| json[key].as_array().expect("a list").clone();
    let sizes: std::collections::HashMap<i64, (f64, f64)> = list("images")
        .iter()
        .map(|i| {
            (
                i["id"].as_i64().unwrap_or(0),
                (i["width"].as_f64().unwrap_or(1.0), i["height"].as_f64().unwrap_or(1.0)),
            )
        })
        .collect();
    let boxes = list("annotations");
    let shape = |b: &Value| {
        let (w, h) = sizes[&b["image_id"].as_i64()?];
        Some((b["bbox"][2].as_f64()? / w, b["bbox"][3].as_f64()? / h))
    };
    boxes.iter().filter(|b| b["iscrowd"] != 1).filter_map(shape).collect()
}

/// Random boxes of a batch, `count` in each image.
fn truth(count: usize, shapes: &[(f64, f64)]) -> Vec<ImageBoxes> {
    let (height, width) = (SIZE.0 as f64, 1333.0);
    let mut rng = stream(&[1]);
    let mut image = |_| {
        let one = |_| {
            let (w, h) = shapes[(unit(&mut rng) * shapes.len() as f64) as usize];
            let (w, h) = (w * width, h * height);
            let (x, y) = (unit(&mut rng) * (width - w), unit(&mut rng) * (height - h));
            (
                [x as f32, y as f32, (x + w) as f32, (y + h) as f32],
                (unit(&mut rng) * CLASSES as f64) as i64,
            )
        };
        let (boxes, labels) = (0..count).map(one).unzip();
        ImageBoxes { boxes, labels, padded: None }
    };
    (0..IMAGES).map(&mut image).collect()
}

/// Random outputs of a head, as leaves with gradients.
fn predictions(sizes: &[(i64, i64)], offset: f64, config: &Config) -> Outputs {
    let options = (Kind::Float, Device::Cpu);
    // One tensor for each level, as the head returns them.
    let levels = |channels: i64, make: &dyn Fn(Tensor, f64) -> Tensor| -> Vec<Tensor> {
        let shape = |(h, w): &(i64, i64)| [IMAGES, channels, *h, *w];
        let made = sizes
            .iter()
            .zip(STRIDES)
            .map(|(size, s)| make(Tensor::randn(shape(size), options), s as f64));
        made.map(|t| t.set_requires_grad(true)).collect()
    };
    let has_bins = config.model.distances == Distances::Distribution;
    let bins = if has_bins { levels(4 * BINS, &|t, _| t) } else { vec![] };
    let is_probability = config.model.head == HeadKind::Tood;
    Outputs {
        cls: levels(CLASSES, &|t, _| if is_probability { (t - 3.0).sigmoid() } else { t - 3.0 }),
        distances: if has_bins {
            bins.iter().zip(STRIDES).map(|(t, s)| distances_of_bins(t, s)).collect()
        } else {
            levels(4, &|t, stride| t.uniform(0.0, 8.0 * stride))
        },
        first: if config.model.head == HeadKind::Vfnet {
            levels(4, &|t, stride| t.uniform(0.0, 8.0 * stride))
        } else {
            vec![]
        },
        quality: if is_probability { vec![] } else { levels(1, &|t, _| t) },
        cls_is: if is_probability { ClassOutput::Probability } else { ClassOutput::Logit },
        bins,
        offset,
    }
}

/// Median times of the loss with `count` boxes in each image, and its peak memory.
fn measure(count: usize, shapes: &[(f64, f64)], config: &Config, steps: usize) -> Value {
    let images = truth(count, shapes);
    let sizes = level_sizes(SIZE.0, SIZE.1);
    let mut params = Params::new(Kind::Float, Device::Cpu);
    let strategy = config.assign.build(&mut params, CLASSES);
    let began = Instant::now();
    let offset = strategy.matcher.offset();
    let grid = Grid { sizes: sizes.to_vec(), offset };
    let targets = strategy.matcher.targets(&grid, &images);
    let matching_s = began.elapsed().as_secs_f64();
    // Late in the training, when no strategy is in its first phase.
    let at = Progress { epoch: 11, ..Progress::default() };
    let world = World::solo();
    let (mut times, mut peak) = (vec![], 0);
    for n in 0..steps + 2 {
        // The distances of distributions are part of the graph, so each step needs its own.
        let predicted = predictions(&sizes, offset, config);
        let before = reset_peak_mib();
        let began = Instant::now();
        let criterion = &*strategy.criterion;
        let loss = loss_of(criterion, &predicted, &targets, &at, &mut (), (false, &world))
            .expect("one process");
        let forward = began.elapsed().as_secs_f64();
        loss.local.backward();
        peak = peak.max(host_peak_mib() - before);
        if n >= 2 {
            times.push((began.elapsed().as_secs_f64(), forward));
        }
    }
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (total, forward) = times[times.len() / 2];
    json!({
        "what": "dw loss, 2 x 800 x 1333, 80 classes",
        "strategy": config.assign.summary(),
        "precision": "f32",
        "boxes": count,
        "step_s_median": total,
        "forward_s": forward,
        "matching_s": matching_s,
        "peak_mib": peak,
    })
}

/// Resets the peak resident memory of this process; returns the current resident memory in MiB.
fn reset_peak_mib() -> u64 {
    std::fs::write("/proc/self/clear_refs", "5").expect("a Linux kernel");
    host_peak_mib()
}

/// Peak resident memory of this process in MiB.
fn host_peak_mib() -> u64 {
    device::peak_mib(Device::Cpu).expect("the CPU") as u64
}
