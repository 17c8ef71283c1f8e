//! Measures NMS of 5,000 candidates of one image, with 80 classes and with one. Prints a JSON line
//! for each.
#![expect(clippy::print_stdout, reason = "the results are JSON lines")]

use std::time::Instant;

use dw::data::sampler::{stream, unit};
use dw::eval::detect::{Detection, nms};
use serde_json::json;

fn main() {
    let mut rng = stream(&[5]);
    let mut draw = |high: f64| unit(&mut rng) * high;
    // Candidates are clustered around objects, as those of a network are.
    let objects: Vec<[f64; 4]> = (0..40)
        .map(|_| [draw(1200.0), draw(700.0), 20.0 + draw(300.0), 20.0 + draw(300.0)])
        .collect();
    let boxes: Vec<Detection> = (0..5000)
        .map(|_| {
            let [x, y, w, h] = objects[draw(40.0) as usize];
            let mut near = |v: f64, side: f64| v + (draw(0.4) - 0.2) * side;
            let (x1, y1, x2, y2) = (near(x, w), near(y, h), near(x + w, w), near(y + h, h));
            Detection {
                bbox: [x1, y1, x2, y2].map(|v| v as f32),
                score: draw(1.0) as f32,
                label: draw(80.0) as u32,
            }
        })
        .collect();
    for classes in [80, 1] {
        let boxes: Vec<Detection> =
            boxes.iter().map(|b| Detection { label: b.label % classes, ..*b }).collect();
        let (mut times, mut kept) = (vec![], 0);
        for _ in 0..21 {
            let began = Instant::now();
            kept = nms(&boxes, 0.6, true).len();
            times.push(began.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        let row = json!({
            "what": "dw nms",
            "boxes": boxes.len(),
            "classes": classes,
            "kept": kept,
            "ms_median": times[10],
        });
        println!("{row}");
    }
}
