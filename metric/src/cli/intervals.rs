//! Confidence intervals as text and as JSON.

use serde_json::{Map, Value, json};

use crate::coco::bootstrap::{Bootstrap, Interval, LEVEL, Samples};
use crate::coco::evaluation::Evaluation;

/// Heading of a column of intervals.
pub(super) const HEADING: &str = "95 % interval";

/// Describes how the intervals were computed.
pub(super) fn description(settings: Bootstrap) -> String {
    let Bootstrap { replicates, seed } = settings;
    format!(
        "95 % confidence interval, percentile bootstrap, {replicates} samples of the images with \
         replacement, seed {seed}"
    )
}

/// `[0.4081, 0.4219]`; a dash if undefined.
pub(super) fn text(interval: Option<Interval>) -> String {
    interval.map_or("-".into(), |i| format!("[{:.4}, {:.4}]", i.low, i.high))
}

/// `[-0.0012, +0.0101]`; a dash if undefined.
pub(super) fn signed_text(interval: Option<Interval>) -> String {
    interval.map_or("-".into(), |i| format!("[{:+.4}, {:+.4}]", i.low, i.high))
}

/// Whether the interval of a difference excludes 0.
pub(super) fn verdict(interval: Option<Interval>) -> &'static str {
    interval.map_or("-", |i| if i.excludes_zero() { "yes" } else { "no" })
}

/// `[low, high]`, null if undefined.
fn pair(interval: Option<Interval>) -> Value {
    interval.map_or(Value::Null, |i| json!([i.low, i.high]))
}

/// How the samples were drawn.
fn settings(samples: &Samples) -> Map<String, Value> {
    let Bootstrap { replicates, seed } = samples.settings;
    [
        ("replicates", json!(replicates)),
        ("seed", json!(seed)),
        ("resampled", json!("images")),
        ("level", json!(LEVEL)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into_iter()
    .collect()
}

/// The interval of each number and each class.
pub(super) fn as_json(samples: &Samples, names: &[String]) -> Value {
    let mut out = settings(samples);
    let numbers = samples.numbers.iter();
    out.extend(numbers.map(|(name, values)| (name.clone(), pair(Interval::of(values)))));
    let classes = names.iter().zip(&samples.categories);
    let classes: Map<String, Value> =
        classes.map(|(name, values)| (name.clone(), pair(Interval::of(values)))).collect();
    out.insert("per_class".into(), Value::Object(classes));
    Value::Object(out)
}

/// The difference of each number and each class, its interval, and whether that excludes 0.
pub(super) fn differences_as_json(
    (a, of_a): (&Evaluation, &Samples),
    (b, of_b): (&Evaluation, &Samples),
    names: &[String],
) -> Value {
    let difference = |a: f64, b: f64, of_a: &[f64], of_b: &[f64]| {
        let interval = Interval::of_difference(of_a, of_b);
        let value = (a >= 0.0 && b >= 0.0).then_some(b - a);
        json!({
            "b_minus_a": value,
            "interval": pair(interval),
            "excludes_zero": interval.map(Interval::excludes_zero),
        })
    };
    let mut out = settings(of_a);
    for ((name, a), (_, b)) in a.named().into_iter().zip(b.named()) {
        if let (Some(of_a), Some(of_b)) = (of_a.number(&name), of_b.number(&name)) {
            out.insert(name, difference(a, b, of_a, of_b));
        }
    }
    let values = a.per_class().into_iter().zip(b.per_class());
    let samples = of_a.categories.iter().zip(&of_b.categories);
    let classes: Map<String, Value> = names
        .iter()
        .zip(values.zip(samples))
        .map(|(name, ((a, b), (of_a, of_b)))| (name.clone(), difference(a, b, of_a, of_b)))
        .collect();
    out.insert("per_class".into(), Value::Object(classes));
    Value::Object(out)
}
