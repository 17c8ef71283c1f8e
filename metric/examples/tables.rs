//! `tables GT DT [OPTION..]` with the options of `dw-eval coco`: all tables as little-endian f64, for comparison with others.
//!
//! Writes to stdout: precision, recall, scores, the 12 numbers, AP of each class.

use std::io::Write;

use clap::Parser;
use dw_metric::cli::Request;
use dw_metric::{Problem, evaluate, json};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    request: Request,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let r = Cli::parse().request;
    let mut warnings = vec![];
    let truth = json::truth(&r.gt, &mut warnings)?;
    let detections = json::results(&r.dt, &truth, &mut warnings)?;
    let problem = Problem {
        images: &truth.images,
        categories: &truth.categories,
        truth: &truth.boxes,
        detections: &detections,
    };
    let e = evaluate(&problem, &r.limits.params()?);
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
