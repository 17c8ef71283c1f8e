//! Writes a report of synthetic detections:
//! `cargo run --release -p dw-metric --example report -- GT.json FOLDER_OF_IMAGES OUT [--compare]`.
//!
//! The detections are the ground truth with shifts, wrong classes, duplicates, misses and false
//! positives.

use std::path::Path;

use dw_metric::report::{self, Input};
use dw_metric::{Detection, MetricConfig, evaluate, json};

/// A random number generator (splitmix64).
struct Random(u64);

impl Random {
    /// A number in 0..1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Synthetic detections; more `noise` gives more errors.
fn synthesize(truth: &json::Truth, noise: f64, seed: u64) -> Vec<Detection> {
    let mut r = Random(seed);
    let mut out = vec![];
    for g in truth.boxes.iter().filter(|g| !g.crowd) {
        let [x, y, w, h] = g.bbox;
        let ease = (w * h).sqrt() / 200.0;
        while r.next() > 0.25 * noise {
            let mut shift = |side: f64| side * (r.next() - 0.5) * 0.5 * noise;
            let bbox = [x + shift(w), y + shift(h), w + shift(w), h + shift(h)];
            let wrong = r.next() < 0.12 * noise;
            let category_id = if wrong {
                truth.categories[(r.next() * truth.categories.len() as f64) as usize]
            } else {
                g.category_id
            };
            let score =
                (0.35 + 0.4 * ease.min(1.0) + 0.5 * (r.next() - 0.5) * noise).clamp(0.02, 0.99);
            out.push(Detection { image_id: g.image_id, category_id, bbox, score });
            if r.next() > 0.2 * noise {
                break;
            }
        }
    }
    for &image_id in &truth.images {
        for _ in 0..(r.next() * 6.0 * noise) as usize {
            let bbox = [
                r.next() * 400.0,
                r.next() * 300.0,
                20.0 + r.next() * 150.0,
                20.0 + r.next() * 150.0,
            ];
            let category_id = truth.categories[(r.next() * truth.categories.len() as f64) as usize];
            out.push(Detection { image_id, category_id, bbox, score: r.next() * 0.6 });
        }
    }
    out
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [gt, folder, out, rest @ ..] = &args[..] else {
        return Err("expected GT.json FOLDER OUT [--compare]".into());
    };
    let truth = json::truth(Path::new(gt), &mut vec![])?;
    let name = |id: i64| truth.files.iter().find(|f| f.id == id)?.file_name.clone();
    let picture = |id: i64| Some(image::open(Path::new(folder).join(name(id)?)).ok()?.to_rgb8());
    let config = MetricConfig::default();
    let found = [synthesize(&truth, 1.0, 1), synthesize(&truth, 0.6, 2)];
    let problems = [truth.problem(&found[0]), truth.problem(&found[1])];
    let evaluations = [evaluate(&problems[0], &config), evaluate(&problems[1], &config)];
    let facts = [("Checkpoint".to_string(), "none (synthetic detections)".to_string())];
    let input = |i: usize| Input {
        title: ["noisy detections", "less noisy detections"][i],
        data: gt,
        date: "",
        facts: &facts,
        problem: &problems[i],
        evaluation: &evaluations[i],
        names: &truth.names,
        image_names: Some(&name),
        pictures: Some(&picture),
    };
    let inputs = [input(0), input(1)];
    let n = if rest.iter().any(|a| a == "--compare") { 2 } else { 1 };
    report::write(Path::new(out), &inputs[..n])?;
    Ok(())
}
