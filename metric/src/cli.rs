//! The command line of `dw-eval coco`.
#![expect(clippy::print_stdout, reason = "the command line's results")]

use std::collections::HashMap;
use std::path::PathBuf;

use dw_base::text::{self, lines, shown};
use serde_json::{Map, Value, json};

use crate::coco::params::{Params, area_ranges, iou_thresholds, max_dets};
use crate::coco::types::Problem;
use crate::coco::{Evaluation, evaluate};
use crate::error::Result;
use crate::pictures::Pictures;
use crate::{json, report, threads};

/// Shown below the help of `dw-eval coco`.
pub const EXAMPLES: &str = "Examples:
  dw-eval coco --gt instances_val2017.json --dt results.json
  dw-eval coco --gt gt.json --dt dt.json --json --max-dets 10,300
  dw-eval coco --gt gt.json --dt dt.json --per-class --iou-thresholds 0.5:0.9:0.1 --area-ranges tiny:0..256,rest:256..inf
  dw-eval coco --gt gt.json --dt a.json --compare b.json --report page --images val2017

Exit codes: 0 done, 2 a mistake in the command, 3 bad data or a file that cannot be written, 5 no thread could be started";

/// A results file against a ground-truth file, with pycocotools' numbers.
#[derive(Debug, Clone, clap::Args)]
pub struct Request {
    /// Ground truth (instances_*.json)
    #[arg(long)]
    pub gt: PathBuf,
    /// Results: [{"image_id": .., "category_id": .., "bbox": [x, y, w, h], "score": ..}, ..]
    #[arg(long)]
    pub dt: PathBuf,
    /// Numbers as JSON, with AP of each class
    #[arg(long)]
    pub json: bool,
    /// A table of each class: AP, AP50, AP75, AR, numbers of boxes
    #[arg(long)]
    pub per_class: bool,
    /// What to evaluate
    #[command(flatten)]
    pub limits: Limits,
    /// Write a page for people: index.html in this folder
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Other results on the same ground truth, side by side with --dt
    #[arg(long, value_name = "DT2.json")]
    pub compare: Option<PathBuf>,
    /// Folder of the images, for the report's pictures
    #[arg(long, value_name = "DIR", requires = "report")]
    pub images: Option<PathBuf>,
    /// Take images also where a `file_name` or a link leads out of the folder of --images
    #[arg(long, requires = "images")]
    pub allow_outside: bool,
}

/// Thresholds and limits as typed.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Limits {
    /// Detections of an (image, class) that count; AP is at the last [default: 1,10,100]
    #[arg(long, value_name = "N,..")]
    pub max_dets: Option<String>,
    /// Areas in pixels beside `all` [default: small:0..1024,medium:1024..9216,large:9216..1e10]
    #[arg(long, value_name = "NAME:LOW..HIGH,..")]
    pub area_ranges: Option<String>,
    /// IoU thresholds, listed or as LOW:HIGH:STEP [default: 0.5:0.95:0.05]
    #[arg(long, value_name = "T,..")]
    pub iou_thresholds: Option<String>,
    /// Count matches with annotation id 0, which pycocotools loses
    #[arg(long)]
    pub count_id_zero: bool,
}

impl Limits {
    /// What the options ask for.
    ///
    /// # Errors
    /// Options that mean nothing.
    pub fn params(&self) -> Result<Params> {
        let mut p = Params { count_id_zero: self.count_id_zero, ..Params::default() };
        if let Some(text) = &self.max_dets {
            p.max_dets = max_dets(text)?;
        }
        if let Some(text) = &self.area_ranges {
            p.areas = area_ranges(text)?;
        }
        if let Some(text) = &self.iou_thresholds {
            p.iou = iou_thresholds(text)?;
        }
        Ok(p)
    }
}

/// Evaluates, prints, and writes the report. Whether the report can be written is found out first; when
/// that fails all the same, the numbers are printed before.
///
/// # Errors
/// Bad options, bad files, a report that cannot be written, threads that cannot be started.
pub fn run(r: &Request) -> Result<()> {
    let params = r.limits.params()?;
    r.report.as_deref().map_or(Ok(()), report::check)?;
    let folder = r.images.as_ref().map(|dir| Pictures::open(dir, r.allow_outside)).transpose()?;
    threads::start()?;
    let mut warnings = vec![];
    let truth = json::truth(&r.gt, &mut warnings)?;
    let mut results = vec![];
    for path in std::iter::once(&r.dt).chain(&r.compare) {
        results.push((path, json::results(path, &truth, &mut warnings)?));
    }
    let problem = |detections| Problem {
        images: &truth.images,
        categories: &truth.categories,
        truth: &truth.boxes,
        detections,
    };
    let problems: Vec<Problem> = results.iter().map(|(_, d)| problem(d)).collect();
    let found: Vec<Evaluation> = problems.iter().map(|p| evaluate(p, &params)).collect();
    warnings.extend(id_zero(&problems[0], &found[0]));
    for w in warnings {
        tracing::warn!("{}", lines(w));
    }
    let names = labels(&truth.names, &truth.categories);
    print(&found.iter().collect::<Vec<_>>(), &names, r.json, r.per_class);
    let Some(dir) = &r.report else { return Ok(()) };
    let files: HashMap<i64, &str> =
        truth.files.iter().filter_map(|f| Some((f.id, f.file_name.as_deref()?))).collect();
    let name = |id: i64| files.get(&id).map(|n| (*n).to_owned());
    let picture = |id: i64| folder.as_ref()?.get(files.get(&id)?);
    let (data, date) = (r.gt.display().to_string(), today());
    let titles: Vec<String> = results.iter().map(|(path, _)| path.display().to_string()).collect();
    let input = |i: usize| report::Input {
        title: &titles[i],
        data: &data,
        date: &date,
        facts: &[],
        problem: &problems[i],
        evaluation: &found[i],
        names: &names,
        image_names: Some(&name),
        pictures: if folder.is_some() { Some(&picture) } else { None },
    };
    let page = report::write(dir, &(0..results.len()).map(input).collect::<Vec<_>>())?;
    if let Some(w) = folder.as_ref().and_then(Pictures::warning) {
        tracing::warn!("{}", lines(w));
    }
    tracing::info!("report {}", lines(page.display()));
    Ok(())
}

