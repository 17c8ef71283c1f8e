//! Parses one annotation file; prints seconds and peak memory in MiB as a JSON line.
#![expect(clippy::print_stdout, reason = "result of a benchmark")]

use std::time::Instant;

use clap::Parser;
use serde_json::json;

#[derive(Parser)]
struct Args {
    /// instances_*.json
    #[arg(long)]
    annotations: std::path::PathBuf,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let a = Args::parse();
    let start = Instant::now();
    let coco = dw_shards::coco::read(&a.annotations).unwrap_or_else(|e| panic!("{e}"));
    let seconds = start.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    let peak_mib =
        peak.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) / 1024;
    println!(
        "{}",
        json!({"what": "dw json", "seconds": seconds, "peak_mib": peak_mib,
               "images": coco.images.len(), "annotations": coco.annotations.len()})
    );
}
