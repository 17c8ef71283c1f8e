//! `metric GT DT`: evaluates a results file against a ground-truth file and prints the cost as
//! JSON: wall and CPU seconds of reading and of the metric, CPU seconds of the process, peak memory
//! in MB.
#![expect(clippy::print_stdout, reason = "the result")]

use std::path::Path;
use std::time::Instant;

use dw_metric::{MetricConfig, evaluate, json};

/// CPU seconds of this process (user and system) and its peak memory in MB.
fn usage() -> (f64, f64) {
    // SAFETY: a zeroed rusage is valid, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 * 1e-6;
    (seconds(usage.ru_utime) + seconds(usage.ru_stime), usage.ru_maxrss as f64 / 1024.0)
}

/// Runs `work` and records its wall and CPU seconds under `name`.
fn measure<T>(
    name: &str,
    out: &mut serde_json::Map<String, serde_json::Value>,
    work: impl FnOnce() -> T,
) -> T {
    let (cpu, wall) = (usage().0, Instant::now());
    let result = work();
    out.insert(name.into(), wall.elapsed().as_secs_f64().into());
    out.insert(format!("{name}_cpu"), (usage().0 - cpu).into());
    result
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, gt, dt] = &args[..] else { return Err("expected GT.json DT.json".into()) };
    let began = Instant::now();
    let mut out = serde_json::Map::new();
    let mut warnings = vec![];
    let truth = measure("truth", &mut out, || json::truth(Path::new(gt), &mut warnings))?;
    let detections =
        measure("results", &mut out, || json::results(Path::new(dt), &truth, &mut warnings))?;
    out.insert("rss_after_read_mb".into(), usage().1.into());
    let problem = truth.problem(&detections);
    let result = measure("evaluate", &mut out, || evaluate(&problem, &MetricConfig::default()));
    let named = measure("summarize", &mut out, || (result.named(), result.per_class()).0);
    out.insert("total".into(), began.elapsed().as_secs_f64().into());
    let (cpu, rss) = usage();
    out.insert("cpu".into(), cpu.into());
    out.insert("peak_rss_mb".into(), rss.into());
    out.insert("stats".into(), named.iter().map(|n| n.1).collect::<Vec<f64>>().into());
    println!("{}", serde_json::Value::Object(out));
    Ok(())
}
