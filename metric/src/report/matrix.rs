//! The confusion matrix: a table of shares, or with many classes a picture and the most frequent mistakes.

use std::io::Cursor;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, Rgba, RgbaImage};

use super::Run;
use super::format::{counted, short};
use super::names::labels;
use super::table::{Cell, Table, columns};
use crate::analysis::confusion::Confusion;

/// Classes up to which the matrix is a table.
const READABLE: usize = 24;
/// Mistakes listed.
const PAIRS: usize = 40;

/// A field of the matrix.
pub(super) struct Field {
    /// Percent of the row.
    pub text: String,
    /// 0 .. 1
    pub weight: String,
    pub strong: bool,
    pub diagonal: bool,
    pub title: String,
}

/// The matrix of one run.
pub(super) struct Matrix {
    pub title: String,
    pub threshold: String,
    pub heads: Vec<String>,
    /// Empty where the matrix is too large for a table.
    pub rows: Vec<(String, Vec<Field>)>,
    /// Data URL of a picture, where it is.
    pub picture: String,
    pub pairs: Table,
}

impl Matrix {
    /// Without background.
    pub(super) fn classes(&self) -> usize {
        self.heads.len() - 1
    }
}

/// The matrix of a run.
pub(super) fn matrix(run: &Run, id: usize) -> Matrix {
    let c = &run.analysis.confusion;
    let mut heads = labels(run.input.problem.categories, run.input.names);
    heads.push("background".into());
    let small = c.classes <= READABLE;
    Matrix {
        title: run.named("Confusion matrix"),
        threshold: short(run.analysis.threshold),
        rows: if small { rows(c, &heads) } else { vec![] },
        picture: if small { String::new() } else { picture(c) },
        pairs: pairs(c, &heads, id),
        heads,
    }
}

fn rows(c: &Confusion, heads: &[String]) -> Vec<(String, Vec<Field>)> {
    let row = |t: usize| {
        let sum = c.row_sum(t);
        let field = |f: usize| {
            let n = c.get(t, f);
            let share = if sum == 0 { 0.0 } else { n as f64 / sum as f64 };
            Field {
                text: if n == 0 { String::new() } else { format!("{:.0}", share * 100.0) },
                weight: format!("{share:.2}"),
                strong: share > 0.55,
                diagonal: t == f,
                title: format!("{} → {}: {}", heads[t], heads[f], counted(n, "box", "boxes")),
            }
        };
        (heads[t].clone(), (0..heads.len()).map(field).collect())
    };
    (0..heads.len()).map(row).collect()
}

/// One pixel a field, the more opaque the larger its share of the row; roots bring out the rare.
fn picture(c: &Confusion) -> String {
    let side = c.classes + 1;
    let mut out = RgbaImage::new(side as u32, side as u32);
    for t in 0..side {
        let sum = c.row_sum(t).max(1) as f64;
        for f in (0..side).filter(|f| c.get(t, *f) > 0) {
            let alpha = (c.get(t, f) as f64 / sum).sqrt() * 255.0;
            let [r, g, b] = if t == f { [0, 114, 178] } else { [213, 94, 0] };
            out.put_pixel(f as u32, t as u32, Rgba([r, g, b, alpha.ceil() as u8]));
        }
    }
    let mut png = Cursor::new(vec![]);
    match out.write_to(&mut png, ImageFormat::Png) {
        Ok(()) => format!("data:image/png;base64,{}", STANDARD.encode(png.into_inner())),
        Err(e) => {
            tracing::warn!("the report's confusion matrix is missing: {e}");
            String::new()
        }
    }
}

fn pairs(c: &Confusion, heads: &[String], id: usize) -> Table {
    let row = |&(t, f, n): &(usize, usize, usize)| {
        let share = format!("{:.1}", n as f64 / c.row_sum(t).max(1) as f64 * 100.0);
        (
            heads[t].clone(),
            vec![
                Cell { text: heads[f].clone(), class: "words" },
                n.to_string().into(),
                share.into(),
            ],
        )
    };
    Table {
        id: ["pairs-a", "pairs-b"][id % 2],
        caption: "Classes most often taken for another".into(),
        first: "true class",
        columns: columns(&[
            ("taken for", ""),
            ("boxes", ""),
            ("% of the class", "percent of the class’s ground truth"),
        ]),
        rows: c.pairs().iter().take(PAIRS).map(row).collect(),
    }
}
