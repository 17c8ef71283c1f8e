//! The confusion matrix: a table, or with many classes an image, and the most frequent confusions.

use std::io::Cursor;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::{ImageFormat, Rgba, RgbaImage};

use super::format::{counted, short};
use super::run::Run;
use super::table::{Cell, Table, columns};
use crate::analysis::confusion::Confusion;

/// Number of classes up to which the matrix is a table.
const MAX_TABLE: usize = 24;
/// Maximum number of listed confusions.
const MAX_PAIRS: usize = 40;

/// A cell of the matrix.
pub(super) struct Field {
    /// Percent of the row; empty for 0.
    pub text: String,
    /// Fraction of the row, 0..1.
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
    /// Names and cells of the rows; empty if the matrix is too large for a table.
    pub rows: Vec<(String, Vec<Field>)>,
    /// Data URL of an image if the matrix is too large for a table, else empty.
    pub picture: String,
    pub pairs: Table,
}

impl Matrix {
    /// Number of classes without background.
    pub(super) fn classes(&self) -> usize {
        self.heads.len() - 1
    }
}

/// The matrix of a run.
pub(super) fn matrix(run: &Run, id: usize) -> Matrix {
    let c = &run.analysis.confusion;
    let mut heads = run.labels.clone();
    heads.push("background".into());
    let small = c.classes <= MAX_TABLE;
    Matrix {
        title: run.named("Confusion matrix"),
        threshold: short(run.analysis.threshold),
        rows: if small { rows(c, &heads) } else { vec![] },
        picture: if small { String::new() } else { picture(c) },
        pairs: pairs(c, &heads, id),
        heads,
    }
}

/// The rows of the table.
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

/// Data URL of a PNG image with one pixel per cell. Opacity is the square root of the fraction of
/// the row, so that rare confusions are visible.
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
            tracing::warn!("cannot encode the report's confusion matrix: {e}");
            String::new()
        }
    }
}

/// The most frequent confusions.
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
        caption: "Most frequent confusions".into(),
        first: "true class",
        columns: columns([
            ("detected as", ""),
            ("boxes", ""),
            ("% of the class", "percent of the true class’s ground truth"),
        ]),
        rows: c.pairs().iter().take(MAX_PAIRS).map(row).collect(),
    }
}
