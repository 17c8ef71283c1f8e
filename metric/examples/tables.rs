//! Writes all tables of an evaluation (precision, recall, scores, the 12 numbers, AP of each class)
//! to standard output as little-endian f64, for comparison with other implementations. Takes the
//! options of `dw-eval coco`.

use std::io::Write;

use clap::Parser;
use dw_metric::cli::CocoArgs;
use dw_metric::{evaluate, json};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: CocoArgs,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Cli::parse().args;
    let mut warnings = vec![];
    let truth = json::truth(&args.gt, &mut warnings)?;
    let detections = json::results(&args.dt, &truth, &mut warnings)?;
    let e = evaluate(&truth.problem(&detections), &args.limits.config()?);
    let summary: Vec<f64> = e.summary().named().iter().map(|n| n.1).collect();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for table in [e.precision(), e.recall(), e.scores(), summary, e.per_class()] {
        for v in table {
            out.write_all(&v.to_le_bytes())?;
        }
    }
    out.flush()?;
    Ok(())
}
