//! Measures the data loader without training, from the records of a packed split to network inputs.
//! Prints one JSON line.
#![expect(clippy::print_stdout, reason = "the result is a JSON line")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use dw::assign::AssignConfig;
use dw::data::DataConfig;
use dw::data::loader::BatchSettings;
use dw::data::{Dataset, Loader};
use dw::model::Params;
use serde_json::json;
use tch::{Device, Kind};

#[derive(Parser)]
struct Args {
    #[arg(long)]
    data: PathBuf,
    #[arg(long, default_value = "train2017")]
    split: String,
    #[arg(long, default_value_t = 800)]
    short_side: u32,
    #[arg(long, default_value_t = 1333)]
    long_side: u32,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[arg(long, default_value_t = 128)]
    steps: usize,
    /// Passed by `cargo bench`; ignored.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let a = Args::parse();
    let dataset =
        Arc::new(Dataset::open(&a.data, &a.split, 0, true).unwrap_or_else(|e| panic!("{e}")));
    let data =
        DataConfig { short_side: a.short_side, long_side: a.long_side, ..DataConfig::default() };
    let mut params = Params::new(Kind::Float, Device::Cpu);
    let matcher =
        AssignConfig::default().build(&mut params, dataset.categories().len() as i64).matcher;
    let recipe = BatchSettings {
        data,
        matcher,
        seed: 0,
        global_batch: 2,
        rank: 0,
        world_size: 1,
        parts: 1,
        device: Device::Cpu,
    };
    // For each pass: images per second, images per CPU second, seconds to the first batch.
    let mut rates = vec![];
    for _ in 0..3 {
        let (start, cpu) = (Instant::now(), cpu_s());
        let mut loader = Loader::start(&dataset, &recipe, 0..a.steps, a.threads, 4)
            .unwrap_or_else(|e| panic!("{e}"));
        let (mut images, mut first) = (0, 0.0);
        while let Some(batch) = loader.next_batch() {
            images += batch.unwrap_or_else(|e| panic!("{e}")).image_ids.len();
            if first == 0.0 {
                first = start.elapsed().as_secs_f64();
            }
        }
        let images = images as f64;
        rates.push((images / start.elapsed().as_secs_f64(), images / (cpu_s() - cpu), first));
    }
    rates.sort_by(|a, b| a.0.total_cmp(&b.0));
    let row = json!({
        "what": "dw loader",
        "short_side": a.short_side,
        "threads": a.threads,
        "images_per_s": rates[1].0,
        "lowest": rates[0].0,
        "highest": rates[2].0,
        "images_per_cpu_s": rates[1].1,
        "first_batch_s": rates[1].2,
    });
    println!("{row}");
}

/// CPU time of this process so far in seconds.
fn cpu_s() -> f64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call fills the structure; all zeros is a valid value of it.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