/// Prints one evaluation, or two side by side, to standard output.
pub fn print(found: &[&Evaluation], names: &[String], json: bool, per_class: bool) {
    match found {
        [a, b] if json => {
            let both = json!({"a": as_json(a, names), "b": as_json(b, names)});
            println!("{}", text::json(&both.to_string()));
        }
        [a, b] => println!("{}", side_by_side(a, b, names, per_class)),
        _ => {
            for e in found {
                if json {
                    println!("{}", text::json(&as_json(e, names).to_string()));
                } else {
                    println!("{}", as_text(e, names, per_class));
                }
            }
        }
    }
}

/// Today's date in UTC, as 2026-01-31.
pub fn today() -> String {
    let mut text = [0u8; 11];
    // SAFETY: both structures live through the calls, and the format writes ten characters and a zero.
    let n = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut parts: libc::tm = std::mem::zeroed();
        libc::gmtime_r(&raw const now, &raw mut parts);
        libc::strftime(text.as_mut_ptr().cast(), text.len(), c"%Y-%m-%d".as_ptr(), &raw const parts)
    };
    String::from_utf8_lossy(&text[..n]).into_owned()
}

/// What annotation id 0 does to AP: only where there is one is the problem evaluated twice.
pub fn id_zero(problem: &Problem, result: &Evaluation) -> Option<String> {
    if problem.truth.iter().all(|g| g.id != 0) {
        return None;
    }
    let counted = result.params.count_id_zero;
    let other = evaluate(problem, &Params { count_id_zero: !counted, ..result.params.clone() });
    let (lost, kept) = if counted { (&other, result) } else { (result, &other) };
    let (lost, kept) = (lost.ap(None, 0, None), kept.ap(None, 0, None));
    let which = if counted {
        "here it counts (--count-id-zero)"
    } else {
        "so do these numbers; --count-id-zero counts it"
    };
    Some(format!(
        "an annotation has id 0: pycocotools loses its match, and {which}: AP {lost:.6} without, {kept:.6} with\nhint: number annotations from 1"
    ))
}

/// Names that are all different: a repeated one gets its id.
pub fn labels(names: &[String], categories: &[i64]) -> Vec<String> {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for name in names {
        *seen.entry(name).or_default() += 1;
    }
    let repeated = |n: &String| seen[n.as_str()] > 1;
    let label = |(name, id): (&String, &i64)| {
        if repeated(name) { format!("{name} (id {id})") } else { name.clone() }
    };
    names.iter().zip(categories).map(label).collect()
}

/// The numbers and AP of each class; floats in the shortest form that reads back the same.
pub fn as_json(result: &Evaluation, names: &[String]) -> Value {
    let mut out: Map<String, Value> =
        result.named().into_iter().map(|(name, value)| (name, json!(value))).collect();
    let classes: Map<String, Value> =
        names.iter().cloned().zip(result.per_class()).map(|(n, v)| (n, json!(v))).collect();
    out.insert("per_class".into(), Value::Object(classes));
    Value::Object(out)
}

/// The numbers, and a table of each class if asked for.
pub fn as_text(result: &Evaluation, names: &[String], per_class: bool) -> String {
    let named = result.named();
    let width = named.iter().map(|n| n.0.len()).max().unwrap_or(0).max(6);
    let mut lines: Vec<String> =
        named.iter().map(|(name, value)| format!("{name:<width$} {value:.4}")).collect();
    if per_class {
        let rows = names.iter().zip(result.class_rows()).map(|(name, row)| {
            let mut cells = vec![shown(name).to_string()];
            cells.extend([row.ap, row.ap50, row.ap75, row.ar].map(number));
            cells.extend([row.truth, row.crowds, row.detections].map(|n| n.to_string()));
            cells
        });
        lines.push(format!(
            "\n{}",
            table(&["class", "AP", "AP50", "AP75", "AR", "truth", "crowds", "detections"], rows)
        ));
    }
    lines.join("\n")
}

/// Two evaluations and what the second has more.
fn side_by_side(a: &Evaluation, b: &Evaluation, names: &[String], per_class: bool) -> String {
    let row = |name: String, a: f64, b: f64| {
        let delta = if a < 0.0 || b < 0.0 { "-".to_owned() } else { format!("{:+.4}", b - a) };
        vec![name, number(a), number(b), delta]
    };
    let header = ["", "A", "B", "B - A"];
    let mut tables = vec![table(
        &header,
        a.named().into_iter().zip(b.named()).map(|((n, a), (_, b))| row(n, a, b)),
    )];
    if per_class {
        let rows = names.iter().zip(a.per_class().into_iter().zip(b.per_class()));
        tables.push(table(&header, rows.map(|(n, (a, b))| row(shown(n).to_string(), a, b))));
    }
    tables.join("\n\n")
}

fn number(v: f64) -> String {
    if v < 0.0 { "-".to_owned() } else { format!("{v:.4}") }
}

fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(comfy_table::CellAlignment::Right);
    }
    table.to_string()
}
