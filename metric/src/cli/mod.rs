//! The command `dw-eval coco`: reads both files, evaluates, prints, writes the report.

mod intervals;
mod options;
mod output;

use std::collections::HashMap;
use std::path::Path;

use dw_base::Result;
use dw_base::text::lines;
use image::RgbImage;

pub use options::{CocoArgs, EXAMPLES, Limits};
pub use output::{as_json, as_text, labels, print};

use crate::coco::config::MetricConfig;
use crate::coco::evaluate;
use crate::coco::evaluation::Evaluation;
use crate::coco::types::{Detection, Problem};
use crate::json::Truth;
use crate::pictures::Pictures;
use crate::{json, report, threads};

/// Evaluates, prints the numbers, and writes the report. A report that cannot be written is
/// detected before the evaluation where possible; a later failure does not suppress the numbers.
///
/// # Errors
/// Invalid options, invalid files, a report that cannot be written, threads that cannot be started.
pub fn run(args: &CocoArgs) -> Result<()> {
    let config = args.limits.config()?;
    args.report.as_deref().map_or(Ok(()), report::check)?;
    let images = args.images.as_ref().map(|dir| Pictures::open(dir, args.allow_outside));
    let images = images.transpose()?;
    threads::start()?;
    let mut warnings = vec![];
    let truth = json::truth(&args.gt, &mut warnings)?;
    let mut titles = vec![];
    let mut results: Vec<Vec<Detection>> = vec![];
    for path in std::iter::once(&args.dt).chain(&args.compare) {
        results.push(json::results(path, &truth, &mut warnings)?);
        titles.push(path.display().to_string());
    }
    let problems: Vec<Problem> = results.iter().map(|d| truth.problem(d)).collect();
    let evaluations: Vec<Evaluation> = problems.iter().map(|p| evaluate(p, &config)).collect();
    warnings.extend(id_zero_warning(&problems[0], &evaluations[0]));
    for w in warnings {
        tracing::warn!("{}", lines(w));
    }
    let names = labels(&truth.names, &truth.categories);
    let samples = args.limits.samples(&problems)?;
    let all: Vec<&Evaluation> = evaluations.iter().collect();
    let print = || print(&all, &samples, &names, args.json, args.per_class);
    let Some(dir) = &args.report else { return print() };
    let data = args.gt.display().to_string();
    let runs: Vec<report::Input> = titles
        .iter()
        .zip(problems.iter().zip(&evaluations))
        .map(|(title, (problem, evaluation))| report::Input {
            title,
            data: &data,
            date: "",
            facts: &[],
            problem,
            evaluation,
            names: &names,
            image_names: None,
            pictures: None,
        })
        .collect();
    // Before the numbers: a closed pipe on standard output ends the process.
    let written = write_report(dir, &runs, &truth, images.as_ref());
    print().and(written)
}

/// Writes the report of `runs` with today's date and the names and pictures of the images.
fn write_report(
    dir: &Path,
    runs: &[report::Input],
    truth: &Truth,
    images: Option<&Pictures>,
) -> Result<()> {
    let files: HashMap<i64, &json::Image> = truth.files.iter().map(|f| (f.id, f)).collect();
    let name = |id: i64| files.get(&id)?.file_name.clone();
    let picture = |id: i64| images?.get(files.get(&id)?);
    let picture: Option<&dyn Fn(i64) -> Option<RgbImage>> = images.is_some().then_some(&picture);
    let date = today();
    let runs: Vec<report::Input> = runs
        .iter()
        .map(|r| report::Input { date: &date, image_names: Some(&name), pictures: picture, ..*r })
        .collect();
    let page = report::write(dir, &runs)?;
    if let Some(w) = images.and_then(Pictures::warning) {
        tracing::warn!("{}", lines(w));
    }
    tracing::info!("wrote the report to {}", lines(page.display()));
    Ok(())
}

/// Today's date in UTC, as 2026-01-31.
pub fn today() -> String {
    let mut text = [0u8; 11];
    // SAFETY: both structures outlive the calls; the format writes ten characters and a zero.
    let n = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut parts: libc::tm = std::mem::zeroed();
        libc::gmtime_r(&raw const now, &raw mut parts);
        libc::strftime(text.as_mut_ptr().cast(), text.len(), c"%Y-%m-%d".as_ptr(), &raw const parts)
    };
    String::from_utf8_lossy(&text[..n]).into_owned()
}

/// A warning about the effect of annotation id 0 on AP. A second evaluation takes place only if
/// there is such an annotation.
pub fn id_zero_warning(problem: &Problem, evaluation: &Evaluation) -> Option<String> {
    if problem.truth.iter().all(|g| g.id != 0) {
        return None;
    }
    let counted = evaluation.config.count_id_zero;
    let config = MetricConfig { count_id_zero: !counted, ..evaluation.config.clone() };
    let other = evaluate(problem, &config);
    let (without, with) = if counted { (&other, evaluation) } else { (evaluation, &other) };
    let (without, with) = (without.ap(None, 0, None), with.ap(None, 0, None));
    let which = if counted {
        "--count-id-zero counts it"
    } else {
        "these numbers do so too; use --count-id-zero to count it"
    };
    Some(format!(
        "an annotation has id 0: pycocotools drops its match, {which}: AP {without:.6} without, \
         {with:.6} with\nhint: number annotations from 1"
    ))
}
